use std::path::Path;
use std::sync::mpsc;
use std::thread;

use edge_proto::lanes::Limits;
use edge_proto::limits::WIRE_VERSION;

use super::*;
use crate::identity::ExternalBroker;
use crate::identity::ca::{Ca, NODE_VALIDITY_S};
use crate::identity::enrol::CertificateTimes;
use crate::identity::peer::Peer;
use crate::identity::registry::Enrolment;
use crate::nodes::{DesiredSets as _, EventLog as _};
use crate::placement::Desired;
use crate::sessions::replacement::REPLACEMENTS_MAX;

fn open(data: &Path) -> Arc<Sessions> {
    let (ca, events) = (Ca::open(data).unwrap(), Arc::new(Events::default()));
    let identity = Identity::open(
        data,
        ca,
        None,
        CertificateTimes::default(),
        Arc::clone(&events),
    );
    Sessions::new(identity.unwrap(), events, Records::none())
}

/// The same behind an external broker.
fn open_behind_broker(data: &Path) -> Arc<Sessions> {
    let (ca, events) = (Ca::open(data).unwrap(), Arc::new(Events::default()));
    let broker = ExternalBroker {
        broker: edge_proto::enrol::Broker {
            url: "mqtts://broker".to_owned(),
            anchors: Vec::new(),
        },
        crl: None,
    };
    let identity = Identity::open(
        data,
        ca,
        Some(broker),
        CertificateTimes::default(),
        Arc::clone(&events),
    );
    Sessions::new(identity.unwrap(), events, Records::none())
}

/// Advances virtual time.
fn advance(sessions: &mut Arc<Sessions>, ms: u64) {
    Arc::get_mut(sessions).unwrap().start -= Duration::from_millis(ms);
}

/// Input of a node's carrier.
#[derive(Debug, PartialEq)]
enum Handed {
    Frame(Vec<u8>),
    Limits(Limits),
    Ticked(u64),
}

/// Records its inputs; a frame waits until its deadline.
struct Line {
    to: mpsc::Sender<Handed>,
    deadline: Option<u64>,
}

impl Carrier for Line {
    fn send(&mut self, _: u64, frame: Vec<u8>) {
        self.to.send(Handed::Frame(frame)).ok();
    }

    fn set_limits(&mut self, _: u64, limits: &Limits) {
        self.to.send(Handed::Limits(limits.clone())).ok();
    }

    fn tick(&mut self, now: u64) {
        if self.deadline.take_if(|at| *at <= now).is_some() {
            self.to.send(Handed::Ticked(now)).ok();
        }
    }

    fn deadline(&self) -> Option<u64> {
        self.deadline
    }
}

fn line() -> (Line, mpsc::Receiver<Handed>) {
    let (to, handed) = mpsc::channel();
    let deadline = None;
    (Line { to, deadline }, handed)
}

fn connect(sessions: &Sessions, peer: &Peer) -> Result<(u64, mpsc::Receiver<Handed>), Refused> {
    let (line, handed) = line();
    sessions.connect(peer, line).map(|id| (id, handed))
}

fn frames(handed: &mpsc::Receiver<Handed>) -> Vec<Frame> {
    let frames = handed.try_iter().filter_map(|one| match one {
        Handed::Frame(frame) => Frame::decode(&frame).ok(),
        _ => None,
    });
    frames.collect()
}

/// The first frame of a node.
fn hello() -> Vec<u8> {
    Frame::Hello {
        n: [1; 8],
        wire: WIRE_VERSION,
        kinds: 0,
        epoch: 0,
        desired_root: Default::default(),
        reported_root: Default::default(),
        agent: String::new(),
    }
    .encode()
}

/// A node that has joined, and its certificate.
fn join(sessions: &Sessions, node: &str) -> Peer {
    let enrolment = Enrolment {
        serial: format!("serial of {node}"),
        ..Enrolment::default()
    };
    let serial = enrolment.serial.clone();
    sessions.identity.registry().add(node, enrolment).unwrap();
    Peer {
        node: node.to_owned(),
        serial,
        issued_unix_s: unix_s(),
        expires_unix_s: unix_s() + NODE_VALIDITY_S,
    }
}

/// Goal: a node that is revoked or deleted while it connects gets no link. Method: the connection
/// has begun when the registry changes, and continues afterwards.
#[test]
fn a_node_that_is_refused_while_it_connects_gets_no_link() {
    let data = tempfile::tempdir().unwrap();
    let sessions = open(data.path());
    for round in 0..20 {
        let name = format!("gate-{round}");
        let peer = join(&sessions, &name);
        let state = sessions.lock();
        let (begun, begins) = mpsc::channel();
        let connecting = {
            let sessions = Arc::clone(&sessions);
            let connects = move || {
                begun.send(()).unwrap();
                connect(&sessions, &peer).is_ok()
            };
            let builder = thread::Builder::new().stack_size(256 * 1024);
            builder.spawn(connects).unwrap()
        };
        begins.recv().unwrap();
        for _ in 0..100 {
            thread::yield_now();
        }
        let found = match round % 2 {
            0 => sessions.identity.registry().revoke(&name, unix_s()),
            _ => sessions.identity.registry().delete(&name, unix_s()),
        };
        assert!(found.unwrap());
        drop(state);
        assert!(!connecting.join().unwrap(), "round {round}");
    }
}

/// Goal: a single board on a bad network is not a clone. Method: frames that still arrive through its old
/// connection were sent before the probe; only the `Hello` of an answer counts, also one of an unsupported
/// wire version.
#[test]
fn only_an_answer_proves_a_clone() {
    let mut newer = hello();
    newer[0] = WIRE_VERSION + 1;
    for answer in [hello(), newer] {
        proves_a_clone(&answer);
    }
}

fn proves_a_clone(answer: &[u8]) {
    let data = tempfile::tempdir().unwrap();
    let sessions = open(data.path());
    let peer = join(&sessions, "gate");
    let cloned = || sessions.views().iter().any(|view| view.cloned);
    let mut live = connect(&sessions, &peer).unwrap();
    for _ in 0..REPLACEMENTS_MAX {
        live = connect(&sessions, &peer).unwrap();
    }
    let asks = |handed| {
        let probe = |frame: &Frame| matches!(frame, Frame::Probe { .. });
        frames(handed).into_iter().filter(probe).count()
    };
    asks(&live.1);
    assert_eq!(connect(&sessions, &peer).unwrap_err(), Refused::ForNow);
    assert_eq!(asks(&live.1), 1);
    sessions.frame("gate", live.0, &Frame::Gone { n: [1; 8] }.encode());
    sessions.frame("gate", live.0, &[]);
    assert_eq!(connect(&sessions, &peer).unwrap_err(), Refused::ForNow);
    assert!(!cloned(), "{:?}", sessions.events.events());
    sessions.frame("gate", live.0, answer);
    assert_eq!(connect(&sessions, &peer).unwrap_err(), Refused::ForNow);
    assert!(cloned());
}

/// Goal: when many open a session at once, each gets its own time, in the order of requests, and is
/// admitted then; a live one never waits. Method: one opening a second, ten nodes that request; time
/// passes only where the test advances it.
#[tokio::test(start_paused = true)]
async fn openings_at_once_are_admitted_one_after_the_other() {
    let data = tempfile::tempdir().unwrap();
    let sessions = open(data.path());
    sessions.set_openings(1);
    let nodes: Vec<_> = (0..10)
        .map(|number| {
            let name = format!("gate-{number}");
            let link = connect(&sessions, &join(&sessions, &name)).unwrap();
            (name, link)
        })
        .collect();
    let ask = |index: usize| {
        let (name, (id, handed)) = &nodes[index];
        sessions.frame(name, *id, &hello());
        frames(handed)
            .into_iter()
            .filter_map(|frame| match frame {
                Frame::RetryAfter { n, wait_ms, .. } => {
                    assert_eq!(n, [1; 8]);
                    Some(wait_ms)
                }
                Frame::Welcome { .. } => Some(0),
                _ => None,
            })
            .next_back()
            .unwrap()
    };
    let waits: Vec<u64> = (0..10).map(ask).collect();
    assert!(waits.iter().copied().eq((0..10).map(|turn| turn * 1_000)));
    // A repeated request neither loses its reservation nor takes another.
    tokio::time::advance(Duration::from_millis(900)).await;
    assert_eq!([ask(0), ask(9), ask(1)], [0, 8_100, 100]);
    tokio::time::advance(Duration::from_millis(100)).await;
    assert_eq!([ask(1), ask(2)], [0, 1_000]);
}

/// Goal: a node that joins again while it is deleted is kept. Method: the registry has it already
/// when the sessions remove it.
#[test]
fn a_node_that_joins_again_while_it_is_deleted_is_there() {
    let data = tempfile::tempdir().unwrap();
    let sessions = open(data.path());
    join(&sessions, "gate");
    sessions.joined("gate");
    sessions
        .identity
        .registry()
        .delete("gate", unix_s())
        .unwrap();
    join(&sessions, "gate");
    sessions.remove("gate");
    assert!(sessions.view("gate").is_some());
    sessions
        .identity
        .registry()
        .delete("gate", unix_s())
        .unwrap();
    sessions.remove("gate");
    assert!(sessions.view("gate").is_none());
}

/// Goal: the reader of a call is informed that its session has ended. Method: the first desired set creates
/// the session again while a call is open.
#[test]
fn a_first_set_ends_the_calls_of_the_session_before() {
    let data = tempfile::tempdir().unwrap();
    let sessions = open(data.path());
    let peer = join(&sessions, "gate");
    let _line = connect(&sessions, &peer).unwrap();
    let (reader, mut pieces) = tokio::sync::mpsc::channel(1);
    let mut state = sessions.lock();
    state.nodes.get_mut("gate").unwrap().calls.insert(1, reader);
    drop(state);
    sessions.set_desired("gate", &Desired::default());
    assert!(matches!(pieces.try_recv(), Ok(call::CallEvent::Failed(_))));
    assert!(sessions.lock().nodes["gate"].calls.is_empty());
}

/// Goal: a policy applies as soon as it is in the node's set, and no longer than that. Method: the
/// connection stays.
#[test]
fn a_policy_reaches_the_connection_that_is_there() {
    let data = tempfile::tempdir().unwrap();
    let sessions = open(data.path());
    let peer = join(&sessions, "gate");
    let (_, handed) = connect(&sessions, &peer).unwrap();
    let limits = || {
        let limits = handed.try_iter().filter_map(|one| match one {
            Handed::Limits(limits) => Some(limits),
            _ => None,
        });
        limits.collect::<Vec<_>>()
    };
    assert_eq!(limits(), [Limits::NONE]);
    let policy = edge_proto::object::NodePolicy {
        bandwidth_down: Some(900_000),
        ..Default::default()
    };
    let key = edge_proto::key::Key::Name(
        edge_proto::key::Kind::NodePolicy,
        String::new(),
        "node".to_owned(),
    );
    let set = Desired::from([(key, Arc::from(policy.encode()))]);
    sessions.set_desired("gate", &set);
    let limited = Limits {
        link_bits_per_s: 900_000,
        ..Limits::NONE
    };
    assert_eq!(limits(), std::slice::from_ref(&limited));
    // A later connection has it from the start.
    let (_, later) = connect(&sessions, &peer).unwrap();
    assert_eq!(later.try_iter().next(), Some(Handed::Limits(limited)));
    sessions.set_desired("gate", &set);
    assert!(limits().is_empty());
    sessions.set_desired("gate", &Desired::new());
    let last = later
        .try_iter()
        .filter(|one| *one == Handed::Limits(Limits::NONE));
    assert_eq!(last.count(), 1);
}

/// Goal: frames that wait for their rate at an external broker are sent at their time, and an event of one
/// node does not change the deadlines of the others. Method: a carrier that delays a frame for 50 ms,
/// beside a node that sends all the time, in virtual time.
#[tokio::test(start_paused = true)]
async fn a_deadline_of_a_connection_is_kept() {
    let data = tempfile::tempdir().unwrap();
    let sessions = open(data.path());
    let peer = join(&sessions, "gate");
    let (mut held, handed) = line();
    let deadline = sessions.now() + 50;
    held.deadline = Some(deadline);
    sessions.connect(&peer, held).unwrap();
    let other = connect(&sessions, &join(&sessions, "other")).unwrap();
    let ticked = async {
        loop {
            sessions.frame("other", other.0, &hello());
            let tick = handed.try_iter().find_map(|one| match one {
                Handed::Ticked(now) => Some(now),
                _ => None,
            });
            if let Some(tick) = tick {
                break tick;
            }
            assert!(sessions.now() <= deadline + 1_000, "it never ticked");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
    };
    let tick = tokio::select! {
        () = sessions.tick() => 0,
        tick = ticked => tick,
    };
    // The runtime's timers have steps of a millisecond.
    assert!((deadline..=deadline + 2).contains(&tick), "{tick}");
    let state = sessions.lock();
    let scheduled = |name: &str| state.nodes[name].scheduled;
    for name in ["gate", "other"] {
        assert_eq!(scheduled(name), state.nodes[name].deadline());
    }
}

/// Nodes that were checked since the last call.
fn visited(sessions: &Sessions) -> u64 {
    std::mem::take(&mut sessions.lock().visited)
}

/// `count` nodes behind a broker that have joined.
fn joined(sessions: &Sessions, count: usize) -> Vec<String> {
    let names: Vec<_> = (0..count).map(|number| format!("gate-{number}")).collect();
    for name in &names {
        join(sessions, name);
        sessions.joined(name);
    }
    names
}

/// Goal: a first set causes a probe of that node only, and each node is probed once after the broker came
/// up. Method: the checked nodes and the reached ones are counted.
#[test]
fn a_node_is_probed_without_a_look_at_the_others() {
    let data = tempfile::tempdir().unwrap();
    let sessions = open_behind_broker(data.path());
    let names = joined(&sessions, 60);
    let reached = std::cell::RefCell::new(Vec::new());
    let probe = |unplaced| {
        let carriers = |name: &str| {
            reached.borrow_mut().push(name.to_owned());
            Box::new(line().0) as _
        };
        while sessions.probe(7, unplaced, &carriers) {}
        reached.take()
    };
    for name in ["gate-9", "gate-3"] {
        sessions.set_desired(name, &Desired::new());
        assert_eq!(probe(false), [name]);
        assert_eq!(visited(&sessions), 1);
    }
    let mut others = probe(true);
    assert_eq!(visited(&sessions), 58);
    others.sort();
    others.dedup();
    assert_eq!(others.len(), 58);
    // A set for one that can be reached, and one that has left.
    sessions.set_desired("gate-5", &Desired::new());
    assert!(probe(true).is_empty());
    sessions.all_disconnected();
    let registry = sessions.identity.registry();
    registry.delete("gate-7", unix_s()).unwrap();
    sessions.remove("gate-7");
    let again = probe(true);
    assert_eq!(again[..3], ["gate-3", "gate-5", "gate-9"]);
    assert_eq!(again.len(), names.len() - 1);
    assert_eq!(visited(&sessions), 59);
}

/// Goal: a round that looks for silent nodes checks those that may be silent, and probes them as often as
/// it should. Method: of many nodes one is silent while the others send.
#[test]
fn a_silent_node_is_asked_without_a_look_at_the_others() {
    const SILENCE_MS: u64 = 60_000;
    let data = tempfile::tempdir().unwrap();
    let mut sessions = open_behind_broker(data.path());
    joined(&sessions, 30);
    let (silent, handed) = line();
    let silent = std::cell::RefCell::new(Some(silent));
    let carriers = |name: &str| {
        let silent = silent.borrow_mut().take_if(|_| name == "gate-7");
        Box::new(silent.unwrap_or_else(|| line().0)) as _
    };
    while sessions.probe(50, true, &carriers) {}
    sessions.set_desired("gate-7", &Desired::new());
    sessions.frame_from_broker("gate-7", &hello(), &carriers);
    let welcome = frames(&handed).into_iter().find_map(|frame| match frame {
        Frame::Welcome { session, .. } => Some(session),
        _ => None,
    });
    let have = Frame::Have {
        session: welcome.unwrap(),
        set: edge_proto::frame::Set::Desired,
        root: Default::default(),
        order: 0,
    };
    sessions.frame_from_broker("gate-7", &have.encode(), &carriers);
    assert!(sessions.is_live("gate-7"));
    let round = |sessions: &mut Arc<Sessions>, ms: u64| {
        visited(sessions);
        advance(sessions, ms);
        sessions.probe_silent(SILENCE_MS, 2, 20);
        visited(sessions)
    };
    let probes = || {
        let probe = |frame: &Frame| matches!(frame, Frame::Probe { .. });
        frames(&handed).into_iter().filter(probe).count()
    };
    probes();
    assert_eq!(round(&mut sessions, 40_000), 0);
    for name in (0..30).map(|number| format!("gate-{number}")) {
        if name != "gate-7" {
            sessions.frame_from_broker(&name, &Frame::Gone { n: [1; 8] }.encode(), &carriers);
        }
    }
    for node in sessions.lock().nodes.values_mut() {
        node.live = true;
    }
    assert_eq!(round(&mut sessions, 30_000), 30, "once in that time");
    assert_eq!(probes(), 1);
    assert_eq!((round(&mut sessions, 1_000), probes()), (1, 1));
    assert!(sessions.is_live("gate-7"));
    assert_eq!(round(&mut sessions, 1_000), 1);
    assert!(!sessions.is_live("gate-7"));
    assert_eq!(round(&mut sessions, 1_000), 1, "its opening has begun");
    assert_eq!(round(&mut sessions, 1_000), 0);
    // All of them, at most the given number at once.
    assert_eq!(round(&mut sessions, 2 * SILENCE_MS), 20);
    let asked = |sessions: &Sessions| {
        let state = sessions.lock();
        let nodes = state.nodes.values();
        let connections = nodes.filter_map(|node| node.connection.as_ref());
        connections.filter(|one| one.probes == 1).count()
    };
    assert_eq!(asked(&sessions), 20);
    round(&mut sessions, 1_000);
    assert_eq!(asked(&sessions), 29 - 11, "those that waited longer first");
}

/// Goal: during a rollover a round checks the nodes that are due, and a node is asked again neither too
/// soon nor because it reconnects. Method: two of many nodes are connected.
#[test]
fn a_renewal_is_asked_for_without_a_look_at_the_others() {
    let data = tempfile::tempdir().unwrap();
    let mut sessions = open(data.path());
    joined(&sessions, 30);
    let connected = |sessions: &Sessions, name: &str| {
        let mut state = sessions.lock();
        state.nodes.get_mut(name).unwrap().live = true;
        sessions.ask_soon(&mut state, name);
    };
    connected(&sessions, "gate-3");
    sessions.ask_all();
    assert!(sessions.due_renewals().is_empty());
    assert_eq!(visited(&sessions), 0, "there was no rollover");
    sessions.identity.rotate().unwrap();
    sessions.ask_all();
    connected(&sessions, "gate-4");
    let asked = |sessions: &Sessions| {
        let asked: Vec<_> = sessions.due_renewals();
        (
            visited(sessions),
            asked.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
    };
    let both = || vec!["gate-3".to_owned(), "gate-4".to_owned()];
    assert_eq!(asked(&sessions), (2, both()));
    connected(&sessions, "gate-4");
    assert_eq!(asked(&sessions), (0, vec![]));
    advance(&mut sessions, ASK_AGAIN_MS);
    assert_eq!(asked(&sessions), (2, both()));
    // One that has renewed.
    let (ca_sha256, other_ca_sha256) = sessions.identity.authorities().given();
    let current = Enrolment {
        ca_sha256,
        other_ca_sha256,
        ..Enrolment::default()
    };
    sessions.identity.registry().add("new", current).unwrap();
    sessions.joined("new");
    connected(&sessions, "new");
    assert_eq!(asked(&sessions), (1, vec![]));
    assert_eq!(asked(&sessions), (0, vec![]));
}
