//! The nodes as the controller, the API and the metrics see them, whether the embedded hub or an external
//! broker carries their links. One small trait for each kind of user, so that a test or a
//! further consumer implements or requires no more than it needs:
//!
//! | trait | for | what it does |
//! |---|---|---|
//! | [`NodeReports`] | controller, API, metrics | what nodes report, one by one, and which have changed |
//! | [`DesiredSets`] | controller | what a node shall hold |
//! | [`Calls`] | API | a call to a node |
//! | [`NodeAdmin`] | API | tokens, deleting and revoking a node |
//! | [`CaAdmin`] | API, metrics | the CAs and their rollover |
//! | [`EventLog`] | API | the latest events |
//! | [`RecordReports`] | API, metrics | what became of the nodes' records |

use std::future::Future;

use bytes::Bytes;
use edge_proto::object::{NodeStatus, PodStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::changes::ChangeNotices;
use crate::placement::Desired;
use crate::records::View;

/// State of one node.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// Name, from its certificate.
    pub name: String,
    /// A session is live.
    pub connected: bool,
    /// Both sets are equal on both ends, as far as is known.
    pub in_sync: bool,
    /// Its complete report was received since our start: a pod that is not in `pods` does not run.
    pub has_report: bool,
    /// It got no set since our start, or since it joined, if that was later.
    pub awaits_set: bool,
    /// Root of the set that it is to have, hex.
    pub desired_root: String,
    /// Root of the set that the node reports, hex.
    pub reported_root: String,
    /// Its certificate is revoked.
    pub revoked: bool,
    /// Two boards use its identity.
    pub cloned: bool,
    /// When its certificate expires, seconds since 1970; 0 is not known, as after a readmission by name.
    pub certificate_not_after: u64,
    /// When the link last went up or down, seconds since 1970; 0 is not known.
    pub changed_unix_s: u64,
    /// The last report of the node about itself.
    pub status: Option<NodeStatus>,
    /// The last report of the node about each of its pods.
    pub pods: Vec<PodStatus>,
}

/// An event, for display.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since 1970.
    pub unix_s: u64,
    /// Node; empty when the event concerns none.
    pub node: String,
    /// One word: `Joined`, `Connected`, `Cloned`...
    pub reason: String,
    /// Human-readable.
    pub message: String,
}

/// One CA of this edge-cloud.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRow {
    /// Hex SHA-256 of its certificate.
    pub sha256: String,
    /// It signs; the other one is only accepted.
    pub signs: bool,
    /// When it was made, seconds since 1970; 0 is not known.
    pub made_unix_s: u64,
    /// When its certificate expires, seconds since 1970. In the JSON the unit is part of the name.
    #[serde(rename = "not_after_unix_s")]
    pub not_after: u64,
    /// Nodes, except revoked ones, with a certificate of it.
    pub certificates: usize,
    /// Nodes that accept certificates signed by it.
    pub trusting: usize,
}

/// A node for which a rollover waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaWaiting {
    /// From its certificate.
    pub node: String,
    /// A session is live, so it is asked to renew.
    pub connected: bool,
}

/// The CAs, and the progress of a rollover.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaView {
    /// `single`, `offered` or `signing`.
    pub phase: String,
    /// The CAs that are accepted, the one that signs first.
    pub cas: Vec<CaRow>,
    /// Expiry of the certificate that edge-cloud sends to nodes, seconds since 1970.
    #[serde(rename = "server_not_after_unix_s")]
    pub server_not_after: u64,
    /// Nodes that are not revoked.
    pub nodes: usize,
    /// Nodes that would be cut off if the old CA was retired now.
    pub depending: usize,
    /// The first nodes that have not connected with the present CAs.
    pub waiting: Vec<CaWaiting>,
    /// Number of all of them.
    pub waiting_count: usize,
    /// Until when unknown nodes, which are not counted, are readmitted after a restore; 0 is no grace.
    pub grace_until_unix_s: u64,
    /// CAs that are not accepted any more, hex SHA-256.
    pub retired: Vec<String>,
}

/// Result of retiring the old CA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRetired {
    /// It was retired now; otherwise there was nothing to retire.
    pub retired: bool,
    /// Nodes that are revoked by it.
    pub cut_off: Vec<String>,
    /// Join tokens with uses left that became invalid.
    pub tokens_void: usize,
}

/// Reports of the nodes. A change of one node costs a reader work for that node only:
/// [`Self::subscribe`], then [`Self::views`] once, then [`Self::view`] of each name that
/// [`ChangeNotices::take`] returns.
pub trait NodeReports: Send + Sync + 'static {
    /// Notices of the nodes that change from now on.
    fn subscribe(&self) -> ChangeNotices;

    /// A node as it is now; `None` when there is none of this name any more.
    fn view(&self, node: &str) -> Option<NodeView>;

    /// Every node that has joined. Costs work for all of them: for the start, and for lists of all nodes.
    fn views(&self) -> Vec<NodeView>;
}

/// Writes the desired sets of nodes.
pub trait DesiredSets: Send + Sync + 'static {
    /// Replaces the desired set of a node. A node that never had a set is
    /// sent nothing before; an unknown node is ignored.
    fn set_desired(&self, node: &str, desired: &Desired);
}

/// Calls to nodes.
pub trait Calls: Send + Sync + 'static {
    /// Calls a node. The channel has the node's data, and ends after them when the result is good, with
    /// an error when it is not, or when there is none; dropping it cancels the call. Empty bytes mean
    /// that the call has begun.
    fn call(
        &self,
        node: &str,
        method: u16,
        args: Vec<u8>,
    ) -> mpsc::Receiver<Result<Bytes, CallError>>;
}

/// Why a call has no good result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The node ended it with this code.
    #[error("{reason}")]
    Node {
        /// See [`edge_proto::call`].
        code: u32,
        /// Human-readable.
        reason: String,
    },
    /// The link was lost, or the node does not answer.
    #[error("{0}")]
    Link(String),
}

/// Administration of nodes and tokens.
pub trait NodeAdmin: Send + Sync + 'static {
    /// Deletes a node and its certificate. `false` when there is no such node.
    fn delete(&self, node: &str) -> impl Future<Output = Result<bool, String>> + Send;

    /// Refuses the node's certificate from now on, also on a live connection.
    fn revoke(&self, node: &str) -> impl Future<Output = Result<bool, String>> + Send;

    /// Creates a join token for so many nodes that expires after `ttl_s` seconds.
    fn create_token(
        &self,
        uses: u32,
        ttl_s: u64,
    ) -> impl Future<Output = Result<String, String>> + Send;
}

/// Administration of the CAs.
pub trait CaAdmin: Send + Sync + 'static {
    /// The CAs, and the progress of a rollover.
    fn cas(&self) -> CaView;

    /// Begins a rollover of the CA, unless one is in progress.
    fn rotate_ca(&self) -> impl Future<Output = Result<CaView, String>> + Send;

    /// Ends the rollover: the old CA is not accepted any more. Only if exactly `force` nodes
    /// depend on it, which are revoked; without `force` only if none does, and no unknown node
    /// may.
    fn retire_ca(
        &self,
        force: Option<usize>,
    ) -> impl Future<Output = Result<CaRetired, String>> + Send;
}

/// The latest events.
pub trait EventLog: Send + Sync + 'static {
    /// Oldest first.
    fn events(&self) -> Vec<Event>;
}

/// Reports about the nodes' records.
pub trait RecordReports: Send + Sync + 'static {
    /// All streams, and the state of the sink.
    fn records(&self) -> View;
}
