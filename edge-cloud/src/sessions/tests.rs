use std::thread;

use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::identity::ca::{Ca, NODE_LIFE_S};
use crate::identity::registry::NodeRecord;
use crate::sessions::takeover::TAKEOVERS_MAX;

fn open(data: &Path) -> Arc<Links> {
    Links::open(data, Ca::open(data).unwrap(), None).unwrap()
}

/// What a node says first.
fn hello() -> Vec<u8> {
    Frame::Hello {
        n: [1; 8],
        wire: 1,
        kinds: 0,
        epoch: 0,
        desired_root: Default::default(),
        reported_root: Default::default(),
        agent: String::new(),
    }
    .encode()
}

/// A node that has joined, and its certificate.
fn join(links: &Links, node: &str) -> Peer {
    let record = NodeRecord {
        serial: format!("serial of {node}"),
        ..NodeRecord::default()
    };
    let serial = record.serial.clone();
    links.registry.add(node, record).unwrap();
    Peer {
        node: node.to_owned(),
        serial,
        issued_unix_s: unix_s(),
        expires_unix_s: unix_s() + NODE_LIFE_S,
    }
}

/// Goal: a node that is revoked or deleted while it connects gets no link. Method: the connection
/// has begun when the registry changes, and goes on when that is over.
#[test]
fn a_node_that_is_refused_while_it_connects_gets_no_link() {
    let data = tempfile::tempdir().unwrap();
    let links = open(data.path());
    for round in 0..20 {
        let name = format!("gate-{round}");
        let peer = join(&links, &name);
        let state = links.lock();
        let (begun, begins) = std::sync::mpsc::channel();
        let connecting = {
            let links = Arc::clone(&links);
            let connects = move || {
                begun.send(()).unwrap();
                links.connect(&peer).is_ok()
            };
            let builder = thread::Builder::new().stack_size(256 * 1024);
            builder.spawn(connects).unwrap()
        };
        begins.recv().unwrap();
        for _ in 0..100 {
            thread::yield_now();
        }
        let found = match round % 2 {
            0 => links.registry.revoke(&name, unix_s()),
            _ => links.registry.delete(&name, unix_s()),
        };
        assert!(found.unwrap());
        drop(state);
        assert!(!connecting.join().unwrap(), "round {round}");
    }
}

/// Goal: a lone board on a bad line is no clone. Method: what still comes through its old connection
/// was sent before the question; only the `Hello` of an answer counts.
#[test]
fn only_an_answer_proves_a_clone() {
    let data = tempfile::tempdir().unwrap();
    let links = open(data.path());
    let peer = join(&links, "gate");
    let cloned = || links.views().iter().any(|view| view.cloned);
    let mut live = links.connect(&peer).unwrap();
    for _ in 0..TAKEOVERS_MAX {
        live = links.connect(&peer).unwrap();
    }
    let asks = |frames: &mut mpsc::Receiver<Vec<u8>>| {
        std::iter::from_fn(|| frames.try_recv().ok())
            .filter(|frame| matches!(Frame::decode(frame), Ok(Frame::Probe { .. })))
            .count()
    };
    asks(&mut live.1);
    assert_eq!(links.connect(&peer).unwrap_err(), Refused::ForNow);
    assert_eq!(asks(&mut live.1), 1);
    links.frame("gate", live.0, &Frame::Gone { n: [1; 8] }.encode());
    links.frame("gate", live.0, &[]);
    assert_eq!(links.connect(&peer).unwrap_err(), Refused::ForNow);
    assert!(!cloned(), "{:?}", links.events());
    links.frame("gate", live.0, &hello());
    assert_eq!(links.connect(&peer).unwrap_err(), Refused::ForNow);
    assert!(cloned());
}

/// Goal: when many open a session at once, each is told its own turn, in the order of asking, and is
/// let in then; a live one is never made to wait. Method: one opening a second, ten nodes that ask.
#[test]
fn openings_at_once_get_turns_one_after_the_other() {
    let data = tempfile::tempdir().unwrap();
    let links = open(data.path());
    links.set_admissions(1);
    let mut nodes: Vec<_> = (0..10)
        .map(|number| {
            let name = format!("gate-{number}");
            let link = links.connect(&join(&links, &name)).unwrap();
            (name, link)
        })
        .collect();
    let mut ask = |index: usize| {
        let (name, (id, frames)) = &mut nodes[index];
        links.frame(name, *id, &hello());
        let answers = std::iter::from_fn(|| frames.try_recv().ok());
        answers
            .filter_map(|frame| match Frame::decode(&frame) {
                Ok(Frame::RetryAfter { n, wait_ms, .. }) => {
                    assert_eq!(n, [1; 8]);
                    Some(wait_ms)
                }
                Ok(Frame::Welcome { .. }) => Some(0),
                _ => None,
            })
            .last()
            .unwrap()
    };
    let waits: Vec<u64> = (0..10).map(&mut ask).collect();
    assert_eq!(waits[0], 0);
    for (turn, wait) in waits.iter().enumerate().skip(1) {
        let turn = turn as u64;
        assert!(
            (turn * 1_000 - 900..=turn * 1_000).contains(wait),
            "{waits:?}"
        );
    }
    // Asking again neither loses the turn nor takes another.
    assert_eq!(ask(0), 0);
    assert!(ask(9) <= waits[9]);
    assert!(ask(1) <= waits[1]);
}

/// Goal: a crowd is held off before TLS, and people are told. Method: more connections at once than
/// can be admitted before the longest wait is over.
#[test]
fn a_crowd_waits_or_is_closed_before_it_costs_anything() {
    let data = tempfile::tempdir().unwrap();
    let links = open(data.path());
    links.set_admissions(2);
    let mut waiting: Vec<_> = (0..40)
        .map(|_| links.admission([192, 0, 2, 1].into()))
        .collect();
    let away = waiting
        .iter_mut()
        .filter_map(|one| one.try_recv().err())
        .filter(|error| *error == TryRecvError::Closed)
        .count();
    // Two at once, two a second for five seconds wait, and what a slow test takes.
    assert!((1..=28).contains(&away), "{away}");
    let events = links.events();
    let crowded = events.iter().filter(|event| event.reason == "Crowded");
    assert_eq!(crowded.count(), 1, "{events:?}");
}

/// Goal: a policy holds as soon as it is in the node's set, and no longer than that. Method: the
/// connection stays.
#[test]
fn a_policy_reaches_the_connection_that_is_there() {
    let data = tempfile::tempdir().unwrap();
    let links = open(data.path());
    let peer = join(&links, "gate");
    let _live = links.connect(&peer).unwrap();
    let limits = links.limits("gate");
    assert_eq!(*limits.borrow(), Limits::NONE);
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
    links.set_desired("gate", &set);
    assert_eq!(limits.borrow().link_bits_per_s, 900_000);
    links.set_desired("gate", &Desired::new());
    assert_eq!(*limits.borrow(), Limits::NONE);
}

/// Goal: while nodes may come back after a restore, nobody can say that none depends on the old CA: it is
/// retired only by who says so.
#[test]
fn a_grace_holds_up_the_retirement_of_a_ca() {
    let data = tempfile::tempdir().unwrap();
    let until = unix_s() + 1_000;
    let state = format!(
        r#"{{"epoch":0,"nodes":{{}},"grace":{{"issued_from_unix_s":1,"until_unix_s":{until}}}}}"#
    );
    std::fs::write(data.path().join(crate::identity::registry::NODES), state).unwrap();
    let links = open(data.path());
    assert!(!links.retire(None).unwrap().retired, "one CA");
    assert_eq!(links.rotate().unwrap().grace_until_unix_s, until);
    assert!(links.retire(None).unwrap_err().contains("--force"));
    assert!(links.retire(Some(0)).unwrap().retired);
    assert_eq!(links.ca_view().retired.len(), 1);
}

/// Goal: rollovers do not fill the list of refused certificates; but while nodes may come back by their
/// names after a restore, it is what keeps the deleted ones out.
#[test]
fn a_retired_ca_takes_its_refused_certificates_along_unless_there_is_a_grace() {
    for grace in [false, true] {
        let data = tempfile::tempdir().unwrap();
        let until = unix_s() + if grace { 1_000 } else { 0 };
        let state = format!(
            r#"{{"epoch":0,"nodes":{{}},"grace":{{"issued_from_unix_s":1,"until_unix_s":{until}}}}}"#
        );
        std::fs::write(data.path().join(crate::identity::registry::NODES), state).unwrap();
        let links = open(data.path());
        let record = NodeRecord {
            serial: "01".to_owned(),
            ca_sha256: links.authorities().signer().sha256(),
            ..NodeRecord::default()
        };
        links.registry.add("a", record).unwrap();
        links.registry.delete("a", unix_s()).unwrap();
        assert_eq!(links.registry.retired().len(), 1);
        links.rotate().unwrap();
        assert!(links.retire(Some(0)).unwrap().retired);
        assert_eq!(links.registry.retired().len(), usize::from(grace));
    }
}
