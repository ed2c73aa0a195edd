//! The one port of an embedded edge-cloud: TLS, then by ALPN either one enrolment or MQTT 5 for
//! one node. It speaks only as much MQTT as a link needs: one subscription, QoS 0, no retained
//! messages. Who a node is comes from its certificate and nowhere else.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use edge_proto::enrol::ALPN_JOIN;
use edge_proto::limits::FRAME_BYTES_MAX;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Disconnect, DisconnectReasonCode, Packet, PingResp, Publish,
    SubAck, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error, QoS};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use crate::links::Links;
use crate::tls::{self, Peer};

/// Connections at once, those that still shake hands included.
const CONNECTIONS_MAX: usize = 8_192;
/// Patience with TLS, an enrolment and CONNECT: TCP and TLS took 70 s at 30 % loss.
const OPENING: Duration = Duration::from_secs(90);
/// Patience with one write.
const WRITE: Duration = Duration::from_secs(90);
/// Bytes of one MQTT packet: a frame with its topic.
const PACKET_BYTES_MAX: u32 = 9 * 1024;
const _: () = assert!(FRAME_BYTES_MAX + 1024 == PACKET_BYTES_MAX as usize);
/// Keepalive of a node that asks for none, seconds; MQTT would then wait for ever.
const KEEPALIVE_S_MAX: u16 = 1_200;

/// Accepts connections, for ever.
pub async fn serve(listener: TcpListener, tls: TlsAcceptor, links: Arc<Links>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: wait for some to come back.
                log::warn!("accept_failed error={error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, links) = (tls.clone(), Arc::clone(&links));
        tokio::spawn(async move {
            if let Err(error) = connection(stream, tls, &links).await {
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

async fn connection(stream: TcpStream, tls: TlsAcceptor, links: &Arc<Links>) -> io::Result<()> {
    // Frames are few and whole: waiting for more would only add a delay.
    stream.set_nodelay(true)?;
    let stream = timely(OPENING, tls.accept(stream)).await?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() == Some(ALPN_JOIN) {
        return links.enrol(stream).await;
    }
    let unix_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let Some(Peer { node, serial }) = tls::peer(session, unix_s) else {
        return Err(io::Error::other("no valid client certificate"));
    };
    Mqtt::open(stream, node, serial, links).await
}

/// One node's MQTT connection.
struct Mqtt<S> {
    stream: S,
    buffer: BytesMut,
    topic_up: String,
    topic_down: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Mqtt<S> {
    async fn open(stream: S, node: String, serial: String, links: &Arc<Links>) -> io::Result<()> {
        let shard = edge_proto::hash::sha256(node.as_bytes()).0[0];
        let mut mqtt = Self {
            stream,
            buffer: BytesMut::with_capacity(1024),
            topic_up: format!("m1/u/{shard:02x}/{node}"),
            topic_down: format!("m1/d/{node}"),
        };
        let connect = timely(OPENING, mqtt.read()).await?;
        let Packet::Connect(connect, will, _) = connect else {
            return Err(io::Error::other("the first packet is not CONNECT"));
        };
        let refused = (!connect.client_id.is_empty() && connect.client_id != node)
            || will.is_some_and(|will| will.topic != mqtt.topic_up.as_bytes());
        if refused {
            return mqtt.acknowledge(ConnectReturnCode::NotAuthorized).await;
        }
        let Some((id, mut frames)) = links.connect(&node, &serial) else {
            return mqtt.acknowledge(ConnectReturnCode::NotAuthorized).await;
        };
        let keepalive = match connect.keep_alive {
            0 => KEEPALIVE_S_MAX,
            seconds => seconds.min(KEEPALIVE_S_MAX),
        };
        let mut result = mqtt.acknowledge(ConnectReturnCode::Success).await;
        if result.is_ok() {
            result = mqtt.run(&node, id, keepalive, &mut frames, links).await;
        }
        links.disconnect(&node, id);
        result
    }

    async fn acknowledge(&mut self, code: ConnectReturnCode) -> io::Result<()> {
        self.write(&Packet::ConnAck(ConnAck {
            session_present: false,
            code,
            properties: None,
        }))
        .await
    }

    async fn run(
        &mut self,
        node: &str,
        id: u64,
        keepalive: u16,
        frames: &mut mpsc::Receiver<Vec<u8>>,
        links: &Arc<Links>,
    ) -> io::Result<()> {
        // MQTT's own rule: silence over one and a half keepalives ends the connection.
        let silence = Duration::from_millis(u64::from(keepalive) * 1500);
        let mut subscribed = false;
        let mut waiting = Vec::new();
        loop {
            let packet = tokio::select! {
                packet = timely(silence, self.read()) => packet?,
                frame = frames.recv() => {
                    let Some(frame) = frame else {
                        let goodbye = Disconnect::new(DisconnectReasonCode::SessionTakenOver);
                        return self.write(&Packet::Disconnect(goodbye)).await;
                    };
                    if subscribed {
                        self.publish(frame).await?;
                    } else if waiting.len() < crate::links::FRAMES_MAX {
                        waiting.push(frame);
                    }
                    continue;
                }
            };
            match packet {
                Packet::PingReq(_) => self.write(&Packet::PingResp(PingResp)).await?,
                Packet::Publish(publish)
                    if publish.topic == self.topic_up.as_bytes()
                        && publish.qos == QoS::AtMostOnce =>
                {
                    links.frame(node, id, &publish.payload);
                }
                Packet::Subscribe(subscribe) => {
                    let own = |path: &String| *path == self.topic_down;
                    if !subscribe.filters.iter().all(|filter| own(&filter.path)) {
                        return self.refuse("subscribes to what is not its own").await;
                    }
                    let codes = vec![
                        SubscribeReasonCode::Success(QoS::AtMostOnce);
                        subscribe.filters.len()
                    ];
                    let ack = SubAck {
                        pkid: subscribe.pkid,
                        return_codes: codes,
                        properties: None,
                    };
                    self.write(&Packet::SubAck(ack)).await?;
                    subscribed = true;
                    for frame in waiting.drain(..) {
                        self.publish(frame).await?;
                    }
                }
                Packet::Disconnect(_) => return Ok(()),
                _ => return self
                    .refuse(
                        "publishes to what is not its own, or speaks more MQTT than a link needs",
                    )
                    .await,
            }
        }
    }

    async fn refuse(&mut self, why: &'static str) -> io::Result<()> {
        let goodbye = Disconnect::new(DisconnectReasonCode::NotAuthorized);
        self.write(&Packet::Disconnect(goodbye)).await?;
        Err(io::Error::other(why))
    }

    async fn publish(&mut self, frame: Vec<u8>) -> io::Result<()> {
        let publish = Publish::new(self.topic_down.as_str(), QoS::AtMostOnce, frame, None);
        self.write(&Packet::Publish(publish)).await
    }

    /// The next packet. Cancel-safe: what was read stays in the buffer.
    async fn read(&mut self) -> io::Result<Packet> {
        loop {
            match Packet::read(&mut self.buffer, Some(PACKET_BYTES_MAX)) {
                Ok(packet) => return Ok(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn write(&mut self, packet: &Packet) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        packet
            .write(&mut bytes, Some(PACKET_BYTES_MAX))
            .map_err(|error| io::Error::other(error.to_string()))?;
        let stream = &mut self.stream;
        timely(WRITE, async move {
            stream.write_all(&bytes).await?;
            stream.flush().await
        })
        .await
    }
}
