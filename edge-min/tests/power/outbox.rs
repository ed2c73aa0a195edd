//! The outbox as a workload: records are money. Its own thread writes; a record is told as stored
//! when the thread has answered so.

use std::path::Path;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use edge_core::outbox::ClassConfig;
use edge_min::outbox::{self, Answer, Class, Done, Job, Settings, Shared};
use edge_proto::frame::{Entry, Incarnation};
use edge_proto::limits::{CLASS_TOLL, RECORDS_BYTES_MAX};

use super::{number, say};

/// Enough for a second segment.
const RECORDS: u64 = 44;
const QUOTA_BYTES: u64 = 1 << 20;
/// The cloud acknowledges these while the later ones come.
const ACKED_AT: u64 = 20;
const ACKED: u64 = 11;
/// Where its thread reads what is there.
const PATIENCE: Duration = Duration::from_secs(20);

fn record(number: u64) -> Vec<u8> {
    let length = 3_000 + number * 37 % 900;
    (0..length)
        .map(|at| (at * 11 + number).to_le_bytes()[0])
        .collect()
}

struct Running {
    jobs: Sender<Job>,
    done: Receiver<Done>,
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
        outbox::spawn(
            dir.join("outbox"),
            settings,
            receiver,
            sender,
            Shared::default(),
        )
        .unwrap();
        Self { jobs, done }
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

    /// What can be read, and whose it is; it is told at the start when there is something.
    fn ready(&self) -> Option<(Incarnation, u64, u64)> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
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
    for wanted in 1..=RECORDS {
        let Answer::Stored {
            incarnation,
            sequence,
        } = running.append(record(wanted))
        else {
            panic!("record {wanted} is not taken")
        };
        assert_eq!(sequence, wanted);
        say(&format!("incarnation {}", u64::from_le_bytes(incarnation)));
        say(&format!("record {sequence}"));
        if wanted == ACKED_AT {
            say(&format!("acked {ACKED}"));
            let next = ACKED;
            let class = CLASS_TOLL;
            let job = Job::Acked {
                incarnation,
                class,
                next,
            };
            running.jobs.send_blocking(job).unwrap();
        }
    }
    say("end");
}

pub(super) fn check(dir: &Path, said: &[&str]) -> Result<(), String> {
    let stored = number(said, "record ");
    let acked = number(said, "acked ").max(1);
    let running = Running::start(dir);
    let mut next = 1;
    if stored > 0 {
        let (incarnation, held, end) = running.ready().ok_or("nothing can be read")?;
        if u64::from_le_bytes(incarnation) != number(said, "incarnation ") {
            return Err("the outbox is another one".to_owned());
        }
        // One that was on its way may be there, unacknowledged.
        if held > acked || end <= stored || end > stored + 2 {
            return Err(format!(
                "{held}..{end}, and {acked}..={stored} were to be there"
            ));
        }
        let mut at = held;
        while at < end {
            let entries = running.read(incarnation, at);
            if entries.is_empty() {
                return Err(format!("nothing at {at} of {held}..{end}"));
            }
            for entry in entries {
                match &entry {
                    Entry::Record { bytes, .. } if *bytes == record(at) => {}
                    Entry::Record { .. } => return Err(format!("record {at} is another one")),
                    Entry::Gap { count, .. } => return Err(format!("a gap of {count} at {at}")),
                }
                at += entry.count();
            }
        }
        next = end;
    }
    match running.append(record(next)) {
        Answer::Stored { sequence, .. } if sequence == next || stored == 0 => Ok(()),
        other => Err(format!("does not go on with {next}: {other:?}")),
    }
}
