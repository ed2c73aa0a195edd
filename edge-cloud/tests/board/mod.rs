//! A whole edge-cloud port, and boards that connect with real TLS and MQTT, correctly or not.
#![allow(dead_code, reason = "each test uses a part")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use edge_cloud::fleet::Fleet;
use edge_cloud::identity::ca::{Ca, Request};
use edge_cloud::identity::enrol::CertificateTimes;
use edge_cloud::identity::registry::{Enrolment, Registry};
use edge_cloud::nodes::{EventLog as _, NodeReports as _, NodeView};
use edge_cloud::records::Records;
use edge_cloud::serve;
use edge_cloud::sessions::ADMISSIONS_PER_S;
use edge_proto::call::CODE_OK;
use edge_proto::enrol::{ALPN_JOIN, ALPN_MQTT, JoinAnswer, JoinRequest};
use edge_proto::frame::Entry;
use edge_proto::session::{
    CallInput, CallOpen, CallResult, LinkInput, LinkOutput, Node, NodeConfig, NodeInput,
    NodeOutput, NodeRecordsInput, NodeRecordsOutput, StateInput, StateOutput,
};
use edge_proto::wire::Wire as _;
use rcgen::KeyPair;
use rumqttc::v5::mqttbytes::v5::{
    Connect, ConnectReturnCode, Filter, LastWill, Packet, PingReq, Publish, Subscribe,
};
use rumqttc::v5::mqttbytes::{Error, QoS};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Timeout for any state to be reached, also on a busy host.
pub(crate) const STATE_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Certificate and key of a board.
#[derive(Clone)]
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
    pub(crate) serial: String,
}

/// A certificate of `ca` that is valid for so many seconds from `unix_s` on.
pub(crate) fn identity(ca: &Ca, node: &str, unix_s: u64, life_s: u64) -> Identity {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let request = Request::read(csr.der()).unwrap();
    let issued = ca.node(node, &request, None, unix_s, life_s).unwrap();
    Identity {
        certificate: issued.der.into(),
        key: key.serialize_der(),
        serial: issued.serial,
    }
}

/// The nodes of a folder.
pub(crate) fn open(data: &std::path::Path, records: Arc<Records>) -> Arc<Fleet> {
    let ca = Ca::open(data).unwrap();
    Fleet::open(data, ca, None, records, CertificateTimes::default()).unwrap()
}

/// An edge-cloud that serves nodes, without a controller.
pub(crate) struct Cloud {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) ca: Ca,
    pub(crate) address: SocketAddr,
    /// Address from which its boards connect.
    pub(crate) source: IpAddr,
    _data: tempfile::TempDir,
}

impl Cloud {
    /// With these nodes, whose certificates are valid for an hour.
    pub(crate) async fn with<const N: usize>(nodes: [&str; N]) -> (Self, [Identity; N]) {
        Self::with_lives(nodes.map(|node| (node, 3_600))).await
    }

    /// Nodes of a cloud that runs elsewhere.
    pub(crate) fn at(address: SocketAddr, data: &std::path::Path, fleet: Arc<Fleet>) -> Self {
        Self {
            fleet,
            ca: Ca::open(data).unwrap(),
            address,
            source: Ipv4Addr::LOCALHOST.into(),
            _data: tempfile::tempdir().unwrap(),
        }
    }

    /// With these nodes, whose certificates are valid for so many seconds.
    pub(crate) async fn with_lives<const N: usize>(
        nodes: [(&str, u64); N],
    ) -> (Self, [Identity; N]) {
        Self::admitting(ADMISSIONS_PER_S, nodes).await
    }

    /// The same, and it admits so many connections a second.
    pub(crate) async fn admitting<const N: usize>(
        admissions_per_s: u32,
        nodes: [(&str, u64); N],
    ) -> (Self, [Identity; N]) {
        let data = tempfile::tempdir().unwrap();
        let ca = Ca::open(data.path()).unwrap();
        let registry = Registry::open(data.path(), now()).unwrap();
        let identities = nodes.map(|(node, life_s)| {
            let identity = identity(&ca, node, now(), life_s);
            let enrolment = Enrolment {
                serial: identity.serial.clone(),
                joined_unix_s: now(),
                life_s,
                ..Enrolment::default()
            };
            registry.add(node, enrolment).unwrap();
            identity
        });
        drop(registry);
        let fleet = open(data.path(), Records::none());
        let hub = serve::hub(&fleet, vec!["127.0.0.1".to_owned()], admissions_per_s).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ticking = Arc::clone(&fleet.sessions);
        tokio::spawn(async move { hub.serve(listener).await });
        tokio::spawn(async move { ticking.tick().await });
        let cloud = Self {
            fleet,
            ca,
            address,
            source: Ipv4Addr::LOCALHOST.into(),
            _data: data,
        };
        (cloud, identities)
    }

    /// Its data folder.
    pub(crate) fn data(&self) -> &std::path::Path {
        self._data.path()
    }

    pub(crate) fn view(&self, node: &str) -> Option<NodeView> {
        self.fleet.view(node)
    }

    pub(crate) fn is_live(&self, node: &str) -> bool {
        self.view(node).is_some_and(|view| view.connected)
    }

    pub(crate) fn events(&self, node: &str, reason: &str) -> usize {
        let events = self.fleet.events().into_iter();
        events
            .filter(|event| event.node == node && event.reason == reason)
            .count()
    }

    /// Waits for a state of the links.
    pub(crate) async fn until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        let mut changes = self.fleet.subscribe();
        let mut events = self.fleet.events.subscribe();
        let wait = async {
            while !reached(self) {
                tokio::select! {
                    () = changes.changed() => drop(changes.take()),
                    more = events.changed() => more.unwrap(),
                }
            }
        };
        let result = tokio::time::timeout(STATE_TIMEOUT, wait).await;
        assert!(result.is_ok(), "{what}: {:?}", self.fleet.events());
    }

    /// One TLS connection. Whether the server accepts the client's certificate is known only after a read.
    pub(crate) async fn tls(&self, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.source, 0).into())?;
        let tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(Arc::clone(config))
            .connect(name, tcp)
            .await
    }

    /// Connects and waits for the answer; the reason when there is no link.
    pub(crate) async fn client(&self, node: &str, identity: &Identity) -> Result<Client, String> {
        let config = self.config(ALPN_MQTT, Some(identity));
        self.client_with(node, &config, None).await
    }

    pub(crate) async fn client_with(
        &self,
        id: &str,
        config: &Arc<ClientConfig>,
        will: Option<LastWill>,
    ) -> Result<Client, String> {
        let stream = self.tls(config).await.map_err(|error| error.to_string())?;
        Client::greet(stream, id, will).await
    }

    pub(crate) fn config(&self, alpn: &[u8], identity: Option<&Identity>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder
                .with_client_auth_cert(
                    vec![identity.certificate.clone()],
                    PrivatePkcs8KeyDer::from(identity.key.clone()).into(),
                )
                .unwrap(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::in_memory_sessions(2);
        Arc::new(config)
    }

    pub(crate) fn mqtt_config(&self, identity: Option<&Identity>) -> Arc<ClientConfig> {
        self.config(ALPN_MQTT, identity)
    }

    /// Joins with a token.
    pub(crate) async fn join(&self, token: &str, node: &str) -> Result<Identity, String> {
        let mut stream = self.tls(&self.config(ALPN_JOIN, None)).await.unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let parts: Vec<_> = token.split('.').collect();
        let bytes = JoinRequest {
            token_id: parts[1].to_owned(),
            token_secret: parts[2].to_owned(),
            node: node.to_owned(),
            csr: csr.der().to_vec(),
        }
        .to_wire();
        stream.write_u16(bytes.len() as u16).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = JoinAnswer::from_wire(&answer).unwrap();
        if let JoinAnswer::Refused { reason } = answer {
            return Err(reason);
        }
        let JoinAnswer::Accepted { certificate, .. } = answer else {
            panic!("{answer:?}");
        };
        Ok(Identity {
            certificate: certificate.into(),
            key: key.serialize_der(),
            serial: String::new(),
        })
    }
}

pub(crate) fn topic_up(node: &str) -> String {
    let shard = edge_proto::hash::sha256(node.as_bytes()).0[0];
    format!("m1/u/{shard:02x}/{node}")
}

pub(crate) fn topic_down(node: &str) -> String {
    format!("m1/d/{node}")
}

/// One MQTT connection.
pub(crate) struct Client {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

impl Client {
    /// Sends CONNECT and waits for the answer; the reason when there is no link.
    pub(crate) async fn greet(
        stream: TlsStream<TcpStream>,
        id: &str,
        will: Option<LastWill>,
    ) -> Result<Self, String> {
        let mut client = Self {
            stream,
            buffer: BytesMut::new(),
        };
        let connect = Connect {
            keep_alive: 60,
            client_id: id.to_owned(),
            clean_start: true,
            properties: None,
        };
        client
            .write(&Packet::Connect(connect, will, None))
            .await
            .map_err(|error| error.to_string())?;
        match client.read().await.map_err(|error| error.to_string())? {
            Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => Ok(client),
            other => Err(format!("{other:?}")),
        }
    }

    pub(crate) async fn write(&mut self, packet: &Packet) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).unwrap();
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await
    }

    /// The next packet.
    pub(crate) async fn read(&mut self) -> io::Result<Packet> {
        loop {
            match Packet::read(&mut self.buffer, None) {
                Ok(packet) => return Ok(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
            let read = self.stream.read_buf(&mut self.buffer);
            match tokio::time::timeout(STATE_TIMEOUT, read).await {
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => drop(count?),
            }
        }
    }

    /// Packets of the cloud until it closes; fails if it does not close.
    pub(crate) async fn last_words(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        loop {
            match self.read().await {
                Ok(packet) => packets.push(packet),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    panic!("still open: {packets:?}")
                }
                Err(_) => return packets,
            }
        }
    }

    pub(crate) async fn subscribe(&mut self, topic: &str) -> io::Result<()> {
        let mut subscribe = Subscribe::new(Filter::new(topic, QoS::AtMostOnce), None);
        subscribe.pkid = 1;
        self.write(&Packet::Subscribe(subscribe)).await
    }

    /// Pings and waits for the answer; packets before it are dropped.
    pub(crate) async fn ping(&mut self) -> io::Result<()> {
        self.write(&Packet::PingReq(PingReq)).await?;
        while !matches!(self.read().await?, Packet::PingResp(_)) {}
        Ok(())
    }

    pub(crate) async fn publish(
        &mut self,
        topic: &str,
        qos: QoS,
        frame: Vec<u8>,
    ) -> io::Result<()> {
        let mut publish = Publish::new(topic, qos, frame, None);
        publish.pkid = if qos == QoS::AtMostOnce { 0 } else { 1 };
        self.write(&Packet::Publish(publish)).await
    }
}

/// How a board answers a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// At once and completely.
    Whole,
    /// It is not answered.
    Never,
    /// With a first piece, and no more.
    Half,
}

/// One class of an outbox, in memory.
#[derive(Default)]
pub(crate) struct Outbox {
    pub(crate) incarnation: [u8; 8],
    /// By number from 1.
    pub(crate) records: Vec<Entry>,
    /// All earlier ones are acknowledged.
    pub(crate) acknowledged: u64,
}

impl Outbox {
    fn read(&self, from: u64, bytes_max: usize) -> Vec<Entry> {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.bytes_max();
            bytes <= bytes_max
        };
        let from = from as usize - 1;
        let entries = self.records[from..].iter().take(200);
        entries.take_while(fits).cloned().collect()
    }
}

/// A board with a session, as the agent runs it.
pub(crate) struct Board {
    client: Client,
    session: Node,
    node: String,
    answers: Answers,
    start: Instant,
    pub(crate) outbox: Arc<Mutex<Outbox>>,
}

impl Board {
    /// Reports the content of the outbox to the session.
    pub(crate) async fn ready(&mut self) -> io::Result<()> {
        let input = {
            let outbox = self.outbox.lock().unwrap();
            NodeRecordsInput::Ready {
                class: 0,
                incarnation: outbox.incarnation,
                held: outbox.acknowledged.max(1),
                end: outbox.records.len() as u64 + 1,
            }
        };
        self.handle(input).await
    }

    /// Connects and subscribes.
    pub(crate) async fn open(
        cloud: &Cloud,
        node: &str,
        identity: &Identity,
        answers: Answers,
    ) -> Result<Self, String> {
        let mut client = cloud.client(node, identity).await?;
        let broke = |error: io::Error| error.to_string();
        client.subscribe(&topic_down(node)).await.map_err(broke)?;
        match client.read().await.map_err(broke)? {
            Packet::SubAck(_) => {}
            other => return Err(format!("{other:?}")),
        }
        let seed: [u8; 8] = rand();
        let config = NodeConfig {
            kinds: u32::MAX,
            agent: "test".to_owned(),
        };
        let mut board = Self {
            client,
            session: Node::new(config, u64::from_le_bytes(seed)),
            node: node.to_owned(),
            answers,
            start: Instant::now(),
            outbox: Arc::default(),
        };
        board.handle(LinkInput::TransportUp).await.map_err(broke)?;
        Ok(board)
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    pub(crate) fn will(&self) -> Vec<u8> {
        self.session.will()
    }

    async fn handle<'a>(&mut self, input: impl Into<NodeInput<'a>>) -> io::Result<()> {
        self.session.handle(self.now(), input);
        while let Some(output) = self.session.poll() {
            match output {
                NodeOutput::Link(LinkOutput::Send(frame)) => {
                    let topic = topic_up(&self.node);
                    self.client.publish(&topic, QoS::AtMostOnce, frame).await?;
                }
                NodeOutput::State(StateOutput::Apply { ticket, .. }) => {
                    let refused = Vec::new();
                    let now = self.now();
                    self.session
                        .handle(now, StateInput::Applied { ticket, refused });
                }
                NodeOutput::Records(NodeRecordsOutput::Wanted {
                    class,
                    from,
                    bytes_max,
                }) => {
                    let entries = self.outbox.lock().unwrap().read(from, bytes_max);
                    let read = NodeRecordsInput::Read {
                        class,
                        first: from,
                        entries,
                    };
                    let now = self.now();
                    self.session.handle(now, read);
                }
                NodeOutput::Records(NodeRecordsOutput::Acked { next, .. }) => {
                    self.outbox.lock().unwrap().acknowledged = next;
                }
                NodeOutput::CallOpen(CallOpen { id, .. }) if self.answers != Answers::Never => {
                    let (now, bytes, end) = (self.now(), b"line\n".to_vec(), false);
                    self.session.handle(now, CallInput::Data { id, bytes, end });
                    if self.answers == Answers::Whole {
                        let (code, reason) = (CODE_OK, String::new());
                        self.session.handle(now, CallResult { id, code, reason });
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Runs until the connection ends.
    pub(crate) async fn run(&mut self) -> io::Result<()> {
        loop {
            let wait = self.session.deadline().unwrap_or(u64::MAX);
            let wait = Duration::from_millis(wait.saturating_sub(self.now()).min(60_000));
            // Reading again after the deadline loses nothing: the bytes are in the buffer.
            match tokio::time::timeout(wait, self.client.read()).await {
                Err(_) => self.handle(LinkInput::Tick).await?,
                Ok(Ok(Packet::Publish(publish))) => {
                    self.handle(LinkInput::Frame(&publish.payload)).await?;
                }
                Ok(Ok(Packet::Disconnect(_))) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Gives the bare connection back.
    pub(crate) fn into_client(self) -> Client {
        self.client
    }
}

fn rand<const N: usize>() -> [u8; N] {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; N];
    ring::rand::SystemRandom::new().fill(&mut bytes).unwrap();
    bytes
}
