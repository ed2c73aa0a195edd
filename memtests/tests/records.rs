//! Records end to end: a workload's socket, the outbox, TLS, edge-cloud and its files.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use memtests::measure::{Board, memory};
use memtests::records::{Audit, PIPELINE_MAX, Writer, account, ledger};
use memtests::{Gate, STATE_TIMEOUT, Setup};
use serde_json::Value;

fn is_long() -> bool {
    std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty())
}

fn connect(gate: &Gate) -> UnixStream {
    let deadline = Instant::now() + STATE_TIMEOUT;
    loop {
        match UnixStream::connect(gate.dir().join("run/api/edge.sock")) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn request(gate: &Gate, text: &str) -> Option<(String, String)> {
    let mut stream = connect(gate);
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_owned(), body.to_owned()))
}

/// Writes a record; true once it is acknowledged.
fn post(gate: &Gate, class: &str, body: &str) -> bool {
    let length = body.len();
    let text = format!(
        "POST /v1/records/{class} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    request(gate, &text).is_some_and(|(status, _)| status.ends_with("Created"))
}

fn accounts(gate: &Gate) -> Value {
    let text = "GET /v1/records HTTP/1.1\r\nConnection: close\r\n\r\n";
    let body = request(gate, text).map(|(_, body)| body);
    serde_json::from_str(&body.unwrap_or_default()).unwrap_or_default()
}

/// How often each text is in the files of the cloud.
fn delivered(dir: &Path, class: &str) -> BTreeMap<String, u32> {
    let mut texts = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap().to_str() == Some(&format!("{class}.jsonl")) {
                for line in fs::read_to_string(path).unwrap().lines() {
                    let line: Value = serde_json::from_str(line).unwrap_or_default();
                    if let Some(text) = line["text"].as_str() {
                        *texts.entry(text.to_owned()).or_default() += 1;
                    }
                }
            }
        }
    }
    texts
}

/// Goal: every record that was acknowledged to a workload reaches the cloud, once, whatever is killed in
/// between, and the counters of both ends agree. Method: records while everything is up, without a
/// cloud, around kills of the agent and of the cloud.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn acknowledged_records_reach_the_cloud_once() {
    let mut gate = Gate::start("").unwrap();
    let mut written = Vec::new();
    let write = |gate: &Gate, round: &str, written: &mut Vec<String>| {
        for count in 0..50 {
            let body = format!("{round} {count}");
            assert!(post(gate, "toll", &body), "{body}");
            written.push(body);
        }
    };
    write(&gate, "up", &mut written);
    gate.kill_cloud().unwrap();
    write(&gate, "alone", &mut written);
    gate.kill_agent().unwrap();
    gate.start_agent().unwrap();
    write(&gate, "restarted", &mut written);
    gate.start_cloud().unwrap();
    write(&gate, "back", &mut written);
    gate.kill_agent().unwrap();
    gate.start_agent().unwrap();
    gate.kill_cloud().unwrap();
    gate.start_cloud().unwrap();
    write(&gate, "again", &mut written);
    gate.until("all are delivered", |gate| {
        let accounts = accounts(gate);
        let toll = &accounts["classes"][0];
        toll["class"] == "toll" && toll["held"] == 0 && toll["delivered"] == 250
    })
    .unwrap();
    let got = delivered(&gate.dir().join("cloud/records"), "toll");
    assert_eq!(got.len(), written.len());
    for body in written {
        assert_eq!(got.get(&body), Some(&1), "{body}");
    }
    let status = gate.status().unwrap();
    assert_eq!(status["outbox"]["classes"][0]["appended"], 250);
}

/// Bytes of a record of the burst, and of its item in a segment.
const RECORD_BYTES: usize = 100;
const FRAME_BYTES: u64 = 25 + RECORD_BYTES as u64;
/// As in the agent: a full quota drops one segment.
const SEGMENT_BYTES: u64 = 128 * 1024;
/// Every so many records one is telemetry.
const TELEMETRY_EVERY: u64 = 20;

/// A record with an identity.
fn record(class: &str, round: &str, count: u64) -> String {
    let width = RECORD_BYTES - class.len() - round.len() - 2;
    format!("{class} {round} {count:0>width$}")
}

/// A time without the cloud in which workloads write all the time.
struct Burst {
    name: &'static str,
    quota_mib: u64,
    records: u64,
    /// `None` is as fast as they are answered.
    per_second: Option<u64>,
    /// Timeout until the cloud has the rest.
    timeout: Duration,
}

/// An hour at 200 records a second, and the same ratio of bytes to quota in some seconds.
fn burst() -> Burst {
    if is_long() {
        return Burst {
            name: "hour",
            quota_mib: 64,
            records: 200 * 3600,
            per_second: Some(200),
            timeout: Duration::from_secs(1200),
        };
    }
    Burst {
        name: "hour",
        quota_mib: 1,
        records: 200 * 3600 / 64,
        per_second: None,
        timeout: STATE_TIMEOUT,
    }
}

/// Texts of a workload's records: by number and class.
type Written = BTreeMap<&'static str, BTreeMap<u64, String>>;

/// Writes `burst.records`; returns how many were refused.
fn write_all(gate: &Gate, burst: &Burst, written: &mut Written) -> u64 {
    let mut writer = Writer::connect(gate).unwrap();
    let (start, mut count, mut refused) = (Instant::now(), 0, 0);
    while count < burst.records {
        let end = burst.records.min(count + PIPELINE_MAX as u64);
        let class = |count| match (count + 1) % TELEMETRY_EVERY {
            0 => "telemetry",
            _ => "toll",
        };
        let records: Vec<_> = (count..end)
            .map(|count| (class(count), record(class(count), burst.name, count)))
            .collect();
        for (answer, (class, text)) in writer.write(&records).unwrap().iter().zip(records) {
            match (answer.status, answer.sequence) {
                (201, Some(sequence)) if class == "toll" => {
                    written.entry("toll").or_default().insert(sequence, text);
                }
                (202, Some(sequence)) if class == "telemetry" => {
                    written
                        .entry("telemetry")
                        .or_default()
                        .insert(sequence, text);
                }
                // All space is used by more important records.
                (429, None) if class == "telemetry" => refused += 1,
                _ => panic!("{class}: {answer:?}"),
            }
        }
        count = end;
        if let Some(per_second) = burst.per_second {
            let due = start + Duration::from_millis(count * 1000 / per_second);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    println!(
        "records={count} refused={refused} took={:?}",
        start.elapsed()
    );
    refused
}

/// Goal: 200 records a second for an hour without the cloud, under a quota of 64 MiB, behave as
/// docs/outbox.md says. The quota is never exceeded; the oldest are dropped first, and the less
/// important class before any toll record; no toll record is refused. Then an audit of
/// the cloud's files alone finds each number once, as its record or as a loss, and both
/// ends' ledgers agree. Method: the same bytes for each byte of quota within seconds; the long run
/// takes the hour, with the static agent, whose memory must not grow with the backlog.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_burst_beyond_the_quota_is_accounted_for_to_the_last_number() {
    let (burst, board) = (burst(), Board::here().unwrap());
    let quota = burst.quota_mib << 20;
    let mut gate = Gate::set_up(Setup {
        agent: is_long().then(|| board.agent()),
        config: format!("[outbox]\nquota-mib = {}\n", burst.quota_mib),
        ..Setup::default()
    })
    .unwrap();
    let mut written = Written::new();
    // Records that are delivered before are no part of any loss.
    let before = Burst {
        name: "before",
        quota_mib: burst.quota_mib,
        records: 100,
        per_second: None,
        timeout: STATE_TIMEOUT,
    };
    write_all(&gate, &before, &mut written);
    let delivered = |gate: &Gate, class| account(gate, class).is_ok_and(|row| row["held"] == 0);
    gate.until("the first are delivered", |gate| {
        ["toll", "telemetry"]
            .iter()
            .all(|class| delivered(gate, class))
    })
    .unwrap();
    gate.kill_cloud().unwrap();
    gate.until("the agent is offline", |gate| {
        gate.status()
            .is_ok_and(|status| status["connected"] == false)
    })
    .unwrap();

    let refused = write_all(&gate, &burst, &mut written);
    let rows = |gate: &Gate| ["toll", "telemetry"].map(|class| account(gate, class).unwrap());
    let offline = rows(&gate);
    let [toll, telemetry] = &offline;
    let number = |row: &Value, name: &str| row[name].as_u64().unwrap();
    let bytes = number(toll, "bytes") + number(telemetry, "bytes");
    assert!(bytes <= quota, "{bytes}");
    let files = fs::read_dir(gate.state_dir().join("outbox")).unwrap();
    let files = files.map(|entry| entry.unwrap().metadata().unwrap().len());
    let on_medium: u64 = files.sum();
    assert!(on_medium <= quota + (64 << 10), "{on_medium}");
    // All tolls are kept that the quota allows, except for a segment that is dropped at once and one that
    // another class may have.
    let kept = number(toll, "held") * FRAME_BYTES;
    assert!(kept + 3 * SEGMENT_BYTES > quota, "{kept} of {quota}");
    assert!(
        number(toll, "lost_quota") > number(toll, "appended") / 5,
        "too little was written"
    );
    assert!(number(telemetry, "lost_quota") + refused > burst.records / TELEMETRY_EVERY * 9 / 10);
    if is_long() {
        let used = memory(&[gate.agent_pid().unwrap()]).unwrap();
        println!(
            "backlog={bytes} pss_kib={} anon_kib={}",
            used.pss_kib, used.anon_kib
        );
        assert!(used.anon_kib as f64 <= board.budget.anon_kib);
    }
    // None of them was in memory only.
    gate.kill_agent().unwrap();
    gate.start_agent().unwrap();
    gate.until("the agent has read its outbox", |gate| {
        account(gate, "toll").is_ok_and(|row| row["appended"] == toll["appended"])
    })
    .unwrap();
    assert_eq!(rows(&gate), offline);

    gate.start_cloud().unwrap();
    let start = Instant::now();
    for class in ["toll", "telemetry"] {
        gate.until_within(burst.timeout, class, |gate| delivered(gate, class))
            .unwrap();
    }
    println!("drained={:?} accounts={:?}", start.elapsed(), rows(&gate));
    for (class, written) in written {
        let audit = Audit::of(&gate.dir().join("cloud"), class).unwrap();
        let (row, cloud) = (
            account(&gate, class).unwrap(),
            ledger(&gate, class).unwrap(),
        );
        for (number, text) in &audit.delivered {
            assert_eq!(Some(text), written.get(number), "{class} {number}");
        }
        assert_eq!(audit.next - 1, written.len() as u64, "{class}");
        assert_eq!(
            written.keys().copied().last(),
            Some(audit.next - 1),
            "{class}"
        );
        let lost = audit.lost_for("quota");
        assert_eq!(
            audit.delivered.len() as u64 + lost,
            audit.next - 1,
            "{class}"
        );
        // The oldest of those that the cloud did not have.
        let [(first, count, _)] = audit.lost[..] else {
            panic!("{class}: {:?}", audit.lost);
        };
        let before = u64::from(class == "telemetry") * 5 + u64::from(class == "toll") * 95;
        assert_eq!((first, count), (before + 1, lost), "{class}");
        assert_eq!(number(&row, "appended"), audit.next - 1, "{class}");
        assert_eq!(
            number(&row, "delivered"),
            audit.delivered.len() as u64,
            "{class}"
        );
        assert_eq!(number(&row, "lost_quota"), lost, "{class}");
        assert_eq!(cloud["numbered"], audit.next - 1, "{class}");
        assert_eq!(cloud["delivered"], audit.delivered.len(), "{class}");
        assert_eq!(cloud["lost_total"], lost, "{class}");
        assert_eq!(cloud["lost"]["quota"], lost, "{class}");
        assert_eq!(cloud["balanced"], true, "{class}");
    }
    gate.cloud_text(&["records"]).unwrap();
    let events = gate.cloud_json("/v1/events").unwrap();
    let mut events = events.as_array().unwrap().iter();
    assert!(
        events.any(|event| event["reason"] == "RecordsLost"),
        "no event"
    );
}
