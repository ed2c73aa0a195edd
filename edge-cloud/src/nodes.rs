//! The nodes as the controller, the API and the metrics see them, whether the embedded hub or an external
//! broker carries their links. One small trait for each kind of user, so that a test or a
//! further consumer implements or requires no more than it needs:
//!
//! | trait | for | what it does |
//! |---|---|---|
//! | [`NodeReports`] | controller, API, metrics | what nodes report, one by one, and which have changed |
//! | [`DesiredSets`] | controller | what a node shall hold |
//! | [`Calls`] | API | a call to a node |
//! | [`NodeAdmin`] | API | tokens; approving, labelling, revoking and deleting a node |
//! | [`CaAdmin`] | API, metrics | the CAs and their rollover |
//! | [`EventLog`] | API | the latest events |
//! | [`RecordReports`] | API, metrics | what became of the nodes' records |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;

use bytes::Bytes;
use edge_proto::object::{NodeStatus, PodStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::changes::ChangeNotices;
use crate::placement::Desired;
use crate::records::View;

/// Labels that a token gives or allows, or that the registry keeps for a node.
pub const LABELS_MAX: usize = 64;
/// Bytes of the key of a label: prefix, slash and name.
const LABEL_KEY_BYTES_MAX: usize = 253 + 1 + 63;
/// As in Kubernetes.
const LABEL_VALUE_BYTES_MAX: usize = 63;

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
    /// Nobody has approved it yet: it gets no pods.
    pub awaits_approval: bool,
    /// Labels that select it: those of the registry, and of its own config those that its token has allowed.
    pub labels: BTreeMap<String, String>,
    /// The last report of the node about itself.
    pub status: Option<NodeStatus>,
    /// The last report of the node about each of its pods.
    pub pods: Vec<PodStatus>,
}

/// What a join token gives to its nodes, and what the registry keeps of it for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// Labels of the node, whatever its own config says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Keys of labels that may come from the board's own config. Others there select nothing.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub label_keys: BTreeSet<String>,
    /// The node gets no pods until a person has approved it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awaits_approval: bool,
}

impl Grants {
    /// The labels that select a node whose config has these.
    #[must_use]
    pub fn labels(&self, own: &[(String, String)]) -> BTreeMap<String, String> {
        let allowed = own.iter().filter(|(key, _)| self.label_keys.contains(key));
        let mut labels: BTreeMap<_, _> = allowed.cloned().collect();
        labels.extend(self.labels.clone());
        labels
    }

    /// Whether every label is one, and how many there are is within [`LABELS_MAX`].
    ///
    /// # Errors
    /// Which one is wrong, human-readable.
    pub fn check(&self) -> Result<(), String> {
        if self.labels.len() + self.label_keys.len() > LABELS_MAX {
            return Err(format!("labels: there are more than {LABELS_MAX}"));
        }
        let keys = self.labels.keys().chain(&self.label_keys);
        for key in keys {
            is_label(key, LABEL_KEY_BYTES_MAX, "-_./")
                .then_some(())
                .ok_or_else(|| format!("labels: {key:?} is not a key of a label"))?;
        }
        for (key, value) in &self.labels {
            let fits = value.is_empty() || is_label(value, LABEL_VALUE_BYTES_MAX, "-_.");
            fits.then_some(())
                .ok_or_else(|| format!("labels: {key}: {value:?} is not a value of a label"))?;
        }
        Ok(())
    }
}

fn is_label(text: &str, bytes_max: usize, inner: &str) -> bool {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= bytes_max
        && is_end(text.chars().next())
        && is_end(text.chars().last())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || inner.contains(c))
}

/// Parameters of a new join token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSpec {
    /// Nodes that may join with it.
    pub uses: u32,
    /// Seconds until it expires.
    pub ttl_s: u64,
    /// What its nodes get.
    #[serde(default)]
    pub grants: Grants,
}

impl TokenSpec {
    /// A token that gives its nodes nothing but their certificate.
    #[must_use]
    pub fn plain(uses: u32, ttl_s: u64) -> Self {
        Self {
            uses,
            ttl_s,
            grants: Grants::default(),
        }
    }
}

/// A join token as it is listed: without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// The part of the token between the first two dots.
    pub id: String,
    /// Nodes that may still join with it.
    pub uses_left: u32,
    /// When it expires, seconds since 1970.
    pub expires_unix_s: u64,
    /// What its nodes get.
    #[serde(flatten)]
    pub grants: Grants,
}

/// A change of the labels that the registry keeps for a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelChange {
    /// Labels to set.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Keys to remove.
    #[serde(default)]
    pub remove: BTreeSet<String>,
}

impl fmt::Display for LabelChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.set.iter().map(|(key, value)| format!("{key}={value}"));
        let removed = self.remove.iter().map(|key| format!("{key}-"));
        f.write_str(&set.chain(removed).collect::<Vec<_>>().join(" "))
    }
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

    /// The node gets pods from now on. `false` when there is no such node.
    fn approve(&self, node: &str) -> impl Future<Output = Result<bool, String>> + Send;

    /// Changes the labels that the registry keeps for a node. `false` when there is no such node.
    fn label(
        &self,
        node: &str,
        change: LabelChange,
    ) -> impl Future<Output = Result<bool, String>> + Send;

    /// Creates a join token.
    fn create_token(&self, spec: TokenSpec) -> impl Future<Output = Result<String, String>> + Send;

    /// The join tokens that have not expired.
    fn tokens(&self) -> Vec<TokenRow>;

    /// Revokes a join token. `false` when there is no such token.
    fn revoke_token(&self, id: &str) -> impl Future<Output = Result<bool, String>> + Send;
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
