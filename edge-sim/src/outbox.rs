//! The stream lane: the real outbox policy of a board over a model of its segment files, and a
//! sink behind the replicas with a ledger of what was acknowledged to whom.
//!
//! What is appended and not yet synced is on the medium up to some record after a power cut. A
//! segment that is to be deleted may outlive its deletion.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use edge_core::outbox::{ClassConfig, Next, Outbox, Output, Saved};
use edge_core::sync_scheduler::SyncScheduler;
use edge_proto::frame::{Entry, GapReason, Incarnation};
use edge_proto::limits::{CLASS_TELEMETRY, CLASS_TOLL, RECORD_ENTRIES_MAX, STREAMS_MAX};
use edge_proto::session::{NodeRecordsInput, RecordsOutput};

use crate::event::{Answer, Event};
use crate::rng::Rng;
use crate::world::World;

/// Classes that the simulated workloads write to.
const CLASSES: [u8; 2] = [CLASS_TOLL, CLASS_TELEMETRY];
/// Bytes of a record, which begins with its identity.
const RECORD_BYTES: usize = 60;
/// Bytes that it takes in a segment.
const FRAMED_BYTES: u64 = 80;

/// A record in a segment file.
#[derive(Clone, Debug)]
struct Kept {
    number: u64,
    unix_ms: u64,
    bytes: Vec<u8>,
}

impl Kept {
    fn id(&self) -> u64 {
        id_of(&self.bytes)
    }
}

fn id_of(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk::<8>()
        .map_or(0, |id| u64::from_be_bytes(*id))
}

/// The part of an outbox that is on the medium.
#[derive(Clone, Debug, Default)]
pub(crate) struct Medium {
    incarnation: Incarnation,
    saved: Vec<Saved>,
    segments: BTreeMap<(u8, u64), Vec<Kept>>,
}

/// The part that a power cut loses.
#[derive(Debug)]
pub(crate) struct Post {
    outbox: Outbox,
    /// When it syncs, and when it refuses records.
    scheduler: SyncScheduler,
    unsynced: Vec<(u8, u64, Kept)>,
    /// Records of durability *must* are among them.
    waiting: bool,
    /// A write is in progress.
    writing: bool,
    deletes: Vec<(u8, u64)>,
}

impl Post {
    /// Opens the outbox over the medium, as an agent does at its start.
    pub(crate) fn open(medium: &mut Medium, quota: u64, rng: &mut Rng) -> Self {
        if medium.incarnation == Incarnation::default() {
            medium.incarnation = rng.draw().to_be_bytes();
        }
        let class = |number| ClassConfig {
            number,
            quota_bytes: quota,
            ttl_ms: None,
        };
        let mut outbox = Outbox::new(quota * 2, &CLASSES.map(class));
        for saved in &medium.saved {
            outbox.restore(saved);
        }
        let mut stale = Vec::new();
        for ((class, first), records) in &medium.segments {
            let bytes = records.len() as u64 * FRAMED_BYTES;
            if outbox.found(*class, *first, bytes) {
                for kept in records {
                    outbox.found_record(*class, kept.number, kept.unix_ms, &[]);
                }
            } else {
                stale.push((*class, *first));
            }
        }
        for key in stale {
            medium.segments.remove(&key);
        }
        outbox.found_all(&medium.saved);
        let mut post = Self {
            outbox,
            scheduler: SyncScheduler::default(),
            unsynced: Vec::new(),
            waiting: false,
            writing: false,
            deletes: Vec::new(),
        };
        post.tidy(medium, rng);
        post
    }

    /// Input of the session for each class.
    pub(crate) fn ready(&self, medium: &Medium) -> Vec<NodeRecordsInput> {
        let ready = |class| {
            let (held, end) = self.outbox.ready(class)?;
            Some(NodeRecordsInput::Ready {
                class,
                incarnation: medium.incarnation,
                held,
                end,
            })
        };
        CLASSES.into_iter().filter_map(ready).collect()
    }

    fn append(&mut self, unix_ms: u64, class: u8, id: u64) -> bool {
        let Ok(place) = self.outbox.append(unix_ms, class, &[], FRAMED_BYTES) else {
            return false;
        };
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.resize(RECORD_BYTES, 7);
        let kept = Kept {
            number: place.number,
            unix_ms,
            bytes,
        };
        self.unsynced.push((class, place.segment, kept));
        self.waiting |= class == CLASS_TOLL;
        true
    }

    /// Performs the outputs of the outbox. Deleting a file may be delayed.
    fn tidy(&mut self, medium: &mut Medium, rng: &mut Rng) {
        for key in std::mem::take(&mut self.deletes) {
            medium.segments.remove(&key);
        }
        while let Some(output) = self.outbox.poll() {
            match output {
                Output::Save => {
                    medium.saved = self.outbox.saved();
                    self.outbox.saved_durably();
                }
                Output::Delete(class, first) if rng.below(2) == 0 => {
                    medium.segments.remove(&(class, first));
                }
                Output::Delete(class, first) => self.deletes.push((class, first)),
            }
        }
    }

    /// Everything appended is durable.
    fn sync(&mut self, medium: &mut Medium, rng: &mut Rng) -> Vec<(u8, u64, u64)> {
        self.scheduler.synced();
        self.waiting = false;
        let unsynced = std::mem::take(&mut self.unsynced);
        let synced = unsynced
            .iter()
            .map(|(class, _, kept)| (*class, kept.number, kept.id()));
        let synced = synced.collect();
        write(medium, unsynced);
        self.outbox.durable();
        self.tidy(medium, rng);
        synced
    }

    /// A write or a sync failed: a prefix of what was to be synced is stored.
    fn fail(&mut self, local: u64, medium: &mut Medium, rng: &mut Rng) {
        self.scheduler.records_failed(local);
        self.waiting = false;
        let mut unsynced = std::mem::take(&mut self.unsynced);
        unsynced.truncate(rng.index(unsynced.len() + 1));
        write(medium, unsynced);
        self.outbox.failed();
        self.tidy(medium, rng);
    }

    /// When written records are synced, by the board's monotonic clock.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.scheduler.deadline(false).filter(|_| !self.writing)
    }

    /// The power is cut, or the agent ends: a prefix of the unsynced records is stored.
    pub(crate) fn cut(mut self, medium: &mut Medium, rng: &mut Rng) {
        let left = rng.index(self.unsynced.len() + 1);
        self.unsynced.truncate(left);
        write(medium, self.unsynced);
    }

    fn read(&mut self, medium: &Medium, class: u8, from: u64, bytes_max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let (mut at, mut room) = (from, bytes_max);
        while entries.len() < RECORD_ENTRIES_MAX {
            let entry = match self.outbox.next(class, at) {
                Next::End => break,
                Next::Gap(count, reason) => Entry::Gap { count, reason },
                Next::Record { segment, .. } => {
                    let records = medium.segments.get(&(class, segment));
                    let mut records = records.into_iter().flatten();
                    let Some(kept) = records.find(|kept| kept.number == at) else {
                        self.outbox.lose(class, at, at + 1, GapReason::Damaged);
                        continue;
                    };
                    Entry::Record {
                        unix_ms: kept.unix_ms,
                        bytes: kept.bytes.clone(),
                    }
                }
            };
            if entry.bytes_max() > room {
                break;
            }
            room -= entry.bytes_max();
            at += entry.count();
            entries.push(entry);
        }
        entries
    }
}

fn write(medium: &mut Medium, records: Vec<(u8, u64, Kept)>) {
    for (class, segment, kept) in records {
        medium
            .segments
            .entry((class, segment))
            .or_default()
            .push(kept);
    }
}

/// The sink's state of a node, and the records acknowledged to its workloads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// High-water mark of each stream, the oldest first; it commits with the records.
    streams: VecDeque<(Incarnation, u8, u64)>,
    /// Acknowledged to the workload and not yet at the sink: identity by incarnation, class and
    /// number.
    promised: BTreeMap<(Incarnation, u8, u64), u64>,
    delivered: BTreeSet<u64>,
    ids: u64,
}

impl Ledger {
    pub(crate) fn streams(&self) -> impl Iterator<Item = (Incarnation, u8, u64)> {
        let skip = self.streams.len().saturating_sub(STREAMS_MAX);
        self.streams.iter().copied().skip(skip)
    }

    /// The marks that a replica reads from the sink.
    pub(crate) fn marks(&self) -> Marks {
        let streams = self.streams.iter();
        streams
            .map(|(incarnation, class, next)| ((*incarnation, *class), *next))
            .collect()
    }

    fn next(&mut self, incarnation: Incarnation, class: u8) -> &mut u64 {
        let same =
            |(one, number, _): &(Incarnation, u8, u64)| (*one, *number) == (incarnation, class);
        let place = match self.streams.iter().position(same) {
            Some(place) => place,
            None => {
                self.streams.push_back((incarnation, class, 1));
                self.streams.len() - 1
            }
        };
        &mut self.streams[place].2
    }

    /// Acknowledged records that are not at the sink.
    pub(crate) fn missing(&self) -> usize {
        self.promised.len()
    }

    /// The medium is lost, and with it acknowledged records: the sink is informed of a new outbox.
    pub(crate) fn medium_lost(&mut self) {
        self.promised.clear();
    }
}

/// High-water mark of each stream: the sink has all records before it.
pub(crate) type Marks = BTreeMap<(Incarnation, u8), u64>;

/// Records that are being written into the sink.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) ticket: u32,
    pub(crate) incarnation: Incarnation,
    pub(crate) class: u8,
    pub(crate) first: u64,
    /// The lowest number that the node accounts for.
    pub(crate) held: u64,
    pub(crate) entries: Vec<Entry>,
}

impl From<RecordsOutput> for Batch {
    fn from(output: RecordsOutput) -> Self {
        Self {
            ticket: output.ticket,
            incarnation: output.incarnation,
            class: output.class,
            first: output.first,
            held: output.held,
            entries: output.entries,
        }
    }
}

impl World {
    /// A workload writes a record.
    pub(crate) fn append_record(&mut self, board: usize) {
        let unix_s = self.unix_s();
        let one = &mut self.boards[board];
        let local = one.local(self.now);
        let unix_ms = unix_s.saturating_add_signed(one.ahead_s) * 1000;
        let node = one.node as usize;
        let class = CLASSES[one.rng.index(CLASSES.len())];
        let Some(post) = one
            .machine
            .as_mut()
            .and_then(|machine| machine.post.as_mut())
        else {
            return;
        };
        if post.scheduler.refuses(local) {
            return;
        }
        let ledger = &mut self.stored_nodes[node].ledger;
        ledger.ids += 1;
        if !post.append(unix_ms, class, ledger.ids) {
            return;
        }
        post.tidy(&mut one.store.outbox, &mut one.rng);
        self.stats.records += 1;
        self.begin_write(board);
    }

    fn begin_write(&mut self, board: usize) {
        let machine = self.boards[board].machine.as_mut();
        let post = machine.and_then(|machine| machine.post.as_mut());
        if let Some(post) = post.filter(|post| !post.writing) {
            post.writing = true;
            self.answer(board, 20, Answer::Written);
        }
    }

    /// The time to sync written records may have come.
    pub(crate) fn run_outbox(&mut self, board: usize) {
        let one = &self.boards[board];
        let local = one.local(self.now);
        let post = one.machine.as_ref().and_then(|one| one.post.as_ref());
        if post.is_some_and(|post| post.scheduler.must_sync(local, false)) {
            self.begin_write(board);
        }
    }

    /// The appended records are written, unless that failed. They are acknowledged to the workloads
    /// when they are synced.
    pub(crate) fn records_written(&mut self, board: usize) {
        let fails = self.chance(board, self.scenario.faults.write_failure);
        let local = self.boards[board].local(self.now);
        let one = &mut self.boards[board];
        let node = one.node as usize;
        let Some(machine) = &mut one.machine else {
            return;
        };
        let Some(post) = &mut machine.post else {
            return;
        };
        post.writing = false;
        if fails {
            self.stats.syncs_failed += 1;
            post.fail(local, &mut one.store.outbox, &mut one.rng);
        } else if !post.scheduler.must_sync(local, post.waiting) {
            post.scheduler.written(local);
            return;
        } else {
            let incarnation = one.store.outbox.incarnation;
            for (class, number, id) in post.sync(&mut one.store.outbox, &mut one.rng) {
                self.stored_nodes[node]
                    .ledger
                    .promised
                    .insert((incarnation, class, number), id);
            }
        }
        for input in post.ready(&one.store.outbox) {
            machine.session.handle(local, input);
        }
    }

    pub(crate) fn read_records(&mut self, board: usize, (class, first): (u8, u64), bytes: usize) {
        let local = self.boards[board].local(self.now);
        let one = &mut self.boards[board];
        if let Some(machine) = &mut one.machine
            && let Some(post) = &mut machine.post
        {
            let entries = post.read(&one.store.outbox, class, first, bytes);
            let input = NodeRecordsInput::Read {
                class,
                first,
                entries,
            };
            machine.session.handle(local, input);
        }
    }

    /// The cloud has acknowledged them: only records that are durable in the sink may be deleted.
    pub(crate) fn records_acked(&mut self, board: usize, class: u8, next: u64) {
        let one = &mut self.boards[board];
        let node = one.node;
        let at_sink = *self.stored_nodes[node as usize]
            .ledger
            .next(one.store.outbox.incarnation, class);
        if let Some(machine) = &mut one.machine
            && let Some(post) = &mut machine.post
        {
            post.outbox.acked(class, next);
            post.tidy(&mut one.store.outbox, &mut one.rng);
        }
        if next > at_sink && !one.compromised {
            self.fail(
                node,
                format!("records up to {next} acknowledged, the sink has {at_sink}"),
            );
        }
    }

    /// The sink has numbers that this outbox has never assigned: another board has a copy of it. A new
    /// incarnation is created, and its held records are lost.
    pub(crate) fn records_ahead(&mut self, board: usize) {
        let quota = self.scenario.outbox_bytes;
        let one = &mut self.boards[board];
        let local = one.local(self.now);
        self.stored_nodes[one.node as usize].ledger.medium_lost();
        one.store.outbox = Medium::default();
        if let Some(machine) = &mut one.machine
            && machine.post.is_some()
        {
            let post = Post::open(&mut one.store.outbox, quota, &mut one.rng);
            for input in post.ready(&one.store.outbox) {
                machine.session.handle(local, input);
            }
            machine.post = Some(post);
        }
    }

    /// The session passes records to the sink, which stores them in order.
    pub(crate) fn sink_records(&mut self, replica: usize, node: u32, batch: Batch) {
        let store_ms = self.scenario.cloud.store_ms;
        let now = self.now;
        let Some((life, serial, at)) = self.sink_turn(replica, node, now + store_ms) else {
            return;
        };
        let replica = u8::try_from(replica).unwrap_or_default();
        self.queue.push(
            at,
            Event::Sunk {
                replica,
                life,
                node,
                serial,
                batch: Box::new(batch),
            },
        );
    }

    /// Whether the sink accepts a batch: records and high-water mark commit together, and only on
    /// top of the marks that the replica knows. Earlier records are skipped, as in edge-cloud
    /// (`Ledger::plan`): a session whose first batch failed is not informed that the following one
    /// was stored, and passes it again.
    pub(crate) fn commit(&mut self, replica: usize, node: u32, batch: &Batch) -> bool {
        let Some(session) = &mut self.replicas[replica].sessions[node as usize] else {
            return false;
        };
        let stream = (batch.incarnation, batch.class);
        let known = session.marks.entry(stream).or_insert(1);
        let mark = *known;
        let honest = !self.boards[node as usize].compromised;
        let ledger = &mut self.stored_nodes[node as usize].ledger;
        if batch.first > mark.max(batch.held) {
            return false;
        }
        let mut wrong = (batch.held > mark).then(|| "forgotten records".to_owned());
        let mut number = batch.first;
        for entry in &batch.entries {
            let end = number + entry.count();
            match entry {
                Entry::Record { bytes, .. } if number < mark => {
                    if !ledger.delivered.contains(&id_of(bytes)) {
                        wrong = Some(format!("another record than delivered at {number}"));
                    }
                }
                Entry::Record { bytes, .. } => {
                    let id = id_of(bytes);
                    let promised =
                        ledger
                            .promised
                            .remove(&(batch.incarnation, batch.class, number));
                    if promised.is_some_and(|promised| promised != id) {
                        wrong = Some(format!("another record than promised at {number}"));
                    }
                    if !ledger.delivered.insert(id) {
                        wrong = Some(format!("record {id} came twice"));
                    }
                }
                Entry::Gap { .. } => {
                    let lost = ledger.promised.extract_if(
                        (batch.incarnation, batch.class, number.max(mark))
                            ..(batch.incarnation, batch.class, end.max(mark)),
                        |_, _| true,
                    );
                    let lost = lost.count() as u64;
                    self.stats.records_lost += lost;
                    if lost > 0 && self.scenario.outbox_bytes >= 1 << 20 {
                        wrong = Some(format!("{lost} acknowledged records lost from {number} on"));
                    }
                }
            }
            number = end;
        }
        let next = number.max(mark);
        *known = next;
        let at_sink = ledger.next(batch.incarnation, batch.class);
        *at_sink = next.max(*at_sink);
        self.stats.records_delivered += next - mark.max(batch.first);
        if let Some(wrong) = wrong.filter(|_| honest) {
            self.fail(node, wrong);
        }
        true
    }
}
