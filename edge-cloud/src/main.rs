//! `edge-cloud`: parses the command line, runs the command, exits with its code.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use edge_cloud::cli::{Cli, Exit, run};

/// Longest wait at the end for work that cannot be cancelled: a read of a dead network file system may never
/// return.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _closed = writeln!(std::io::stderr(), "edge-cloud: threads: {error}");
            return ExitCode::from(Exit::Failed as u8);
        }
    };
    let mut out = std::io::stdout();
    let result = runtime.block_on(run(cli, &mut out));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    match result {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => {
            let code = error.exit() as u8;
            let error = error.to_string();
            // Added to the kernel's error for files of another user.
            let hint = match error.contains("(os error 13)") {
                true => "; run it as the user whose data this is",
                false => "",
            };
            // If standard error is closed, the message is lost.
            let _closed = writeln!(std::io::stderr(), "edge-cloud: {error}{hint}");
            ExitCode::from(code)
        }
    }
}
