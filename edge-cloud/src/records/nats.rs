//! Records to NATS JetStream: the subject `SUBJECT.NODE.CLASS`, a message for each record and each
//! loss, with headers that identify it. The operator provides the stream for `SUBJECT.>`; without
//! one nothing is acknowledged.
//!
//! Effectively once for as long as the stream keeps the newest message of each subject: that message is the
//! high-water mark, with the stream's ledger after it in a header. Each publish names the previous one
//! (`Nats-Expected-Last-Subject-Sequence`), so that a copy that was delayed is refused, and after a start
//! or a failure the ledger is read from the newest message. Where the stream does not keep it, as a work
//! queue does, `Nats-Msg-Id` drops copies within the stream's duplicate window: at least once beyond it.
//!
//! Bound: one message of a node and class in flight; [`ANSWER`] for its confirmation.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{self, LastRawMessageErrorKind, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{ConnectOptions, Event, HeaderMap};
use tokio::sync::OnceCell;

use super::ledger::{Item, Ledger, Plan, Stream, class_name};
use super::line;
use super::target::{Config, Server};

/// Timeout of one confirmation.
const ANSWER: Duration = Duration::from_secs(10);

/// Header with the ledger of the stream after a message.
const LEDGER: &str = "Edge-Ledger";

/// Client of one JetStream.
pub(super) struct Nats {
    url: String,
    subject: String,
    options: Mutex<Option<ConnectOptions>>,
    context: OnceCell<Context>,
    /// Sequence number in the stream of the newest message of a subject, where we know it.
    known: Mutex<BTreeMap<String, u64>>,
    /// Last error of the connection, while there is none.
    last_error: Arc<Mutex<Option<String>>>,
    /// Why the stream may lose confirmed messages, once it was checked.
    warning: OnceLock<Option<String>>,
}

impl Nats {
    pub(super) fn open(server: Server, config: &Config) -> io::Result<Self> {
        let mut options = ConnectOptions::new()
            .name("edge-cloud")
            .require_tls(server.tls)
            .retry_on_initial_connect();
        if server.tls {
            options = options.tls_client_config(config.tls()?.as_ref().clone());
        }
        if let Some(auth) = config.auth()? {
            options = match auth.split_once(':') {
                _ if auth.contains("-----BEGIN") => options.credentials(&auth)?,
                Some((user, word)) => options.user_and_password(user.into(), word.into()),
                None => options.token(auth),
            };
        }
        let last_error = Arc::<Mutex<Option<String>>>::default();
        let noted = Arc::clone(&last_error);
        options = options.event_callback(move |event| {
            let text = match &event {
                Event::Connected => None,
                Event::ServerError(error) => Some(error.to_string()),
                Event::ClientError(error) => Some(error.to_string()),
                _ => return std::future::ready(()),
            };
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = text;
            std::future::ready(())
        });
        Ok(Self {
            last_error,
            warning: OnceLock::new(),
            url: format!("nats://{}", server.place()),
            subject: server.path,
            options: Mutex::new(Some(options)),
            context: OnceCell::new(),
            known: Mutex::default(),
        })
    }

    /// The connection, which async-nats keeps from then on.
    async fn context(&self) -> Result<&Context, String> {
        let connect = async {
            let options = self
                .options
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let options = options.ok_or("cannot connect: give the URL anew")?;
            let client = options.connect(self.url.as_str()).await;
            let client = client.map_err(|error| error.to_string())?;
            let mut context = jetstream::new(client);
            context.set_timeout(ANSWER);
            Ok::<_, String>(context)
        };
        let context = self.context.get_or_try_init(|| connect).await?;
        // A request without a connection would wait for an answer that cannot come.
        self.last_error().map_or(Ok(context), Err)
    }

    /// Why there is no connection; `None` if there is one, or the reason is unknown.
    fn last_error(&self) -> Option<String> {
        let context = self.context.get()?;
        let connected = context.client().connection_state() == State::Connected;
        let last_error = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last_error.clone().filter(|_| !connected)
    }

    pub(super) fn warning(&self) -> Option<String> {
        self.warning.get().cloned().flatten()
    }

    /// The ledger of a stream from its newest message, if we do not know that message.
    pub(super) async fn recover(&self, node: &str, class: u8) -> Result<Option<Stream>, String> {
        let subject = self.subject_of(node, class);
        if self.known().contains_key(&subject) {
            return Ok(None);
        }
        let newest = newest(self.context().await?, &subject);
        let newest = tokio::time::timeout(ANSWER, newest).await;
        let newest = newest.unwrap_or_else(|_| Err("the server does not answer".into()));
        let (last, ledger, stream) = newest.map_err(|error| self.last_error().unwrap_or(error))?;
        self.warning.get_or_init(|| {
            let warning = weakness(&stream);
            if let Some(warning) = &warning {
                log::warn!("records_stream_weak {warning}");
            }
            warning
        });
        self.known().insert(subject, last);
        Ok(ledger)
    }

    pub(super) async fn deliver(
        &self,
        node: &str,
        ledger: &Ledger,
        plan: &Plan,
    ) -> Result<(), String> {
        let subject = self.subject_of(node, plan.class);
        // If this is interrupted, the newest message shows the result.
        let last = self.known().remove(&subject).unwrap_or_default();
        let sent = self.publish(&subject, node, (ledger, plan), last).await;
        let last = sent.map_err(|error| self.last_error().unwrap_or(error))?;
        self.known().insert(subject, last);
        Ok(())
    }

    async fn publish(
        &self,
        subject: &str,
        node: &str,
        (ledger, plan): (&Ledger, &Plan),
        mut last: u64,
    ) -> Result<u64, String> {
        let context = self.context().await?;
        let mut stream = ledger.streams.get(&plan.class).cloned().unwrap_or_default();
        for item in &plan.items {
            stream.outbox_mut(plan.incarnation).apply(item);
            let (headers, payload) = message(node, plan, item, &stream, last);
            let sent = context
                .publish_with_headers(subject.to_owned(), headers, payload.into())
                .await;
            let confirmed = match sent {
                Ok(confirmation) => confirmation.await,
                Err(error) => Err(error),
            };
            match confirmed {
                Ok(ack) => last = ack.sequence,
                Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                    return Err(format!("no stream takes {subject}"));
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(last)
    }

    fn subject_of(&self, node: &str, class: u8) -> String {
        format!("{}.{node}.{}", self.subject, class_name(class))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings of a stream that may lose messages. Whether its server syncs is not among them.
fn weakness(stream: &stream::Config) -> Option<String> {
    let name = &stream.name;
    if stream.storage == StorageType::Memory {
        return Some(format!(
            "the stream {name} is in memory: what it has confirmed is lost with its server; make it \
             anew with storage file"
        ));
    }
    (stream.num_replicas <= 1).then(|| {
        format!(
            "the stream {name} has one copy: a power cut may cost what its server confirmed in the last \
             two minutes, unless that has `sync_interval: always`; or give the stream 3 replicas"
        )
    })
}

/// The newest message of a subject: its sequence number in the stream, and the ledger in it; and how
/// the stream is kept.
async fn newest(
    context: &Context,
    subject: &str,
) -> Result<(u64, Option<Stream>, stream::Config), String> {
    let name = context.stream_by_subject(subject).await;
    let name = name.map_err(|error| match error.kind() {
        GetStreamByNameErrorKind::NotFound => format!("no stream takes {subject}"),
        _ => error.to_string(),
    })?;
    let stream = context.get_stream(name).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let config = stream.cached_info().config.clone();
    let message = match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => message,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
            return Ok((0, None, config));
        }
        Err(error) => return Err(error.to_string()),
    };
    let ledger = message.headers.get(LEDGER).map(|ledger| ledger.as_str());
    let ledger = ledger.and_then(|ledger| serde_json::from_str(ledger).ok());
    Ok((message.sequence, ledger, config))
}

fn message(
    node: &str,
    plan: &Plan,
    item: &Item,
    ledger: &Stream,
    last: u64,
) -> (HeaderMap, Vec<u8>) {
    let seq = match item {
        Item::Record { seq, .. } => *seq,
        Item::Lost { first, .. } => *first,
    };
    let (class, incarnation) = (class_name(plan.class), plan.incarnation.to_string());
    let mut headers = HeaderMap::new();
    let mut add = |name: &'static str, value: &str| headers.insert(name, value);
    add(
        "Nats-Msg-Id",
        &format!("{node}/{incarnation}/{class}/{seq}"),
    );
    add("Nats-Expected-Last-Subject-Sequence", &last.to_string());
    add("Edge-Node", node);
    add("Edge-Class", &class);
    add("Edge-Incarnation", &incarnation);
    add("Edge-Seq", &seq.to_string());
    // With these types it cannot fail.
    add(LEDGER, &serde_json::to_string(ledger).unwrap_or_default());
    match item {
        Item::Record { unix_ms, bytes, .. } => {
            headers.insert("Edge-Unix-Ms", unix_ms.to_string().as_str());
            (headers, bytes.clone())
        }
        Item::Lost { loss, .. } => {
            headers.insert("Edge-Lost", loss.name());
            let mut text = Vec::new();
            line::write(&mut text, node, plan.incarnation, plan.class, item);
            (headers, text)
        }
    }
}
