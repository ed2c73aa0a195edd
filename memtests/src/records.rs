//! A workload that writes records through the agent's socket, and an audit of the files
//! that the cloud has written of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{Gate, POLL, STATE_TIMEOUT};

/// Requests that the agent answers together: it accepts no more of one connection at once.
pub const PIPELINE_MAX: usize = 16;

/// The agent's answer to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of HTTP: 201 is durable, 202 will be soon, 429 is refused.
    pub status: u16,
    /// Number of the record in its class, if it was accepted.
    pub sequence: Option<u64>,
}

/// One connection of a workload.
pub struct Writer {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Writer {
    /// Connects, as soon as the agent listens.
    ///
    /// # Errors
    /// It does not within [`STATE_TIMEOUT`].
    pub fn connect(gate: &Gate) -> Result<Self> {
        let path = gate.dir().join("run/api/edge.sock");
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > STATE_TIMEOUT => return Err(error.into()),
                Err(_) => std::thread::sleep(POLL),
            }
        };
        stream.set_read_timeout(Some(STATE_TIMEOUT))?;
        let answers = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, answers })
    }

    /// Writes records, each with its class, at most [`PIPELINE_MAX`] before it reads their answers.
    ///
    /// # Errors
    /// The agent has ended, or its answer is invalid.
    pub fn write(&mut self, records: &[(&str, String)]) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(records.len());
        for together in records.chunks(PIPELINE_MAX) {
            let mut text = String::new();
            for (class, body) in together {
                let length = body.len();
                write!(
                    text,
                    "POST /v1/records/{class} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}"
                )?;
            }
            self.stream.write_all(text.as_bytes())?;
            for _ in together {
                answers.push(self.answer()?);
            }
        }
        Ok(answers)
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let status = line.split(' ').nth(1).context("no answer")?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            self.answers.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse()?;
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.answers.read_exact(&mut body)?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let sequence = body["sequence"].as_u64();
        Ok(Answer { status, sequence })
    }
}

/// Writes `records` texts of `bytes` of a class over so many connections, [`PIPELINE_MAX`] at a time;
/// returns how long that took.
///
/// # Errors
/// One is not accepted.
pub fn fill(
    gate: &Gate,
    class: &str,
    (records, bytes): (usize, usize),
    connections: usize,
) -> Result<Duration> {
    let text = "r".repeat(bytes);
    let together = vec![(class, text); PIPELINE_MAX];
    let mut writers = Vec::new();
    for _ in 0..connections {
        writers.push(Writer::connect(gate)?);
    }
    let start = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let together = &together;
        let write = |mut writer: Writer| {
            for _ in 0..records / PIPELINE_MAX / connections {
                let answers = writer.write(together)?;
                let refused = answers.iter().find(|answer| answer.sequence.is_none());
                ensure!(refused.is_none(), "{refused:?}");
            }
            Ok(())
        };
        let writers = writers.into_iter();
        let threads: Vec<_> = writers
            .map(|writer| scope.spawn(move || write(writer)))
            .collect();
        for thread in threads {
            let done = thread.join();
            done.unwrap_or_else(|_| bail!("a writer died"))?;
        }
        Ok(())
    })?;
    Ok(start.elapsed())
}

/// The agent's counters of a class, from `edge-min status`.
///
/// # Errors
/// The agent does not answer, or has no such class.
pub fn account(gate: &Gate, class: &str) -> Result<Value> {
    let status = super::measure::get(&gate.dir().join("run/edge-min.sock"), "/v1/status")?;
    let classes = status["outbox"]["classes"].as_array();
    let mut rows = classes.context("no outbox")?.iter();
    let row = rows.find(|row| row["class"] == class);
    row.cloned().with_context(|| format!("no class {class}"))
}

/// The cloud's ledger of a class.
///
/// # Errors
/// The cloud does not answer, or knows no such stream.
pub fn ledger(gate: &Gate, class: &str) -> Result<Value> {
    let view = gate.cloud_json("/v1/records")?;
    let rows = view["streams"].as_array().context("no streams")?;
    let row = rows.iter().find(|row| row["class"] == class);
    row.cloned().with_context(|| format!("no stream {class}"))
}

/// A line of the cloud's files that is not a mark.
#[derive(Debug, Deserialize)]
struct Line {
    incarnation: String,
    seq: u64,
    count: Option<u64>,
    lost: Option<String>,
    text: Option<String>,
}

/// Content of the files of the one outbox of a class.
#[derive(Debug, Default)]
pub struct Audit {
    /// Text of each record that was delivered, by its number.
    pub delivered: BTreeMap<u64, String>,
    /// Lost ranges: first number, count and reason.
    pub lost: Vec<(u64, u64, String)>,
    /// The next number.
    pub next: u64,
}

impl Audit {
    /// Reads the files of a class in the cloud's folder `data`, without other information: each number from
    /// 1 on is there exactly once, as a record or as a part of a loss.
    ///
    /// # Errors
    /// A number is missing or is there twice, there is more than one outbox, or a file cannot be read.
    pub fn of(data: &Path, class: &str) -> Result<Self> {
        let mut lines = Vec::new();
        let mut folders = vec![data.join("records")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.ends_with(format!("{class}.jsonl")) {
                    read(&path, &mut lines)?;
                }
            }
        }
        lines.sort_by_key(|line| line.seq);
        let mut audit = Self {
            next: 1,
            ..Self::default()
        };
        let outbox = lines.first().map(|line| line.incarnation.clone());
        for line in lines {
            ensure!(Some(&line.incarnation) == outbox.as_ref(), "two outboxes");
            let (seq, next) = (line.seq, audit.next);
            ensure!(seq == next, "{seq} comes where {next} should");
            audit.next += line.count.unwrap_or(1);
            match (line.lost, line.count, line.text) {
                (None, None, Some(text)) => drop(audit.delivered.insert(seq, text)),
                (Some(reason), Some(count), None) => audit.lost.push((seq, count, reason)),
                other => bail!("{seq}: {other:?}"),
            }
        }
        Ok(audit)
    }

    /// Numbers that were lost for a reason.
    #[must_use]
    pub fn lost_for(&self, reason: &str) -> u64 {
        let losses = self.lost.iter();
        let losses = losses.filter(|(_, _, why)| why == reason);
        losses.map(|(_, count, _)| count).sum()
    }
}

/// The lines of a file before its last mark; later ones do not count yet.
fn read(path: &Path, into: &mut Vec<Line>) -> Result<()> {
    let mut waiting = Vec::new();
    for line in BufReader::new(fs::File::open(path)?).lines() {
        let line = line?;
        if line.starts_with("{\"mark\"") {
            into.append(&mut waiting);
        } else {
            waiting.push(serde_json::from_str(&line).with_context(|| line)?);
        }
    }
    Ok(())
}
