//! The one connection to the cloud: MQTT 5 by rumqttc, on a thread of its own, frames in and
//! frames out. The driver decides when to connect. Delivery does not rely on MQTT:
//! everything is QoS 0 with a clean start, the session in `edge-proto` repeats.
//!
//! Bound: about [`UNSENT_BYTES_MAX`] wait for the socket, because rumqttc's queue has no lanes; further
//! frames wait in the driver's lanes.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use edge_core::limits::{CONNECT_TIMEOUT_MS, LINK_FRAMES_MAX, SEND_BUFFER_BYTES, UNSENT_BYTES_MAX};
use edge_proto::limits::{FRAME_BYTES_MAX, SILENCE_PERCENT};
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode, LastWill, Packet};
use rumqttc::v5::mqttbytes::{Error as MqttError, QoS};
use rumqttc::v5::{
    Client, Connection, ConnectionError, Event as MqttEvent, MqttOptions, StateError,
};
use rumqttc::{NetworkOptions, Outgoing, TlsConfiguration, TlsError, Transport};
use rustls::ClientConfig;

use crate::link::identity::{Identity, Renewed};
use crate::link::tls::{self, NO_TLS};

/// Overhead of MQTT and topic plus a frame: stays under rumqttc's 10 KiB default.
const PACKET_BYTES_MAX: u32 = 9 * 1024;
const _: () = assert!(FRAME_BYTES_MAX + 1024 == PACKET_BYTES_MAX as usize);
/// rumqttc allocates 216 B for each of these; QoS 0 needs none.
const INFLIGHT_MAX: u16 = 8;
/// Reason of an attempt that exceeds the timeout.
const UNANSWERED: &str = "no answer to TCP, TLS or MQTT within 90 s";
/// Stack of the thread: TLS handshakes in release need under 100 KiB; debug builds more.
const STACK_BYTES: usize = 512 * 1024;

/// Settings that do not change with the certificate.
#[derive(Clone)]
pub struct LinkConfig {
    /// Node name, also the MQTT client id.
    pub node: String,
    /// MQTT keepalive; a dead link is noticed within two of them.
    pub keepalive: Duration,
}

/// Endpoint and TLS identity. It changes with the certificate.
pub struct Target {
    /// Host of the cloud or broker.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Configuration of mutual TLS.
    pub tls: Arc<ClientConfig>,
}

/// Request of the driver: one connection attempt with this will.
pub struct Connect {
    /// Endpoint to connect to.
    pub to: Arc<Target>,
    /// Frame that the broker publishes when this connection is lost.
    pub will: Vec<u8>,
}

/// Events of the threads for link, join and renewal.
pub enum LinkEvent {
    /// Connected and subscribed; frames are sent by this client.
    Up(LinkSender),
    /// The socket accepts frames again; only after [`LinkSender::is_writable`] returned false.
    Writable,
    /// One frame from the cloud.
    Frame(Vec<u8>),
    /// The attempt or the connection ended, with the reason, and whether the other end has refused
    /// the certificate.
    Down(String, bool),
    /// The node has joined: its identity, and the cloud's time.
    Joined(Box<(Identity, u64)>),
    /// An attempt to join failed, with the reason.
    NotJoined(String),
    /// A new certificate was issued and stored.
    Renewed(Box<Renewed>),
    /// An attempt to renew the certificate failed, with the reason, and whether the cloud has
    /// refused.
    NotRenewed(String, bool),
}

/// Number of frames that the socket has taken, and whether the driver waits for more.
#[derive(Default)]
struct Taken {
    frames: AtomicU32,
    awaited: AtomicBool,
}

/// Sends frames over one connection.
pub struct LinkSender {
    client: Client,
    topic: String,
    taken: Arc<Taken>,
    /// Bytes of each frame that was passed to rumqttc and not yet taken by the socket; the
    /// first is number `first_given`.
    given: VecDeque<usize>,
    first_given: u32,
}

impl LinkSender {
    /// Whether a further frame would be sent soon. If not, a [`LinkEvent::Writable`] follows.
    pub fn is_writable(&mut self) -> bool {
        if self.is_free() {
            return true;
        }
        // Both ends use one order: either the thread sees this flag, or we see its count.
        self.taken.awaited.store(true, Ordering::SeqCst);
        let free = self.is_free();
        if free {
            self.taken.awaited.store(false, Ordering::SeqCst);
        }
        free
    }

    fn is_free(&mut self) -> bool {
        let taken = self.taken.frames.load(Ordering::SeqCst);
        while self.first_given != taken && self.given.pop_front().is_some() {
            self.first_given = self.first_given.wrapping_add(1);
        }
        self.given.len() < LINK_FRAMES_MAX / 2
            && self.given.iter().sum::<usize>() < UNSENT_BYTES_MAX
    }

    /// Passes a frame to the socket. If the queue is full it is lost like one in transit.
    pub fn send(&mut self, frame: Vec<u8>) {
        let bytes = frame.len();
        let sent = self
            .client
            .try_publish(self.topic.as_str(), QoS::AtMostOnce, false, frame);
        if sent.is_ok() {
            self.given.push_back(bytes);
        }
    }

    /// Closes the connection gracefully.
    pub fn close(&self) {
        // A closed connection needs no DISCONNECT.
        drop(self.client.try_disconnect());
    }
}

/// Topic of frames to the cloud: `m1/u/<first byte of SHA-256(node)>/<node>`.
#[must_use]
pub fn topic_up(node: &str) -> String {
    let hash = edge_proto::hash::sha256(node.as_bytes());
    let [shard, ..] = hash.0;
    format!("m1/u/{shard:02x}/{node}")
}

/// Topic of frames to the node.
#[must_use]
pub fn topic_down(node: &str) -> String {
    format!("m1/d/{node}")
}

/// Starts the thread. It ends when `connects` is closed.
///
/// # Errors
/// The system's, when no thread can be started.
pub fn spawn(
    config: LinkConfig,
    connects: Receiver<Connect>,
    events: Sender<LinkEvent>,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name("link".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            while let Ok(connect) = connects.recv_blocking() {
                let end = match session(&config, connect, &events) {
                    End::Own(reason) => LinkEvent::Down(reason.to_owned(), false),
                    End::Failed(error) => LinkEvent::Down(reason(&error), is_refusal(&error)),
                };
                if events.send_blocking(end).is_err() {
                    return;
                }
            }
        })
        .map(drop)
}

/// Why a connection ended.
enum End {
    /// The agent has ended it, for this reason.
    Own(&'static str),
    /// rumqttc's error.
    Failed(ConnectionError),
}

/// One connection, from the attempt to its end.
fn session(config: &LinkConfig, connect: Connect, events: &Sender<LinkEvent>) -> End {
    let mut network = NetworkOptions::new();
    network.set_tcp_send_buffer_size(SEND_BUFFER_BYTES);
    // Each frame is complete. Nagle's algorithm would add a round trip,
    // which the congestion window of large objects would take for a queue.
    network.set_tcp_nodelay(true);
    let mut options = MqttOptions::new(
        config.node.as_str(),
        connect.to.host.as_str(),
        connect.to.port,
    );
    options
        .set_keep_alive(config.keepalive)
        .set_clean_start(true)
        .set_connection_timeout(CONNECT_TIMEOUT_MS / 1000)
        .set_network_options(network)
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        .set_outgoing_inflight_upper_limit(INFLIGHT_MAX)
        .set_transport(Transport::Tls(TlsConfiguration::Rustls(
            connect.to.tls.clone(),
        )))
        .set_last_will(LastWill::new(
            topic_up(&config.node),
            connect.will,
            QoS::AtMostOnce,
            false,
            None,
        ));
    let (client, mut connection) = Client::new(options, LINK_FRAMES_MAX);
    let taken = Arc::new(Taken::default());
    let sender = LinkSender {
        client,
        topic: topic_up(&config.node),
        taken: taken.clone(),
        given: VecDeque::new(),
        first_given: 0,
    };
    run(config, &mut connection, sender, &taken, events)
}

fn run(
    config: &LinkConfig,
    connection: &mut Connection,
    sender: LinkSender,
    taken: &Taken,
    events: &Sender<LinkEvent>,
) -> End {
    // A deadline of our own over all that rumqttc does: in v5 it waits for a full socket buffer as
    // long as TCP does, without a ping, and its own count of unanswered pings would end a link
    // that is only busy. The deadline counts from the last received packet.
    let mut timeout = Duration::from_millis(CONNECT_TIMEOUT_MS);
    let mut last_received = Instant::now();
    let mut pending = Some(sender);
    loop {
        let event = match connection.recv_timeout(timeout.saturating_sub(last_received.elapsed())) {
            Err(_) if pending.is_some() => return End::Own(UNANSWERED),
            Err(_) => return End::Own("silent over its keepalive"),
            Ok(Err(error)) => return End::Failed(error),
            Ok(Ok(event)) => event,
        };
        if matches!(event, MqttEvent::Incoming(_)) {
            connection.eventloop.state.await_pingresp = false;
            // Until the link is up, one deadline covers the whole opening.
            if pending.is_none() {
                last_received = Instant::now();
            }
        }
        let message = match event {
            MqttEvent::Incoming(Packet::ConnAck(_)) => {
                let subscribed = pending.as_ref().is_some_and(|sender| {
                    sender
                        .client
                        .try_subscribe(topic_down(&config.node), QoS::AtMostOnce)
                        .is_ok()
                });
                if !subscribed {
                    return End::Own("cannot subscribe");
                }
                continue;
            }
            MqttEvent::Incoming(Packet::SubAck(_)) => match pending.take() {
                Some(sender) => {
                    timeout = config.keepalive * SILENCE_PERCENT / 100;
                    last_received = Instant::now();
                    LinkEvent::Up(sender)
                }
                None => continue,
            },
            MqttEvent::Incoming(Packet::Publish(publish)) => {
                LinkEvent::Frame(publish.payload.to_vec())
            }
            MqttEvent::Incoming(Packet::Disconnect(_)) => return End::Own("closed by the cloud"),
            // After the flush: the kernel has the frame.
            MqttEvent::Outgoing(Outgoing::Publish(_)) => {
                taken.frames.fetch_add(1, Ordering::SeqCst);
                if !taken.awaited.swap(false, Ordering::SeqCst) {
                    continue;
                }
                LinkEvent::Writable
            }
            MqttEvent::Outgoing(Outgoing::Disconnect) => return End::Own("closed"),
            _ => continue,
        };
        if events.send_blocking(message).is_err() {
            return End::Own("the agent stops");
        }
    }
}

/// Whether this end's certificate was refused: by an alert of TLS, or by MQTT. A DISCONNECT with a text
/// is about frames that this end has sent, see `docs/wire.md`.
fn is_refusal(error: &ConnectionError) -> bool {
    let error = match error {
        ConnectionError::ConnectionRefused(code) => {
            return *code == ConnectReturnCode::NotAuthorized;
        }
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code,
            reason_string: None,
        }) => return *reason_code == DisconnectReasonCode::NotAuthorized,
        ConnectionError::Io(error)
        | ConnectionError::Tls(TlsError::Io(error))
        | ConnectionError::MqttState(
            StateError::Io(error) | StateError::Deserialization(MqttError::Io(error)),
        ) => error,
        _ => return false,
    };
    tls::is_alert(error)
}

/// Maps an error to an actionable message.
fn reason(error: &ConnectionError) -> String {
    match error {
        ConnectionError::Timeout(_) => UNANSWERED.to_owned(),
        ConnectionError::Tls(TlsError::Io(error)) if tls::is_no_tls(error) => NO_TLS.to_owned(),
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_string: Some(why),
            ..
        }) => ["closed by the cloud: ", why].concat(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::AlertDescription;

    fn alert() -> io::Error {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateUnknown);
        io::Error::new(io::ErrorKind::InvalidData, alert)
    }

    fn disconnect(reason_code: DisconnectReasonCode, text: Option<&str>) -> ConnectionError {
        let reason_string = text.map(str::to_owned);
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code,
            reason_string,
        })
    }

    /// Goal: a refusal is recognized by the kind of error, not by its text. Method: each error that is a
    /// refusal, and others whose texts have the same words.
    #[test]
    fn only_a_refused_certificate_is_a_refusal() {
        let not_authorized = DisconnectReasonCode::NotAuthorized;
        let state = |error| ConnectionError::MqttState(StateError::Io(error));
        let read =
            |error| ConnectionError::MqttState(StateError::Deserialization(MqttError::Io(error)));
        for error in [
            ConnectionError::Io(alert()),
            ConnectionError::Tls(TlsError::Io(alert())),
            state(alert()),
            read(alert()),
            ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized),
            disconnect(not_authorized, None),
        ] {
            assert!(is_refusal(&error), "{error}");
        }
        let words = || io::Error::other("received fatal alert: NotAuthorized");
        for error in [
            ConnectionError::Io(words()),
            ConnectionError::Tls(TlsError::Io(words())),
            state(words()),
            read(words()),
            ConnectionError::ConnectionRefused(ConnectReturnCode::ServerBusy),
            disconnect(not_authorized, Some("NotAuthorized: a topic")),
            disconnect(DisconnectReasonCode::SessionTakenOver, None),
            ConnectionError::RequestsDone,
        ] {
            assert!(!is_refusal(&error), "{error}");
        }
    }
}
