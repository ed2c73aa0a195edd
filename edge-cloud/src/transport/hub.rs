//! The one port of an embedded edge-cloud: TLS, then by ALPN either one enrolment or MQTT 5 for
//! one node. Behind an external broker it is for enrolment only, bare or by HTTPS. It speaks only
//! as much MQTT as a link needs: one subscription, QoS 0, no retained messages. Who a node is comes
//! from its certificate and nowhere else.

mod unauthenticated;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use edge_proto::enrol::ALPN_JOIN;
use edge_proto::lanes::Lanes;
use edge_proto::limits::{FRAME_BYTES_MAX, KEEPALIVE_S_MAX, SILENCE_PERCENT};
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Disconnect, DisconnectProperties, DisconnectReasonCode, Packet,
    PingResp, Publish, SubAck, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error, QoS};
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::unauthenticated::{Place, Unauthenticated};
use crate::clock::unix_s;
use crate::sessions::{Links, Refused};
use crate::transport::tls::{self, Peer};

/// Connections at once, those that still shake hands included.
const CONNECTIONS_MAX: usize = 8_192;
/// Those of them that have shown no certificate of ours yet, enrolments included: however many come,
/// there is room for nodes. With all of them taken, a further one takes the place of another.
const UNAUTHENTICATED_MAX: usize = 2_048;
const _: () = assert!(UNAUTHENTICATED_MAX < CONNECTIONS_MAX);
/// Longest time of TLS, of an enrolment and until CONNECT: TCP and TLS took 70 s at 30 % loss.
const OPENING_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest time in which a node takes nothing of what waits for it, although it may go on to ping.
const WRITE_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest time for the last packets of a connection that ends: nobody waits for them.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes given to the socket at once; with the frame that reaches it at most one more. What waits
/// behind is in its lanes, where an urgent frame can still overtake it.
const AHEAD_BYTES_MAX: usize = 4 * 1024;
/// Bytes not yet sent beyond which the kernel takes no more of a connection: a queue in there would
/// know no lanes either.
const UNSENT_BYTES_MAX: u32 = 4 * 1024;
/// Bytes on the way to the socket beyond which the node is not read: answers to pings alone get
/// there, so it asks and does not read.
const ANSWERS_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one MQTT packet: a frame with its topic.
const PACKET_BYTES_MAX: u32 = 9 * 1024;
const _: () = assert!(FRAME_BYTES_MAX + 1024 == PACKET_BYTES_MAX as usize);

/// Accepts connections, for ever; each with the configuration of just then.
pub async fn serve(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    links: Arc<Links>,
) {
    // What is accepted inherits it. Without it a frame only waits longer.
    if let Err(error) = SockRef::from(&listener).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        log::warn!("notsent_lowat_failed error={error}");
    }
    // On a line that loses packets at random, others take each loss for a queue and come to a stand.
    // A kernel that does not offer it keeps its own.
    if let Err(error) = SockRef::from(&listener).set_tcp_congestion(b"bbr") {
        log::info!("no_bbr error={error}");
    }
    tokio::select! {
        () = accept(listener, tls, &links) => {}
        () = links.admit() => {}
    }
}

async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    links: &Arc<Links>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let unauthenticated = Unauthenticated::new(UNAUTHENTICATED_MAX);
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: wait for some to come back.
                log::warn!("accept_failed error={error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Before TLS, which is what costs: after an outage all come at once.
        let admission = links.admission(address.ip());
        let place = unauthenticated.enter(address.ip());
        let tls = TlsAcceptor::from(Arc::clone(&tls.borrow()));
        let links = Arc::clone(links);
        tokio::spawn(async move {
            if let Err(error) = connection(stream, admission, tls, &links, place).await {
                log::debug!("connection_ended error={error}");
            }
            drop(permit);
        });
    }
}

async fn timely<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn connection(
    stream: TcpStream,
    admission: oneshot::Receiver<()>,
    tls: TlsAcceptor,
    links: &Arc<Links>,
    place: Place,
) -> io::Result<()> {
    // Frames are few and whole: waiting for more would only add a delay.
    stream.set_nodelay(true)?;
    let opened = tokio::select! {
        opened = open(stream, admission, tls, links) => opened?,
        () = place.wanted() => return Err(io::Error::other("made room for another")),
    };
    drop(place);
    match opened {
        Some((stream, peer)) => Mqtt::open(stream, &peer, links).await,
        None => Ok(()),
    }
}

/// All that a connection does before it has shown a certificate, a whole enrolment included.
async fn open(
    stream: TcpStream,
    admission: oneshot::Receiver<()>,
    tls: TlsAcceptor,
    links: &Arc<Links>,
) -> io::Result<Option<(TlsStream<TcpStream>, Peer)>> {
    admission
        .await
        .map_err(|_| io::Error::other("too many connections wait"))?;
    let stream = timely(OPENING_TIMEOUT, tls.accept(stream)).await?;
    let (_, session) = stream.get_ref();
    let joins = session.alpn_protocol() == Some(ALPN_JOIN);
    if joins || links.is_behind_broker() {
        return links.enrol(stream, !joins).await.map(|()| None);
    }
    match tls::peer(session, unix_s()) {
        Some(peer) => Ok(Some((stream, peer))),
        None => Err(io::Error::other("no valid client certificate")),
    }
}

/// One node's MQTT connection. It always reads, whatever waits to be written: two ends that each
/// wait for the other to read would wait for ever.
struct Mqtt<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    received: BytesMut,
    sending: BytesMut,
    /// Frames that wait, by the clock that starts with the connection.
    lanes: Lanes,
    start: Instant,
    /// Bytes wait in `sending`, or in TLS below it.
    unsent: bool,
    /// When the socket last took something, or there was first something to take.
    taken: Instant,
    topic_up: String,
    topic_down: String,
}

impl<S: AsyncRead + AsyncWrite> Mqtt<S> {
    fn new(stream: S, node: &str) -> Self {
        let shard = edge_proto::hash::sha256(node.as_bytes()).0[0];
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            received: BytesMut::with_capacity(1024),
            sending: BytesMut::new(),
            lanes: Lanes::new(),
            start: Instant::now(),
            unsent: false,
            taken: Instant::now(),
            topic_up: format!("m1/u/{shard:02x}/{node}"),
            topic_down: format!("m1/d/{node}"),
        }
    }

    async fn open(stream: S, peer: &Peer, links: &Arc<Links>) -> io::Result<()> {
        let node = peer.node.as_str();
        let mut mqtt = Self::new(stream, node);
        let Packet::Connect(connect, will, _) = timely(OPENING_TIMEOUT, mqtt.read()).await? else {
            return Err(io::Error::other("the first packet is not CONNECT"));
        };
        let refused = (!connect.client_id.is_empty() && connect.client_id != node)
            || will.is_some_and(|will| will.topic != mqtt.topic_up.as_bytes());
        if refused {
            return mqtt.refuse(ConnectReturnCode::NotAuthorized).await;
        }
        let (id, mut frames) = match links.connect(peer) {
            Ok(link) => link,
            Err(Refused::ForGood) => return mqtt.refuse(ConnectReturnCode::NotAuthorized).await,
            Err(Refused::ForNow) => return mqtt.refuse(ConnectReturnCode::ServerBusy).await,
        };
        let keepalive = match connect.keep_alive {
            0 => KEEPALIVE_S_MAX,
            seconds => seconds.min(KEEPALIVE_S_MAX),
        };
        let silence = Duration::from_secs(keepalive.into()) * SILENCE_PERCENT / 100;
        let mut result = mqtt.put(&acknowledge(ConnectReturnCode::Success));
        if result.is_ok() {
            result = mqtt.run(node, id, silence, &mut frames, links).await;
        }
        links.disconnect(node, id);
        result
    }

    async fn refuse(&mut self, code: ConnectReturnCode) -> io::Result<()> {
        self.put(&acknowledge(code))?;
        self.drain().await
    }

    async fn run(
        &mut self,
        node: &str,
        id: u64,
        silence: Duration,
        frames: &mut mpsc::Receiver<Vec<u8>>,
        links: &Arc<Links>,
    ) -> io::Result<()> {
        let mut subscribed = false;
        let mut limits = links.limits(node);
        let mut limits_known = true;
        limits.mark_changed();
        let mut heard = Instant::now();
        loop {
            while let Some(packet) = self.packet()? {
                match packet {
                    Packet::PingReq(_) => self.put(&Packet::PingResp(PingResp))?,
                    Packet::Publish(publish)
                        if publish.topic == self.topic_up.as_bytes()
                            && publish.qos == QoS::AtMostOnce =>
                    {
                        links.frame(node, id, &publish.payload);
                    }
                    Packet::Subscribe(subscribe) => {
                        let own = |path: &String| *path == self.topic_down;
                        if !subscribe.filters.iter().all(|filter| own(&filter.path)) {
                            return self.end("subscribes to what is not its own").await;
                        }
                        let granted = SubscribeReasonCode::Success(QoS::AtMostOnce);
                        self.put(&Packet::SubAck(SubAck {
                            pkid: subscribe.pkid,
                            return_codes: vec![granted; subscribe.filters.len()],
                            properties: None,
                        }))?;
                        subscribed = true;
                    }
                    Packet::Disconnect(_) => return Ok(()),
                    _ => {
                        return self
                            .end("publishes to what is not its own, or speaks more MQTT than a link needs")
                            .await;
                    }
                }
            }
            let mut free = None;
            if subscribed && !self.unsent {
                self.publish_next()?;
                if !self.unsent {
                    let at = self.lanes.deadline();
                    free = at.map(|at| self.start + Duration::from_millis(at));
                }
            }
            let (silent, stuck) = (heard + silence, self.taken + WRITE_TIMEOUT);
            tokio::select! {
                // A peer that asks and never reads its answers is not heard further.
                count = self.reader.read_buf(&mut self.received), if self.sending.len() < ANSWERS_BYTES_MAX => {
                    if count? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    heard = Instant::now();
                }
                result = drain(&mut self.writer, &mut self.sending, &mut self.taken), if self.unsent => {
                    result?;
                    self.unsent = false;
                }
                frame = frames.recv() => {
                    let Some(frame) = frame else {
                        // The last words may be among what waits, and go first.
                        if subscribed {
                            self.publish_next()?;
                        }
                        self.put(&goodbye(DisconnectReasonCode::SessionTakenOver, "taken over"))?;
                        return self.drain().await;
                    };
                    // One that does not fit is lost like one on the way.
                    self.lanes.push(frame);
                }
                changed = limits.changed(), if limits_known => {
                    limits_known = changed.is_ok();
                    let now = self.now();
                    self.lanes.set_limits(now, &limits.borrow_and_update());
                }
                () = tokio::time::sleep_until(free.unwrap_or(silent)), if free.is_some() => {}
                () = tokio::time::sleep_until(silent) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "silent over its keepalive"));
                }
                // Some may have been taken since, without an end of it.
                () = tokio::time::sleep_until(stuck), if self.unsent => {
                    if self.taken.elapsed() >= WRITE_TIMEOUT {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "reads nothing"));
                    }
                }
            }
        }
    }

    async fn end(&mut self, why: &'static str) -> io::Result<()> {
        self.put(&goodbye(DisconnectReasonCode::NotAuthorized, why))?;
        self.drain().await?;
        Err(io::Error::other(why))
    }

    /// The first packet.
    async fn read(&mut self) -> io::Result<Packet> {
        loop {
            if let Some(packet) = self.packet()? {
                return Ok(packet);
            }
            if self.reader.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next packet of what was received.
    fn packet(&mut self) -> io::Result<Option<Packet>> {
        match Packet::read(&mut self.received, Some(PACKET_BYTES_MAX)) {
            Ok(packet) => Ok(Some(packet)),
            Err(Error::InsufficientBytes(_)) => Ok(None),
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Queues the frames whose turn it is, as many as go at once.
    fn publish_next(&mut self) -> io::Result<()> {
        let now = self.now();
        while self.sending.len() < AHEAD_BYTES_MAX {
            let Some(frame) = self.lanes.poll(now) else {
                break;
            };
            let publish = Publish::new(self.topic_down.as_str(), QoS::AtMostOnce, frame, None);
            self.put(&Packet::Publish(publish))?;
        }
        Ok(())
    }

    /// Queues a packet.
    fn put(&mut self, packet: &Packet) -> io::Result<()> {
        if !self.unsent {
            self.unsent = true;
            self.taken = Instant::now();
        }
        packet
            .write(&mut self.sending, Some(PACKET_BYTES_MAX))
            .map(drop)
            .map_err(|error| io::Error::other(error.to_string()))
    }

    /// Sends what is queued before the connection ends.
    async fn drain(&mut self) -> io::Result<()> {
        let work = drain(&mut self.writer, &mut self.sending, &mut self.taken);
        timely(CLOSE_TIMEOUT, work).await
    }
}

fn acknowledge(code: ConnectReturnCode) -> Packet {
    Packet::ConnAck(ConnAck {
        session_present: false,
        code,
        properties: None,
    })
}

/// With a reason: rumqttc writes a wrong length for a DISCONNECT that has a code and nothing else.
fn goodbye(code: DisconnectReasonCode, why: &str) -> Packet {
    let mut goodbye = Disconnect::new(code);
    goodbye.properties = Some(DisconnectProperties {
        reason_string: Some(why.to_owned()),
        session_expiry_interval: None,
        user_properties: Vec::new(),
        server_reference: None,
    });
    Packet::Disconnect(goodbye)
}

/// Writes and flushes all of `sending`. Cancel-safe: what was taken has left `sending`.
async fn drain(
    writer: &mut (impl AsyncWrite + Unpin),
    sending: &mut BytesMut,
    taken: &mut Instant,
) -> io::Result<()> {
    loop {
        // First, so that no more than one round waits inside TLS.
        writer.flush().await?;
        if sending.is_empty() {
            return Ok(());
        }
        writer.write_buf(sending).await?;
        *taken = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use edge_proto::frame::Frame;
    use rumqttc::v5::mqttbytes::v5::{Filter, PingReq, Subscribe};
    use tokio::io::DuplexStream;

    use super::*;
    use crate::identity::ca::Ca;
    use crate::sessions::FRAMES_MAX;

    const KEEPALIVE: Duration = Duration::from_secs(60);

    /// A node's end of a connection that the hub serves, and the way of frames to the node.
    struct Served {
        stream: DuplexStream,
        frames: mpsc::Sender<Vec<u8>>,
        start: Instant,
        end: tokio::task::JoinHandle<io::Result<()>>,
        _data: tempfile::TempDir,
    }

    /// `buffer` bytes lie between the ends, as in the buffers of two kernels.
    async fn serve(buffer: usize) -> Served {
        let data = tempfile::tempdir().unwrap();
        let links = Links::open(data.path(), Ca::open(data.path()).unwrap(), None).unwrap();
        let (stream, far) = tokio::io::duplex(buffer);
        let (frames, mut receiver) = mpsc::channel(FRAMES_MAX);
        let mut served = Served {
            stream,
            frames,
            start: Instant::now(),
            end: tokio::spawn(async move {
                let silence = KEEPALIVE * SILENCE_PERCENT / 100;
                let mut mqtt = Mqtt::new(far, "gate");
                mqtt.run("gate", 1, silence, &mut receiver, &links).await
            }),
            _data: data,
        };
        let filter = Filter::new("m1/d/gate", QoS::AtMostOnce);
        served
            .send(&Packet::Subscribe(Subscribe::new(filter, None)))
            .await;
        served
    }

    /// A frame of the state lane, with nothing in it.
    fn change(bytes: usize) -> Vec<u8> {
        let mut frame = vec![0; bytes];
        frame[1] = 6;
        frame
    }

    impl Served {
        async fn send(&mut self, packet: &Packet) {
            let mut bytes = BytesMut::new();
            packet.write(&mut bytes, None).unwrap();
            self.stream.write_all(&bytes).await.unwrap();
        }

        async fn reason(self) -> (String, Duration) {
            let error = self.end.await.unwrap().unwrap_err();
            (error.to_string(), self.start.elapsed())
        }
    }

    /// Goal: that the hub can still send does not keep a dead node alive. Method: room for all
    /// that is sent, virtual time.
    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_dropped_within_two_keepalives_whatever_is_sent_to_it() {
        let served = serve(1 << 20).await;
        let frames = served.frames.clone();
        tokio::spawn(async move {
            while frames.send(vec![0; 100]).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
        });
        let (reason, after) = served.reason().await;
        assert_eq!(reason, "silent over its keepalive");
        assert!(after > KEEPALIVE && after <= KEEPALIVE * 2, "{after:?}");
    }

    /// Goal: a node that lives and reads nothing holds neither memory nor its place.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_pings_and_reads_nothing_is_dropped() {
        let mut served = serve(1024).await;
        served.frames.send(change(4096)).await.unwrap();
        while !served.end.is_finished() {
            tokio::time::sleep(Duration::from_secs(20)).await;
            let mut bytes = BytesMut::new();
            Packet::PingReq(PingReq).write(&mut bytes, None).unwrap();
            // The last one may find the connection closed.
            served.stream.write_all(&bytes).await.ok();
        }
        let (reason, after) = served.reason().await;
        assert_eq!(reason, "reads nothing");
        assert!(after <= WRITE_TIMEOUT + KEEPALIVE, "{after:?}");
    }

    /// Goal: a control frame overtakes the pieces that wait for the same socket. Method: pieces
    /// fill a socket that takes 4 KiB, then comes the control frame; what is read before it.
    #[tokio::test(start_paused = true)]
    async fn a_control_frame_waits_for_no_piece_but_those_under_way() {
        const PIECE: usize = 4096;
        const BUFFER: usize = 4096;
        let mut served = serve(BUFFER).await;
        let urgent = Frame::Probe {
            epoch: 0x1234_5678_9abc,
            unix_s: 1,
        };
        let urgent = urgent.encode();
        for _ in 0..20 {
            let mut piece = vec![0; PIECE];
            piece[1] = 9;
            served.frames.send(piece).await.unwrap();
        }
        let mut received = vec![0; PIECE];
        served.stream.read_exact(&mut received).await.unwrap();
        served.frames.send(urgent.clone()).await.unwrap();
        // The task takes it before it writes on.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut before = 0;
        let mut tail = Vec::new();
        while !tail.windows(urgent.len()).any(|window| window == urgent) {
            let mut buffer = [0; 512];
            let count = served.stream.read(&mut buffer).await.unwrap();
            before += count;
            tail.extend_from_slice(&buffer[..count]);
        }
        let under_way = BUFFER + AHEAD_BYTES_MAX + PIECE;
        assert!(before <= under_way + 512, "{before}");
    }

    /// Goal: two ends that both have much to say do not wait for each other. Method: a node that
    /// reads only when it has written all, over buffers that hold half a frame.
    #[tokio::test(start_paused = true)]
    async fn the_hub_reads_while_it_cannot_write() {
        let mut served = serve(4096).await;
        let count = 64;
        for _ in 0..count {
            served.frames.send(change(FRAME_BYTES_MAX)).await.unwrap();
        }
        let shard = edge_proto::hash::sha256(b"gate").0[0];
        let topic = format!("m1/u/{shard:02x}/gate");
        for _ in 0..count {
            let frame = vec![0; FRAME_BYTES_MAX];
            let publish = Publish::new(topic.as_str(), QoS::AtMostOnce, frame, None);
            served.send(&Packet::Publish(publish)).await;
        }
        let mut came = 0;
        let mut buffer = vec![0; 65_536];
        while came < count * FRAME_BYTES_MAX {
            came += served.stream.read(&mut buffer).await.unwrap();
        }
        assert!(!served.end.is_finished());
        assert_eq!(served.start.elapsed(), Duration::ZERO);
    }
}
