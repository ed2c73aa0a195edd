//! Where every stream of a node stands: the next number that is not accounted for, what was
//! delivered, what was lost and why. No IO: a [`Sink`](super::sink::Sink) makes it durable together
//! with the records.
//!
//! The ledger balances by construction, and [`Outbox::balances`] checks it: of the numbers before
//! `next` each is either delivered or lost for one reason.
//!
//! Bound: [`CLASSES_MAX`] streams of a node, [`OUTBOXES_MAX`] outboxes of a stream.

use std::collections::BTreeMap;

use edge_proto::frame::{Entry, GapReason};
use edge_proto::limits::{CLASS_EVENT, CLASS_TELEMETRY, CLASS_TOLL, CLASSES_MAX};
use serde::{Deserialize, Serialize};

/// Outboxes of a stream that are told apart, newest first. An older one is only a part of the
/// totals; should it come back, it counts as a new one.
pub const OUTBOXES_MAX: usize = 4;

/// Random name of an outbox: a node that lost its disk has another one.
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

/// Why a record never came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// The node's quota was full.
    Quota,
    /// It grew older than its class allows.
    Expired,
    /// A newer one with the same key took its place.
    Superseded,
    /// The node's medium gave it back damaged.
    Damaged,
    /// It was acknowledged to the node, and nobody here knows of it: the cloud was restored from
    /// an older backup, or its files were taken away.
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

/// How many were lost, by reason.
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
const fn is_zero(count: &u64) -> bool {
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

    fn add(&mut self, loss: Loss, count: u64) {
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
    /// Records that came again and were dropped. Not a part of the equation.
    #[serde(skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// Records that never came.
    pub lost: Lost,
    /// Outboxes that these are counts of.
    #[serde(skip_serializing_if = "is_zero")]
    pub outboxes: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
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

/// One outbox of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbox {
    /// Its name.
    pub incarnation: Incarnation,
    /// Lowest number that is not accounted for; numbers begin at 1.
    pub next: u64,
    /// Records that the sink has.
    #[serde(default)]
    pub delivered: u64,
    /// Records that came again and were dropped.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// Records that never came.
    #[serde(default)]
    pub lost: Lost,
}

impl Outbox {
    const fn new(incarnation: Incarnation) -> Self {
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

    /// Takes an item that follows on.
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

    /// The outbox, which is the newest from now on when it is not known yet.
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

    fn find(&self, incarnation: Incarnation) -> Option<&Outbox> {
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

/// All streams of one node, by class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The streams.
    pub streams: BTreeMap<u8, Stream>,
}

impl Ledger {
    /// Takes what another copy of the same ledger has that is further on. Numbers only ever grow.
    pub fn merge(&mut self, other: &BTreeMap<u8, Stream>) {
        let classes = other
            .iter()
            .filter(|(class, _)| usize::from(**class) < CLASSES_MAX);
        for (class, stream) in classes {
            let known = self.streams.entry(*class).or_default();
            if known.totals().numbered < stream.totals().numbered || known.outboxes.is_empty() {
                known.clone_from(stream);
            }
        }
    }

    /// What the entries of `batches`, all of one outbox and class, mean for this ledger. The
    /// batches are a prefix of what is given: one that does not follow on ends it.
    #[must_use]
    pub fn plan(&self, batches: &[Batch]) -> Plan {
        let (incarnation, class) = batches.first().map_or((Incarnation([0; 8]), 0), |batch| {
            (batch.incarnation, batch.class)
        });
        let stream = self.streams.get(&class);
        let known = stream.and_then(|stream| stream.find(incarnation));
        let mut outbox = known.cloned().unwrap_or_else(|| Outbox::new(incarnation));
        let mut plan = Plan {
            incarnation,
            class,
            first: outbox.next,
            next: outbox.next,
            duplicates: 0,
            items: Vec::new(),
            taken: 0,
            is_new: known.is_none(),
            follows: stream
                .filter(|_| known.is_none())
                .and_then(|stream| stream.outboxes.first().cloned()),
        };
        for batch in batches {
            if !plan.take(&mut outbox, batch) {
                break;
            }
            plan.taken += 1;
        }
        plan.next = outbox.next;
        plan
    }

    /// The ledger once the sink has the plan.
    pub fn apply(&mut self, plan: &Plan) {
        let outbox = self
            .streams
            .entry(plan.class)
            .or_default()
            .outbox_mut(plan.incarnation);
        for item in &plan.items {
            outbox.apply(item);
        }
        outbox.duplicates = outbox.duplicates.saturating_add(plan.duplicates);
    }
}

/// Records as they come out of a node's session.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Their outbox.
    pub incarnation: Incarnation,
    /// Their class.
    pub class: u8,
    /// Number of the first entry.
    pub first: u64,
    /// Lowest number that the node still accounts for.
    pub held: u64,
    /// The entries, in order.
    pub entries: Vec<Entry>,
}

/// One thing for the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A record.
    Record {
        /// Its number.
        seq: u64,
        /// The node's clock when the record was made, milliseconds since 1970.
        unix_ms: u64,
        /// Its payload.
        bytes: Vec<u8>,
    },
    /// Records that never come.
    Lost {
        /// Number of the first one.
        first: u64,
        /// How many.
        count: u64,
        /// Why.
        loss: Loss,
    },
}

/// What is to be given to the sink, and what it will mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The outbox.
    pub incarnation: Incarnation,
    /// The class.
    pub class: u8,
    /// Number of the first item.
    pub first: u64,
    /// Lowest number that is not accounted for afterwards.
    pub next: u64,
    /// Records that the sink has already.
    pub duplicates: u64,
    /// What the sink lacks, without holes.
    pub items: Vec<Item>,
    /// Batches that this is of.
    pub taken: usize,
    /// The outbox was not known.
    pub is_new: bool,
    /// The outbox that this one takes the place of.
    pub follows: Option<Outbox>,
}

impl Plan {
    /// Returns whether the batch follows on.
    fn take(&mut self, outbox: &mut Outbox, batch: &Batch) -> bool {
        let held = batch.held.min(batch.first);
        if held > outbox.next {
            let (first, count) = (outbox.next, held - outbox.next);
            let loss = Loss::Forgotten;
            self.push(outbox, Item::Lost { first, count, loss });
        }
        let mut at = batch.first;
        if at > outbox.next {
            return false;
        }
        for entry in &batch.entries {
            match entry {
                Entry::Record { unix_ms, bytes } => {
                    if at < outbox.next {
                        self.duplicates += 1;
                    } else if at == u64::MAX {
                        // No outbox comes so far, and there is no number after it.
                        return false;
                    } else {
                        let item = Item::Record {
                            seq: at,
                            unix_ms: *unix_ms,
                            bytes: bytes.clone(),
                        };
                        self.push(outbox, item);
                    }
                    at = at.saturating_add(1);
                }
                Entry::Gap { count, reason } => {
                    let end = at.saturating_add(*count);
                    // A part of it may have arrived before the node dropped it.
                    let (first, count) = (outbox.next, end.saturating_sub(outbox.next));
                    if count > 0 {
                        let loss = Loss::from(*reason);
                        self.push(outbox, Item::Lost { first, count, loss });
                    }
                    at = end;
                }
            }
        }
        true
    }

    fn push(&mut self, outbox: &mut Outbox, item: Item) {
        outbox.apply(&item);
        self.items.push(item);
    }

    /// Nothing that the ledger does not have already.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.items.is_empty() && !self.is_new
    }

    /// Names these records for a sink that keeps no ledger: the same name, the same records.
    #[must_use]
    pub fn key(&self, node: &str) -> String {
        let (class, last) = (class_name(self.class), self.next.saturating_sub(1));
        format!("{node}/{}/{class}/{}-{last}", self.incarnation, self.first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OUTBOX: Incarnation = Incarnation([7; 8]);

    fn record(number: u64) -> Entry {
        Entry::Record {
            unix_ms: number,
            bytes: number.to_be_bytes().to_vec(),
        }
    }

    fn batch(first: u64, held: u64, entries: Vec<Entry>) -> Batch {
        Batch {
            incarnation: OUTBOX,
            class: 0,
            first,
            held,
            entries,
        }
    }

    fn take(ledger: &mut Ledger, batches: &[Batch]) -> Plan {
        let plan = ledger.plan(batches);
        ledger.apply(&plan);
        assert!(ledger.streams.values().all(Stream::balances));
        plan
    }

    fn numbers(plan: &Plan) -> Vec<u64> {
        let record = |item: &Item| match item {
            Item::Record { seq, .. } => Some(*seq),
            Item::Lost { .. } => None,
        };
        plan.items.iter().filter_map(record).collect()
    }

    #[test]
    fn of_a_gap_what_did_arrive_is_not_lost() {
        let mut ledger = Ledger::default();
        take(&mut ledger, &[batch(1, 1, (1..=5).map(record).collect())]);
        // The acknowledgement was lost, and the quota took 3 to 9 meanwhile.
        let gap = Entry::Gap {
            count: 7,
            reason: GapReason::Quota,
        };
        let plan = take(&mut ledger, &[batch(3, 3, vec![gap, record(10)])]);
        let lost = Item::Lost {
            first: 6,
            count: 4,
            loss: Loss::Quota,
        };
        assert_eq!(plan.items[0], lost);
        assert_eq!(numbers(&plan), [10]);
        let totals = ledger.streams[&0].totals();
        assert_eq!(
            (totals.numbered, totals.delivered, totals.lost.quota),
            (10, 6, 4)
        );
    }

    #[test]
    fn what_was_acknowledged_and_is_not_known_is_reported() {
        let mut ledger = Ledger::default();
        take(&mut ledger, &[batch(1, 1, vec![record(1)])]);
        let plan = take(&mut ledger, &[batch(8, 8, vec![record(8)])]);
        assert_eq!(numbers(&plan), [8]);
        assert_eq!(ledger.streams[&0].totals().lost.forgotten, 6);
    }

    #[test]
    fn frames_that_were_lost_are_waited_for() {
        let mut ledger = Ledger::default();
        let late = [batch(1, 1, vec![record(1)]), batch(3, 1, vec![record(3)])];
        let plan = take(&mut ledger, &late);
        assert_eq!((plan.taken, plan.next), (1, 2));
    }

    #[test]
    fn what_comes_again_is_left_out_and_answered() {
        let mut ledger = Ledger::default();
        take(&mut ledger, &[batch(1, 1, vec![record(1)])]);
        let plan = take(&mut ledger, &[batch(1, 1, (1..=3).map(record).collect())]);
        assert_eq!(numbers(&plan), [2, 3]);
        assert_eq!((plan.taken, plan.duplicates), (1, 1));
    }

    #[test]
    fn a_new_outbox_begins_anew_and_old_ones_end_as_totals() {
        let mut ledger = Ledger::default();
        for number in 1..=6 {
            let mut one = batch(1, 1, vec![record(1)]);
            one.incarnation = Incarnation([number; 8]);
            let plan = take(&mut ledger, &[one]);
            let before = plan.follows.map(|outbox| outbox.incarnation.0[0]);
            assert_eq!(before, (number > 1).then(|| number - 1));
        }
        let stream = &ledger.streams[&0];
        assert_eq!(stream.outboxes.len(), OUTBOXES_MAX);
        assert_eq!(
            (stream.totals().delivered, stream.totals().outboxes),
            (6, 6)
        );
    }

    #[test]
    fn numbers_that_no_node_has_do_not_overflow() {
        let mut ledger = Ledger::default();
        let end = Entry::Gap {
            count: u64::MAX,
            reason: GapReason::Damaged,
        };
        take(
            &mut ledger,
            &[batch(u64::MAX - 1, u64::MAX, vec![end, record(0)])],
        );
    }

    #[test]
    fn a_ledger_survives_being_written() {
        let mut ledger = Ledger::default();
        take(&mut ledger, &[batch(4, 4, vec![record(4)])]);
        let text = serde_json::to_string(&ledger).unwrap();
        assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ledger);
    }

    /// What a node does between two frames that it sends.
    #[derive(Clone, Debug)]
    enum Step {
        Make(u8),
        Drop(u8),
        Send { back: u8, count: u8 },
        Ack,
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1u8..9).prop_map(Step::Make),
            (1u8..5).prop_map(Step::Drop),
            (0u8..9, 1u8..9).prop_map(|(back, count)| Step::Send { back, count }),
            Just(Step::Ack),
            Just(Step::Forget),
        ]
    }

    /// The node's side, as plainly as it can be said.
    #[derive(Default)]
    struct Node {
        /// By number from 1: the record is still held.
        made: Vec<bool>,
        acknowledged: u64,
    }

    impl Node {
        fn frame(&self, from: u64, count: u8) -> Batch {
            let held = self.acknowledged + 1;
            let first = from.max(held);
            let made = self.made.len() as u64;
            let entries = (first..=made).take(count.into()).map(|number| {
                match self.made[number as usize - 1] {
                    true => record(number),
                    false => Entry::Gap {
                        count: 1,
                        reason: GapReason::Expired,
                    },
                }
            });
            batch(first, held, entries.collect())
        }
    }

    proptest! {
        /// Goal: whatever is repeated, dropped by the node, lost or forgotten by the cloud: each
        /// number is delivered once or lost for one reason, and nothing that the node holds is
        /// lost. Method: a node of a few lines that sends from anywhere it may, and a cloud that
        /// now and then falls back to an old copy of its ledger.
        #[test]
        fn each_number_is_accounted_for_once(steps in prop::collection::vec(step(), 1..80)) {
            let mut node = Node::default();
            let mut ledger = Ledger::default();
            let mut old = Ledger::default();
            // Since the cloud last forgot something.
            let mut delivered = std::collections::BTreeSet::new();
            for step in steps {
                match step {
                    Step::Make(count) => node.made.extend(vec![true; count.into()]),
                    Step::Drop(count) => {
                        let held = node.acknowledged as usize;
                        let dropped = node.made.iter_mut().skip(held).take(count.into());
                        dropped.for_each(|held| *held = false);
                    }
                    Step::Send { back, count } => {
                        let next = ledger.streams.get(&0).map_or(1, |s| s.outboxes[0].next);
                        let from = next.saturating_sub(back.into());
                        let frame = node.frame(from, count);
                        if frame.entries.is_empty() {
                            continue;
                        }
                        for number in numbers(&take(&mut ledger, &[frame])) {
                            prop_assert!(delivered.insert(number), "{} twice", number);
                        }
                    }
                    Step::Ack => {
                        let next = ledger.streams.get(&0).map_or(1, |s| s.outboxes[0].next);
                        node.acknowledged = node.acknowledged.max(next - 1);
                        old = ledger.clone();
                    }
                    Step::Forget => {
                        ledger = old.clone();
                        let next = ledger.streams.get(&0).map_or(1, |s| s.outboxes[0].next);
                        delivered.retain(|number| *number < next);
                    }
                }
            }
            // At the end everything that is held arrives.
            loop {
                let next = ledger.streams.get(&0).map_or(1, |s| s.outboxes[0].next);
                let frame = node.frame(next, 8);
                if frame.entries.is_empty() {
                    break;
                }
                delivered.extend(numbers(&take(&mut ledger, &[frame])));
            }
            let held = node.made.iter().zip(1u64..).skip(node.acknowledged as usize);
            for (_, number) in held.filter(|(held, _)| **held) {
                prop_assert!(delivered.contains(&number), "{} is missing", number);
            }
            if let Some(stream) = ledger.streams.get(&0) {
                prop_assert_eq!(stream.totals().numbered, node.made.len() as u64);
                prop_assert_eq!(stream.totals().delivered, delivered.len() as u64);
            }
        }
    }
}
