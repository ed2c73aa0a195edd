//! The life of a gate's certificate, end to end: real edge-cloud, TLS, MQTT and agent, with
//! certificates that live for seconds.
#![cfg(test)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

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

/// A gate with one pod whose certificates live for so long.
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

/// What the registry says of the gate's certificates.
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

/// Goal: a gate that is connected renews in time, again and again, and its pods do not notice.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_connected_gate_renews_its_certificate_and_its_pods_do_not_notice() {
    let gate = gate("12s");
    let pids = gate.pids().unwrap();
    for _ in 0..2 {
        let (before, first) = (record(&gate), end(&gate));
        until_renewed(&gate, &before);
        gate.until_converged(1).unwrap();
        assert!(end(&gate) > first);
        assert_eq!(gate.pids().unwrap(), pids);
    }
    assert_eq!(link_error(&gate), "");
}

/// Goal: a gate that was offline until its certificate had expired comes back by itself, also when it
/// has restarted and knows no time but that of its build.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_gate_whose_certificate_has_expired_offline_comes_back() {
    let mut gate = gate("5s");
    let (pids, before) = (gate.pids().unwrap(), record(&gate));
    gate.kill_cloud().unwrap();
    gate.kill_agent().unwrap();
    let last = end_on_disk(&before);
    gate.until("it expires", |_| unix_s() > last).unwrap();
    gate.start_agent().unwrap();
    gate.start_cloud().unwrap();
    until_renewed(&gate, &before);
    gate.until_converged(1).unwrap();
    assert_eq!(gate.pids().unwrap(), pids);
}

fn end_on_disk(record: &Value) -> u64 {
    let number = |name: &str| record[name].as_u64().unwrap();
    number("joined_unix_s") + number("life_s")
}

/// Goal: who was away for too long, or is revoked, is told so, in words that say what to do; its pods
/// go on, and what the cloud's operator changes is enough.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn an_expired_gate_is_refused_after_the_grace_and_when_it_is_revoked() {
    let mut gate = gate("5s");
    let (pids, before) = (gate.pids().unwrap(), record(&gate));
    gate.kill_cloud().unwrap();
    let last = end_on_disk(&before);
    gate.until("it expires", |_| unix_s() > last).unwrap();
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
    assert!(record(&gate)["pending"].is_null());
    let text = gate.agent_text(&["status"]).unwrap();
    assert!(
        text.contains("condition  CertificateExpiring: ends at "),
        "{text}"
    );
    gate.kill_cloud().unwrap();
    gate.set_cloud_args(words(&["--node-certificate-life", "5s"]));
    gate.start_cloud().unwrap();
    gate.cloud_text(&["node", "revoke", "gate"]).unwrap();
    gate.until("it is told that it is refused", |gate| {
        link_error(gate).contains("its certificate is revoked")
    })
    .unwrap();
    assert_eq!(record(&gate)["serial"], before["serial"]);
    assert_eq!(gate.pids().unwrap(), pids);
}

/// A way to the cloud that loses the answer to a renewal, when it is told to.
struct Way {
    port: u16,
    loses: Arc<AtomicBool>,
}

impl Way {
    fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let loses = Arc::new(AtomicBool::new(false));
        let armed = Arc::clone(&loses);
        thread(move || {
            for board in listener.incoming().flatten() {
                let Ok(cloud) = TcpStream::connect(("127.0.0.1", to)) else {
                    continue;
                };
                carry(board, cloud, &armed);
            }
        });
        Self { port, loses }
    }
}

/// Carries bytes both ways; of a connection that began while it was to lose, the answer is lost:
/// what the cloud says after the board has said more than its first word.
fn carry(board: TcpStream, cloud: TcpStream, armed: &Arc<AtomicBool>) {
    let loses = armed.load(Ordering::SeqCst);
    let (greeted, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (mut from, mut into) = (board.try_clone().unwrap(), cloud.try_clone().unwrap());
    let (seen, says) = (Arc::clone(&greeted), Arc::clone(&asked));
    thread(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            says.fetch_or(seen.load(Ordering::SeqCst), Ordering::SeqCst);
            if into.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        into.shutdown(Shutdown::Both).ok();
    });
    let (mut from, mut into) = (cloud, board);
    let armed = Arc::clone(armed);
    thread(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            greeted.store(true, Ordering::SeqCst);
            // The cloud closes when it has said all.
            if loses && asked.load(Ordering::SeqCst) {
                continue;
            }
            if into.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        armed.fetch_and(!loses, Ordering::SeqCst);
        into.shutdown(Shutdown::Both).ok();
    });
}

fn thread(work: impl FnOnce() + Send + 'static) {
    let builder = std::thread::Builder::new().name("way".to_owned());
    builder.spawn(work).unwrap();
}

/// Goal: a renewal whose answer is lost is had again, the same certificate, and the old one is good
/// until then. Method: the cloud has answered, and the answer is kept by what is in between.
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
    let before = record(&gate);
    way.loses.store(true, Ordering::SeqCst);
    gate.until("an answer is lost", |_| !way.loses.load(Ordering::SeqCst))
        .unwrap();
    let pending = record(&gate)["pending"]["serial"].clone();
    assert!(pending.is_string());
    assert_eq!(record(&gate)["serial"], before["serial"]);
    gate.until("the same certificate is in use", |gate| {
        record(gate)["serial"] == pending && !has_old_identity(gate)
    })
    .unwrap();
    gate.until_converged(1).unwrap();
}
