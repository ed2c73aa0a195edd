//! The real program: killed at random in the middle of a stream, and as a pipe.

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edge_cloud::records::{Records, View};
use memtests::ports::Port;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::board::{self, Cloud, Outbox};
use crate::{Place, acknowledged, check_ledger, expected, in_files, outbox, until};

/// `edge-cloud serve`, killed when it is dropped.
struct Program(Child);

impl Program {
    fn start(place: &Place, port: &Port, records: Option<&str>) -> Self {
        let manifests = place.data.path().join("manifests");
        std::fs::create_dir_all(&manifests).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_edge-cloud"))
            .arg("--data")
            .arg(place.data.path())
            .args(["serve", "--name", "127.0.0.1", "--listen"])
            .arg(format!("127.0.0.1:{}", port.number()))
            .arg("--manifests")
            .arg(manifests)
            .args(records.map(|sink| format!("--records={sink}")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What `edge-cloud records --json` prints, and its exit code.
fn records(place: &Place) -> Option<(View, Option<i32>)> {
    let output = Command::new(env!("CARGO_BIN_EXE_edge-cloud"))
        .arg("--data")
        .arg(place.data.path())
        .args(["records", "--json"])
        .output()
        .unwrap();
    let view = serde_json::from_slice(&output.stdout).ok()?;
    Some((view, output.status.code()))
}

/// A port for the program, and the node's board that connects to it.
fn far(place: &Place, outbox: &Arc<Mutex<Outbox>>) -> Port {
    let port = Port::reserve().unwrap();
    let address = (Ipv4Addr::LOCALHOST, port.number()).into();
    // The board connects to the program only; this one is a placeholder.
    let unused = tempfile::tempdir().unwrap();
    let fleet = board::open(unused.path(), Records::none());
    let cloud = Cloud::at(address, place.data.path(), fleet);
    drop(place.board(Arc::new(cloud), outbox));
    port
}

fn random_ms(max: u8) -> Duration {
    let mut byte = [0];
    SystemRandom::new().fill(&mut byte).unwrap();
    Duration::from_millis(u64::from(byte[0]) * u64::from(max) / 255)
}

/// Goal: SIGKILL of edge-cloud at any moment of a stream loses no record and duplicates none. Method:
/// the program, a board over real TLS, kills at random moments while acknowledgements arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_random_leaves_each_record_once_in_the_files() {
    let long = std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty());
    let kills = if long { 100 } else { 8 };
    let place = Place::new(None);
    let count = kills * 400;
    let (outbox, end) = outbox(count);
    let port = far(&place, &outbox);
    for kill in 1..=kills {
        let program = Program::start(&place, &port, None);
        // Something of this run is acknowledged; then it may end anywhere.
        let goal = acknowledged(&outbox) + 1;
        until(|| (acknowledged(&outbox) >= goal.min(end)).then_some(())).await;
        tokio::time::sleep(random_ms(40)).await;
        drop(program);
        let sure = acknowledged(&outbox);
        // Number 101 to 103 of each 103 is a loss.
        let sure = (sure - 1) / 103 * 100 + ((sure - 1) % 103).min(100);
        let held = in_files(&place.data.path().join("records")).len() as u64;
        assert!(
            held >= sure,
            "kill {kill}: {sure} acknowledged, {held} in the files"
        );
    }
    let _program = Program::start(&place, &port, None);
    until(|| (acknowledged(&outbox) >= end).then_some(())).await;
    assert_eq!(
        in_files(&place.data.path().join("records")),
        expected(count)
    );
    let (view, exit) = until(|| records(&place)).await;
    check_ledger(&view, count, end - 1 - count);
    assert_eq!(exit, Some(0));
}

/// Goal: standard output has every record, and nothing is acknowledged while it is not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_output_has_every_record() {
    let place = Place::new(None);
    let (outbox, end) = outbox(2_000);
    let port = far(&place, &outbox);
    let mut program = Program::start(&place, &port, Some("stdout"));
    // The pipe holds 64 KiB, which is less than half of all lines.
    let waits = || records(&place).filter(|(view, _)| view.sink.waiting_bytes > 0);
    until(waits).await;
    let pipe = program.0.stdout.take().unwrap();
    let read = move || {
        let lines = BufReader::new(pipe).lines().take(end as usize - 1);
        let texts = lines.filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            line["text"].as_str().map(str::to_owned)
        });
        texts.collect::<Vec<_>>()
    };
    assert!(acknowledged(&outbox) < end);
    let texts = tokio::task::spawn_blocking(read).await.unwrap();
    assert_eq!(texts, expected(2_000));
    until(|| (acknowledged(&outbox) == end).then_some(())).await;
}
