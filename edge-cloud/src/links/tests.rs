use std::thread;

use super::*;
use crate::ca::NODE_LIFE_S;
use crate::registry::NodeRecord;
use crate::takeover::TAKEOVERS_MAX;

fn open(data: &Path) -> Arc<Links> {
    Links::open(data, Ca::open(data).unwrap(), None).unwrap()
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
    let hello = Frame::Hello {
        n: [1; 8],
        wire: 1,
        kinds: 0,
        epoch: 0,
        desired_root: Default::default(),
        reported_root: Default::default(),
        agent: String::new(),
    };
    links.frame("gate", live.0, &hello.encode());
    assert_eq!(links.connect(&peer).unwrap_err(), Refused::ForNow);
    assert!(cloned());
}
