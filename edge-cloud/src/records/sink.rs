//! All kinds of sinks behind one type. A new kind is a variant here and in
//! [`Target`].

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::RECORDS;
use super::cursors::Cursors;
use super::files::{Files, Found};
use super::http::Http;
use super::ledger::{Ledger, Plan, Stream};
use super::mqtt::Mqtt;
use super::nats::Nats;
use super::stdout;
use super::target::{Config, Protocol, Target};
use crate::clock::unix_s;

/// Implementation of a sink.
enum Kind {
    Files(Arc<Files>),
    Stdout,
    Http(Http),
    Mqtt(Mqtt),
    Nats(Box<Nats>),
}

/// Stores records and its position in each stream.
pub(super) struct Sink {
    kind: Kind,
    /// The ledgers of kinds that keep none.
    cursors: Cursors,
    /// As in `--records`.
    pub(super) target: String,
}

impl Sink {
    pub(super) fn open(data: &Path, config: &Config) -> io::Result<Self> {
        let target = match &config.url {
            Some(url) => url.clone(),
            None => format!("files:{}", data.join(RECORDS).display()),
        };
        let wrong = |why| io::Error::new(io::ErrorKind::InvalidInput, format!("--records: {why}"));
        let kind = match Target::parse(&target).map_err(wrong)? {
            Target::Files(dir) => Kind::Files(Arc::new(Files::open(&dir)?)),
            Target::Stdout => Kind::Stdout,
            Target::Server(server) => match server.protocol {
                Protocol::Http => Kind::Http(Http::open(server, config)?),
                Protocol::Mqtt => Kind::Mqtt(Mqtt::open(server, config)?),
                Protocol::Nats => Kind::Nats(Box::new(Nats::open(server, config)?)),
            },
        };
        let cursors = Cursors::open(data)?;
        Ok(Self {
            kind,
            cursors,
            target,
        })
    }

    /// What may happen to a record whose delivery was interrupted.
    pub(super) const fn guarantee(&self) -> &'static str {
        match self.kind {
            Kind::Files(_) => "effectively once",
            Kind::Nats(_) => {
                "effectively once while the stream keeps each subject's newest message"
            }
            Kind::Http(_) | Kind::Mqtt(_) => "at least once, with a key",
            Kind::Stdout => "at least once",
        }
    }

    /// Reads the positions of a node's streams. Blocks.
    pub(super) fn load(&self, node: &str) -> io::Result<Found> {
        match &self.kind {
            Kind::Files(files) => files.load(node),
            _ => Ok(Found {
                ledger: self.cursors.load(node)?,
                cut: Vec::new(),
            }),
        }
    }

    /// A node's ledger is not needed for now.
    pub(super) fn drop_state(&self, node: &str) {
        if let Kind::Files(files) = &self.kind {
            files.drop_state(node);
        }
    }

    /// State that only the sink has, read before a plan is made.
    pub(super) async fn recover(&self, node: &str, class: u8) -> Result<Option<Stream>, String> {
        match &self.kind {
            Kind::Nats(nats) => {
                let known = nats.recover(node, class).await;
                known.map_err(|error| self.named(&error))
            }
            _ => Ok(None),
        }
    }

    /// Why the sink may lose confirmed records, if it reports that.
    pub(super) fn warning(&self) -> Option<String> {
        match &self.kind {
            Kind::Nats(nats) => nats.warning(),
            _ => None,
        }
    }

    /// An error that names the sink, with a hint.
    fn named(&self, error: &str) -> String {
        format!("{}: {error}{}", self.target, hint(&self.target, error))
    }

    /// Gives a plan to the sink. When this returns it is durable there, and so is the ledger after it
    /// here.
    pub(super) async fn deliver(
        &self,
        node: &str,
        ledger: &Ledger,
        plan: &Plan,
    ) -> Result<(), String> {
        match &self.kind {
            Kind::Files(files) => {
                let (files, node) = (Arc::clone(files), node.to_owned());
                let (ledger, plan) = (ledger.clone(), plan.clone());
                let work = move || files.append(&node, &ledger, &plan, unix_s());
                return blocking(work).await;
            }
            _ if plan.items.is_empty() => {}
            Kind::Stdout => {
                let (node, plan) = (node.to_owned(), plan.clone());
                blocking(move || stdout::write(&node, &plan)).await?;
            }
            Kind::Http(http) => {
                let sent = http.deliver(node, plan).await;
                sent.map_err(|error| self.named(&error))?;
            }
            Kind::Mqtt(mqtt) => {
                let sent = mqtt.deliver(node, plan).await;
                sent.map_err(|error| self.named(&error))?;
            }
            Kind::Nats(nats) => {
                let sent = nats.deliver(node, ledger, plan).await;
                sent.map_err(|error| self.named(&error))?;
            }
        }
        let mut after = ledger.clone();
        after.apply(plan);
        let (cursors, node) = (self.cursors.clone(), node.to_owned());
        blocking(move || cursors.save(&node, &after)).await
    }
}

/// A hint for an error, by the text of the library: the errors share no type.
fn hint(target: &str, error: &str) -> &'static str {
    let error = error.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if says(&["notvalidforname", "not valid for name"]) {
        "; --records must name the server as its certificate does"
    } else if says(&["invalid peer certificate"]) {
        "; --records-ca must have the CA of the server's certificate"
    } else if says(&[
        "certificaterequired",
        "handshakefailure",
        "badcertificate",
        "unknownca",
    ]) {
        "; the server wants another certificate of ours: --records-cert and --records-key"
    } else if target.starts_with("natss:") && says(&["io error", "tls error"]) {
        // The only error of async-nats, also for an untrusted certificate.
        "; is the server there, and does --records-ca have its CA? The server's log says more"
    } else if says(&[
        "401",
        "403",
        "notauthorized",
        "badusernamepassword",
        "authorization violation",
    ]) {
        "; the file of --records-auth must have what the server wants, and edge-cloud reads it at its \
         start"
    } else {
        ""
    }
}

/// Runs work that waits for a medium on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
