//! The outbox as a workload: records must not be lost. Its own thread writes; a record counts as acknowledged
//! when the thread has answered so.

use std::path::Path;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use edge_core::outbox::{ClassConfig, Counters};
use edge_min::storage::outbox::{self, Answer, Class, Done, Job, Settings, Shared};
use edge_min::worker::Watch;
use edge_proto::frame::{Entry, GapReason, Incarnation};
use edge_proto::limits::{CLASS_TOLL, RECORDS_BYTES_MAX};

use super::{number, say};

/// Enough for three segments.
const RECORDS: u64 = 44;
const QUOTA_BYTES: u64 = 1 << 19;
/// After so many records the cloud has acknowledged those before so many; the second time that
/// frees a segment.
const ACKED: [(u64, u64); 2] = [(20, 11), (42, 36)];
/// Timeout for any state of its thread, which waits for seconds after a failure, also on a busy
/// host.
const STATE_TIMEOUT: Duration = Duration::from_secs(300);

fn record(number: u64) -> Vec<u8> {
    let length = 3_000 + number * 37 % 900;
    (0..length)
        .map(|at| (at * 11 + number).to_le_bytes()[0])
        .collect()
}

struct Running {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    shared: Shared,
}

impl Running {
    fn start(dir: &Path) -> Self {
        let (jobs, receiver) = async_channel::bounded(64);
        let (sender, done) = async_channel::unbounded();
        let toll = Class {
            name: "toll".to_owned(),
            config: ClassConfig {
                number: CLASS_TOLL,
                quota_bytes: QUOTA_BYTES,
                ttl_ms: None,
            },
            must: true,
        };
        let settings = Settings {
            quota_bytes: QUOTA_BYTES,
            classes: vec![toll],
        };
        let shared = Shared::default();
        let dir = dir.join("outbox");
        let watch = Watch::new(|| {}).thread("outbox");
        outbox::spawn(dir, settings, receiver, sender, shared.clone(), watch).unwrap();
        Self { jobs, done, shared }
    }

    fn append(&self, bytes: Vec<u8>) -> Answer {
        let (reply, answer) = async_channel::bounded(1);
        let job = Job::Append {
            class: CLASS_TOLL,
            must: true,
            key: Vec::new(),
            unix_ms: outbox::unix_ms(),
            bytes,
            reply,
        };
        self.jobs.send_blocking(job).unwrap();
        answer.recv_blocking().unwrap()
    }

    /// Readable numbers and their incarnation; announced at the start when there are any.
    fn ready(&self) -> Option<(Incarnation, u64, u64)> {
        let start = Instant::now();
        while start.elapsed() < STATE_TIMEOUT {
            match self.done.try_recv() {
                Ok(Done::Ready {
                    incarnation,
                    held,
                    end,
                    ..
                }) => return Some((incarnation, held, end)),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }

    fn read(&self, incarnation: Incarnation, from: u64) -> Vec<Entry> {
        let job = Job::Read {
            incarnation,
            class: CLASS_TOLL,
            from,
            bytes_max: RECORDS_BYTES_MAX,
        };
        self.jobs.send_blocking(job).unwrap();
        loop {
            if let Ok(Done::Read { entries, .. }) = self.done.recv_blocking() {
                return entries;
            }
        }
    }
}

pub(super) fn run(dir: &Path) {
    let running = Running::start(dir);
    let mut numbers = Vec::new();
    let mut acked = 1;
    for wanted in 1..=RECORDS {
        let (incarnation, number) = insist(&running, wanted);
        say(&format!("incarnation {}", u64::from_le_bytes(incarnation)));
        say(&format!("record {number}"));
        numbers.push(number);
        for (at, before) in ACKED {
            if wanted == at {
                acked = numbers[usize::try_from(before).unwrap() - 1];
                say(&format!("acked {acked}"));
                let (class, next) = (CLASS_TOLL, acked);
                let job = Job::Acked {
                    incarnation,
                    class,
                    next,
                };
                running.jobs.send_blocking(job).unwrap();
            }
        }
    }
    let segments = settle(&running, dir, acked);
    assert_eq!(segments, Ok(()), "at the end");
    let books = outbox::report(&running.shared).classes[0].1;
    let last = numbers[numbers.len() - 1];
    let delivered = numbers.iter().filter(|number| **number < acked).count();
    // Each is a number that was used up by a failure, or a record.
    let wanted = Counters {
        appended: last,
        delivered: delivered as u64,
        held: RECORDS - delivered as u64,
        lost: [0, 0, 0, last - RECORDS],
        bytes: books.bytes,
    };
    assert_eq!(books, wanted);
    say("end");
}

/// Opens the outbox that [`run`] left, and prints what can be read.
pub(super) fn reopen(dir: &Path) {
    let running = Running::start(dir);
    let (incarnation, held, end) = running.ready().unwrap();
    let incarnation = u64::from_le_bytes(incarnation);
    say(&format!("incarnation {incarnation} {held}..{end}"));
    say("end");
}

/// Writes a record as a workload does: repeats until it is stored.
fn insist(running: &Running, wanted: u64) -> (Incarnation, u64) {
    let start = Instant::now();
    let mut told = "";
    loop {
        match running.append(record(wanted)) {
            Answer::Stored {
                incarnation,
                sequence,
            } => return (incarnation, sequence),
            Answer::Medium(reason) => {
                if told != reason {
                    say(&format!("refused {reason}"));
                    told = reason;
                }
            }
            Answer::Full => panic!("the quota is full"),
        }
        assert!(start.elapsed() < STATE_TIMEOUT, "{told}, for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until writes succeed and only segments with unacknowledged records exist.
fn settle(running: &Running, dir: &Path, acked: u64) -> Result<(), String> {
    let start = Instant::now();
    let mut trouble = None;
    loop {
        while let Ok(done) = running.done.try_recv() {
            if let Done::Unwritable(reason) = done {
                trouble = reason;
            }
        }
        let firsts = segments(dir);
        // Each but the last ends where the next begins.
        let done = !firsts.is_empty() && firsts.iter().skip(1).all(|first| *first > acked);
        if done && trouble.is_none() {
            return Ok(());
        }
        if start.elapsed() > STATE_TIMEOUT {
            return Err(format!("trouble {trouble:?}, segments {firsts:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first numbers of the segments; none when the folder cannot be read, which fails in this
/// thread too.
fn segments(dir: &Path) -> Vec<u64> {
    let files = std::fs::read_dir(dir.join("outbox"));
    let mut firsts: Vec<u64> = files
        .into_iter()
        .flat_map(Iterator::flatten)
        .filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let first = name.strip_prefix("0-")?.strip_suffix(".seg")?;
            u64::from_str_radix(first, 16).ok()
        })
        .collect();
    firsts.sort_unstable();
    firsts
}

pub(super) fn check(dir: &Path, printed: &[&str]) -> Result<(), String> {
    let stored: Vec<u64> = printed
        .iter()
        .filter_map(|line| line.strip_prefix("record ")?.parse().ok())
        .collect();
    let last = stored.last().copied().unwrap_or(0);
    let acked = number(printed, "acked ").max(1);
    let refused = printed.iter().any(|line| line.starts_with("refused "));
    // One that was in flight may be stored, unacknowledged.
    let under_way = u64::from(printed.last() != Some(&"end")) * 2;
    let running = Running::start(dir);
    let mut next = 1;
    if last > 0 {
        let (incarnation, held, end) = running.ready().ok_or("nothing can be read")?;
        if u64::from_le_bytes(incarnation) != number(printed, "incarnation ") {
            return Err("the outbox is another one".to_owned());
        }
        if held > acked || end <= last || end > last + 1 + under_way {
            return Err(format!(
                "{held}..{end}, and {acked}..={last} were to be there"
            ));
        }
        let mut at = held;
        while at < end {
            let entries = running.read(incarnation, at);
            if entries.is_empty() {
                return Err(format!("nothing at {at} of {held}..{end}"));
            }
            for entry in entries {
                let which = stored.iter().position(|number| *number == at);
                let which = which.or_else(|| (at > last).then_some(stored.len()));
                match (&entry, which) {
                    (Entry::Record { bytes, .. }, Some(which))
                        if *bytes == record(which as u64 + 1) => {}
                    (Entry::Record { .. }, _) => {
                        return Err(format!("at {at} is what was not stored as {at}"));
                    }
                    (Entry::Gap { count, reason }, _) => {
                        let gap = at..at + count;
                        let told = *reason == GapReason::Damaged && refused;
                        if !told || stored.iter().any(|number| gap.contains(number)) {
                            return Err(format!("a gap {gap:?}"));
                        }
                    }
                }
                at += entry.count();
            }
        }
        next = end;
    }
    match running.append(record(next)) {
        Answer::Stored { sequence, .. } if sequence == next || last == 0 => {}
        other => return Err(format!("does not go on with {next}: {other:?}")),
    }
    let books = outbox::report(&running.shared).classes[0].1;
    let lost: u64 = books.lost.iter().sum();
    if books.appended != books.delivered + books.held + lost || (lost > 0 && !refused) {
        return Err(format!("the books are wrong: {books:?}"));
    }
    Ok(())
}
