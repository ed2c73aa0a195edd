//! `edge-sim swarm` against a real edge-cloud: its nodes join, connect, stay, and return.
#![cfg(test)]

use std::time::Duration;

use edge_sim::swarm::{self, Options, Phase};
use memtests::Gate;

/// Goal: every node of a swarm is live at the end of each phase, none is lost in peace, and the
/// return after a cut takes one attempt of each. Method: twelve nodes beside a gate, whose link is
/// not theirs; the second run finds their identities and needs no token.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_swarm_connects_stays_and_returns() {
    const NODES: u32 = 12;
    let gate = Gate::start("").unwrap();
    let token = gate
        .cloud_text(&["token", "create", "--uses", "12"])
        .unwrap();
    let mut options = Options {
        url: format!("mqtts://localhost:{}", gate.port()),
        token: None,
        nodes: NODES,
        state: gate.dir().join("swarm"),
        quiet: Duration::from_secs(1),
        keepalive: Duration::from_secs(60),
        patience: Duration::from_secs(60),
        cloud_pids: vec![std::process::id()],
    };
    let why = swarm::run(&options, |_| {}).unwrap_err();
    assert!(why.contains("--token"), "{why}");
    for token in [Some(token.trim().to_owned()), None] {
        options.token = token;
        let mut phases: Vec<Phase> = Vec::new();
        swarm::run(&options, |phase| phases.push(phase.clone())).unwrap();
        let names: Vec<_> = phases.iter().map(|phase| phase.phase).collect();
        assert_eq!(names, ["connect", "quiet", "return"]);
        for phase in &phases {
            println!("{phase}");
            assert_eq!((phase.live, phase.lost), (NODES, 0), "{phase}");
            assert!(phase.cloud_kib.is_some_and(|kib| kib > 0), "{phase}");
        }
        let attempts: Vec<_> = phases.iter().map(|phase| phase.attempts).collect();
        assert_eq!(attempts, [NODES, 0, NODES]);
        // Not even a resumed handshake is that short.
        for phase in [&phases[0], &phases[2]] {
            assert!(phase.bytes_per_node.is_some_and(|bytes| bytes > 500.0));
        }
    }
    for nodes in [0, swarm::NODES_MAX + 1] {
        options.nodes = nodes;
        let why = swarm::run(&options, |_| {}).unwrap_err();
        assert!(why.starts_with("--nodes"), "{why}");
    }
}
