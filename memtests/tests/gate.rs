//! One gate end to end: real edge-cloud, TLS, MQTT, agent and processes.
#![cfg(test)]

use memtests::{Gate, scenario};

/// Goal: an end of the agent affects no workload. Method: see the scenario.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn killing_the_agent_restarts_and_duplicates_nothing() {
    let long = std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty());
    let rounds = if long { 100 } else { 9 };
    scenario::agent_killed(Gate::start("").unwrap(), rounds).unwrap();
}

/// Goal: the gate works alone. Method: see the scenario.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn without_a_cloud_everything_starts_again() {
    scenario::alone(Gate::start("").unwrap()).unwrap();
}

/// Goal: the end of the cloud affects nothing, and a change made afterwards arrives.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_restarted_cloud_touches_no_workload_and_goes_on() {
    scenario::cloud_restarted(Gate::start("").unwrap()).unwrap();
}

/// Goal: revocation acts on a live connection, and the node continues to work.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn revoking_a_node_ends_its_link_and_not_its_work() {
    scenario::revoked(&Gate::start("").unwrap()).unwrap();
}
