//! Small fleets under random mixtures of all faults, and every scenario with few nodes.

#![cfg(test)]

use std::path::Path;

use edge_sim::scenario::Scenario;
use edge_sim::{Outcome, World, seeds};

const NODES: u32 = 20;
/// Seeds of a default run, and of one with EDGE_MIN_LONG=1.
const SEEDS: (u64, u64) = (200, 20_000);

fn is_long() -> bool {
    std::env::var("EDGE_MIN_LONG").is_ok_and(|value| value == "1")
}

fn scenarios() -> Vec<(String, Scenario)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        found.push((name, Scenario::parse(&text).unwrap()));
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

fn small(scenario: &Scenario) -> Scenario {
    let mut scenario = scenario.clone();
    scenario.nodes = scenario.nodes.min(60);
    scenario.seconds = scenario.seconds.min(3_600);
    scenario
}

#[test]
fn all_invariants_hold_under_random_mixtures_of_faults() {
    let count = if is_long() { SEEDS.1 } else { SEEDS.0 };
    let mut whole = edge_sim::Stats::default();
    for seed in 0..count {
        let Outcome {
            violation, stats, ..
        } = seeds::run(NODES, seed);
        assert_eq!(
            violation, None,
            "seed {seed}; replay: edge-sim seeds --count 1 --first {seed} --nodes {NODES}"
        );
        whole.add(&stats);
    }
    // A simulation without faults proves nothing.
    for (name, count) in whole.counts() {
        // Twenty nodes need not fill a queue or an outbox, and no clone is drawn.
        let rare = ["dropped", "records_lost", "twins", "twins_found"];
        let expected = !rare.contains(&name);
        assert!(count > 0 || !expected, "{name} never happened");
    }
}

#[test]
fn every_scenario_holds_with_few_nodes() {
    let found = scenarios();
    assert!(found.len() >= 9);
    for (name, scenario) in found {
        let outcome = World::new(small(&scenario), 1).run();
        assert_eq!(outcome.violation, None, "{name}");
        let stats = &outcome.stats;
        assert!(stats.connects >= 60, "{name}");
        assert_eq!(stats.twins_found, stats.twins, "{name}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for (name, scenario) in scenarios().into_iter().take(3) {
        let run = |seed| {
            let outcome = World::new(small(&scenario), seed).run();
            let picture = edge_sim::svg::draw(&name, &outcome.series);
            (outcome.json(&name, 60, seed), picture)
        };
        assert_eq!(run(7), run(7), "{name}");
        assert_ne!(run(7).0, run(8).0, "{name}");
    }
    let run = |seed| seeds::run(NODES, seed).json("mixed", NODES, seed);
    assert_eq!(run(3), run(3));
}
