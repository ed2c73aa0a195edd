//! Streams: the records of one class of a node, by the outbox that numbered them.

use edge_proto::limits::{CLASS_EVENT, CLASS_TELEMETRY, CLASS_TOLL, CLASSES_MAX};
use serde::{Deserialize, Serialize};

use super::loss::{Loss, Lost, Totals, is_zero};

/// Outboxes of a stream that are distinguished, newest first. An older one is only a part of the
/// totals; if it appears again, it counts as a new one.
pub const OUTBOXES_MAX: usize = 4;

/// Random id of an outbox: a node that lost its disk has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incarnation(pub [u8; 8]);

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Incarnation {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// Name of a class: three have one, the others are `class-N`.
#[must_use]
pub fn class_name(class: u8) -> String {
    match class {
        CLASS_TOLL => "toll".to_owned(),
        CLASS_EVENT => "event".to_owned(),
        CLASS_TELEMETRY => "telemetry".to_owned(),
        other => format!("class-{other}"),
    }
}

/// The class of a name of [`class_name`].
#[must_use]
pub fn class_of(name: &str) -> Option<u8> {
    classes().find(|class| class_name(*class) == name)
}

/// Every class that there can be.
pub fn classes() -> impl Iterator<Item = u8> {
    (0..=u8::MAX).take(CLASSES_MAX)
}

/// One delivery to the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// One record of a workload.
    Record {
        /// Number in its stream.
        seq: u64,
        /// The node's clock when the record was made, milliseconds since 1970.
        unix_ms: u64,
        /// Payload of the record.
        bytes: Vec<u8>,
    },
    /// Numbers without a record.
    Lost {
        /// Number of the first one.
        first: u64,
        /// How many.
        count: u64,
        /// Why.
        loss: Loss,
    },
}

/// One outbox of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbox {
    /// Random id.
    pub incarnation: Incarnation,
    /// Lowest number that is not accounted for; numbers begin at 1.
    pub next: u64,
    /// Records that the sink has.
    #[serde(default)]
    pub delivered: u64,
    /// Records that were received again and dropped.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// Records that were not delivered.
    #[serde(default)]
    pub lost: Lost,
}

impl Outbox {
    pub(super) const fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            next: 1,
            delivered: 0,
            duplicates: 0,
            lost: Lost {
                quota: 0,
                expired: 0,
                superseded: 0,
                damaged: 0,
                forgotten: 0,
            },
        }
    }

    /// Its counts.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        Totals {
            numbered: self.next.saturating_sub(1),
            delivered: self.delivered,
            duplicates: self.duplicates,
            lost: self.lost,
            outboxes: 1,
        }
    }

    /// `next - 1 = delivered + lost`.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.totals().balances()
    }

    /// Applies an item that follows.
    pub fn apply(&mut self, item: &Item) {
        match item {
            Item::Record { .. } => {
                self.delivered = self.delivered.saturating_add(1);
                self.next = self.next.saturating_add(1);
            }
            Item::Lost { count, loss, .. } => {
                self.lost.add(*loss, *count);
                self.next = self.next.saturating_add(*count);
            }
        }
    }
}

/// All outboxes of one class of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stream {
    /// Newest first.
    pub outboxes: Vec<Outbox>,
    /// Those that are not told apart any more.
    #[serde(skip_serializing_if = "is_empty")]
    pub former: Totals,
}

fn is_empty(totals: &Totals) -> bool {
    *totals == Totals::default()
}

impl Stream {
    /// Counts over all its outboxes.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = self.former;
        for outbox in &self.outboxes {
            totals.add(&outbox.totals());
        }
        totals
    }

    /// The outbox; an unknown one is added as the newest.
    pub fn outbox_mut(&mut self, incarnation: Incarnation) -> &mut Outbox {
        let known = |outbox: &Outbox| outbox.incarnation == incarnation;
        let at = self.outboxes.iter().position(known).unwrap_or_else(|| {
            self.outboxes.insert(0, Outbox::new(incarnation));
            while self.outboxes.len() > OUTBOXES_MAX {
                if let Some(oldest) = self.outboxes.pop() {
                    self.former.add(&oldest.totals());
                }
            }
            0
        });
        &mut self.outboxes[at]
    }

    pub(super) fn find(&self, incarnation: Incarnation) -> Option<&Outbox> {
        self.outboxes
            .iter()
            .find(|outbox| outbox.incarnation == incarnation)
    }

    /// Whether every outbox is accounted for.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.former.balances() && self.outboxes.iter().all(Outbox::balances)
    }
}
