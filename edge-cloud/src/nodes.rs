//! The nodes as the controller, the API and the metrics see them, whoever carries their links: the
//! embedded hub or an external broker. One small trait for each kind of user, so that a test or a
//! further consumer implements or asks for no more than it needs:
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

/// One node.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// Name, from its certificate.
    pub name: String,
    /// A session is live.
    pub connected: bool,
    /// Both sets are equal on both ends, as far as is known.
    pub in_sync: bool,
    /// Its whole report was here since our start: what is not in `pods` does not run.
    pub heard: bool,
    /// It was given no set since our start, or since it joined, if that was later.
    pub awaits_set: bool,
    /// Root of the set that we ask for, hex.
    pub desired_root: String,
    /// Root of the set that the node reports, hex.
    pub reported_root: String,
    /// Its certificate is revoked.
    pub revoked: bool,
    /// Two boards use its identity.
    pub cloned: bool,
    /// When its certificate ends, seconds since 1970; 0 is not known, as after a readmission by name.
    pub certificate_not_after: u64,
    /// When the link last went up or down, seconds since 1970; 0 is not known.
    pub changed_unix_s: u64,
    /// The last report of the node about itself.
    pub status: Option<NodeStatus>,
    /// The last report of the node about each of its pods.
    pub pods: Vec<PodStatus>,
}

/// Something that happened, for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since 1970.
    pub unix_s: u64,
    /// Node; empty when it is not about one.
    pub node: String,
    /// One word: `Joined`, `Connected`, `Cloned`...
    pub reason: String,
    /// For a person.
    pub message: String,
}

/// One CA of edge-cloud's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRow {
    /// Hex SHA-256 of its certificate.
    pub sha256: String,
    /// It signs; the other one is only accepted.
    pub signs: bool,
    /// When it was made, seconds since 1970; 0 is not known.
    pub made_unix_s: u64,
    /// When its certificate ends, seconds since 1970. In the JSON the unit is part of the name.
    #[serde(rename = "not_after_unix_s")]
    pub not_after: u64,
    /// Nodes, but for those that are revoked, with a certificate of it.
    pub certificates: usize,
    /// Those that accept what it has signed.
    pub trusting: usize,
}

/// A node for whose sake a rollover goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaWaiting {
    /// Its name.
    pub node: String,
    /// A session is live, so it is asked.
    pub connected: bool,
}

/// The CAs, and how far a rollover is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaView {
    /// `single`, `offered` or `signing`.
    pub phase: String,
    /// The CAs that are accepted, the one that signs first.
    pub cas: Vec<CaRow>,
    /// When the certificate ends that edge-cloud shows to nodes, seconds since 1970.
    #[serde(rename = "server_not_after_unix_s")]
    pub server_not_after: u64,
    /// Nodes that are not revoked.
    pub nodes: usize,
    /// Those of them that were cut off if the old CA was retired now.
    pub depending: usize,
    /// Those that have not come with what they are given now, the first ones.
    pub waiting: Vec<CaWaiting>,
    /// How many there are.
    pub waiting_count: usize,
    /// Until when nodes may come back after a restore, which are not counted; 0 is no grace.
    pub grace_until_unix_s: u64,
    /// CAs that are accepted no more, hex SHA-256.
    pub retired: Vec<String>,
}

/// What retiring the old CA has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRetired {
    /// It was retired now; there was nothing to retire otherwise.
    pub retired: bool,
    /// Nodes that are revoked by it.
    pub cut_off: Vec<String>,
    /// Join tokens with uses left that are void by it.
    pub tokens_void: usize,
}

/// What the nodes report. A change of one node costs a reader of the reports that node only:
/// [`Self::subscribe`], then [`Self::views`] once, then [`Self::view`] of each name that
/// [`ChangeNotices::take`] gives.
pub trait NodeReports: Send + Sync + 'static {
    /// Notices of the nodes that change from now on.
    fn subscribe(&self) -> ChangeNotices;

    /// A node as it is now; `None` when there is none of this name any more.
    fn view(&self, node: &str) -> Option<NodeView>;

    /// Every node that has joined. It costs all of them: for a start, and for what shows all.
    fn views(&self) -> Vec<NodeView>;
}

/// What the nodes shall hold.
pub trait DesiredSets: Send + Sync + 'static {
    /// Makes `desired` the whole of what a node shall hold. A node that was never given a set is
    /// sent nothing; one that is not known is left out.
    fn set_desired(&self, node: &str, desired: &Desired);
}

/// Calls to nodes.
pub trait Calls: Send + Sync + 'static {
    /// Calls a node. The channel has the node's data, and ends with them when the result is good, with
    /// an error when it is not, or when there is none; dropping it cancels the call. Empty bytes say
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
        /// For a person.
        reason: String,
    },
    /// The link broke, or the node does not answer.
    #[error("{0}")]
    Link(String),
}

/// Who may be a node.
pub trait NodeAdmin: Send + Sync + 'static {
    /// Forgets a node and its certificate. `false` when there is no such node.
    fn delete(&self, node: &str) -> impl Future<Output = Result<bool, String>> + Send;

    /// Refuses the node's certificate from now on, also on a live connection.
    fn revoke(&self, node: &str) -> impl Future<Output = Result<bool, String>> + Send;

    /// Makes a join token for so many nodes that expires after `ttl_s` seconds.
    fn create_token(
        &self,
        uses: u32,
        ttl_s: u64,
    ) -> impl Future<Output = Result<String, String>> + Send;
}

/// The CAs.
pub trait CaAdmin: Send + Sync + 'static {
    /// The CAs, and how far a rollover is.
    fn cas(&self) -> CaView;

    /// Begins a rollover of the CA. One that goes on already goes on.
    fn rotate_ca(&self) -> impl Future<Output = Result<CaView, String>> + Send;

    /// Ends the rollover: the old CA is accepted no more. It does so only if exactly `force` nodes
    /// depend on it, and revokes those; without `force` only if none does, and none that is not known
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

/// What became of the nodes' records.
pub trait RecordReports: Send + Sync + 'static {
    /// All streams, and the state of the sink.
    fn records(&self) -> View;
}
