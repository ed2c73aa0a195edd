use std::thread;

use super::*;
use crate::ca::NODE_LIFE_S;
use crate::registry::NodeRecord;

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
        expires_unix_s: now_unix_s() + NODE_LIFE_S,
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
                links.connect(&peer).is_some()
            };
            let builder = thread::Builder::new().stack_size(256 * 1024);
            builder.spawn(connects).unwrap()
        };
        begins.recv().unwrap();
        for _ in 0..100 {
            thread::yield_now();
        }
        let found = match round % 2 {
            0 => links.registry.revoke(&name, now_unix_s()),
            _ => links.registry.delete(&name, now_unix_s()),
        };
        assert!(found.unwrap());
        drop(state);
        assert!(!connecting.join().unwrap(), "round {round}");
    }
}
