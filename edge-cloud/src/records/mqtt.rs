//! Records to an MQTT broker: `TOPIC/NODE/CLASS` with QoS 1, the payload as it was written, and user
//! properties that identify the record. A loss is a JSON line on `TOPIC/NODE/CLASS/lost`.
//!
//! At least once: a broker's PUBACK is the confirmation, and a message whose PUBACK was lost is
//! sent again, with the same property `key`. A broker that has no subscriber for a message drops
//! it and reports that, which is not a confirmation: the nodes keep the records.
//!
//! Bound: [`INFLIGHT_MAX`] messages in flight; each connection is a new client of rumqttc's,
//! because an old one keeps its requests.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Packet, PubAckReason, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::ledger::{Item, Plan, class_name};
use super::line;
use super::target::{Config, Server};

/// Messages without a PUBACK.
const INFLIGHT_MAX: u16 = 64;
/// Plans that wait for the connection: one for each writer.
const PLANS_MAX: usize = super::WRITERS;
/// A lost broker is noticed within two of them.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Timeout of TCP, TLS and CONNACK together.
const CONNECT: Duration = Duration::from_secs(20);
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_secs(2);
/// Bytes of a packet that comes from the broker.
const PACKET_BYTES_MAX: u32 = 64 * 1024;

type Answer = oneshot::Sender<Result<(), String>>;

/// A plan with the channel for its result.
struct Job {
    messages: Vec<Message>,
    done: Answer,
}

struct Message {
    topic: String,
    payload: Bytes,
    properties: PublishProperties,
}

/// Client of one broker.
pub(super) struct Mqtt {
    topic: String,
    jobs: mpsc::Sender<Job>,
}

impl Mqtt {
    /// Connects in the background, for as long as this lives.
    pub(super) fn open(server: Server, config: &Config) -> io::Result<Self> {
        let mut options = MqttOptions::new(client_id(), &server.host, server.port);
        options
            .set_keep_alive(KEEPALIVE)
            .set_clean_start(true)
            .set_connection_timeout(CONNECT.as_secs())
            .set_max_packet_size(Some(PACKET_BYTES_MAX))
            .set_outgoing_inflight_upper_limit(INFLIGHT_MAX);
        if server.tls {
            let tls = TlsConfiguration::Rustls(config.tls()?);
            options.set_transport(Transport::Tls(tls));
        }
        if let Some(auth) = config.auth()? {
            let (user, word) = auth.split_once(':').unwrap_or((&auth, ""));
            options.set_credentials(user, word);
        }
        let (jobs, waiting) = mpsc::channel(PLANS_MAX);
        drop(tokio::spawn(keep(options, waiting)));
        Ok(Self {
            topic: server.path,
            jobs,
        })
    }

    pub(super) async fn deliver(&self, node: &str, plan: &Plan) -> Result<(), String> {
        let (done, result) = oneshot::channel();
        let messages = self.messages(node, plan);
        if messages.is_empty() {
            return Ok(());
        }
        let gone = || "the connection to the broker is given up".to_owned();
        let job = Job { messages, done };
        self.jobs.send(job).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    fn messages(&self, node: &str, plan: &Plan) -> Vec<Message> {
        let class = class_name(plan.class);
        let topic = format!("{}/{node}/{class}", self.topic);
        let message = |item: &Item| {
            let (topic, seq, unix_ms, payload) = match item {
                Item::Record {
                    seq,
                    unix_ms,
                    bytes,
                } => (topic.clone(), *seq, Some(*unix_ms), bytes.clone()),
                Item::Lost { first, .. } => {
                    let mut text = Vec::new();
                    line::write(&mut text, node, plan.incarnation, plan.class, item);
                    (format!("{topic}/lost"), *first, None, text)
                }
            };
            let incarnation = plan.incarnation;
            let mut user_properties = vec![
                (
                    "key".to_owned(),
                    format!("{node}/{incarnation}/{class}/{seq}"),
                ),
                ("node".to_owned(), node.to_owned()),
                ("incarnation".to_owned(), incarnation.to_string()),
                ("class".to_owned(), class.clone()),
                ("seq".to_owned(), seq.to_string()),
            ];
            user_properties.extend(unix_ms.map(|ms| ("unix-ms".to_owned(), ms.to_string())));
            Message {
                topic,
                payload: payload.into(),
                properties: PublishProperties {
                    user_properties,
                    ..PublishProperties::default()
                },
            }
        };
        plan.items.iter().map(message).collect()
    }
}

/// Unique: a broker ends the older of two connections with the same one.
fn client_id() -> String {
    use ring::rand::SecureRandom as _;
    let mut id = [0; 8];
    if ring::rand::SystemRandom::new().fill(&mut id).is_err() {
        id = crate::clock::unix_s().to_be_bytes();
    }
    format!("edge-cloud-records-{}", crate::hex::hex(&id))
}

/// Keeps a connection until all senders of jobs are gone. While there is none, jobs fail
/// at once: the writers have a timeout of their own.
async fn keep(options: MqttOptions, mut jobs: mpsc::Receiver<Job>) {
    loop {
        let mut why = connection(&options, &mut jobs).await;
        if jobs.is_closed() {
            return;
        }
        why.insert_str(0, "broker: ");
        let refuse = async {
            while let Some(job) = jobs.recv().await {
                // The writer may have stopped waiting.
                job.done.send(Err(why.clone())).unwrap_or_default();
            }
        };
        let _passed = tokio::time::timeout(PAUSE, refuse).await;
    }
}

/// One connection; returns why it ended. Unconfirmed messages have failed.
async fn connection(options: &MqttOptions, jobs: &mut mpsc::Receiver<Job>) -> String {
    let (client, mut events) = AsyncClient::new(options.clone(), usize::from(INFLIGHT_MAX));
    let flight = Flight::default();
    let up = Semaphore::new(0);
    // rumqttc's poll is cancelled only with the whole connection.
    tokio::select! {
        why = receive(&mut events, &flight, &up) => why,
        () = feed(&client, jobs, &flight, &up) => "all writers are gone".to_owned(),
    }
}

/// Messages in flight.
#[derive(Default)]
struct Flight {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Given to the client, which has not numbered them yet.
    given: VecDeque<Arc<Waiting>>,
    /// By packet id.
    sent: HashMap<u16, Arc<Waiting>>,
}

/// Counter of the unconfirmed messages of a job.
struct Waiting {
    state: Mutex<(usize, Option<Answer>)>,
}

impl Waiting {
    fn settle(&self, result: Result<(), String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = state.0.saturating_sub(1);
        if (result.is_err() || state.0 == 0)
            && let Some(done) = state.1.take()
        {
            // The writer may have stopped waiting.
            done.send(result).unwrap_or_default();
        }
    }
}

impl Flight {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn receive(events: &mut EventLoop, flight: &Flight, capacity: &Semaphore) -> String {
    let mut timeout = CONNECT + Duration::from_secs(5);
    loop {
        let event = match tokio::time::timeout(timeout, events.poll()).await {
            Err(_) => return "no progress within two keepalives".to_owned(),
            Ok(Err(error)) => return error.to_string(),
            Ok(Ok(event)) => event,
        };
        match event {
            Event::Incoming(Packet::ConnAck(ack)) => {
                if ack.code != ConnectReturnCode::Success {
                    return format!("refused: {:?}", ack.code);
                }
                timeout = KEEPALIVE * 2;
                capacity.add_permits(INFLIGHT_MAX.into());
            }
            Event::Outgoing(Outgoing::Publish(pkid)) => flight.with(|state| {
                if let Some(waiting) = state.given.pop_front() {
                    state.sent.insert(pkid, waiting);
                }
            }),
            // A packet id is used twice, which in-order brokers exclude: connect again.
            Event::Outgoing(Outgoing::AwaitAck(_)) => {
                return "acknowledges out of order".to_owned();
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                let waiting = flight.with(|state| state.sent.remove(&ack.pkid));
                capacity.add_permits(1);
                let result = match ack.reason {
                    PubAckReason::Success => Ok(()),
                    PubAckReason::NoMatchingSubscribers => {
                        Err("no client subscribes to these records".to_owned())
                    }
                    reason => Err(format!("refused: {reason:?}")),
                };
                if let Some(waiting) = waiting {
                    waiting.settle(result);
                }
            }
            Event::Incoming(Packet::Disconnect(disconnect)) => {
                return format!("closed by the broker: {:?}", disconnect.reason_code);
            }
            _ => {}
        }
    }
}

/// Passes messages to the client when it accepts them; returns when all senders of jobs are gone.
async fn feed(
    client: &AsyncClient,
    jobs: &mut mpsc::Receiver<Job>,
    flight: &Flight,
    capacity: &Semaphore,
) {
    loop {
        // Not before the connection is up: jobs that wait here then fail with the reason.
        let Ok(permit) = capacity.acquire().await else {
            return;
        };
        let Some(job) = jobs.recv().await else {
            return;
        };
        let waiting = Arc::new(Waiting {
            state: Mutex::new((job.messages.len(), Some(job.done))),
        });
        let mut first = Some(permit);
        for message in job.messages {
            let permit = match first.take() {
                Some(permit) => permit,
                None => match capacity.acquire().await {
                    Ok(permit) => permit,
                    Err(_) => return,
                },
            };
            permit.forget();
            flight.with(|state| state.given.push_back(Arc::clone(&waiting)));
            let published = client.publish_with_properties(
                message.topic,
                QoS::AtLeastOnce,
                false,
                message.payload,
                message.properties,
            );
            if published.await.is_err() {
                return;
            }
        }
    }
}
