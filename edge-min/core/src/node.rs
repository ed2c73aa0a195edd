//! The node as it is reported: its facts, its conditions, and the objects that it has refused.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Kind};
use edge_proto::limits::{CONDITIONS_MAX, REFUSED_LISTED_MAX, SET_OBJECTS_MAX};
use edge_proto::object::{Condition, NodeStatus, Refused, clip};
use edge_proto::sorted::SortedMap;

use crate::event::Event;
use crate::port::{Fault, Output};

impl Fault {
    /// Name of its condition.
    pub(crate) const fn condition(self) -> &'static str {
        match self {
            Self::StoreUnwritable => "StoreUnwritable",
            Self::OutboxUnwritable => "OutboxUnwritable",
            Self::WorkerStalled => "WorkerStalled",
            Self::HandOverFailed => "HandOverFailed",
        }
    }
}

/// At most [`SET_OBJECTS_MAX`] refused objects are kept, as in the replicated set; further ones
/// are not listed.
#[derive(Debug)]
pub(crate) struct Node {
    facts: NodeStatus,
    conditions: SortedMap<String, Condition>,
    refused: SortedMap<Key, (Hash16, String)>,
    /// Reported payload, to detect a change.
    reported: Option<Vec<u8>>,
}

impl Node {
    pub(crate) const fn new(facts: NodeStatus) -> Self {
        Self {
            facts,
            conditions: SortedMap::new(),
            refused: SortedMap::new(),
            reported: None,
        }
    }

    pub(crate) const fn pods_max(&self) -> u32 {
        self.facts.pods_max
    }

    /// A condition over the cap is ignored; the shell has a fixed list, far shorter.
    pub(crate) fn set_condition(&mut self, condition: Condition) {
        if self.conditions.len() < CONDITIONS_MAX || self.conditions.contains_key(&condition.name) {
            self.conditions.insert(condition.name.clone(), condition);
        }
    }

    /// Sets the condition of this name, or clears it.
    pub(crate) fn set_fault(&mut self, name: &str, message: Option<String>) {
        self.set_condition(Condition {
            name: name.to_string(),
            holds: message.is_some(),
            message: message.unwrap_or_default(),
        });
    }

    /// The object is not refused any more: it has changed, or it is accepted now.
    pub(crate) fn accepted(&mut self, key: &Key) {
        self.refused.remove(key);
    }

    pub(crate) fn refuse(
        &mut self,
        key: Key,
        hash: Hash16,
        reason: String,
        outputs: &mut VecDeque<Output>,
    ) {
        let event = Event::Refused(key.clone(), reason.clone());
        outputs.push_back(Output::Event(event));
        if self.refused.len() < SET_OBJECTS_MAX {
            self.refused.insert(key, (hash, reason));
        }
    }

    pub(crate) fn status(&self) -> NodeStatus {
        let refused = self
            .refused
            .iter()
            .take(REFUSED_LISTED_MAX)
            .map(|(key, (hash, reason))| Refused {
                key: key.clone(),
                hash: *hash,
                reason: clip(reason).into(),
            });
        NodeStatus {
            conditions: self.conditions.values().cloned().collect(),
            refused: refused.collect(),
            refused_count: u32::try_from(self.refused.len()).unwrap_or(u32::MAX),
            ..self.facts.clone()
        }
    }

    pub(crate) fn report(&mut self, outputs: &mut VecDeque<Output>) {
        let payload = payload(self.status());
        if self.reported.as_ref() != Some(&payload) {
            self.reported = Some(payload.clone());
            outputs.push_back(Output::Report(Key::node_status(), Some(payload)));
        }
    }
}

/// Payload of the status. To respect the cap, refusals and then messages of conditions are omitted;
/// `refused_count` still counts them.
fn payload(mut status: NodeStatus) -> Vec<u8> {
    loop {
        let payload = status.encode();
        if payload.len() <= Kind::NodeStatus.bytes_max() {
            return payload;
        }
        if status.refused.pop().is_none() {
            for condition in &mut status.conditions {
                condition.message.clear();
            }
            return status.encode();
        }
    }
}
