//! One node's MQTT connection, from CONNECT to its end. It implements only the part of MQTT that a link
//! needs: one subscription, QoS 0, no retained messages.
//!
//! Bound: that of [`super::outgoing`] between the session and the task, that of [`Lanes`] behind it,
//! and [`ANSWERS_BYTES_MAX`] before the socket. A link is idle for nearly all of its time, so the
//! task holds the stream once and almost no buffers while nothing is sent.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use edge_proto::lanes::Lanes;
use edge_proto::limits::{FRAME_BYTES_MAX, KEEPALIVE_S_MAX, SILENCE_PERCENT};
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Disconnect, DisconnectProperties, DisconnectReasonCode, Packet,
    PingResp, Publish, SubAck, Subscribe, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error, QoS};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::time::Instant;

use super::outgoing::{Next, Outgoing, queue};
use super::unauthenticated::Place;
use super::{HANDSHAKE_TIMEOUT, replaced, timely};
use crate::identity::peer::Peer;
use crate::sessions::{Refused, Sessions};
use crate::shards::Shard;

/// Longest time in which a node reads none of the waiting bytes, although it may continue to ping.
const WRITE_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest time for the last packets of a connection that ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes given to the socket in advance; with the frame that exceeds it at most one more. Frames
/// behind them are in their lanes, where an urgent frame can still overtake.
const AHEAD_BYTES_MAX: usize = 4 * 1024;
/// Bytes before the socket beyond which the node is not read: only answers to pings reach
/// this, so it requests and does not read.
const ANSWERS_BYTES_MAX: usize = 64 * 1024;
/// Memory that each empty buffer of a connection keeps.
const IDLE_BYTES: usize = 256;
/// Bytes of one MQTT packet: a frame with its topic.
const PACKET_BYTES_MAX: u32 = 9 * 1024;
const _: () = assert!(FRAME_BYTES_MAX + 1024 == PACKET_BYTES_MAX as usize);

/// One node's MQTT connection. It always reads, whatever waits to be written: two ends that each
/// wait for the other to read would block for ever.
pub(super) struct Mqtt<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    received: BytesMut,
    sending: BytesMut,
    /// Waiting frames, by the clock that starts with the connection.
    lanes: Lanes,
    start: Instant,
    /// It has subscribed to its frames.
    subscribed: bool,
    /// Bytes wait in `sending`, or in TLS below it.
    unsent: bool,
    /// When the socket last accepted bytes, or there were first bytes to send.
    taken: Instant,
    topic_up: String,
    topic_down: String,
}

impl<S: AsyncRead + AsyncWrite> Mqtt<S> {
    /// The connection of this node.
    pub(super) fn new(stream: S, node: &str) -> Self {
        let shard = Shard::of(node);
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            received: BytesMut::with_capacity(IDLE_BYTES),
            sending: BytesMut::new(),
            lanes: Lanes::new(),
            start: Instant::now(),
            subscribed: false,
            unsent: false,
            taken: Instant::now(),
            topic_up: format!("m1/u/{shard}/{node}"),
            topic_down: format!("m1/d/{node}"),
        }
    }

    /// Serves the connection, whose certificate is `peer`'s. Until its session has it, another connection may
    /// take its `place`.
    ///
    /// # Errors
    /// Why it ended, unless the node ended it.
    pub(super) async fn serve(
        &mut self,
        peer: &Peer,
        place: Place,
        sessions: &Sessions,
    ) -> io::Result<()> {
        let node = peer.node.as_str();
        // State of the opening is boxed, and freed when the link is idle.
        let handshake = Box::pin(timely(HANDSHAKE_TIMEOUT, self.handshake(node)));
        let handshake = tokio::select! {
            handshake = handshake => handshake?,
            () = place.wanted() => return Err(replaced()),
        };
        let silence = match handshake {
            Ok(silence) => silence,
            Err(code) => return Box::pin(self.refuse(code)).await,
        };
        let (carrier, outgoing) = queue();
        let id = match sessions.connect(peer, carrier) {
            Ok(id) => id,
            Err(refused) => {
                let code = match refused {
                    Refused::ForGood => ConnectReturnCode::NotAuthorized,
                    Refused::ForNow => ConnectReturnCode::ServerBusy,
                };
                return Box::pin(self.refuse(code)).await;
            }
        };
        drop(place);
        let mut result = self.put(&acknowledge(ConnectReturnCode::Success));
        if result.is_ok() {
            result = self.run(node, id, silence, &outgoing, sessions).await;
        }
        sessions.disconnect(node, id);
        result
    }

    /// Reads CONNECT. Returns the time of silence after which the link is dead, or the answer to a CONNECT
    /// that names another node than the certificate does.
    async fn handshake(&mut self, node: &str) -> io::Result<Result<Duration, ConnectReturnCode>> {
        let Packet::Connect(connect, will, _) = self.read().await? else {
            return Err(io::Error::other("the first packet is not CONNECT"));
        };
        if !connect.client_id.is_empty() && connect.client_id != node {
            return Ok(Err(ConnectReturnCode::ClientIdentifierNotValid));
        }
        if will.is_some_and(|will| will.topic != self.topic_up.as_bytes()) {
            return Ok(Err(ConnectReturnCode::NotAuthorized));
        }
        let keepalive = match connect.keep_alive {
            0 => KEEPALIVE_S_MAX,
            seconds => seconds.min(KEEPALIVE_S_MAX),
        };
        let silence = Duration::from_secs(keepalive.into()) * SILENCE_PERCENT / 100;
        Ok(Ok(silence))
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
        outgoing: &Outgoing,
        sessions: &Sessions,
    ) -> io::Result<()> {
        let mut last_received = Instant::now();
        let subscribes_by = last_received + HANDSHAKE_TIMEOUT;
        loop {
            match self.take_all(|frame| sessions.frame(node, id, frame))? {
                Taken::Answered => {}
                Taken::End => return Ok(()),
                Taken::Refused(why) => return Box::pin(self.end(why)).await,
            }
            shrink(&mut self.received);
            let mut free = None;
            if self.subscribed && !self.unsent {
                self.publish_next()?;
                if !self.unsent {
                    let at = self.lanes.deadline();
                    free = at.map(|at| self.start + Duration::from_millis(at));
                }
            }
            let silent = last_received + silence;
            let stuck = self.unsent.then(|| self.taken + WRITE_TIMEOUT);
            let unsubscribed = (!self.subscribed).then_some(subscribes_by);
            let wake = [free, stuck, unsubscribed]
                .into_iter()
                .flatten()
                .fold(silent, Instant::min);
            tokio::select! {
                // A peer that sends requests and never reads its answers is not read further.
                count = self.reader.read_buf(&mut self.received), if self.sending.len() < ANSWERS_BYTES_MAX => {
                    if count? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    last_received = Instant::now();
                }
                result = drain(&mut self.writer, &mut self.sending, &mut self.taken), if self.unsent => {
                    result?;
                    self.unsent = false;
                    shrink(&mut self.sending);
                }
                next = outgoing.next() => match next {
                    // A frame that does not fit is lost like one in transit.
                    Next::Frame(frame) => {
                        self.lanes.push(frame);
                    },
                    Next::Limits(limits) => {
                        let now = self.now();
                        self.lanes.set_limits(now, &limits);
                    }
                    Next::Closed => return Box::pin(self.taken_over()).await,
                },
                () = tokio::time::sleep_until(wake) => self.check(silent, subscribes_by)?,
            }
        }
    }

    /// Checks at a deadline whether the node is still connected.
    fn check(&self, silent: Instant, subscribes_by: Instant) -> io::Result<()> {
        let timed_out = |why| Err(io::Error::new(io::ErrorKind::TimedOut, why));
        if Instant::now() >= silent {
            return timed_out("silent over its keepalive");
        }
        if !self.subscribed && Instant::now() >= subscribes_by {
            return timed_out("does not subscribe");
        }
        // Some may have been accepted since, without completing.
        if self.unsent && self.taken.elapsed() >= WRITE_TIMEOUT {
            return timed_out("reads nothing");
        }
        Ok(())
    }

    /// The session has closed the connection.
    async fn taken_over(&mut self) -> io::Result<()> {
        // A last frame for the node may be among the waiting ones: it is sent before the DISCONNECT.
        if self.subscribed {
            self.publish_next()?;
        }
        let packet = disconnect(DisconnectReasonCode::SessionTakenOver, "taken over");
        self.put(&packet)?;
        self.drain().await
    }

    /// Handles all received packets and queues their answers. No packet outlives this: the task would
    /// keep memory for one as long as it runs.
    fn take_all(&mut self, frame: impl Fn(&[u8])) -> io::Result<Taken> {
        while let Some(packet) = self.packet()? {
            let taken = match packet {
                Packet::PingReq(_) => {
                    self.put(&Packet::PingResp(PingResp))?;
                    Taken::Answered
                }
                Packet::Publish(publish)
                    if publish.topic == self.topic_up.as_bytes()
                        && publish.qos == QoS::AtMostOnce
                        && !publish.retain =>
                {
                    frame(&publish.payload);
                    Taken::Answered
                }
                Packet::Subscribe(subscribe) => self.subscribe(&subscribe)?,
                Packet::Disconnect(_) => Taken::End,
                _ => Taken::Refused(
                    "publishes to what is not its own, or speaks more MQTT than a link needs",
                ),
            };
            if !matches!(taken, Taken::Answered) {
                return Ok(taken);
            }
        }
        Ok(Taken::Answered)
    }

    fn subscribe(&mut self, subscribe: &Subscribe) -> io::Result<Taken> {
        let own = |path: &String| *path == self.topic_down;
        if !subscribe.filters.iter().all(|filter| own(&filter.path)) {
            return Ok(Taken::Refused("subscribes to what is not its own"));
        }
        let granted = SubscribeReasonCode::Success(QoS::AtMostOnce);
        self.put(&Packet::SubAck(SubAck {
            pkid: subscribe.pkid,
            return_codes: vec![granted; subscribe.filters.len()],
            properties: None,
        }))?;
        self.subscribed = true;
        Ok(Taken::Answered)
    }

    async fn end(&mut self, why: &'static str) -> io::Result<()> {
        self.put(&disconnect(DisconnectReasonCode::NotAuthorized, why))?;
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

    /// Queues the next frames of the lanes, as many as may be sent at once.
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

/// Result of handling packets of the node.
enum Taken {
    /// Frames were passed to the session, or answers are queued.
    Answered,
    /// The node ends the connection.
    End,
    /// The connection must end, with this reason.
    Refused(&'static str),
}

fn acknowledge(code: ConnectReturnCode) -> Packet {
    Packet::ConnAck(ConnAck {
        session_present: false,
        code,
        properties: None,
    })
}

/// With a reason: rumqttc writes a wrong length for a DISCONNECT that has a code and nothing else.
fn disconnect(code: DisconnectReasonCode, why: &str) -> Packet {
    let mut packet = Disconnect::new(code);
    packet.properties = Some(DisconnectProperties {
        reason_string: Some(why.to_owned()),
        session_expiry_interval: None,
        user_properties: Vec::new(),
        server_reference: None,
    });
    Packet::Disconnect(packet)
}

/// Frees the memory of an empty buffer, except [`IDLE_BYTES`].
fn shrink(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > IDLE_BYTES {
        *buffer = BytesMut::new();
    }
}

/// Writes and flushes all of `sending`. Cancel-safe: written bytes have left `sending`.
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
    use std::sync::Arc;

    use edge_proto::frame::Frame;
    use rumqttc::v5::mqttbytes::v5::{Filter, PingReq, Subscribe};
    use tokio::io::DuplexStream;

    use super::*;
    use crate::events::Events;
    use crate::identity::Identity;
    use crate::identity::ca::Ca;
    use crate::identity::enrol::CertificateTimes;
    use crate::records::Records;
    use crate::sessions::Carrier as _;
    use crate::transport::hub::outgoing::SocketCarrier;

    const KEEPALIVE: Duration = Duration::from_secs(60);

    /// A node's end of a connection that the hub serves, and the carrier of frames to the node.
    struct Served {
        stream: DuplexStream,
        carrier: SocketCarrier,
        start: Instant,
        end: tokio::task::JoinHandle<io::Result<()>>,
        _data: tempfile::TempDir,
    }

    /// A node that has subscribed. Buffers of `buffer` bytes are between the ends, like those of two kernels.
    async fn serve(buffer: usize) -> Served {
        let mut served = serve_unsubscribed(buffer);
        let filter = Filter::new("m1/d/gate", QoS::AtMostOnce);
        served
            .send(&Packet::Subscribe(Subscribe::new(filter, None)))
            .await;
        served
    }

    fn serve_unsubscribed(buffer: usize) -> Served {
        let data = tempfile::tempdir().unwrap();
        let (ca, events) = (Ca::open(data.path()).unwrap(), Arc::new(Events::default()));
        let times = CertificateTimes::default();
        let identity = Identity::open(data.path(), ca, None, times, Arc::clone(&events)).unwrap();
        let sessions = Sessions::new(identity, events, Records::none());
        let (stream, far) = tokio::io::duplex(buffer);
        let (carrier, outgoing) = queue();
        Served {
            stream,
            carrier,
            start: Instant::now(),
            end: tokio::spawn(async move {
                let silence = KEEPALIVE * SILENCE_PERCENT / 100;
                let mut mqtt = Mqtt::new(far, "gate");
                mqtt.run("gate", 1, silence, &outgoing, &sessions).await
            }),
            _data: data,
        }
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

        /// Reason and time of its end.
        async fn reason(self) -> (String, Duration) {
            let error = self.end.await.unwrap().unwrap_err();
            (error.to_string(), self.start.elapsed())
        }
    }

    /// Goal: a hub that can still send does not keep a dead node connected. Method: buffer space for all
    /// that is sent, virtual time.
    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_dropped_within_two_keepalives_whatever_is_sent_to_it() {
        let mut served = serve(1 << 20).await;
        while !served.end.is_finished() {
            served.carrier.send(0, vec![0; 100]);
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        let (reason, after) = served.reason().await;
        assert_eq!(reason, "silent over its keepalive");
        assert!(after > KEEPALIVE && after <= KEEPALIVE * 2, "{after:?}");
    }

    /// Goal: a client that never subscribes does not keep its connection, however often it pings.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_pings_and_does_not_subscribe_is_dropped_after_45_s() {
        let mut served = serve_unsubscribed(1024);
        for _ in 0..4 {
            served.send(&Packet::PingReq(PingReq)).await;
            tokio::time::sleep(Duration::from_secs(11)).await;
        }
        assert!(!served.end.is_finished());
        let (reason, after) = served.reason().await;
        assert_eq!(reason, "does not subscribe");
        // A timer may be a millisecond late.
        let late = after.saturating_sub(HANDSHAKE_TIMEOUT);
        assert!(
            after >= HANDSHAKE_TIMEOUT && late <= Duration::from_millis(2),
            "{after:?}"
        );
    }

    /// Goal: a connected node that reads nothing keeps neither memory nor its place.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_pings_and_reads_nothing_is_dropped() {
        let mut served = serve(1024).await;
        served.carrier.send(0, change(4096));
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
    /// fill a socket that accepts 4 KiB, then the control frame follows; the bytes before it are counted.
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
            served.carrier.send(0, piece);
        }
        let mut received = vec![0; PIECE];
        served.stream.read_exact(&mut received).await.unwrap();
        served.carrier.send(0, urgent.clone());
        // The task takes it before it continues to write.
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

    /// Goal: two ends that both send much do not wait for each other. Method: a node that
    /// reads only when it has written everything, over buffers that hold half a frame.
    #[tokio::test(start_paused = true)]
    async fn the_hub_reads_while_it_cannot_write() {
        let mut served = serve(4096).await;
        let count = 64;
        for _ in 0..count {
            served.carrier.send(0, change(FRAME_BYTES_MAX));
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
