//! Expands owners into pods: a Pod is one claim, a Deployment has one for each replica by ordinal, a
//! DaemonSet one for each node that it matches. A [`Claim`] is such a pod before it has a
//! node.

use std::sync::Arc;

use super::{NodeState, PodName};
use crate::manifest::{Accepted, DocumentKind, Id, Template};

/// A pod that an owner requires. Nodes are chosen in this order: by owner, then
/// ordinal or node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) owner: Arc<Id>,
    pub(super) ordinal: u32,
    /// For a DaemonSet: the only node of this claim.
    pub(super) only: Option<String>,
}

impl Claim {
    /// The pod of a DaemonSet on one node.
    pub(super) fn daemon(owner: &Arc<Id>, node: &str) -> Self {
        Self {
            owner: Arc::clone(owner),
            ordinal: 0,
            only: Some(node.to_owned()),
        }
    }

    /// Namespace and name of the pod.
    pub(super) fn name(&self) -> PodName {
        let owner = &self.owner.name;
        let name = match (&self.only, self.owner.kind) {
            (Some(node), _) => format!("{owner}-{node}"),
            (None, DocumentKind::Deployment) => format!("{owner}-{}", self.ordinal),
            (None, _) => owner.clone(),
        };
        (self.owner.namespace.clone(), name)
    }

    /// Whether the node may run it.
    pub(super) fn allows(&self, template: &Template, name: &str, node: &NodeState) -> bool {
        self.only.as_deref().is_none_or(|only| only == name) && node.matches(name, template)
    }

    /// The only node that may run it, if the manifest names one.
    pub(super) fn fixed<'a>(&'a self, template: &'a Template) -> Option<&'a str> {
        self.only.as_deref().or(template.node.as_deref())
    }
}

/// The pods of one object, in order.
pub(super) fn expand<'a>(
    owner: &Arc<Id>,
    object: &Accepted,
    nodes: impl Iterator<Item = (&'a str, &'a NodeState)>,
) -> Vec<Claim> {
    let claim = |ordinal| Claim {
        owner: Arc::clone(owner),
        ordinal,
        only: None,
    };
    match object {
        Accepted::Config(_) | Accepted::Policy(_) => Vec::new(),
        Accepted::Replicated(_, replicas) => (0..*replicas).map(claim).collect(),
        Accepted::Workload(template) if owner.kind == DocumentKind::DaemonSet => nodes
            .filter(|(name, node)| node.matches(name, template))
            .map(|(name, _)| Claim::daemon(owner, name))
            .collect(),
        Accepted::Workload(_) => vec![claim(0)],
    }
}
