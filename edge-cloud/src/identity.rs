//! Identity of nodes: the CAs, the tokens by which nodes join, the registry of joined nodes, the
//! enrolment that issues certificates, the rollover of the CA and the list of refused certificates.
//!
//! [`Identity`] owns all of that state. It calls [`crate::events`] and no other part of edge-cloud with
//! state; [`crate::sessions`], [`crate::transport`] and [`crate::fleet`] call it. Its callers handle the
//! consequences for links, such as the end of the session of a revoked node.
//!
//! Locks, in this order: one step of a rollover (`stepping`), the writing of the list (`listing`), then
//! those of tokens, registry and events, each of which is held for one call only.
//!
//! Bound: [`registry::NODES_MAX`] nodes, [`token::TOKENS_MAX`] tokens, two CAs, [`registry::RETIRED_MAX`]
//! refused certificates.

pub mod authorities;
pub mod ca;
pub mod enrol;
pub mod peer;
pub mod registry;
mod revocations;
mod rollover;
pub mod token;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};

use self::authorities::Authorities;
use self::enrol::{CertificateTimes, Enrolled, EnrolmentService};
use self::peer::Peer;
use self::registry::Registry;
use self::token::TokenStore;
use crate::clock::unix_s;
use crate::events::Events;
use crate::nodes::TokenSpec;

pub use self::revocations::write_crl;
pub use self::rollover::WAITING_SHOWN;

/// Settings of an external broker that identity needs.
#[derive(Clone, Debug)]
pub struct ExternalBroker {
    /// Sent to each node that joins: the target of its link.
    pub broker: edge_proto::enrol::Broker,
    /// File of the list of refused certificates for the broker. Without it no node is readmitted
    /// after a restore, because nothing would exclude deleted ones.
    pub crl: Option<PathBuf>,
}

/// Why a certificate gets no link.
pub(crate) const REFUSED: &str = "its certificate is revoked, replaced or not known here";

/// All state that identifies nodes.
pub struct Identity {
    data: PathBuf,
    registry: Registry,
    tokens: TokenStore,
    authorities: watch::Sender<Arc<Authorities>>,
    times: CertificateTimes,
    broker: Option<ExternalBroker>,
    events: Arc<Events>,
    /// Held during a step of a rollover.
    stepping: Mutex<()>,
    /// Held while the broker's list of refused certificates is written.
    listing: Mutex<()>,
    /// The CAs have changed.
    rotated: Notify,
}

impl Identity {
    /// Reads `data`, increments the epoch and writes the list of refused certificates.
    ///
    /// # Errors
    /// Those of the file system; a damaged file is one, too.
    pub fn open(
        data: &Path,
        authorities: impl Into<Authorities>,
        broker: Option<ExternalBroker>,
        times: CertificateTimes,
        events: Arc<Events>,
    ) -> io::Result<Arc<Self>> {
        let identity = Arc::new(Self {
            data: data.to_owned(),
            registry: Registry::open(data, unix_s())?,
            tokens: TokenStore::open(data)?,
            authorities: watch::Sender::new(Arc::new(authorities.into())),
            times,
            broker,
            events,
            stepping: Mutex::new(()),
            listing: Mutex::new(()),
            rotated: Notify::new(),
        });
        if let Some(grace) = identity.registry.grace(unix_s()) {
            let text = format!(
                "from a backup made at {}: nodes that joined after it are readmitted until {} \
                 (seconds since 1970)",
                grace.issued_from_unix_s, grace.until_unix_s
            );
            identity.events.add("", "Restored", &text);
        }
        identity.write_list()?;
        Ok(identity)
    }

    /// Joined nodes.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Present CAs.
    #[must_use]
    pub fn authorities(&self) -> Arc<Authorities> {
        Arc::clone(&self.authorities.borrow())
    }

    /// The broker that carries the links; `None` with the embedded hub.
    #[must_use]
    pub const fn external_broker(&self) -> Option<&ExternalBroker> {
        self.broker.as_ref()
    }

    /// Waits until there may be nodes that must renew their certificate because the CAs have changed.
    pub(crate) async fn rotated(&self) {
        self.rotated.notified().await;
    }

    /// Serves one enrolment, as HTTP or bare. Returns its result; `None` when it was refused.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn enrol<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        http: bool,
    ) -> io::Result<Option<Enrolled>> {
        let authorities = self.authorities();
        let service = EnrolmentService {
            cas: &authorities,
            tokens: &self.tokens,
            registry: &self.registry,
            broker: self.broker.as_ref().map(|behind| &behind.broker),
            times: self.times,
        };
        let enrolled = if http {
            service.serve_http(stream).await?
        } else {
            service.serve(stream).await?
        };
        match &enrolled {
            Some(Enrolled::Joined(node)) => self.events.add(node, "Joined", "certificate issued"),
            Some(Enrolled::Renewed(node)) => {
                self.events.add(node, "Renewed", "next certificate issued");
            }
            None => {}
        }
        Ok(enrolled)
    }

    /// Whether a node with this certificate may have a link; an event if not.
    #[must_use]
    pub fn may_admit(&self, peer: &Peer) -> bool {
        let admitted = self.registry.may_admit(peer, unix_s());
        if !admitted {
            self.events.add_by_node(&peer.node, "Refused", REFUSED);
        }
        admitted
    }

    /// Deletes a node and its certificate. `false` when there is no such node.
    ///
    /// # Errors
    /// Human-readable: those of the file system.
    pub fn delete(&self, node: &str) -> Result<bool, String> {
        self.tokens
            .clear_last_use(node)
            .map_err(|error| error.to_string())?;
        let deleted = self.registry.delete(node, unix_s());
        deleted.map_err(|error| error.to_string())
    }

    /// Refuses the certificates of a node from now on. `false` when there is no such node.
    ///
    /// # Errors
    /// Human-readable: those of the file system.
    pub fn revoke(&self, node: &str) -> Result<bool, String> {
        let revoked = self.registry.revoke(node, unix_s());
        revoked.map_err(|error| error.to_string())
    }

    /// Creates a join token.
    ///
    /// # Errors
    /// Human-readable: wrong labels, too many tokens, or those of the file system.
    pub fn create_token(&self, spec: &TokenSpec) -> Result<String, String> {
        spec.grants.check()?;
        self.tokens
            .create(self.authorities().signer().der(), spec, unix_s())
            .map_err(|error| error.to_string())
    }

    /// The join tokens.
    #[must_use]
    pub const fn tokens(&self) -> &TokenStore {
        &self.tokens
    }
}
