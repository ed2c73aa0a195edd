//! edge-cloud as a client of an external MQTT broker: one connection carries the frames of all
//! nodes. The topic identifies the node; the broker's access control ties it to the
//! node's certificate; [`files`] writes that configuration for mosquitto.
//!
//! No delivery relies on the broker: QoS 0 and a clean start, and after each connect every node is
//! probed, at [`PROBES_AT_ONCE`] per [`PROBE_INTERVAL_MS`]. Each connection is a new client, because
//! rumqttc would keep old requests and a blocked state.
//!
//! Bound: [`BROKER_FRAMES_MAX`] frames wait for the socket; further ones are dropped and repeated by
//! their session.

pub mod files;

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use edge_proto::enrol::{ALPN_MQTT, Endpoint};
use edge_proto::lanes::{Lanes, Limits};
use edge_proto::limits::{
    BROKER_FRAMES_MAX, BROKER_RETRY_MS_MAX, BROKER_RETRY_MS_MIN, ENROL_BYTES_MAX, FRAME_BYTES_MAX,
    PROBE_INTERVAL_MS, PROBES_AT_ONCE, SILENCE_PROBES_AT_ONCE, SILENCE_PROBES_MAX,
};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Packet, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::tls::TlsError;
use crate::events::Events;
use crate::identity::authorities::{Authorities, Phase};
use crate::identity::ca::{Ca, CaError};
use crate::identity::{ExternalBroker, Identity};
use crate::sessions::{Carrier, Sessions};
use crate::shards::Shard;

/// The user name of edge-cloud at the broker, the common name of its certificate. No node can have
/// it: a node's name has no dot.
pub const USER: &str = "edge-cloud.controller";
/// User name for checking whether the broker accepts clients of a new CA. It has no rights there.
const TRIAL: &str = "edge-cloud.trial";
/// Time between two such checks.
const TRIAL_INTERVAL: Duration = Duration::from_secs(2);
/// Time for the controller to set each node's desired set, before those without one are probed, too.
pub const UNPLACED: Duration = Duration::from_secs(2);
/// Silent nodes are searched this many times in the allowed silence.
const ASK_PARTS: u32 = 30;
/// Lower bound of the interval of that search.
const ASK_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Bytes of all trust anchors of the broker together; they are part of each join answer.
pub const ANCHORS_BYTES_MAX: usize = 4 * 1024;
const _: () = assert!(ANCHORS_BYTES_MAX + 3 * 1024 < ENROL_BYTES_MAX);

/// Topics of all nodes.
const FILTER_UP: &str = "m1/u/+/+";
/// Bytes of one MQTT packet: a frame with its topic. The broker does not send us larger ones.
const PACKET_BYTES_MAX: u32 = 9 * 1024;
const _: () = assert!(FRAME_BYTES_MAX + 1024 == PACKET_BYTES_MAX as usize);
/// rumqttc allocates memory for each; QoS 0 needs none.
const INFLIGHT_MAX: u16 = 8;
/// A lost broker is noticed within two of them.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Longest time of TCP, TLS and CONNACK.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// First and longest wait before a new connection.
const WAIT_MIN: Duration = Duration::from_millis(BROKER_RETRY_MS_MIN);
const WAIT_MAX: Duration = Duration::from_millis(BROKER_RETRY_MS_MAX);
/// A connection of this length resets the waits.
const STABLE: Duration = Duration::from_secs(60);

/// Settings of the broker.
#[derive(Clone, Debug)]
pub struct Config {
    /// `mqtts://HOST[:PORT]`, as edge-cloud and the nodes reach it.
    pub url: String,
    /// PEM with the CAs that its certificate is checked against; `None`: edge-cloud's own.
    pub ca: Option<PathBuf>,
    /// PEM with edge-cloud's client certificate and its key; `None`: issued at each start.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// File of the list of refused certificates for the broker.
    pub crl: Option<PathBuf>,
    /// A node that is silent for so long is probed, see [`SILENCE_PROBES_MAX`].
    pub silence: Duration,
}

/// A broker with all that is needed to connect.
pub struct Broker {
    endpoint: Endpoint,
    /// The CAs of its certificate; empty: edge-cloud's own.
    anchors: Vec<CertificateDer<'static>>,
    /// Certificate and key from files; without them one is issued for each connection.
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    silence: Duration,
}

impl Broker {
    /// Reads the files. Returns the broker, and its settings for joining nodes.
    ///
    /// # Errors
    /// An error in the URL or a file.
    pub fn open(config: &Config, cas: &Authorities) -> io::Result<(Self, ExternalBroker)> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
        let endpoint = Endpoint::parse(&config.url)
            .filter(|endpoint| !endpoint.https)
            .ok_or_else(|| invalid("--broker: not of the form mqtts://HOST[:PORT]"))?;
        let anchors = config
            .ca
            .as_deref()
            .map_or_else(|| Ok(Vec::new()), certificates)?;
        if anchors.iter().map(|anchor| anchor.len()).sum::<usize>() > ANCHORS_BYTES_MAX {
            return Err(invalid("--broker-ca: more than 4 KiB of certificates"));
        }
        let identity = match &config.identity {
            Some((chain, key)) => {
                let at = |error| named(key, error);
                let key = PrivateKeyDer::from_pem_file(key).map_err(at)?;
                Some((certificates(chain)?, key))
            }
            None => None,
        };
        let external = ExternalBroker {
            broker: edge_proto::enrol::Broker {
                url: config.url.clone(),
                anchors: anchors.iter().map(|anchor| anchor.to_vec()).collect(),
            },
            crl: config.crl.clone(),
        };
        let broker = Self {
            endpoint,
            anchors,
            identity,
            silence: config.silence,
        };
        // Errors in the files are reported at the start.
        broker.tls(cas, None).map_err(io::Error::other)?;
        Ok((broker, external))
    }

    /// TLS with the CAs that are accepted now, as [`USER`]; or with `ca` alone, as a client that it has
    /// signed: a broker with a certificate of the old CA would become unreachable without that CA.
    fn tls(&self, cas: &Authorities, ca: Option<&Ca>) -> Result<ClientConfig, TlsError> {
        let own = ca.map_or_else(|| cas.ders(), |ca| vec![ca.der().clone()]);
        let anchors = match self.anchors.is_empty() {
            true => &own,
            false => &self.anchors,
        };
        let mut roots = RootCertStore::empty();
        for anchor in anchors {
            roots.add(anchor.clone())?;
        }
        let issued = |ca: &Ca, user| {
            let (certificate, key) = ca.client(user)?;
            Ok::<_, CaError>((vec![certificate], key))
        };
        let (chain, key) = match (ca, &self.identity) {
            (Some(ca), _) => issued(ca, TRIAL)?,
            (None, Some((chain, key))) => (chain.clone(), key.clone_key()),
            (None, None) => issued(cas.signer(), USER)?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![ALPN_MQTT.to_vec()];
        Ok(tls)
    }

    fn options(&self, user: &str, tls: ClientConfig) -> MqttOptions {
        let mut options = MqttOptions::new(user, &self.endpoint.host, self.endpoint.port);
        options
            .set_keep_alive(KEEPALIVE)
            .set_clean_start(true)
            .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
            .set_max_packet_size(Some(PACKET_BYTES_MAX))
            .set_outgoing_inflight_upper_limit(INFLIGHT_MAX)
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))));
        options
    }
}

fn named(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| named(path, error))?;
    if found.is_empty() {
        return Err(named(path, "no certificate in it"));
    }
    Ok(found)
}

/// Carrier of one node's frames: to the broker's socket, as far as the node's rates allow. Without a rate
/// nothing waits here.
struct BrokerCarrier {
    client: AsyncClient,
    node: String,
    topic: String,
    lanes: Box<Lanes>,
}

impl BrokerCarrier {
    fn new(client: AsyncClient, node: &str) -> Self {
        Self {
            client,
            node: node.to_owned(),
            topic: format!("m1/d/{node}"),
            lanes: Box::new(Lanes::new()),
        }
    }
}

impl Carrier for BrokerCarrier {
    fn send(&mut self, now: u64, frame: Vec<u8>) {
        self.lanes.push(frame);
        self.tick(now);
    }

    fn set_limits(&mut self, now: u64, limits: &Limits) {
        self.lanes.set_limits(now, limits);
    }

    /// Passes frames to the socket; a frame is lost when [`BROKER_FRAMES_MAX`] wait for it already.
    fn tick(&mut self, now: u64) {
        while let Some(frame) = self.lanes.poll(now) {
            let topic = self.topic.clone();
            let sent = self
                .client
                .try_publish(topic, QoS::AtMostOnce, false, frame);
            if sent.is_err() {
                log::debug!("frame_dropped node={}", self.node);
            }
        }
    }

    fn deadline(&self) -> Option<u64> {
        self.lanes.deadline()
    }
}

/// The connection to the broker, with all that uses it.
pub struct Client {
    /// The broker to connect to.
    pub broker: Broker,
    /// Signs edge-cloud's certificate, and identifies nodes.
    pub identity: Arc<Identity>,
    /// Handle the frames of all nodes.
    pub sessions: Arc<Sessions>,
    /// Receives when the broker connects and disconnects.
    pub events: Arc<Events>,
}

impl Client {
    /// Keeps the connection, for ever.
    pub async fn run(self) {
        let mut wait = WAIT_MIN;
        loop {
            let start = Instant::now();
            let reason = self.connection().await;
            if start.elapsed() >= STABLE {
                wait = WAIT_MIN;
            }
            log::warn!("broker_away error={reason} retry_ms={}", wait.as_millis());
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    /// One connection from attempt to end; returns why it ended.
    async fn connection(&self) -> String {
        let tls = match self.broker.tls(&self.identity.authorities(), None) {
            Ok(tls) => tls,
            Err(error) => return error.to_string(),
        };
        let (client, mut events) =
            AsyncClient::new(self.broker.options(USER, tls), BROKER_FRAMES_MAX);
        // Set once frames can be received.
        let is_up = AtomicBool::new(false);
        let reason = tokio::select! {
            never = self.try_new_ca() => match never {},
            reason = self.receive(&mut events, &client, &is_up) => reason,
            never = self.probe(&client, &is_up) => match never {},
            never = self.probe_silent() => match never {},
        };
        if is_up.into_inner() {
            self.events.add("", "BrokerLost", &reason);
            self.sessions.all_disconnected();
        }
        reason
    }

    /// Cancelled only with the whole connection: half a connect of rumqttc's would start again.
    async fn receive(
        &self,
        events: &mut EventLoop,
        client: &AsyncClient,
        is_up: &AtomicBool,
    ) -> String {
        // rumqttc has no flush deadline, but pings make an event per keepalive: silence over two
        // means that its loop is blocked.
        let mut timeout = CONNECT_TIMEOUT + Duration::from_secs(5);
        let carriers = |node: &str| Box::new(BrokerCarrier::new(client.clone(), node)) as _;
        loop {
            let event = match tokio::time::timeout(timeout, events.poll()).await {
                Err(_) => return "no progress within two keepalives".to_owned(),
                Ok(Err(error)) => return error.to_string(),
                Ok(Ok(event)) => event,
            };
            match event {
                Event::Incoming(Packet::ConnAck(_)) => {
                    timeout = KEEPALIVE * 2;
                    if client.try_subscribe(FILTER_UP, QoS::AtMostOnce).is_err() {
                        return "cannot subscribe".to_owned();
                    }
                }
                Event::Incoming(Packet::SubAck(ack)) => {
                    let granted = |code| matches!(code, &SubscribeReasonCode::Success(_));
                    if !ack.return_codes.iter().all(granted) {
                        return format!("the broker does not let {USER} read {FILTER_UP}");
                    }
                    is_up.store(true, Ordering::Relaxed);
                    let text = "every node is asked for its state";
                    self.events.add("", "BrokerConnected", text);
                    self.sessions.probe_all();
                }
                // A retained message is never a node's: it is old, and no node may create one.
                Event::Incoming(Packet::Publish(publish))
                    if !publish.retain && is_up.load(Ordering::Relaxed) =>
                {
                    let topic = std::str::from_utf8(&publish.topic).ok();
                    if let Some(node) = topic.and_then(node_of) {
                        self.sessions
                            .frame_from_broker(node, &publish.payload, &carriers);
                    }
                }
                Event::Incoming(Packet::Disconnect(disconnect)) => {
                    return format!("closed by the broker: {:?}", disconnect.reason_code);
                }
                _ => {}
            }
        }
    }

    /// While a new CA is offered: checks whether the broker accepts a client of it, and sends a certificate
    /// of it unless the broker has a CA of its own, so that no node renews its certificate before.
    async fn try_new_ca(&self) -> Infallible {
        loop {
            let cas = self.identity.authorities();
            if cas.phase() == Phase::Offered
                && let Ok(tls) = self.broker.tls(&cas, Some(cas.newest()))
            {
                let options = self.broker.options(TRIAL, tls);
                let (_client, mut events) = AsyncClient::new(options, 1);
                let answer = async {
                    loop {
                        match events.poll().await {
                            Ok(Event::Incoming(Packet::ConnAck(ack))) => break Some(ack.code),
                            Ok(_) => {}
                            Err(_) => break None,
                        }
                    }
                };
                let answer = tokio::time::timeout(CONNECT_TIMEOUT, answer).await;
                if matches!(answer, Ok(Some(ConnectReturnCode::Success))) {
                    self.identity.broker_accepts_new_ca();
                }
            }
            tokio::time::sleep(TRIAL_INTERVAL).await;
        }
    }

    /// Probes all nodes, at a limited rate, once the frames of their answers can be received.
    async fn probe(&self, client: &AsyncClient, is_up: &AtomicBool) -> Infallible {
        let carriers = |node: &str| Box::new(BrokerCarrier::new(client.clone(), node)) as _;
        loop {
            self.sessions.unprobed().await;
            if !is_up.load(Ordering::Relaxed) {
                continue;
            }
            // A node whose set is not known yet would be probed again when it is.
            for unplaced in [false, true] {
                while self.sessions.probe(PROBES_AT_ONCE, unplaced, &carriers) {
                    tokio::time::sleep(Duration::from_millis(PROBE_INTERVAL_MS)).await;
                }
                tokio::time::sleep(UNPLACED).await;
            }
        }
    }

    /// Probes silent nodes: a broker that is a cluster can lose a will without
    /// losing us.
    async fn probe_silent(&self) -> Infallible {
        let silence = self.broker.silence;
        let silence_ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
        let interval = (silence / ASK_PARTS).max(ASK_INTERVAL_MIN);
        loop {
            tokio::time::sleep(interval).await;
            self.sessions
                .probe_silent(silence_ms, SILENCE_PROBES_MAX, SILENCE_PROBES_AT_ONCE);
        }
    }
}

/// The node of a topic, if the topic is valid: its shard must be that of the name.
fn node_of(topic: &str) -> Option<&str> {
    let (shard, node) = topic.strip_prefix("m1/u/")?.split_once('/')?;
    (shard == Shard::of(node).to_string()).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_names_its_node_only_under_the_right_shard() {
        let [first, ..] = edge_proto::hash::sha256(b"gate").0;
        assert_eq!(node_of(&format!("m1/u/{first:02x}/gate")), Some("gate"));
        let wrong = first.wrapping_add(1);
        assert_eq!(node_of(&format!("m1/u/{wrong:02x}/gate")), None);
        for topic in ["m1/u/gate", "m1/d/gate", "m1/u//gate", "", "m1/u/"] {
            assert_eq!(node_of(topic), None, "{topic}");
        }
    }
}
