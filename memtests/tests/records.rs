//! Records end to end: a workload's socket, the outbox, TLS, edge-cloud and its files.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use memtests::{Gate, PATIENCE};
use serde_json::Value;

fn connect(gate: &Gate) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
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

/// How often each text stands in the files of the cloud.
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

/// Goal: every record that a workload had acknowledged is at the cloud, once, whatever dies in
/// between, and both ends' accounts say so. Method: records while everything is up, without a
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
