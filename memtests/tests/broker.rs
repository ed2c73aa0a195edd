//! One gate behind Debian's mosquitto, with the configuration that `edge-cloud broker-config`
//! writes: joins by HTTPS, works as over the embedded cloud's own port, and is isolated from
//! other nodes.
#![cfg(test)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_proto::enrol::ALPN_MQTT;
use edge_proto::frame::Frame;
use edge_proto::hash::Hash16;
use memtests::{BrokerCa, Gate, STATE_TIMEOUT, Setup, scenario};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{LastWill, Packet, Publish};
use rumqttc::v5::{Client, Connection, Event, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

fn start() -> Gate {
    Gate::set_up(Setup {
        broker: Some(BrokerCa::Own),
        ..Setup::default()
    })
    .unwrap()
}

#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn killing_the_agent_restarts_and_duplicates_nothing() {
    scenario::agent_killed(start(), 3).unwrap();
}

#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn without_a_cloud_everything_starts_again() {
    scenario::alone(start()).unwrap();
}

#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_restarted_cloud_touches_no_workload_and_goes_on() {
    scenario::cloud_restarted(start()).unwrap();
}

/// Row of a node in edge-cloud.
fn node(gate: &Gate, name: &str) -> Value {
    let nodes = gate.cloud_json("/v1/nodes").unwrap();
    let found = nodes
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["name"] == name);
    found.cloned().unwrap_or(Value::Null)
}

fn events(gate: &Gate) -> Vec<Value> {
    gate.cloud_json("/v1/events")
        .unwrap()
        .as_array()
        .unwrap()
        .clone()
}

fn has_event(gate: &Gate, node: &str, reason: &str) -> bool {
    let found = |event: &Value| event["node"] == node && event["reason"] == reason;
    events(gate).iter().any(found)
}

/// Goal: one `Probe` restores everything after edge-cloud was down, also lost reports.
/// Method: the node's status and the manifests change while edge-cloud is down; mosquitto's log
/// counts the frames to the node.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn one_probe_after_edge_cloud_was_away_is_enough() {
    let mut gate = start();
    gate.manifests(&scenario::manifests(2)).unwrap();
    gate.until_converged(2).unwrap();
    let before = gate.pids().unwrap();
    gate.kill_cloud().unwrap();
    Command::new("kill")
        .args(["-9", &before[0].to_string()])
        .status()
        .unwrap();
    gate.until("the pod runs again", |gate| {
        gate.pids()
            .is_ok_and(|pids| pids.len() == 2 && pids != before)
    })
    .unwrap();
    let between = gate.pids().unwrap();
    gate.manifests(&scenario::manifests(3)).unwrap();
    let seen = gate.broker().unwrap().log().unwrap().len();
    gate.start_cloud().unwrap();
    gate.until_converged(3).unwrap();
    let after = gate.pids().unwrap();
    assert!(between.iter().all(|pid| after.contains(pid)));
    gate.until("edge-cloud knows of the restart", |gate| {
        let pods = gate.cloud_json("/v1/pods").unwrap();
        let mut restarts = pods
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| pod["restarts"].as_u64());
        node(gate, "gate")["in_sync"] == true && restarts.any(|count| count == Some(1))
    })
    .unwrap();
    let log = gate.broker_log().unwrap();
    assert_eq!(probes(&log[seen..]), 1, "{}", &log[seen..]);
}

/// Probes that were sent to the gate, by this part of mosquitto's log; repetitions before
/// the gate's answer count once. No other frame is as short.
fn probes(log: &str) -> usize {
    let probe = Frame::Probe {
        epoch: now(),
        unix_s: now(),
    };
    let size = format!("({} bytes)", probe.encode().len());
    let (mut count, mut answered) = (0, true);
    for line in log.lines() {
        if line.contains("Received PUBLISH from gate ") {
            answered = true;
        } else if line.contains("Sending PUBLISH to gate ") && line.contains(&size) {
            count += usize::from(answered);
            answered = false;
        }
    }
    count
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// Goal: a cloud that is restored from a backup takes its nodes back, also one that joined after it: one
/// `Probe` for what the node runs, one more for the set that follows from it. Method: the data is deleted
/// and restored; the late node is a client of ours with its real certificate.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_restored_cloud_takes_its_nodes_back() {
    let mut gate = start();
    gate.manifests(&scenario::manifests(2)).unwrap();
    gate.until_converged(2).unwrap();
    let before = gate.pids().unwrap();
    let backup = gate.dir().join("backup").display().to_string();
    gate.cloud_text(&["backup", &backup]).unwrap();
    let late = gate.join_another("late").unwrap();
    gate.kill_cloud().unwrap();
    fs::remove_dir_all(gate.dir().join("cloud")).unwrap();
    gate.cloud_text(&["restore", &backup]).unwrap();
    let seen = gate.broker_log().unwrap().len();
    gate.start_cloud().unwrap();
    gate.until("edge-cloud knows the state", |gate| {
        node(gate, "gate")["in_sync"] == true
    })
    .unwrap();
    gate.until_converged(2).unwrap();
    assert_eq!(gate.pids().unwrap(), before);
    assert!(probes(&gate.broker_log().unwrap()[seen..]) <= 2);
    let mut tap = Tap::connect(&gate, &late, "late", None).unwrap();
    tap.subscribe("m1/d/late");
    tap.publish(&topic_up("late"), false, hello());
    tap.until(|event| match event {
        Event::Incoming(Packet::Publish(publish)) => Some(publish),
        _ => None,
    });
    gate.until("the late node is taken back", |gate| {
        has_event(gate, "late", "Readmitted")
    })
    .unwrap();
    gate.until_logged("pod-0", "lane 3\n").unwrap();
}

/// Goal: the broker may end at any time. Method: it is killed, so that no will is sent; a change is
/// made meanwhile; in the second round the agent is killed with it, and edge-cloud gets no notice of it.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_broker_that_dies_costs_nothing_and_hides_nothing() {
    let mut gate = start();
    gate.manifests(&scenario::manifests(1)).unwrap();
    gate.until_converged(1).unwrap();
    let before = gate.pids().unwrap();
    gate.broker().unwrap().kill().unwrap();
    gate.until("both ends notice", |gate| {
        let offline = gate
            .status()
            .is_ok_and(|status| status["connected"] == false);
        offline && node(gate, "gate")["connected"] == false
    })
    .unwrap();
    gate.manifests(&scenario::manifests(3)).unwrap();
    gate.broker().unwrap().start().unwrap();
    gate.until_converged(3).unwrap();
    assert!(gate.pids().unwrap().contains(&before[0]));
    gate.until("edge-cloud sees the node", |gate| {
        node(gate, "gate")["in_sync"] == true
    })
    .unwrap();

    let before = gate.pids().unwrap();
    let connects = |gate: &Gate| {
        let events = events(gate);
        let connects = events
            .iter()
            .filter(|event| event["reason"] == "BrokerConnected");
        connects.count()
    };
    let earlier = connects(&gate);
    gate.broker().unwrap().kill().unwrap();
    gate.kill_agent().unwrap();
    gate.broker().unwrap().start().unwrap();
    gate.until("edge-cloud is back at the broker", |gate| {
        connects(gate) > earlier
    })
    .unwrap();
    assert_eq!(node(&gate, "gate")["connected"], false);
    gate.start_agent().unwrap();
    gate.until_converged(3).unwrap();
    assert_eq!(gate.pids().unwrap(), before);
    gate.until("edge-cloud sees the node", |gate| {
        node(gate, "gate")["in_sync"] == true
    })
    .unwrap();
}

/// Goal: the end of an agent is noticed at once, by its will.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn the_will_of_a_dead_agent_ends_its_session() {
    let mut gate = start();
    gate.manifests(&scenario::manifests(1)).unwrap();
    gate.until_converged(1).unwrap();
    gate.until("edge-cloud sees the node", |gate| {
        node(gate, "gate")["connected"] == true
    })
    .unwrap();
    gate.kill_agent().unwrap();
    gate.until("edge-cloud sees it go", |gate| {
        node(gate, "gate")["connected"] == false
    })
    .unwrap();
    gate.start_agent().unwrap();
    gate.until_converged(1).unwrap();
}

/// Goal: a node whose end the broker has not noticed is detected, and one that is only quiet keeps its
/// session. Method: the agent stops with its connection open, under a keepalive that is longer than
/// the test.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_silent_node_is_asked_and_a_dead_one_found_out() {
    let mut gate = Gate::set_up(Setup {
        broker: Some(BrokerCa::Own),
        keepalive: Duration::from_secs(600),
        cloud: vec!["--broker-silence".to_owned(), "2s".to_owned()],
        ..Setup::default()
    })
    .unwrap();
    gate.manifests(&scenario::manifests(1)).unwrap();
    gate.until_converged(1).unwrap();
    let before = gate.pids().unwrap();
    let seen = gate.broker().unwrap().log().unwrap().len();
    gate.until("it is asked three times", |gate| {
        probes(&gate.broker_log().unwrap()[seen..]) >= 3
    })
    .unwrap();
    assert!(!has_event(&gate, "gate", "Disconnected"));
    let signal = |name: &str| {
        let pid = gate.agent_pid().unwrap().to_string();
        let status = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(status.success());
    };
    signal("-STOP");
    gate.until("edge-cloud sees it go", |gate| {
        node(gate, "gate")["connected"] == false
    })
    .unwrap();
    signal("-CONT");
    gate.until("edge-cloud sees it again", |gate| {
        node(gate, "gate")["in_sync"] == true
    })
    .unwrap();
    assert_eq!(gate.pids().unwrap(), before);
}

/// Goal: both ends trust the broker by the configured CA, and by no other.
/// Method: a broker of another CA; then it presents a certificate of edge-cloud's own CA, which is
/// valid for enrolment only; then its own again.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_broker_is_trusted_by_the_ca_that_was_told_alone() {
    let mut gate = Gate::set_up(Setup {
        broker: Some(BrokerCa::Other),
        ..Setup::default()
    })
    .unwrap();
    gate.manifests(&scenario::manifests(1)).unwrap();
    gate.until_converged(1).unwrap();
    let before = gate.pids().unwrap();

    gate.broker().unwrap().kill().unwrap();
    gate.certify_broker("cloud").unwrap();
    let lost = events(&gate).len();
    gate.broker().unwrap().start().unwrap();
    gate.until("both refuse it", |gate| {
        let why = "invalid peer certificate";
        let node = gate.status().unwrap()["link_error"].to_string();
        let cloud = fs::read_to_string(gate.dir().join("cloud.log")).unwrap();
        node.contains(why) && cloud.contains(why)
    })
    .unwrap();
    assert_eq!(gate.status().unwrap()["connected"], false);
    let connects = events(&gate)[lost..].to_vec();
    let connects = connects
        .iter()
        .filter(|event| event["reason"] == "BrokerConnected");
    assert_eq!(connects.count(), 0);

    gate.broker().unwrap().kill().unwrap();
    gate.certify_broker("other-ca").unwrap();
    gate.broker().unwrap().start().unwrap();
    gate.until_converged(1).unwrap();
    assert_eq!(gate.pids().unwrap(), before);
}

/// Goal: revocation ends a live session, and with the list of refused certificates the broker does not admit
/// the node any more; a node that is not revoked is admitted. Method: the scenario, then SIGHUP
/// and new connections with the real certificates.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_revoked_node_is_not_heard_and_then_not_let_in() {
    let gate = start();
    let other = gate.join_another("other").unwrap();
    scenario::revoked(&gate).unwrap();
    gate.reload_broker().unwrap();
    let own = gate.state_dir().join("identity");
    gate.until("the broker has read the list", |gate| {
        Tap::connect(gate, &own, "gate", None).is_err()
    })
    .unwrap();
    Tap::connect(&gate, &other, "other", None).unwrap();
}

/// Goal: a rollover of the CA behind a broker: nothing is signed that the broker would refuse, nodes
/// renew over its link, it accepts their new certificates and refuses the old ones, and at the end those
/// that are revoked. Method: the commands of the manual; clients with certificates from before and after.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_rollover_behind_a_broker_waits_for_it_and_leaves_no_old_certificate() {
    let mut gate = start();
    gate.manifests(&scenario::manifests(1)).unwrap();
    gate.until_converged(1).unwrap();
    let pids = gate.pids().unwrap();
    let identity = gate.state_dir().join("identity");
    let before = gate.dir().join("before");
    fs::create_dir(&before).unwrap();
    for name in ["node.crt", "node.key"] {
        fs::copy(identity.join(name), before.join(name)).unwrap();
    }
    let phase = |gate: &Gate| gate.cloud_json("/v1/ca").unwrap()["phase"].clone();
    gate.cloud_text(&["ca", "rotate", "--yes"]).unwrap();
    assert_eq!(phase(&gate), "offered");
    let refused = gate.cloud_text(&["ca", "retire", "--yes"]).unwrap_err();
    assert!(refused.to_string().contains("broker-config"), "{refused}");
    // A board that joins now is admitted by the broker with its former files.
    let early = gate.join_another("early").unwrap();
    Tap::connect(&gate, &early, "early", None).unwrap();

    // It would accept clients of the new CA, but presents a certificate that nodes refuse once they have
    // dropped the old one: nothing is signed.
    let half = gate.dir().join("half");
    let dir = gate.broker().unwrap().dir().to_owned();
    let words = [
        "broker-config",
        half.to_str().unwrap(),
        "--name",
        "localhost",
    ];
    gate.cloud_text(&words).unwrap();
    for name in ["ca.crt", "broker.crl"] {
        fs::copy(half.join(name), dir.join(name)).unwrap();
    }
    let broker = gate.broker().unwrap();
    broker.kill().unwrap();
    broker.start().unwrap();
    gate.until("it is tried and refused", |gate| {
        let log = gate.broker_log().unwrap();
        log.contains("alert unknown ca")
    })
    .unwrap();
    assert_eq!(phase(&gate), "offered");

    gate.configure_broker().unwrap();
    gate.until("the broker lets the new CA in", |gate| {
        phase(gate) == "signing"
    })
    .unwrap();
    gate.until("the gate has renewed", |gate| {
        let view = gate.cloud_json("/v1/ca").unwrap();
        let mut waiting = view["waiting"].as_array().unwrap().iter();
        waiting.all(|one| one["node"] != "gate") && !gate.state_dir().join("identity.old").exists()
    })
    .unwrap();
    gate.until_converged(1).unwrap();
    assert_eq!(gate.pids().unwrap(), pids);
    // The broker accepts both CAs, and has the list of each, which edge-cloud writes within a second.
    gate.until("the old certificate is on the old CA's list", |gate| {
        gate.reload_broker().unwrap();
        Tap::connect(gate, &before, "gate", None).is_err()
    })
    .unwrap();
    Tap::connect(&gate, &early, "early", None).unwrap();
    gate.until_converged(1).unwrap();

    // One has not renewed: it has no agent.
    let done = gate.cloud_text(&["ca", "retire", "--yes", "--force", "1"]);
    assert!(done.unwrap().contains("joined again: early\n"));
    gate.configure_broker().unwrap();
    assert!(Tap::connect(&gate, &early, "early", None).is_err());
    gate.until_converged(1).unwrap();
    assert_eq!(gate.pids().unwrap(), pids);
    gate.cloud_text(&["node", "revoke", "gate", "--yes"])
        .unwrap();
    gate.reload_broker().unwrap();
    gate.until("the new certificate is refused, too", |gate| {
        Tap::connect(gate, &identity, "gate", None).is_err()
    })
    .unwrap();
    assert_eq!(gate.pids().unwrap(), pids);
}

/// An MQTT client of ours with a node's certificate.
struct Tap {
    client: Client,
    connection: Connection,
}

impl Tap {
    fn connect(
        gate: &Gate,
        identity: &Path,
        client_id: &str,
        will: Option<LastWill>,
    ) -> Result<Self, String> {
        let der = |name: &str| fs::read(identity.join(name)).unwrap();
        let certificate = CertificateDer::from(der("node.crt"));
        let key = PrivateKeyDer::try_from(der("node.key")).unwrap();
        Self::with(gate, Some((certificate, key)), client_id, will)
    }

    fn with(
        gate: &Gate,
        identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
        client_id: &str,
        will: Option<LastWill>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let ca = fs::read(gate.state_dir().join("identity/ca.crt")).unwrap();
        roots.add(CertificateDer::from(ca)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match identity {
            Some((certificate, key)) => builder
                .with_client_auth_cert(vec![certificate], key)
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![ALPN_MQTT.to_vec()];
        let port = gate.broker_port().unwrap();
        let mut options = MqttOptions::new(client_id, "localhost", port);
        options
            // It pings only while a test waits for it, and must stay connected meanwhile, too.
            .set_keep_alive(Duration::from_secs(600))
            .set_outgoing_inflight_upper_limit(8)
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))));
        if let Some(will) = will {
            options.set_last_will(will);
        }
        let (client, mut connection) = Client::new(options, 16);
        loop {
            match connection.recv_timeout(STATE_TIMEOUT) {
                Ok(Ok(Event::Incoming(Packet::ConnAck(_)))) => break,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("no answer".to_owned()),
            }
        }
        Ok(Self { client, connection })
    }

    fn subscribe(&mut self, filter: &str) {
        self.client.try_subscribe(filter, QoS::AtMostOnce).unwrap();
        self.until(|event| matches!(event, Event::Incoming(Packet::SubAck(_))).then_some(()));
    }

    /// Publishes, and returns when it was sent.
    fn publish(&mut self, topic: &str, retain: bool, bytes: Vec<u8>) {
        self.client
            .try_publish(topic, QoS::AtMostOnce, retain, bytes)
            .unwrap();
        self.until(|event| matches!(event, Event::Outgoing(Outgoing::Publish(_))).then_some(()));
    }

    fn until<T>(&mut self, wanted: impl Fn(Event) -> Option<T>) -> T {
        let start = Instant::now();
        while start.elapsed() < STATE_TIMEOUT {
            let event = self
                .connection
                .recv_timeout(STATE_TIMEOUT)
                .unwrap()
                .unwrap();
            if let Some(found) = wanted(event) {
                return found;
            }
        }
        panic!("not within {STATE_TIMEOUT:?}");
    }
}

fn topic_up(node: &str) -> String {
    let [shard, ..] = edge_proto::hash::sha256(node.as_bytes()).0;
    format!("m1/u/{shard:02x}/{node}")
}

fn hello() -> Vec<u8> {
    let root = Hash16([0; 16]);
    Frame::Hello {
        n: [7; 8],
        wire: edge_proto::limits::WIRE_VERSION,
        kinds: u32::MAX,
        epoch: 0,
        desired_root: root,
        reported_root: root,
        agent: "tap".to_owned(),
    }
    .encode()
}

/// Goal: a node with a valid certificate reads and writes its own topics only. Method: a client
/// with the certificate of a node that has really joined subscribes to everything, writes to the
/// gate's topics and leaves a will there; after that it does the same with its own, which must work:
/// the broker keeps the order, so these messages would arrive after a leak.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_node_reads_and_writes_nothing_of_another() {
    let gate = Gate::set_up(Setup {
        broker: Some(BrokerCa::Own),
        // A busy host is sometimes late, and must not lose a link for it.
        keepalive: Duration::from_secs(60),
        ..Setup::default()
    })
    .unwrap();
    gate.manifests(&scenario::manifests(1)).unwrap();
    gate.until_converged(1).unwrap();
    let identity = gate.join_another("thief").unwrap();

    // Its client id is another's, whose session must not end.
    let mut tap = Tap::connect(&gate, &identity, "gate", None).unwrap();
    for filter in ["m1/d/gate", "m1/d/thief", "m1/#", "#", &topic_up("gate")] {
        tap.subscribe(filter);
    }
    let garbage = || b"\x01\xff\xff".to_vec();
    tap.publish(&topic_up("gate"), false, garbage());
    tap.publish("m1/u/00/gate", false, garbage());
    tap.publish("m1/d/gate", false, garbage());
    // Traffic on the gate's topics, both ways.
    gate.manifests(&scenario::manifests(2)).unwrap();
    gate.until_converged(2).unwrap();

    // More than a frame, and a retained message: neither reaches edge-cloud.
    tap.publish(&topic_up("thief"), false, vec![0; 9_000]);
    tap.publish(&topic_up("thief"), false, garbage());
    gate.until("edge-cloud hears the thief", |gate| {
        has_event(gate, "thief", "PeerProblem")
    })
    .unwrap();
    assert!(!has_event(&gate, "gate", "PeerProblem"));
    tap.publish(&topic_up("thief"), false, hello());
    let first = tap.until(|event| match event {
        Event::Incoming(Packet::Publish(Publish { topic, payload, .. })) => Some((topic, payload)),
        _ => None,
    });
    assert_eq!(first.0, "m1/d/thief", "it reads what is not its own");
    let answer = Frame::decode(&first.1).unwrap();
    assert!(matches!(
        answer,
        Frame::Welcome { .. } | Frame::Probe { .. }
    ));
    drop(tap);

    // A will on the gate's topic, by a connection that breaks.
    let will = LastWill::new(topic_up("gate"), garbage(), QoS::AtMostOnce, false, None);
    drop(Tap::connect(&gate, &identity, "thief", Some(will)));
    let mut tap = Tap::connect(&gate, &identity, "thief", None).unwrap();
    tap.subscribe("m1/d/thief");
    tap.publish(&topic_up("thief"), false, garbage());
    // Its invalid frames are reported once a minute, so the answer to a `Hello` shows that all have arrived.
    tap.publish(&topic_up("thief"), false, hello());
    tap.until(|event| match event {
        Event::Incoming(Packet::Publish(Publish { topic, .. })) => Some(topic),
        _ => None,
    });
    assert_eq!(problems(&gate, "gate"), 0);

    // None of this has affected the gate's session.
    let losses = |event: &&Value| event["node"] == "gate" && event["reason"] == "Disconnected";
    assert_eq!(events(&gate).iter().filter(losses).count(), 0);
    assert!(!has_event(&gate, "", "BrokerLost"));
}

fn problems(gate: &Gate, node: &str) -> usize {
    let found = |event: &&Value| event["node"] == node && event["reason"] == "PeerProblem";
    events(gate).iter().filter(found).count()
}

/// Goal: only clients with a certificate of our CA are admitted. Method: none, one of another CA, and as a
/// check of the test a valid one.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn the_broker_lets_in_our_certificates_only() {
    let gate = start();
    assert!(Tap::with(&gate, None, "gate", None).is_err());
    let foreign = gate.dir().join("foreign");
    let text = foreign.display().to_string();
    gate.cloud_text(&["broker-config", &text, "--name", "x", "--data", &text])
        .unwrap();
    let identity = (
        CertificateDer::from_pem_file(foreign.join("edge-cloud.crt")).unwrap(),
        PrivateKeyDer::from_pem_file(foreign.join("edge-cloud.key")).unwrap(),
    );
    assert!(Tap::with(&gate, Some(identity), "gate", None).is_err());
    let own = gate.join_another("other").unwrap();
    Tap::connect(&gate, &own, "other", None).unwrap();
}
