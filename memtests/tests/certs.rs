//! The lifecycle of a gate's certificate, end to end: real edge-cloud, TLS, MQTT and agent, with
//! certificates that are valid for seconds.
#![cfg(test)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use memtests::tls::Records;
use memtests::{Gate, Setup, scenario};
use serde_json::Value;

fn unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// A gate with one pod whose certificates are valid for this time.
fn gate(life: &str) -> Gate {
    let gate = Gate::set_up(Setup {
        manifests: scenario::manifests(1),
        cloud: words(&["--node-certificate-life", life]),
        ..Setup::default()
    })
    .unwrap();
    gate.until_converged(1).unwrap();
    gate
}

/// The registry's state of the gate's certificates.
fn record(gate: &Gate) -> Value {
    gate.registry().unwrap()["nodes"]["gate"].clone()
}

fn end(gate: &Gate) -> u64 {
    let status = gate.status().unwrap();
    status["certificate_not_after"].as_u64().unwrap()
}

fn has_old_identity(gate: &Gate) -> bool {
    gate.state_dir().join("identity.old").exists()
}

/// The new certificate is in use, and nothing waits.
fn until_renewed(gate: &Gate, before: &Value) {
    gate.until("the next certificate is in use", |gate| {
        let record = record(gate);
        record["serial"] != before["serial"]
            && record["pending"].is_null()
            && !has_old_identity(gate)
    })
    .unwrap();
}

fn link_error(gate: &Gate) -> String {
    let status = gate.status().unwrap();
    let error = status["certificate_error"].as_str().unwrap();
    error.to_owned()
}

/// Goal: a connected gate renews in time, repeatedly, and its pods are not affected.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_connected_gate_renews_its_certificate_and_its_pods_do_not_notice() {
    let gate = gate("12s");
    let pids = gate.pids().unwrap();
    for _ in 0..2 {
        // In this order: a renewal in between makes the first end earlier, not later.
        let first = end(&gate);
        let before = record(&gate);
        until_renewed(&gate, &before);
        gate.until_converged(1).unwrap();
        assert!(end(&gate) > first);
        assert_eq!(gate.pids().unwrap(), pids);
    }
    assert_eq!(link_error(&gate), "");
}

/// Goal: a gate that was offline until its certificate had expired recovers by itself, also when it
/// has restarted and knows no time except that of its build.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_gate_whose_certificate_has_expired_offline_comes_back() {
    let mut gate = gate("5s");
    let pids = gate.pids().unwrap();
    gate.kill_cloud().unwrap();
    // It may have renewed until now.
    let (last, before) = (end(&gate), record(&gate));
    gate.kill_agent().unwrap();
    gate.until("it expires", |_| unix_s() > last).unwrap();
    gate.start_agent().unwrap();
    gate.start_cloud().unwrap();
    gate.until("it comes back with another certificate", |gate| {
        let serial = &record(gate)["serial"];
        *serial != before["serial"] && *serial != before["pending"]["serial"]
    })
    .unwrap();
    gate.until_converged(1).unwrap();
    assert_eq!(gate.pids().unwrap(), pids);
}

/// Goal: a node that was offline for too long, or is revoked, gets an error with the fix; its pods
/// continue, and a change by the cloud's operator is enough.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn an_expired_gate_is_refused_after_the_grace_and_when_it_is_revoked() {
    let mut gate = gate("5s");
    let pids = gate.pids().unwrap();
    gate.kill_cloud().unwrap();
    // It may have renewed until now.
    let before = record(&gate);
    gate.until("it expires", |gate| unix_s() > end(gate))
        .unwrap();
    gate.set_cloud_args(words(&[
        "--node-certificate-life",
        "5s",
        "--renewal-grace",
        "0",
    ]));
    gate.start_cloud().unwrap();
    gate.until("it is told that it is too late", |gate| {
        link_error(gate).contains("join again with a token")
    })
    .unwrap();
    assert_eq!(record(&gate), before);
    let text = gate.agent_text(&["status"]).unwrap();
    assert!(
        text.contains("condition  CertificateExpiring: expires at "),
        "{text}"
    );
    gate.kill_cloud().unwrap();
    gate.set_cloud_args(words(&["--node-certificate-life", "5s"]));
    // With the usual grace it would be renewed before the revocation.
    let agent = gate.agent_pid().unwrap().to_string();
    let signal = |name: &str| {
        let sent = Command::new("kill").args([name, &agent]).status().unwrap();
        assert!(sent.success());
    };
    signal("-STOP");
    gate.start_cloud().unwrap();
    gate.cloud_text(&["node", "revoke", "gate", "--yes"])
        .unwrap();
    signal("-CONT");
    gate.until("it is told that it is refused", |gate| {
        link_error(gate).contains("its certificate is revoked")
    })
    .unwrap();
    assert_eq!(record(&gate)["serial"], before["serial"]);
    assert_eq!(gate.pids().unwrap(), pids);
}

/// A proxy to the cloud that drops the answers to renewals, as long as it is set to.
struct Way {
    port: u16,
    loses: Arc<AtomicBool>,
    /// Answers that were lost.
    lost: Arc<AtomicU32>,
}

impl Way {
    fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (loses, lost) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let (losing, counter) = (Arc::clone(&loses), Arc::clone(&lost));
        thread(move || {
            for board in listener.incoming().flatten() {
                let Ok(cloud) = TcpStream::connect(("127.0.0.1", to)) else {
                    continue;
                };
                let counter = losing.load(Ordering::SeqCst).then(|| Arc::clone(&counter));
                carry(board, cloud, counter);
            }
        });
        Self { port, loses, lost }
    }
}

/// Passes bytes both ways; with a counter the answer is dropped: everything from the cloud after a request.
fn carry(board: TcpStream, cloud: TcpStream, lost: Option<Arc<AtomicU32>>) {
    let asked = Arc::new(AtomicBool::new(false));
    let (mut from, mut into) = (board.try_clone().unwrap(), cloud.try_clone().unwrap());
    let asks = Arc::clone(&asked);
    thread(move || {
        let (mut bytes, mut records) = ([0; 4096], Records::default());
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            // The first encrypted record of the board ends the handshake.
            asks.fetch_or(records.feed(&bytes[..count]) > 1, Ordering::SeqCst);
            if into.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        into.shutdown(Shutdown::Both).ok();
    });
    let (mut from, mut into) = (cloud, board);
    thread(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            // The cloud closes after its answer.
            if lost.is_some() && asked.load(Ordering::SeqCst) {
                continue;
            }
            if into.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        if let (Some(lost), true) = (lost, asked.load(Ordering::SeqCst)) {
            lost.fetch_add(1, Ordering::SeqCst);
        }
        into.shutdown(Shutdown::Both).ok();
    });
}

fn thread(work: impl FnOnce() + Send + 'static) {
    let builder = std::thread::Builder::new().name("way".to_owned());
    builder.spawn(work).unwrap();
}

/// Goal: a renewal whose answer is lost is repeated with the same certificate, and the old one is valid
/// until then. Method: the cloud has answered, and the proxy drops the answer.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_renewal_whose_answer_is_lost_is_had_again() {
    let mut gate = gate("12s");
    let way = Way::start(gate.port());
    gate.kill_agent().unwrap();
    let file = gate.dir().join("edge-min.toml");
    let text = fs::read_to_string(&file).unwrap();
    let (old, new) = (
        format!("localhost:{}", gate.port()),
        format!("localhost:{}", way.port),
    );
    assert!(text.contains(&old));
    fs::write(&file, text.replace(&old, &new)).unwrap();
    gate.start_agent().unwrap();
    gate.until_converged(1).unwrap();
    way.loses.store(true, Ordering::SeqCst);
    gate.until("the answer to a renewal is lost", |gate| {
        way.lost.load(Ordering::SeqCst) > 0 && record(gate)["pending"]["serial"].is_string()
    })
    .unwrap();
    // As long as every answer is lost the old certificate stays the one in use.
    let before = record(&gate);
    let pending = before["pending"]["serial"].clone();
    let lost = way.lost.load(Ordering::SeqCst);
    gate.until("another answer is lost", |_| {
        way.lost.load(Ordering::SeqCst) > lost
    })
    .unwrap();
    assert_eq!(record(&gate), before);
    assert_ne!(before["serial"], pending);
    way.loses.store(false, Ordering::SeqCst);
    gate.until("the same certificate is in use", |gate| {
        record(gate)["serial"] == pending && !has_old_identity(gate)
    })
    .unwrap();
    gate.until_converged(1).unwrap();
}
