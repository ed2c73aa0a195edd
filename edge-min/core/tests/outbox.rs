//! The outbox's policy with a medium in memory that loses power at any moment.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test; a wrong index fails it"
)]

use std::collections::{BTreeMap, BTreeSet};

use edge_core::limits::{GAPS_MAX, SEGMENT_BYTES_MAX};
use edge_core::outbox::{ClassConfig, Next, Outbox, Output, Refused, Saved};
use edge_proto::frame::GapReason;
use proptest::prelude::*;

const TOLL: u8 = 0;
const TELEMETRY: u8 = 2;
/// 2026-11-26.
const NOW: u64 = 1_795_651_200_000;

fn class(number: u8, quota_bytes: u64) -> ClassConfig {
    ClassConfig {
        number,
        quota_bytes,
        ttl_ms: None,
    }
}

#[derive(Clone, Debug)]
struct Record {
    number: u64,
    key: Vec<u8>,
    bytes: u64,
    /// First unacknowledged number when it was written.
    acked: u64,
}

/// A shell whose medium is in memory.
struct Board {
    config: (u64, Vec<ClassConfig>),
    outbox: Outbox,
    files: BTreeMap<(u8, u64), Vec<Record>>,
    /// Written and not yet synced.
    pending: Vec<(u8, u64, Record)>,
    saved: Vec<Saved>,
    /// Durable, and neither acknowledged nor reported as lost.
    owed: BTreeSet<(u8, u64)>,
    /// Highest durable number.
    given: BTreeMap<u8, u64>,
    /// The session has announced all numbers below this one.
    announced: BTreeMap<u8, u64>,
    /// Set while nothing can be saved or deleted; the outputs wait.
    broken: bool,
    waiting: Vec<Output>,
    /// A power cut restored segments that were deleted: the quota may be exceeded.
    over: bool,
}

impl Board {
    fn new(quota: u64, classes: Vec<ClassConfig>) -> Self {
        Self {
            outbox: Outbox::new(quota, &classes),
            config: (quota, classes),
            files: BTreeMap::new(),
            pending: Vec::new(),
            saved: Vec::new(),
            owed: BTreeSet::new(),
            given: BTreeMap::new(),
            announced: BTreeMap::new(),
            broken: false,
            waiting: Vec::new(),
            over: false,
        }
    }

    fn append(&mut self, number: u8, key: &[u8], bytes: u64) -> Result<u64, Refused> {
        let place = self.outbox.append(NOW, number, key, bytes)?;
        let durable = self.given.get(&number);
        assert!(
            durable.is_none_or(|durable| *durable < place.number),
            "a number twice"
        );
        let announced = self.announced.get(&number);
        assert!(
            announced.is_none_or(|announced| *announced <= place.number),
            "a number again that the cloud knows"
        );
        let record = Record {
            number: place.number,
            key: key.to_vec(),
            bytes,
            acked: self.outbox.ready(number).unwrap().0,
        };
        self.pending.push((number, place.segment, record));
        self.perform();
        Ok(place.number)
    }

    fn write_pending(&mut self, count: usize) {
        for (class, segment, record) in self.pending.drain(..).take(count) {
            self.files.entry((class, segment)).or_default().push(record);
        }
    }

    fn durable(&mut self) {
        let pending = self.pending.iter();
        self.owed
            .extend(pending.map(|(class, _, record)| (*class, record.number)));
        for (class, _, record) in &self.pending {
            self.given.insert(*class, record.number);
        }
        self.write_pending(usize::MAX);
        self.outbox.durable();
        self.perform();
    }

    fn failed(&mut self, written: usize) {
        self.write_pending(written);
        self.outbox.failed();
        self.perform();
    }

    fn acked(&mut self, class: u8, next: u64) {
        self.outbox.acked(class, next);
        let (held, _) = self.outbox.ready(class).unwrap();
        self.owed
            .retain(|(owed, number)| *owed != class || *number >= held);
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(output) = self.outbox.poll() {
            self.waiting.push(output);
        }
        if self.broken {
            return;
        }
        if self.waiting.contains(&Output::Save) {
            self.saved = self.outbox.saved();
            self.outbox.saved_durably();
        }
        for output in self.waiting.drain(..) {
            if let Output::Delete(class, segment) = output {
                self.files.remove(&(class, segment));
            }
        }
    }

    /// Cuts the power: of the unsynced records, some are on the medium.
    fn crash(&mut self, written: usize) {
        self.write_pending(written);
        self.over |= !self.waiting.is_empty();
        self.waiting.clear();
        self.outbox = Outbox::new(self.config.0, &self.config.1);
        for saved in &self.saved {
            assert!(self.outbox.restore(saved));
        }
        let mut dropped = Vec::new();
        for ((class, segment), records) in &self.files {
            let bytes = records.iter().map(|record| record.bytes).sum();
            if self.outbox.found(*class, *segment, bytes) {
                for record in records {
                    self.outbox.found_acked(*class, record.acked);
                    self.outbox
                        .found_record(*class, record.number, NOW, &record.key);
                }
            } else {
                dropped.push((*class, *segment));
            }
        }
        self.outbox.found_all(&self.saved);
        for segment in dropped {
            self.files.remove(&segment);
        }
        self.perform();
    }

    /// Reads a class as the session would; returns the content of each number: `None` is a record.
    fn read(&mut self, class: u8) -> BTreeMap<u64, Option<GapReason>> {
        let (mut at, end) = self.outbox.ready(class).unwrap();
        let announced = self.announced.entry(class).or_default();
        *announced = end.max(*announced);
        let mut read = BTreeMap::new();
        while at < end {
            match self.outbox.next(class, at) {
                Next::Record {
                    segment,
                    end: after,
                } => {
                    assert!((segment..after).contains(&at));
                    let records = &self.files[&(class, segment)];
                    assert!(
                        records.iter().any(|record| record.number == at),
                        "no such record"
                    );
                    read.insert(at, None);
                    at += 1;
                }
                Next::Gap(count, reason) => {
                    read.extend((at..at + count).map(|number| (number, Some(reason))));
                    at += count;
                }
                Next::End => panic!("nothing at {at} of {end}"),
            }
        }
        read
    }

    /// The counters are right, and every durable record that is gone is counted.
    fn check(&self) {
        let bytes: u64 = self
            .config
            .1
            .iter()
            .map(|one| self.outbox.counters(one.number).bytes)
            .sum();
        assert!(bytes <= self.config.0 || self.over, "over the quota");
        for config in self.config.1.clone() {
            let counters = self.outbox.counters(config.number);
            let lost: u64 = counters.lost.iter().sum();
            assert_eq!(counters.appended, counters.delivered + counters.held + lost);
            assert!(counters.bytes <= config.quota_bytes || self.over);
        }
        assert!(
            self.outbox
                .saved()
                .iter()
                .all(|saved| saved.gaps.len() <= GAPS_MAX)
        );
        let owed = self.owed.clone();
        for (class, number) in owed {
            let (held, _) = self.outbox.ready(class).unwrap();
            let appended = self.outbox.counters(class).appended;
            assert!(
                (held..=appended).contains(&number),
                "class {class} number {number} forgotten"
            );
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Append(u8, u8, u64),
    Durable,
    Failed(usize),
    Acked(u8, u64),
    Read(u8),
    Crash(usize),
    Damage(u8, u64),
    Broken(bool),
}

fn act() -> impl Strategy<Value = Act> {
    let class = prop_oneof![Just(TOLL), Just(TELEMETRY)];
    prop_oneof![
        12 => (class.clone(), 0..6_u8, 30..4000_u64).prop_map(|(c, k, b)| Act::Append(c, k, b)),
        6 => Just(Act::Durable),
        1 => (0..4_usize).prop_map(Act::Failed),
        2 => (class.clone(), 0..40_u64).prop_map(|(c, n)| Act::Acked(c, n)),
        2 => class.clone().prop_map(Act::Read),
        2 => (0..6_usize).prop_map(Act::Crash),
        1 => (class, 0..40_u64).prop_map(|(c, n)| Act::Damage(c, n)),
        2 => any::<bool>().prop_map(Act::Broken),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Goal: in any order of events, each number is delivered, held or lost for one reason, no number is
    /// assigned twice, no durable record disappears uncounted, no quota is exceeded.
    #[test]
    fn counters_are_right_whatever_happens(acts in prop::collection::vec(act(), 1..200)) {
        let classes = vec![class(TOLL, 48 << 10), class(TELEMETRY, 32 << 10)];
        let mut board = Board::new(64 << 10, classes);
        for act in acts {
            match act {
                Act::Append(class, key, bytes) => {
                    let key = if key == 0 { vec![] } else { vec![key] };
                    board.append(class, &key, bytes).ok();
                }
                Act::Durable => board.durable(),
                Act::Failed(written) => board.failed(written),
                Act::Acked(class, more) => {
                    let (held, _) = board.outbox.ready(class).unwrap();
                    board.acked(class, held + more);
                }
                Act::Read(class) => drop(board.read(class)),
                Act::Crash(written) => board.crash(written),
                Act::Damage(class, at) => {
                    let (held, end) = board.outbox.ready(class).unwrap();
                    let from = (held + at).min(end);
                    board.outbox.lose(class, from, from + 1, GapReason::Damaged);
                }
                Act::Broken(broken) => {
                    board.broken = broken;
                    board.perform();
                }
            }
            board.check();
        }
        // In the end everything can be announced to the cloud.
        board.broken = false;
        board.perform();
        board.durable();
        for number in [TOLL, TELEMETRY] {
            let held = board.outbox.counters(number).held;
            let read = board.read(number);
            prop_assert_eq!(read.values().filter(|one| one.is_none()).count() as u64, held);
            let (_, end) = board.outbox.ready(number).unwrap();
            board.acked(number, end);
            let counters = board.outbox.counters(number);
            prop_assert_eq!((counters.held, counters.appended), (0, end - 1));
        }
    }
}

/// Goal: 200 toll records a second for an hour offline on a quota of 64 MiB, with telemetry
/// beside them: telemetry is dropped first, then the oldest toll records; everything is accounted for.
#[test]
fn an_hour_of_toll_offline_drops_telemetry_first_and_then_the_oldest() {
    let quota = 64 << 20;
    let mut board = Board::new(quota, vec![class(TOLL, quota), class(TELEMETRY, quota / 4)]);
    let mut refused = 0;
    for second in 0..3600_u64 {
        for _ in 0..200 {
            board.append(TOLL, &[], 128).unwrap();
        }
        refused += u64::from(board.append(TELEMETRY, &[], 500).is_err());
        board.durable();
        if second == 1800 {
            let toll = board.outbox.counters(TOLL);
            assert_eq!(toll.lost, [0; 4], "half an hour fits");
        }
    }
    let toll = board.outbox.counters(TOLL);
    let telemetry = board.outbox.counters(TELEMETRY);
    assert_eq!(toll.appended, 720_000);
    // Telemetry was dropped and in the end refused; toll lost what did not fit, and at most one
    // segment more.
    assert!(refused > 0 && telemetry.appended + refused == 3600);
    assert!(telemetry.held <= 1 && telemetry.held + telemetry.lost[0] == telemetry.appended);
    assert!(toll.bytes + SEGMENT_BYTES_MAX >= quota);
    assert_eq!(toll.held, toll.bytes / 128);
    assert_eq!(toll.lost, [720_000 - toll.held, 0, 0, 0]);
    let read = board.read(TOLL);
    let lost = read
        .values()
        .take_while(|one| **one == Some(GapReason::Quota))
        .count() as u64;
    assert_eq!(lost, toll.lost[0], "the oldest are those that went");
    board.acked(TOLL, 720_001);
    assert_eq!(board.outbox.counters(TOLL).delivered, toll.held);
    assert_eq!(
        board
            .files
            .keys()
            .filter(|(class, _)| *class == TOLL)
            .count(),
        1
    );
}

#[test]
fn no_toll_record_goes_for_telemetry() {
    let mut board = Board::new(
        64 << 10,
        vec![class(TOLL, 64 << 10), class(TELEMETRY, 64 << 10)],
    );
    while board.outbox.counters(TOLL).bytes + 4000 <= 64 << 10 {
        board.append(TOLL, &[], 4000).unwrap();
        board.durable();
    }
    let before = board.outbox.counters(TOLL);
    assert_eq!(board.append(TELEMETRY, &[], 4000), Err(Refused::LimitFull));
    assert_eq!(board.outbox.counters(TOLL), before);
    assert_eq!(board.append(9, &[], 40), Err(Refused::LocalClass));
}

#[test]
fn a_newer_record_of_a_key_takes_the_place_of_an_unsent_one() {
    let mut board = Board::new(1 << 20, vec![class(TELEMETRY, 1 << 20)]);
    for key in [b"a", b"b", b"a"] {
        board.append(TELEMETRY, key, 100).unwrap();
    }
    assert_eq!(
        board.outbox.counters(TELEMETRY).held,
        3,
        "not before it is durable"
    );
    board.durable();
    let read = board.read(TELEMETRY);
    assert_eq!(read[&1], Some(GapReason::Superseded));
    assert_eq!((read[&2], read[&3]), (None, None));
    // Records that were given to the session may be in flight.
    board.append(TELEMETRY, b"a", 100).unwrap();
    board.durable();
    assert_eq!(board.read(TELEMETRY)[&3], None);
    // A power cut does not change that, although the records in flight are not known any more.
    board.crash(0);
    assert_eq!(board.read(TELEMETRY)[&1], Some(GapReason::Superseded));
    board.check();
}

#[test]
fn records_expire_with_their_segment_or_when_they_are_read() {
    let config = ClassConfig {
        ttl_ms: Some(60_000),
        ..class(TELEMETRY, 64 << 10)
    };
    let mut outbox = Outbox::new(64 << 10, &[config]);
    for _ in 0..3 {
        outbox.append(NOW, TELEMETRY, &[], 4000).unwrap();
    }
    outbox.durable();
    assert!(!outbox.is_expired(TELEMETRY, NOW, NOW + 60_000));
    assert!(outbox.is_expired(TELEMETRY, NOW, NOW + 60_001));
    // A wrong clock does not determine an age.
    assert!(!outbox.is_expired(TELEMETRY, 1000, NOW));
    outbox.append(NOW + 60_001, TELEMETRY, &[], 4000).unwrap();
    outbox.durable();
    let counters = outbox.counters(TELEMETRY);
    assert_eq!((counters.held, counters.lost), (1, [0, 3, 0, 0]));
    assert_eq!(outbox.next(TELEMETRY, 1), Next::Gap(3, GapReason::Expired));
}

/// Goal: more damage than there are ranges loses records, and counts each.
#[test]
fn damage_beyond_the_ranges_is_counted_too() {
    let mut board = Board::new(1 << 20, vec![class(TOLL, 1 << 20)]);
    for _ in 0..200 {
        board.append(TOLL, &[], 100).unwrap();
    }
    board.durable();
    for number in (1..200).step_by(2) {
        board
            .outbox
            .lose(TOLL, number, number + 1, GapReason::Damaged);
        board.check();
    }
    let counters = board.outbox.counters(TOLL);
    assert!(counters.lost[3] > 100 && counters.held > 0);
}

/// Goal: numbers of a damaged file are never assigned again. Method: a segment is missing, another is
/// unreadable from its middle on.
#[test]
fn files_that_are_gone_are_a_gap() {
    let mut board = Board::new(1 << 20, vec![class(TOLL, 64 << 10)]);
    for _ in 0..20 {
        board.append(TOLL, &[], 1000).unwrap();
        board.durable();
    }
    let segments: Vec<u64> = board.files.keys().map(|(_, segment)| *segment).collect();
    assert_eq!(segments, [1, 9, 17]);
    board.files.remove(&(TOLL, 1));
    board.files.get_mut(&(TOLL, 9)).unwrap().truncate(3);
    board.crash(0);
    let counters = board.outbox.counters(TOLL);
    assert_eq!((counters.held, counters.lost), (7, [0, 0, 0, 13]));
    assert_eq!(board.append(TOLL, &[], 10), Ok(21));
    board.check();
}
