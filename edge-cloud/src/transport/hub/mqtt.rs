//! One node's MQTT connection, from CONNECT to its end. It speaks only as much MQTT as a link needs: one
//! subscription, QoS 0, no retained messages.
//!
//! Bound: [`FRAMES_MAX`] frames between the session and the task, what [`Lanes`] allows behind it, and
//! [`ANSWERS_BYTES_MAX`] on the way to the socket.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use edge_proto::lanes::{Lanes, Limits};
use edge_proto::limits::{FRAME_BYTES_MAX, KEEPALIVE_S_MAX, SILENCE_PERCENT};
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Disconnect, DisconnectProperties, DisconnectReasonCode, Packet,
    PingResp, Publish, SubAck, Subscribe, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error, QoS};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{OPENING_TIMEOUT, timely};
use crate::identity::peer::Peer;
use crate::sessions::{Carrier, Refused, Sessions};

/// Longest time in which a node takes nothing of what waits for it, although it may go on to ping.
const WRITE_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest time for the last packets of a connection that ends: nobody waits for them.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes given to the socket at once; with the frame that reaches it at most one more. What waits
/// behind is in its lanes, where an urgent frame can still overtake it.
const AHEAD_BYTES_MAX: usize = 4 * 1024;
/// Bytes on the way to the socket beyond which the node is not read: answers to pings alone get
/// there, so it asks and does not read.
const ANSWERS_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one MQTT packet: a frame with its topic.
const PACKET_BYTES_MAX: u32 = 9 * 1024;
const _: () = assert!(FRAME_BYTES_MAX + 1024 == PACKET_BYTES_MAX as usize);

/// Frames on the way to one socket; the session repeats what does not fit.
const FRAMES_MAX: usize = 256;

/// The way of one node's frames: to the task of its socket, which has the lanes. Dropping it closes the
/// socket.
struct SocketCarrier {
    frames: mpsc::Sender<Vec<u8>>,
    limits: watch::Sender<Limits>,
}

impl Carrier for SocketCarrier {
    /// A frame that does not fit is lost like one on the way.
    fn send(&mut self, _: u64, frame: Vec<u8>) {
        drop(self.frames.try_send(frame));
    }

    fn set_limits(&mut self, _: u64, limits: &Limits) {
        self.limits.send_replace(limits.clone());
    }

    fn tick(&mut self, _: u64) {}

    fn deadline(&self) -> Option<u64> {
        None
    }
}

/// The socket's end of [`SocketCarrier`].
struct Outgoing {
    frames: mpsc::Receiver<Vec<u8>>,
    limits: watch::Receiver<Limits>,
}

fn carrier() -> (SocketCarrier, Outgoing) {
    let (frames, receiver) = mpsc::channel(FRAMES_MAX);
    let (limits, watcher) = watch::channel(Limits::NONE);
    let outgoing = Outgoing {
        frames: receiver,
        limits: watcher,
    };
    (SocketCarrier { frames, limits }, outgoing)
}

/// One node's MQTT connection. It always reads, whatever waits to be written: two ends that each
/// wait for the other to read would wait for ever.
pub(super) struct Mqtt<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    received: BytesMut,
    sending: BytesMut,
    /// Frames that wait, by the clock that starts with the connection.
    lanes: Lanes,
    start: Instant,
    /// It has asked for its frames.
    subscribed: bool,
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
            subscribed: false,
            unsent: false,
            taken: Instant::now(),
            topic_up: format!("m1/u/{shard:02x}/{node}"),
            topic_down: format!("m1/d/{node}"),
        }
    }

    /// Serves a connection whose certificate is `peer`'s.
    ///
    /// # Errors
    /// Why it ended, unless the node ended it.
    pub(super) async fn open(stream: S, peer: &Peer, sessions: &Sessions) -> io::Result<()> {
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
        let (carrier, mut outgoing) = carrier();
        let id = match sessions.connect(peer, carrier) {
            Ok(id) => id,
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
            result = mqtt.run(node, id, silence, &mut outgoing, sessions).await;
        }
        sessions.disconnect(node, id);
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
        outgoing: &mut Outgoing,
        sessions: &Sessions,
    ) -> io::Result<()> {
        let Outgoing { frames, limits } = outgoing;
        let mut limits_known = true;
        limits.mark_changed();
        let mut heard = Instant::now();
        loop {
            while let Some(packet) = self.packet()? {
                match self.take(packet)? {
                    Taken::Frame(frame) => sessions.frame(node, id, &frame),
                    Taken::Answered => {}
                    Taken::End => return Ok(()),
                    Taken::Refused(why) => return self.end(why).await,
                }
            }
            let mut free = None;
            if self.subscribed && !self.unsent {
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
                        if self.subscribed {
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

    /// Takes a packet and queues its answer.
    fn take(&mut self, packet: Packet) -> io::Result<Taken> {
        match packet {
            Packet::PingReq(_) => self.put(&Packet::PingResp(PingResp))?,
            Packet::Publish(publish)
                if publish.topic == self.topic_up.as_bytes() && publish.qos == QoS::AtMostOnce =>
            {
                return Ok(Taken::Frame(publish.payload));
            }
            Packet::Subscribe(subscribe) => return self.subscribe(&subscribe),
            Packet::Disconnect(_) => return Ok(Taken::End),
            _ => {
                let why = "publishes to what is not its own, or speaks more MQTT than a link needs";
                return Ok(Taken::Refused(why));
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

/// What a packet of the node's was.
enum Taken {
    /// A frame for its session.
    Frame(Bytes),
    /// Its answer is queued.
    Answered,
    /// The node ends the connection.
    End,
    /// The connection is to be ended, with this reason.
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
    use std::sync::Arc;

    use edge_proto::frame::Frame;
    use rumqttc::v5::mqttbytes::v5::{Filter, PingReq, Subscribe};
    use tokio::io::DuplexStream;

    use super::*;
    use crate::events::Events;
    use crate::identity::Identity;
    use crate::identity::ca::Ca;
    use crate::identity::enrol::Lives;
    use crate::records::Records;

    const KEEPALIVE: Duration = Duration::from_secs(60);

    /// A node's end of a connection that the hub serves, and the way of frames to the node.
    struct Served {
        stream: DuplexStream,
        frames: mpsc::Sender<Vec<u8>>,
        start: Instant,
        end: tokio::task::JoinHandle<io::Result<()>>,
        _carrier: SocketCarrier,
        _data: tempfile::TempDir,
    }

    /// `buffer` bytes lie between the ends, as in the buffers of two kernels.
    async fn serve(buffer: usize) -> Served {
        let data = tempfile::tempdir().unwrap();
        let (ca, events) = (Ca::open(data.path()).unwrap(), Arc::new(Events::default()));
        let lives = Lives::default();
        let identity = Identity::open(data.path(), ca, None, lives, Arc::clone(&events)).unwrap();
        let sessions = Sessions::new(identity, events, Records::none());
        let (stream, far) = tokio::io::duplex(buffer);
        let (carrier, mut outgoing) = carrier();
        let mut served = Served {
            stream,
            frames: carrier.frames.clone(),
            start: Instant::now(),
            end: tokio::spawn(async move {
                let silence = KEEPALIVE * SILENCE_PERCENT / 100;
                let mut mqtt = Mqtt::new(far, "gate");
                mqtt.run("gate", 1, silence, &mut outgoing, &sessions).await
            }),
            _carrier: carrier,
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
