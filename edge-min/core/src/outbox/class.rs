//! One class of the outbox: its segments, and the ranges of numbers that are lost.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{ClassConfig, Gap, Output};
use crate::limits::{GAPS_MAX, RECORD_EXPIRES_FROM_MS, SEGMENT_BYTES_MAX, SEGMENTS_OF_A_QUOTA_MIN};

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) first: u64,
    pub(super) end: u64,
    pub(super) bytes: u64,
    /// Newest time of its records.
    pub(super) newest_ms: u64,
    /// Nothing may be appended after a failed write.
    pub(super) closed: bool,
}

#[derive(Debug)]
pub(super) struct Class {
    pub(super) config: ClassConfig,
    pub(super) start: u64,
    pub(super) held: u64,
    /// Earlier numbers were given to the session and may be in flight.
    pub(super) read: u64,
    pub(super) durable: u64,
    /// Numbers from here on are given up and this is not saved: a power cut may assign them again, so
    /// they are not announced before. `u64::MAX` when there are none.
    pub(super) unsaved: u64,
    pub(super) next: u64,
    pub(super) delivered: u64,
    pub(super) lost: [u64; 4],
    /// Ascending, not adjacent, all ending after `held`.
    pub(super) gaps: Vec<Gap>,
    /// Ascending; the last one is written to.
    pub(super) segments: VecDeque<Segment>,
}

impl Class {
    pub(super) const fn new(config: ClassConfig) -> Self {
        Self {
            config,
            start: 1,
            held: 1,
            read: 1,
            durable: 1,
            unsaved: u64::MAX,
            next: 1,
            delivered: 0,
            lost: [0; 4],
            gaps: Vec::new(),
            segments: VecDeque::new(),
        }
    }

    /// Numbers below this one are durable, so the session may announce them.
    pub(super) fn end(&self) -> u64 {
        self.durable.min(self.unsaved)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES_MAX.min(self.config.quota_bytes / SEGMENTS_OF_A_QUOTA_MIN)
    }

    /// A record was added to the last segment.
    pub(super) fn grow(&mut self, unix_ms: u64, bytes: u64) {
        if let Some(last) = self.segments.back_mut() {
            last.end = self.next;
            last.bytes += bytes;
            last.newest_ms = last.newest_ms.max(unix_ms);
        }
    }

    /// A time before the agent's release comes from a wrong clock, and does not determine an age.
    pub(super) fn expired(&self, unix_ms: u64, now_ms: u64) -> bool {
        let ttl = self
            .config
            .ttl_ms
            .filter(|_| unix_ms >= RECORD_EXPIRES_FROM_MS);
        ttl.is_some_and(|ttl| unix_ms.saturating_add(ttl) < now_ms)
    }

    pub(super) fn gap_at(&self, at: u64) -> Option<Gap> {
        let covers = |gap: &&Gap| (gap.first..gap.end()).contains(&at);
        self.gaps.iter().find(covers).copied()
    }

    /// Marks the held numbers of `from..to` as lost; numbers already lost keep their reason.
    pub(super) fn lose(&mut self, from: u64, to: u64, reason: usize) {
        let mut at = from.max(self.held);
        while at < to {
            if let Some(gap) = self.gap_at(at) {
                at = gap.end();
                continue;
            }
            let place = self.gaps.partition_point(|gap| gap.first < at);
            let end = self.gaps.get(place).map_or(to, |gap| gap.first.min(to));
            let mut counts = [0; 4];
            for (count, lost) in counts.iter_mut().zip(&mut self.lost).skip(reason).take(1) {
                *count = end - at;
                *lost += end - at;
            }
            self.gaps.insert(place, Gap { first: at, counts });
            at = end;
        }
        self.merge();
        if self.gaps.len() > GAPS_MAX {
            self.give_up(reason);
        }
    }

    /// Merges adjacent ranges.
    pub(super) fn merge(&mut self) {
        let mut merged: Vec<Gap> = Vec::with_capacity(self.gaps.len());
        for gap in &self.gaps {
            match merged.last_mut() {
                Some(last) if last.end() == gap.first => {
                    for (count, more) in last.counts.iter_mut().zip(gap.counts) {
                        *count += more;
                    }
                }
                _ => merged.push(*gap),
            }
        }
        self.gaps = merged;
    }

    /// There are too many ranges: the held numbers between the two nearest become lost too.
    pub(super) fn give_up(&mut self, reason: usize) {
        let pairs = self.gaps.iter().zip(self.gaps.iter().skip(1));
        let nearest = pairs
            .map(|(one, other)| (one.end(), other.first))
            .min_by_key(|(end, first)| first - end);
        if let Some((end, first)) = nearest {
            self.lose(end, first, reason);
        }
    }

    /// Whether no record of the oldest segment is still being written.
    pub(super) fn may_drop(&self) -> bool {
        let oldest = self.segments.front();
        oldest.is_some_and(|segment| segment.end <= self.durable)
    }

    pub(super) fn drop_oldest(&mut self, reason: usize, out: &mut VecDeque<Output>) {
        if let Some(oldest) = self.segments.pop_front() {
            self.lose(oldest.first, oldest.end, reason);
            self.delete(oldest.first, out);
        }
    }

    /// Deletes segments that were delivered or lost completely; the last one stays, for new records.
    pub(super) fn delete_delivered(&mut self, out: &mut VecDeque<Output>) {
        while self.segments.len() > 1 {
            let gone = |segment: &Segment| {
                let gap = self.gap_at(segment.first.max(self.held));
                segment.end <= self.held || gap.is_some_and(|gap| gap.end() >= segment.end)
            };
            let Some(oldest) = self.segments.front().filter(|segment| gone(segment)) else {
                return;
            };
            let first = oldest.first;
            self.segments.pop_front();
            self.delete(first, out);
        }
    }

    pub(super) fn delete(&self, segment: u64, out: &mut VecDeque<Output>) {
        if !out.contains(&Output::Save) {
            out.push_front(Output::Save);
        }
        out.push_back(Output::Delete(self.config.number, segment));
    }
}
