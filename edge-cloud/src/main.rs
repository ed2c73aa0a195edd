//! `edge-cloud`: parses the command line, runs the command, exits with its code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use edge_cloud::cli::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let mut out = std::io::stdout();
    match run(Cli::parse(), &mut out).await {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => {
            // With standard error gone there is nobody left to tell.
            let _told = writeln!(std::io::stderr(), "edge-cloud: {error}");
            ExitCode::from(error.exit() as u8)
        }
    }
}
