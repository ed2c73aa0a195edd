//! Goal: a change of one pod or node costs edge-cloud work for that node only. Method: the real
//! controller with its files, over 10,000 nodes and 50,000 pods from a source and nodes in memory;
//! CPU time of the thread from a change until its node got its set, or until the change of
//! its report was applied, as the median of many. Exit code 1 when one is over the bar.
//!
//! usage: one_change [--json]: figures as `scripts/bench` prints them

mod fleet;

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let json = std::env::args().any(|word| word == "--json");
    let figures = fleet::measure().await;
    for figure in &figures {
        if json {
            println!("{}", figure.json());
        } else {
            println!("{figure}");
        }
    }
    let ok = figures.iter().all(memtests::measure::Figure::ok);
    ExitCode::from(u8::from(!ok))
}
