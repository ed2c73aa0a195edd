//! What the outbox keeps, drops and counts. Records are stored in segments, files of one class with
//! consecutive numbers; the shell writes and reads them and reports what became durable.
//!
//! Each number has exactly one state: delivered (the cloud acknowledged it), held,
//! or lost for one reason. So `appended = delivered + held + lost` for each class, always, also across
//! restarts and power cuts, provided that [`Saved`] is written when [`Output::Save`] requests it.
//!
//! Lost and unacknowledged numbers are stored as ranges, at most [`GAPS_MAX`] a class: neighbours
//! merge, whatever their reasons, and a record is superseded only while a range is unused. If damage
//! needs more, the records between the two nearest ranges are given up too: every one is counted.

mod class;

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use edge_proto::frame::GapReason;

use crate::limits::{GAPS_MAX, GAPS_SPARE, KEYS_MAX};
use class::{Class, Segment};

/// Reasons of a loss, in the order of the counters.
pub const REASONS: [GapReason; 4] = [
    GapReason::Quota,
    GapReason::Expired,
    GapReason::Superseded,
    GapReason::Damaged,
];

/// A higher number found on the medium was never assigned: no outbox reaches it.
const NUMBER_MAX: u64 = u64::MAX >> 8;

/// Settings of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassConfig {
    /// Number on the wire; the lowest is sent first and dropped last.
    pub number: u8,
    /// Highest sum of the bytes of its segments.
    pub quota_bytes: u64,
    /// Age after which a record is dropped, milliseconds of the wall clock.
    pub ttl_ms: Option<u64>,
}

/// A range of lost numbers: a count for each reason, assigned to the numbers in the order of [`REASONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Lowest number of the range.
    pub first: u64,
    /// Numbers lost for each reason.
    pub counts: [u64; 4],
}

impl Gap {
    fn end(&self) -> u64 {
        self.first + self.counts.iter().sum::<u64>()
    }

    /// Removes the first `count` numbers.
    fn trim(&mut self, mut count: u64) {
        for one in &mut self.counts {
            let taken = count.min(*one);
            *one -= taken;
            count -= taken;
            self.first += taken;
        }
    }
}

/// State of a class that must be on the medium besides the segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Below `CLASSES_MAX`.
    pub class: u8,
    /// First number that a segment may hold; older segments were dropped.
    pub start: u64,
    /// All earlier numbers are delivered or lost.
    pub held: u64,
    /// All numbers assigned so far are below.
    pub next: u64,
    /// Records delivered.
    pub delivered: u64,
    /// Records lost, by [`REASONS`].
    pub lost: [u64; 4],
    /// Those lost numbers that are not below `held`.
    pub gaps: Vec<Gap>,
}

impl Saved {
    /// Count of lost numbers in the gaps.
    fn gone(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.end() - gap.first).sum()
    }

    /// Whether the values are consistent; a damaged or foreign file might violate that.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let mut end = Some(self.held);
        for gap in &self.gaps {
            let start = end.filter(|end| *end <= gap.first).map(|_| gap.first);
            let counts = gap.counts.iter();
            end = counts.fold(start, |end, count| end?.checked_add(*count));
        }
        let ordered = 0 < self.held && self.held <= self.next && self.start <= self.next;
        let counted = self
            .lost
            .iter()
            .try_fold(self.delivered, |sum, one| sum.checked_add(*one));
        ordered
            && self.gaps.len() <= GAPS_MAX
            && end.is_some_and(|end| end <= self.next)
            && self.next <= NUMBER_MAX
            && counted.and_then(|counted| counted.checked_sub(self.gone())) == Some(self.held - 1)
    }
}

/// Counts of a class: `appended = delivered + held + lost[..]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Numbers assigned.
    pub appended: u64,
    /// Acknowledged by the cloud.
    pub delivered: u64,
    /// Stored and not acknowledged.
    pub held: u64,
    /// Lost, by [`REASONS`].
    pub lost: [u64; 4],
    /// Sum of the segments, bytes.
    pub bytes: u64,
}

/// Where a new record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Assigned by [`Outbox::append`], consecutive in the class.
    pub number: u64,
    /// The segment to write to, by the number of its first record.
    pub segment: u64,
}

/// Why a record is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The class does not exist.
    LocalClass,
    /// More important records fill the outbox, or its newest are not durable yet.
    LimitFull,
}

/// What the session can read at a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// So many lost numbers.
    Gap(u64, GapReason),
    /// A stored record.
    Record {
        /// The segment that holds it, by the number of its first record.
        segment: u64,
        /// The number after the last one of the segment.
        end: u64,
    },
    /// No durable record yet.
    End,
}

/// What the shell has to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Make [`Outbox::saved`] durable.
    Save,
    /// Delete this segment of the class.
    Delete(u8, u64),
}

/// A coalescing key and the newest record with it.
#[derive(Debug)]
struct Key {
    class: u8,
    key: Vec<u8>,
    number: u64,
}

/// The outbox of a node: all classes, without the bytes of the records.
#[derive(Debug)]
pub struct Outbox {
    quota_bytes: u64,
    /// Sorted by number.
    classes: Vec<Class>,
    /// At most [`KEYS_MAX`], the least recently used first.
    keys: VecDeque<Key>,
    /// Superseded once the newer record is durable: class and number.
    superseded: Vec<(u8, u64)>,
    out: VecDeque<Output>,
}

impl Outbox {
    /// An empty outbox of at most `quota_bytes`, with these classes.
    #[must_use]
    pub fn new(quota_bytes: u64, classes: &[ClassConfig]) -> Self {
        let mut classes: Vec<_> = classes.iter().copied().map(Class::new).collect();
        classes.sort_unstable_by_key(|class| class.config.number);
        Self {
            quota_bytes,
            classes,
            keys: VecDeque::new(),
            superseded: Vec::new(),
            out: VecDeque::new(),
        }
    }

    /// Restores the saved state of a class; call it before any of its segments. False if the class does
    /// not exist.
    pub fn restore(&mut self, saved: &Saved) -> bool {
        let Some(class) = self.class(saved.class) else {
            return false;
        };
        if saved.is_sound() {
            class.start = saved.start;
            class.held = saved.held;
            class.read = saved.held;
            class.next = saved.start.max(1);
            class.delivered = saved.delivered;
            class.lost = saved.lost;
            class.gaps.clone_from(&saved.gaps);
        }
        true
    }

    /// A segment was found, in ascending order of each class. False: it was dropped before, or
    /// its class does not exist any more; delete it.
    pub fn found(&mut self, number: u8, first: u64, bytes: u64) -> bool {
        let Some(class) = self.class(number) else {
            return false;
        };
        if first < class.start || first > NUMBER_MAX {
            return false;
        }
        class.lose(class.next, first, 3);
        class.next = class.next.max(first);
        class.segments.push_back(Segment {
            first,
            end: class.next,
            bytes,
            newest_ms: 0,
            closed: false,
        });
        true
    }

    /// A whole record was found in the last found segment. Skipped numbers are damaged.
    pub fn found_record(&mut self, number: u8, record: u64, unix_ms: u64, key: &[u8]) {
        let Some(class) = self.class(number) else {
            return;
        };
        if record < class.next || record > NUMBER_MAX {
            return;
        }
        class.lose(class.next, record, 3);
        class.next = record + 1;
        class.grow(unix_ms, 0);
        if let Some(old) = self.note_key(number, key, record) {
            self.supersede(number, old);
        }
    }

    /// An acknowledgement was found in the last found segment: everything before `next` had been
    /// delivered when it was written.
    pub fn found_acked(&mut self, number: u8, next: u64) {
        if let Some(class) = self.class(number) {
            class.read = class.read.max(next.min(class.next));
        }
    }

    /// The end of the last found segment may contain so many unreadable records.
    pub fn found_damage(&mut self, number: u8, count: u64) {
        if let Some(class) = self.class(number) {
            let end = class.next.saturating_add(count).min(NUMBER_MAX);
            class.lose(class.next, end, 3);
            class.next = end;
            class.grow(0, 0);
            if let Some(last) = class.segments.back_mut() {
                last.closed = true;
            }
        }
    }

    /// All segments of all classes were found.
    pub fn found_all(&mut self, saved: &[Saved]) {
        let mut acked = Vec::new();
        for class in &mut self.classes {
            let one = saved.iter().find(|one| one.class == class.config.number);
            let next = one.map_or(1, |one| one.next).max(class.held);
            class.lose(class.next, next, 3);
            class.next = class.next.max(next);
            class.durable = class.next;
            acked.push((class.config.number, class.read));
            class.delete_delivered(&mut self.out);
        }
        for (number, next) in acked {
            self.acked(number, next);
        }
    }

    /// A new record, whose frame takes so many bytes: assigns a number, and frees space. It counts
    /// as held at once, and is sent after [`Outbox::durable`] was called.
    ///
    /// # Errors
    /// Nothing was changed except for dropped records.
    pub fn append(
        &mut self,
        unix_ms: u64,
        number: u8,
        key: &[u8],
        bytes: u64,
    ) -> Result<Place, Refused> {
        self.expire(unix_ms);
        self.free_space(number, bytes)?;
        let class = self.class(number).ok_or(Refused::LocalClass)?;
        let segment_bytes = class.segment_bytes();
        let full = |segment: &Segment| segment.closed || segment.bytes + bytes > segment_bytes;
        if class.segments.back().is_none_or(full) {
            class.segments.push_back(Segment {
                first: class.next,
                end: class.next,
                bytes: 0,
                newest_ms: 0,
                closed: false,
            });
        }
        let record = class.next;
        class.next += 1;
        class.grow(unix_ms, bytes);
        let segment = class.segments.back().map_or(record, |last| last.first);
        if let Some(old) = self.note_key(number, key, record) {
            self.superseded.push((number, old));
        }
        Ok(Place {
            number: record,
            segment,
        })
    }

    /// Drops records until `bytes` more fit a class: the oldest of the class itself at its own
    /// quota; at the total quota, the oldest of the least important class, but never of a more
    /// important one than this.
    fn free_space(&mut self, number: u8, bytes: u64) -> Result<(), Refused> {
        loop {
            let all: u64 = self.classes.iter().map(Class::bytes).sum();
            let class = self.class(number).ok_or(Refused::LocalClass)?;
            let own = class.bytes() + bytes > class.config.quota_bytes;
            if !own && all + bytes <= self.quota_bytes {
                return Ok(());
            }
            let victims = self.classes.iter_mut().rev();
            let victim = victims
                .filter(|class| class.config.number >= number)
                .find(|class| class.may_drop() && (!own || class.config.number == number))
                .ok_or(Refused::LimitFull)?;
            victim.drop_oldest(0, &mut self.out);
        }
    }

    /// Drops segments whose records are all too old.
    fn expire(&mut self, now_ms: u64) {
        for class in &mut self.classes {
            while class
                .segments
                .front()
                .is_some_and(|segment| class.expired(segment.newest_ms, now_ms))
                && class.may_drop()
            {
                class.drop_oldest(1, &mut self.out);
            }
        }
    }

    /// Everything appended so far is on the medium.
    pub fn durable(&mut self) {
        for class in &mut self.classes {
            class.durable = class.next;
        }
        for (class, old) in core::mem::take(&mut self.superseded) {
            self.supersede(class, old);
        }
    }

    /// The appended records that are not durable cannot be stored. Their numbers are lost, and nothing
    /// more is written to their segments, whose ends are unknown.
    pub fn failed(&mut self) {
        self.superseded.clear();
        for class in &mut self.classes {
            if class.durable < class.next {
                class.lose(class.durable, class.next, 3);
                class.unsaved = class.unsaved.min(class.durable);
                class.durable = class.next;
                // The loss is reported to the cloud: the numbers are used up.
                if !self.out.contains(&Output::Save) {
                    self.out.push_front(Output::Save);
                }
                if let Some(last) = class.segments.back_mut() {
                    last.closed = true;
                }
            }
        }
    }

    /// The value that [`Outbox::saved`] returned last is on the medium.
    pub fn saved_durably(&mut self) {
        for class in &mut self.classes {
            class.unsaved = u64::MAX;
        }
    }

    /// The cloud has acknowledged everything before `next`.
    pub fn acked(&mut self, number: u8, next: u64) {
        let Some(class) = self.class(number) else {
            return;
        };
        let next = next.min(class.durable);
        if next <= class.held {
            return;
        }
        let mut lost = 0;
        for gap in &mut class.gaps {
            let known = next.clamp(gap.first, gap.end()) - gap.first;
            lost += known;
            gap.trim(known);
        }
        class.gaps.retain(|gap| gap.end() > gap.first);
        class.delivered += next - class.held - lost;
        class.held = next;
        class.read = class.read.max(next);
        let place = self.classes.iter_mut();
        if let Some(class) = place.into_iter().find(|one| one.config.number == number) {
            class.delete_delivered(&mut self.out);
        }
    }

    /// What is at a number from `held` on; it counts as given to the session.
    pub fn next(&mut self, number: u8, at: u64) -> Next {
        let Some(class) = self.class(number) else {
            return Next::End;
        };
        if at < class.held || at >= class.end() {
            return Next::End;
        }
        class.read = class.read.max(at + 1);
        if class.gap_at(at).is_none() {
            let segments = &class.segments;
            if let Some(segment) = segments
                .iter()
                .find(|one| (one.first..one.end).contains(&at))
            {
                return Next::Record {
                    segment: segment.first,
                    end: segment.end.min(class.durable),
                };
            }
            // No file has it. Our own code does not cause this.
            let after = segments
                .iter()
                .map(|one| one.first)
                .find(|first| *first > at);
            let end = after.unwrap_or(class.durable).min(class.durable);
            class.lose(at, end, 3);
        }
        let Some(mut gap) = class.gap_at(at) else {
            return Next::End;
        };
        gap.trim(at - gap.first);
        let reasons = gap.counts.into_iter().zip(REASONS);
        reasons
            .into_iter()
            .find(|(count, _)| *count > 0)
            .map_or(Next::End, |(count, reason)| Next::Gap(count, reason))
    }

    /// The records `from..to` cannot be read, or are too old.
    pub fn lose(&mut self, number: u8, from: u64, to: u64, reason: GapReason) {
        let place = REASONS.iter().position(|one| *one == reason).unwrap_or(3);
        if let Some(class) = self.class(number) {
            class.lose(from, to.min(class.durable), place);
        }
    }

    /// Whether a record of this time is too old to keep.
    #[must_use]
    pub fn is_expired(&self, number: u8, unix_ms: u64, now_ms: u64) -> bool {
        let mut classes = self.classes.iter();
        classes
            .find(|class| class.config.number == number)
            .is_some_and(|class| class.expired(unix_ms, now_ms))
    }

    /// Numbers that the session may read of a class: `held..end`.
    #[must_use]
    pub fn ready(&self, number: u8) -> Option<(u64, u64)> {
        let mut classes = self.classes.iter();
        let class = classes.find(|class| class.config.number == number)?;
        Some((class.held, class.end()))
    }

    /// Counts of a class.
    #[must_use]
    pub fn counters(&self, number: u8) -> Counters {
        let mut classes = self.classes.iter();
        let class = classes.find(|class| class.config.number == number);
        class.map_or_else(Counters::default, |class| {
            let gone: u64 = class.gaps.iter().map(|gap| gap.end() - gap.first).sum();
            Counters {
                appended: class.next - 1,
                delivered: class.delivered,
                held: class.next - class.held - gone,
                lost: class.lost,
                bytes: class.bytes(),
            }
        })
    }

    /// State that must be on the medium besides the segments.
    #[must_use]
    pub fn saved(&self) -> Vec<Saved> {
        let save = |class: &Class| Saved {
            class: class.config.number,
            start: class
                .segments
                .front()
                .map_or(class.durable, |one| one.first),
            held: class.held,
            // A record that is not durable yet may never become so.
            next: class.durable,
            delivered: class.delivered,
            lost: class.lost,
            gaps: class.gaps.clone(),
        };
        self.classes.iter().map(save).collect()
    }

    /// The next output; `None` when there is nothing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    fn class(&mut self, number: u8) -> Option<&mut Class> {
        let mut classes = self.classes.iter_mut();
        classes.find(|class| class.config.number == number)
    }

    /// Stores the newest record of a key; returns the previous one.
    fn note_key(&mut self, class: u8, key: &[u8], number: u64) -> Option<u64> {
        if key.is_empty() {
            return None;
        }
        let place = self
            .keys
            .iter()
            .position(|one| one.class == class && one.key == key);
        let old = place.and_then(|place| self.keys.remove(place));
        if self.keys.len() >= KEYS_MAX {
            self.keys.pop_front();
        }
        let before = old.as_ref().map(|old| old.number);
        let key = old.map_or_else(|| key.to_vec(), |old| old.key);
        self.keys.push_back(Key { class, key, number });
        before
    }

    /// A record with a newer one of the same key becomes lost, unless it was given to the
    /// session or no range is unused.
    fn supersede(&mut self, number: u8, old: u64) {
        let Some(class) = self.class(number) else {
            return;
        };
        let beside = |gap: &Gap| gap.end() == old || gap.first == old + 1;
        let room = class.gaps.len() < GAPS_MAX - GAPS_SPARE || class.gaps.iter().any(beside);
        if room && old >= class.read {
            class.lose(old, old + 1, 2);
        }
    }
}
