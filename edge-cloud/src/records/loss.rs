//! Reasons why records were not delivered, and counts that must add up to the assigned numbers.

use edge_proto::frame::GapReason;
use serde::{Deserialize, Serialize};

/// Why a record was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// The node's quota was full.
    Quota,
    /// It grew older than its class allows.
    Expired,
    /// A newer one with the same key replaced it.
    Superseded,
    /// The node's medium returned it damaged.
    Damaged,
    /// It was acknowledged to the node, and this cloud does not have it: the cloud was restored from
    /// an older backup, or its files were removed.
    Forgotten,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Quota,
        Self::Expired,
        Self::Superseded,
        Self::Damaged,
        Self::Forgotten,
    ];

    /// One word, as in the files and the metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
            Self::Damaged => "damaged",
            Self::Forgotten => "forgotten",
        }
    }
}

impl From<GapReason> for Loss {
    fn from(reason: GapReason) -> Self {
        match reason {
            GapReason::Quota => Self::Quota,
            GapReason::Expired => Self::Expired,
            GapReason::Superseded => Self::Superseded,
            GapReason::Damaged => Self::Damaged,
        }
    }
}

/// Count of lost records, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lost {
    /// See [`Loss::Quota`].
    #[serde(skip_serializing_if = "is_zero")]
    pub quota: u64,
    /// See [`Loss::Expired`].
    #[serde(skip_serializing_if = "is_zero")]
    pub expired: u64,
    /// See [`Loss::Superseded`].
    #[serde(skip_serializing_if = "is_zero")]
    pub superseded: u64,
    /// See [`Loss::Damaged`].
    #[serde(skip_serializing_if = "is_zero")]
    pub damaged: u64,
    /// See [`Loss::Forgotten`].
    #[serde(skip_serializing_if = "is_zero")]
    pub forgotten: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it so")]
pub(super) const fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Lost {
    /// Those of one reason.
    #[must_use]
    pub const fn of(&self, loss: Loss) -> u64 {
        match loss {
            Loss::Quota => self.quota,
            Loss::Expired => self.expired,
            Loss::Superseded => self.superseded,
            Loss::Damaged => self.damaged,
            Loss::Forgotten => self.forgotten,
        }
    }

    pub(super) fn add(&mut self, loss: Loss, count: u64) {
        let one = match loss {
            Loss::Quota => &mut self.quota,
            Loss::Expired => &mut self.expired,
            Loss::Superseded => &mut self.superseded,
            Loss::Damaged => &mut self.damaged,
            Loss::Forgotten => &mut self.forgotten,
        };
        *one = one.saturating_add(count);
    }

    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u64 {
        Loss::ALL
            .iter()
            .fold(0, |sum: u64, loss| sum.saturating_add(self.of(*loss)))
    }
}

/// Counts of one outbox, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Numbers that are accounted for.
    pub numbered: u64,
    /// Records that the sink has.
    pub delivered: u64,
    /// Records that were received again and dropped. Not a part of the equation.
    #[serde(skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// Records that were not delivered.
    pub lost: Lost,
    /// Outboxes that these are counts of.
    #[serde(skip_serializing_if = "is_zero")]
    pub outboxes: u64,
}

impl Totals {
    pub(super) fn add(&mut self, other: &Self) {
        self.numbered = self.numbered.saturating_add(other.numbered);
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.duplicates = self.duplicates.saturating_add(other.duplicates);
        for loss in Loss::ALL {
            self.lost.add(loss, other.lost.of(loss));
        }
        self.outboxes = self.outboxes.saturating_add(other.outboxes);
    }

    /// Each number is delivered or lost.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.delivered.checked_add(self.lost.total()) == Some(self.numbered)
    }
}
