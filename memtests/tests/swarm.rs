//! `edge-sim swarm` against a real edge-cloud: its nodes join, connect, stay, and return.
#![cfg(test)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge_sim::swarm::{self, Options, Phase};
use memtests::{Gate, STATE_TIMEOUT, Setup};

/// One edge-cloud at a time: two of them share the pages of their program, and PSS with it.
static CLOUD: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    CLOUD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Goal: every node of a swarm is live at the end of each phase, none is lost in the quiet phase, and the
/// return after a cut takes one attempt of each. Method: twelve nodes beside a gate, whose link is
/// not theirs; the second run finds their identities and needs no token.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_swarm_connects_stays_and_returns() {
    const NODES: u32 = 12;
    let _alone = alone();
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
        timeout: STATE_TIMEOUT,
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

/// Memory of edge-cloud for each node that is connected and idle, KiB.
const NODE_KIB_MAX: f64 = 24.0;

/// Goal: what a connected idle node costs edge-cloud, TLS included. Method: two swarms against one
/// edge-cloud, one of few nodes and one of many; the difference of its anonymous memory by that of the
/// nodes, after their first connect and after a return. What edge-cloud needs for itself is in both
/// measurements: the few are enough to touch all of the table of resumable TLS sessions, which has room for
/// all nodes from the start.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_connected_idle_node_fits_its_memory_budget() {
    const FEW: u32 = 200;
    const MANY: u32 = 1_200;
    let _alone = alone();
    let gate = Gate::set_up(Setup {
        cloud: ["--admissions", "1000"].map(str::to_owned).to_vec(),
        ..Setup::default()
    })
    .unwrap();
    let token = gate
        .cloud_text(&["token", "create", "--uses", "1200"])
        .unwrap();
    let options = |nodes| Options {
        url: format!("mqtts://localhost:{}", gate.port()),
        token: Some(token.trim().to_owned()),
        nodes,
        state: gate.dir().join("swarm"),
        quiet: Duration::from_secs(1),
        keepalive: Duration::from_secs(60),
        timeout: STATE_TIMEOUT,
        cloud_pids: vec![gate.cloud_pid().unwrap()],
    };
    let measure = |nodes| {
        let mut phases: Vec<Phase> = Vec::new();
        swarm::run(&options(nodes), |phase| phases.push(phase.clone())).unwrap();
        for phase in &phases {
            println!("{phase}");
            assert_eq!(phase.live, nodes, "{phase}");
        }
        let kib = |phase: &str| {
            let phase = phases.iter().find(|one| one.phase == phase).unwrap();
            phase.cloud_kib.unwrap() as f64
        };
        (kib("quiet"), kib("return"))
    };
    let (few, many) = (measure(FEW), measure(MANY));
    let nodes = f64::from(MANY - FEW);
    let (quiet, returned) = ((many.0 - few.0) / nodes, (many.1 - few.1) / nodes);
    println!("a node: {quiet:.1} KiB connected, {returned:.1} KiB after a return");
    // A measurement without an effect is invalid.
    assert!(quiet > 4.0, "{quiet:.1} KiB");
    assert!(quiet <= NODE_KIB_MAX && returned <= NODE_KIB_MAX);
}
