//! Power cuts of a whole board, at random moments of a stream of changes and of records: kernel, ext4,
//! virtio disk and agent are real, and the disk loses unflushed writes. The cloud on the host
//! knows what was acknowledged over the link, and the console shows which records were acknowledged to a
//! workload.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use memtests::board::{Arch, Board, Boot};
use memtests::records::Audit;
use serde_json::Value;

/// Power cuts.
const CUTS: u64 = 20;
const CUTS_LONG: u64 = 1000;
/// One of so many boots is a whole one, the others are resumed.
const WHOLE_BOOT_EVERY: u64 = 10;
/// One of so many resumed boots is cut without a check, while it
/// starts, connects and receives what it missed.
const BLIND_EVERY: u64 = 3;
/// Upper bound of the time of a cut after the power came on, or after the board is in sync again, in
/// CPU time of the board: a busy machine must not turn most cuts into early ones.
const BLIND_MS_MAX: u64 = 2500;
const CHURN_MS_MAX: u64 = 1500;
/// A board that waits uses none; then the cut follows after this multiple of the time.
const WAIT_MAX: u32 = 10;
/// The cut that tears the superblock, whatever else it does; the next boot is a whole one.
const TORN_AT: u64 = 9;
/// Where the superblock of ext4 has its checksum, in the second of its two sectors.
const SUPERBLOCK_CRC: u64 = 1024 + 1020;
/// Interval of polling the cloud.
const LOOK: Duration = Duration::from_millis(10);
/// Replaces the network switch of the board: it boots unconnected, so that its state
/// can be checked before the cloud repairs it.
const CONNECT: &str = "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && \
                       ip route add default via 10.0.2.2";
const REPAIRED: &str = "board: the data disk was repaired";
/// Avoids runs of `edge-min status` before the agent listens.
const AGENT_LISTENS: &str = "until [ -S /run/edge-min/edge-min.sock ]; do usleep 20000; done";

/// A ConfigMap that changes; every other time it is a large object. Its pod waits for ever for a
/// Secret that does not exist, so that nothing runs: this test is about the store.
fn manifests(version: u64) -> String {
    let filler = "x".repeat(if version.is_multiple_of(2) { 9000 } else { 10 });
    format!(
        "\
apiVersion: v1
kind: ConfigMap
metadata: {{name: lane}}
data: {{version: \"{version}\", filler: {filler}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: counter}}
spec:
  runtimeClassName: process
  containers:
    - name: main
      command: [/bin/sh]
      env: [{{name: KEY, valueFrom: {{secretKeyRef: {{name: nobody-has-it, key: key}}}}}}]
      volumeMounts: [{{name: lane, mountPath: /lane}}]
  volumes: [{{name: lane, configMap: {{name: lane}}}}]
"
    )
}

/// The desired root of the board, and whether the board has acknowledged it.
fn wanted(board: &Board) -> Option<(Value, bool)> {
    let nodes = board.cloud_get("/v1/nodes").ok()?;
    let node = nodes.get(0)?;
    let acknowledged = node["connected"] == true && node["in_sync"] == true;
    Some((node["desired_root"].clone(), acknowledged))
}

/// Leaves what a cut between the two sectors of a superblock leaves: the checksum of another one.
fn tear_superblock(board: &Board) -> std::io::Result<()> {
    let disk = fs::File::options()
        .read(true)
        .write(true)
        .open(board.disk())?;
    let mut crc = [0; 4];
    disk.read_exact_at(&mut crc, SUPERBLOCK_CRC)?;
    disk.write_all_at(&crc.map(|byte| !byte), SUPERBLOCK_CRC)
}

/// A stream of random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// State of the board as known outside of it.
#[derive(Default)]
struct Known {
    /// Version of the manifests, and the root of the desired set when they were last changed.
    version: u64,
    changed_at: Value,
    /// The newest root that the board has acknowledged, or has had at an earlier boot.
    root: Value,
    /// Acknowledgements of roots.
    changes: u64,
    /// Records that were acknowledged to the workload.
    records: BTreeSet<String>,
    outbox: Value,
    /// Boot ids of all its boots.
    boots: BTreeSet<String>,
    sectors_lost: usize,
    /// Boots that repaired the superblock before they could mount.
    repairs: usize,
}

impl Known {
    /// Changes the desired set whenever the board has acknowledged it, for so much of the board's
    /// time.
    fn churn(&mut self, board: &Board, time: Duration) {
        let (start, cpu) = (Instant::now(), board.cpu().unwrap());
        while board.cpu().unwrap() < cpu + time && start.elapsed() < time * WAIT_MAX {
            if let Some((root, true)) = wanted(board)
                && root != self.changed_at
            {
                self.changes += 1;
                self.version += 1;
                board.manifests(&manifests(self.version)).unwrap();
                self.changed_at = root.clone();
                self.root = root;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Cuts the power and stores what was acknowledged until then.
    fn cut(&mut self, board: &mut Board, seed: u64) -> String {
        let left = board.cut_power_of_disk(seed).unwrap();
        self.sectors_lost += left.sectors_lost;
        let console = board.console().unwrap();
        // An incomplete line does not count.
        let printed = console.rsplit_once('\n').map_or("", |(printed, _)| printed);
        for record in printed
            .lines()
            .filter_map(|line| line.strip_prefix("@record "))
        {
            assert!(self.records.insert(record.to_owned()), "{record} twice");
        }
        self.repairs += console.matches(REPAIRED).count();
        format!("{left:?}")
    }

    /// Compares with the state of an unconnected board.
    fn look(&mut self, board: &mut Board, life: &str) {
        board.shell(AGENT_LISTENS).unwrap();
        // An agent on an empty folder would report that it never joined.
        let mounted = "grep -q ' /var/lib/edge-min ext4 ' /proc/mounts || { dmesg | tail; false; }";
        board.shell(mounted).unwrap();
        let status = board
            .until_status("the agent answers", |status| status["node"] == "board")
            .unwrap();
        let (outstanding, _) = wanted(board).unwrap();
        let found = &status["desired_root"];
        assert!(
            *found == self.root || *found == outstanding || self.root.is_null(),
            "{life}: acknowledged {}, outstanding {outstanding}: {status}",
            self.root
        );
        self.root = found.clone();
        assert_eq!(status["conditions"], serde_json::json!([]), "{life}");
        let outbox = &status["outbox"];
        let toll = &outbox["classes"][0];
        let appended = toll["appended"].as_u64().unwrap();
        assert!(appended >= self.records.len() as u64, "{life}: {outbox}");
        assert_eq!(toll["lost_damaged"], 0, "{life}: {outbox}");
        let outbox = outbox["incarnation"].clone();
        assert!(self.outbox.is_null() || self.outbox == outbox, "{life}");
        self.outbox = outbox;
        // Kernels that were saved with their random numbers would all have the same id.
        let boot = board.shell("cat /proc/sys/kernel/random/boot_id").unwrap();
        assert!(self.boots.insert(boot), "{life}: random numbers come again");
    }
}

/// Goal: a power cut at any moment loses nothing that was acknowledged to the cloud and no record that was
/// acknowledged to a workload, duplicates no record, and damages nothing. Method: the host cuts at
/// random moments and compares; most boots are checked before they connect; at the end the cloud
/// has each record once, and its ledger agrees.
#[test]
#[ignore = "needs QEMU and dist/"]
fn random_power_cuts_lose_nothing_that_was_acknowledged() {
    let long = std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty());
    let cuts = if long { CUTS_LONG } else { CUTS };
    let whole = Boot {
        store: true,
        ..Boot::default()
    };
    let resumed = Boot {
        resumed: true,
        ..whole
    };
    let mut board = Board::make(Arch::Aarch64, &manifests(0)).unwrap();
    board.save(whole).unwrap();
    board.boot(whole).unwrap();
    board.shell(CONNECT).unwrap();
    let token = board.cloud_text(&["token", "create"]).unwrap();
    let join = format!("edge-min join {} --token {}", board.url(), token.trim());
    assert!(board.shell(&join).unwrap().contains("joined as board"));
    board.shell("/etc/init.d/edge-min restart").unwrap();

    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut known = Known::default();
    for cut in 0..cuts {
        let start = format!("(write-records toll {cut} &)");
        let blind = cut % WHOLE_BOOT_EVERY != 0 && random.below(BLIND_EVERY) == 0;
        if blind {
            board.type_in(&format!("{CONNECT}; {start}\n")).unwrap();
            let moment = Duration::from_millis(random.below(BLIND_MS_MAX));
            known.churn(&board, moment);
        } else {
            if cut > 0 {
                board.until_booted().unwrap();
                known.look(&mut board, &format!("before cut {cut}"));
                board.shell(CONNECT).unwrap();
            }
            board
                .until("the board is in sync", |board| {
                    wanted(board).is_some_and(|(_, acknowledged)| acknowledged)
                })
                .unwrap();
            board.shell(&start).unwrap();
            let moment = Duration::from_millis(random.below(CHURN_MS_MAX));
            known.churn(&board, moment);
        }
        let seed = random.below(u64::MAX);
        let left = known.cut(&mut board, seed);
        let (changes, records) = (known.changes, known.records.len());
        println!("cut {cut}: blind {blind}, {left}, {changes} changes, {records} records so far");
        if cut == TORN_AT {
            tear_superblock(&board).unwrap();
        }
        let next = cut + 1;
        let boot = if next.is_multiple_of(WHOLE_BOOT_EVERY) && next < cuts {
            whole
        } else {
            resumed
        };
        board.switch_on(boot).unwrap();
    }
    board.until_booted().unwrap();
    known.look(&mut board, "at the end");
    board.shell(CONNECT).unwrap();
    board
        .until_status("all records are delivered", |status| {
            status["outbox"]["classes"][0]["held"] == 0
        })
        .unwrap();
    // The cloud knows what was acknowledged to the board; the board may not.
    let ledger = board.cloud_get("/v1/records").unwrap();
    let toll = &ledger["streams"][0];
    assert_eq!(toll["balanced"], true, "{ledger}");
    assert_eq!(toll["lost_total"], 0, "{ledger}");
    let audit = Audit::of(&board.cloud_data(), "toll").unwrap();
    let mut times = BTreeMap::<&str, u32>::new();
    for text in audit.delivered.values() {
        *times
            .entry(text.split(' ').next().unwrap_or(text))
            .or_default() += 1;
    }
    for (record, times) in &times {
        assert_eq!(*times, 1, "{record}");
    }
    for record in &known.records {
        assert!(times.contains_key(record.as_str()), "{record} is lost");
    }
    assert_eq!(toll["delivered"], audit.delivered.len(), "{ledger}");
    println!(
        "{cuts} cuts, {} changes acknowledged, {} records acknowledged, {} delivered, \
         {} sectors lost, {} superblocks torn",
        known.changes,
        known.records.len(),
        audit.delivered.len(),
        known.sectors_lost,
        known.repairs
    );
    assert!(known.repairs > 0, "the superblock that was torn is whole");
    assert!(known.changes >= cuts / 2 && known.records.len() as u64 >= cuts / 2);
}
