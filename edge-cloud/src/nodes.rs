//! The nodes as the rest of edge-cloud sees them, whoever holds their links: the embedded hub or
//! an external broker.

use std::future::Future;

use bytes::Bytes;
use edge_proto::object::{NodeStatus, PodStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

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
    /// Root of the set that we ask for, hex.
    pub desired_root: String,
    /// Root of the set that the node reports, hex.
    pub reported_root: String,
    /// Its certificate is revoked.
    pub revoked: bool,
    /// Two boards use its identity.
    pub cloned: bool,
    /// When its certificate ends, seconds since 1970; 0 is not known, as after a readmission by name.
    pub certificate_end_unix_s: u64,
    /// When the link last went up or down, seconds since 1970; 0 is not known.
    pub changed_unix_s: u64,
    /// What the node last said of itself.
    pub status: Option<NodeStatus>,
    /// What the node last said of its pods.
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

/// Links to the nodes.
pub trait Nodes: Send + Sync + 'static {
    /// Every node that has joined.
    fn views(&self) -> Vec<NodeView>;

    /// Changes whenever a view does.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Makes `desired` the whole of what a node shall hold. A node that was never given a set is
    /// sent nothing.
    fn set_desired(&self, node: &str, desired: &Desired);

    /// Calls a node. The channel ends with the answer, with an error when the answer is not
    /// complete; dropping it cancels the call.
    fn call(&self, node: &str, method: u16, body: Vec<u8>)
    -> mpsc::Receiver<Result<Bytes, String>>;

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

    /// The latest events, oldest first.
    fn events(&self) -> Vec<Event>;

    /// What became of the nodes' records.
    fn records(&self) -> View {
        View::default()
    }
}
