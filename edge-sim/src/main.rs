//! `edge-sim`: runs scenarios and seeds, and prints the results.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use edge_sim::scenario::Scenario;
use edge_sim::swarm::{self, Options, Phase};
use edge_sim::{Outcome, World, seeds, svg};

/// Simulates a fleet in virtual time.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one scenario and prints its summary.
    Run {
        /// Number of nodes; that of the scenario when absent.
        #[arg(long)]
        nodes: Option<u32>,
        /// Seed of all random decisions.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Scenario file, see edge-sim/scenarios.
        #[arg(long)]
        scenario: PathBuf,
        /// Writes a diagram of the run to this file.
        #[arg(long)]
        svg: Option<PathBuf>,
        /// Prints the summary as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Runs many small fleets under random mixtures of all faults.
    Seeds {
        /// How many.
        #[arg(long, default_value_t = 200)]
        count: u64,
        /// The first seed; the others follow it.
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Size of each fleet.
        #[arg(long, default_value_t = 20)]
        nodes: u32,
    },
    /// Opens real sessions to a real edge-cloud, all at once, then cuts all and lets them return.
    Swarm {
        /// Where edge-cloud enrols: mqtts://HOST:PORT, or https://HOST:PORT behind a broker.
        #[arg(long)]
        url: String,
        /// Join token with a use for each node: edge-cloud token create --uses N.
        #[arg(long)]
        token: Option<String>,
        /// Number of nodes.
        #[arg(long, default_value_t = 100)]
        nodes: u32,
        /// Folder of the nodes' identities, used again the next time.
        #[arg(long)]
        state: PathBuf,
        /// Seconds between connect and return in which the swarm is left alone.
        #[arg(long, default_value_t = 120)]
        quiet: u64,
        /// MQTT keepalive, seconds.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=1200))]
        keepalive: u64,
        /// Longest time of a phase, seconds.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// Process ids of edge-cloud and broker, whose memory is shown.
        #[arg(long, value_delimiter = ',')]
        cloud_pid: Vec<u32>,
        /// Prints one JSON object for each phase.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run {
            nodes,
            seed,
            scenario,
            svg,
            json,
        } => run(nodes, seed, &scenario, svg.as_deref(), json),
        Command::Seeds {
            count,
            first,
            nodes,
        } => run_seeds(count, first, nodes),
        Command::Swarm {
            url,
            token,
            nodes,
            state,
            quiet,
            keepalive,
            timeout,
            cloud_pid,
            json,
        } => {
            let options = Options {
                url,
                token,
                nodes,
                state,
                quiet: Duration::from_secs(quiet),
                keepalive: Duration::from_secs(keepalive),
                timeout: Duration::from_secs(timeout),
                cloud_pids: cloud_pid,
            };
            run_swarm(&options, json)
        }
    }
}

fn say(text: &str) {
    // A reader that has closed the pipe is not an error.
    std::io::stdout().write_all(text.as_bytes()).ok();
}

fn run(nodes: Option<u32>, seed: u64, file: &Path, svg: Option<&Path>, json: bool) -> ExitCode {
    let scenario = std::fs::read_to_string(file)
        .map_err(|error| error.to_string())
        .and_then(|text| Scenario::parse(&text))
        .and_then(|scenario| {
            let nodes = nodes.unwrap_or(scenario.nodes);
            let scenario = Scenario { nodes, ..scenario };
            scenario.check().map(|()| scenario)
        });
    let scenario = match scenario {
        Ok(scenario) => scenario,
        Err(error) => {
            say(&format!("{}: {error}\n", file.display()));
            return ExitCode::from(2);
        }
    };
    let nodes = scenario.nodes;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let outcome = World::new(scenario, seed).run();
    if json {
        say(&(outcome.json(&name, nodes, seed) + "\n"));
    } else {
        say(&outcome.text(&name, nodes, seed));
    }
    if let Some(path) = svg {
        let title = format!("{name}: {nodes} nodes, seed {seed}");
        if let Err(error) = std::fs::write(path, svg::draw(&title, &outcome.series)) {
            say(&format!("{}: {error}\n", path.display()));
            return ExitCode::from(2);
        }
    }
    let again = format!(
        "edge-sim run --nodes {nodes} --seed {seed} --scenario {}",
        file.display()
    );
    verdict(&outcome, &name, seed, &again)
}

fn run_seeds(count: u64, first: u64, nodes: u32) -> ExitCode {
    let mut events = 0;
    for seed in first..first.saturating_add(count) {
        let outcome = seeds::run(nodes, seed);
        events += outcome.stats.events;
        let again = format!("edge-sim seeds --count 1 --first {seed} --nodes {nodes}");
        let code = verdict(&outcome, "mixed", seed, &again);
        if code != ExitCode::SUCCESS {
            return code;
        }
    }
    say(&format!(
        "{count} seeds of {nodes} nodes, {events} events: all invariants hold\n"
    ));
    ExitCode::SUCCESS
}

fn run_swarm(options: &Options, json: bool) -> ExitCode {
    let report = |phase: &Phase| {
        let text = match json {
            true => serde_json::to_string(phase).unwrap_or_default(),
            false => phase.to_string(),
        };
        say(&(text + "\n"));
    };
    match swarm::run(options, report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("swarm: {error}\n"));
            ExitCode::from(1)
        }
    }
}

fn verdict(outcome: &Outcome, scenario: &str, seed: u64, again: &str) -> ExitCode {
    let Some(violation) = &outcome.violation else {
        return ExitCode::SUCCESS;
    };
    say(&format!(
        "VIOLATED: {}\n  seed {seed}, scenario {scenario}, at {}.{:03} s, node {}\n  replay: {again}\n",
        violation.what,
        violation.at_ms / 1000,
        violation.at_ms % 1000,
        violation.node,
    ));
    ExitCode::from(1)
}
