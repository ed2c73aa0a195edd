//! `edge-min`: parses, loads, wires, runs. All testable code is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("launch") => edge_min::workload::launch::main(),
        Some("state-cache") => edge_min::storage::store::cache::main(),
        _ => edge_min::cli::main(),
    }
}
