//! The outbox on a real file system, and with an agent that is killed.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test; a wrong index fails it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use edge_core::outbox::ClassConfig;
use edge_min::storage::outbox::segment::{Scan, SegmentItem};
use edge_min::storage::outbox::{self, Answer, Class, Done, Job, Settings, Shared};
use edge_min::worker::Watch;
use edge_proto::frame::{Entry, GapReason, Incarnation};
use edge_proto::limits::{CLASS_TELEMETRY, CLASS_TOLL, RECORDS_BYTES_MAX};

/// Timeout for any state to be reached, also on a busy host.
const STATE_TIMEOUT: Duration = Duration::from_secs(300);

fn settings(quota_bytes: u64) -> Settings {
    let class = |name: &str, number, must| Class {
        name: name.to_owned(),
        config: ClassConfig {
            number,
            quota_bytes,
            ttl_ms: None,
        },
        must,
    };
    Settings {
        quota_bytes,
        classes: vec![
            class("toll", CLASS_TOLL, true),
            class("telemetry", CLASS_TELEMETRY, false),
        ],
    }
}

/// The thread of an outbox, with its channels.
struct Running {
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    shared: Shared,
}

impl Running {
    fn start(dir: &Path, quota_bytes: u64) -> Self {
        let (jobs, receiver) = async_channel::bounded(64);
        let (sender, done) = async_channel::unbounded();
        let shared = Shared::default();
        let settings = settings(quota_bytes);
        let watch = Watch::new(|| {}).thread("outbox");
        let dir = dir.to_owned();
        outbox::spawn(dir, settings, receiver, sender, shared.clone(), watch).unwrap();
        Self {
            jobs: Some(jobs),
            done,
            shared,
        }
    }

    fn job(&self, job: Job) {
        self.jobs.as_ref().unwrap().send_blocking(job).unwrap();
    }

    fn append(&self, class: u8, key: &str, bytes: &[u8]) -> Receiver<Answer> {
        let (reply, answer) = async_channel::bounded(1);
        self.job(Job::Append {
            class,
            must: class == CLASS_TOLL,
            key: key.as_bytes().to_vec(),
            unix_ms: outbox::unix_ms(),
            bytes: bytes.to_vec(),
            reply,
        });
        answer
    }

    fn stored(&self, class: u8, key: &str, bytes: &[u8]) -> (Incarnation, u64) {
        match self.append(class, key, bytes).recv_blocking().unwrap() {
            Answer::Stored {
                incarnation,
                sequence,
            } => (incarnation, sequence),
            other => panic!("{other:?}"),
        }
    }

    /// The numbers of a class that can be read.
    fn ready(&self, wanted: u8) -> (Incarnation, u64, u64) {
        let mut last = None;
        loop {
            match self.done.try_recv() {
                Ok(Done::Ready {
                    class,
                    incarnation,
                    held,
                    end,
                }) if class == wanted => last = Some((incarnation, held, end)),
                Ok(_) => {}
                Err(_) if last.is_some() => return last.unwrap(),
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// Everything that is held of a class, as the session reads it.
    fn read(&self, class: u8, (incarnation, mut from, end): (Incarnation, u64, u64)) -> Vec<Entry> {
        let mut all = Vec::new();
        while from < end {
            self.job(Job::Read {
                incarnation,
                class,
                from,
                bytes_max: RECORDS_BYTES_MAX,
            });
            let entries = loop {
                if let Done::Read { entries, first, .. } = self.done.recv_blocking().unwrap() {
                    assert_eq!(first, from);
                    break entries;
                }
            };
            assert!(!entries.is_empty(), "nothing at {from} of {end}");
            from += entries.iter().map(Entry::count).sum::<u64>();
            all.extend(entries);
        }
        all
    }

    fn stop(mut self) {
        self.jobs = None;
        // The thread ends when all senders of jobs are gone; then its answers end.
        while self.done.recv_blocking().is_ok() {}
    }
}

fn bytes_of(entries: &[Entry]) -> Vec<&[u8]> {
    let mut all = Vec::new();
    for entry in entries {
        if let Entry::Record { bytes, .. } = entry {
            all.push(bytes.as_slice());
        }
    }
    all
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    files.sort();
    files
}

#[test]
fn records_are_there_after_a_restart_and_go_when_they_are_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("outbox");
    let running = Running::start(&dir, 4 << 20);
    let mut incarnation = [0; 8];
    for number in 1..=1000_u64 {
        let stored = running.stored(CLASS_TOLL, "", &number.to_le_bytes().repeat(50));
        assert_eq!(stored.1, number);
        incarnation = stored.0;
    }
    assert_eq!(running.stored(CLASS_TELEMETRY, "t", b"warm").1, 1);
    running.stop();
    assert!(segments(&dir).len() > 3);

    let running = Running::start(&dir, 4 << 20);
    let ready = running.ready(CLASS_TOLL);
    assert_eq!(ready, (incarnation, 1, 1001));
    let entries = running.read(CLASS_TOLL, ready);
    let read = bytes_of(&entries);
    assert_eq!(read.len(), 1000);
    for (number, bytes) in (1..).zip(read) {
        assert_eq!(bytes, u64::to_le_bytes(number).repeat(50));
    }
    let (class, next) = (CLASS_TOLL, 1001);
    running.job(Job::Acked {
        incarnation,
        class,
        next,
    });
    assert_eq!(running.stored(CLASS_TOLL, "", b"new").1, 1001);
    let report = outbox::report(&running.shared);
    let (_, toll) = report.classes[0];
    assert_eq!((toll.appended, toll.delivered, toll.held), (1001, 1000, 1));
    running.stop();
    let left = segments(&dir);
    assert_eq!(left.len(), 2, "the last of each class: {left:?}");
    // The acknowledgement was stored with the record after it.
    let running = Running::start(&dir, 4 << 20);
    assert_eq!(running.ready(CLASS_TOLL), (incarnation, 1001, 1002));
    running.stop();
}

/// Goal: damage is a gap of as many numbers as it lost; the torn tail of a power cut is not a gap.
#[test]
fn damage_is_a_gap_and_a_torn_tail_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("outbox");
    let running = Running::start(&dir, 4 << 20);
    for number in 0..1000_u32 {
        running.stored(CLASS_TOLL, "", &number.to_le_bytes().repeat(100));
    }
    running.stop();
    let files = segments(&dir);
    let mut bytes = fs::read(&files[0]).unwrap();
    bytes[5000] ^= 1;
    fs::write(&files[0], &bytes).unwrap();
    let last = files.last().unwrap();
    let mut bytes = fs::read(last).unwrap();
    let whole = bytes.len();
    bytes.extend_from_within(..150);
    fs::write(last, &bytes).unwrap();

    let running = Running::start(&dir, 4 << 20);
    let ready = running.ready(CLASS_TOLL);
    assert_eq!((ready.1, ready.2), (1, 1001));
    let entries = running.read(CLASS_TOLL, ready);
    assert_eq!(bytes_of(&entries).len(), 999);
    let gaps: Vec<_> = entries
        .iter()
        .filter(|entry| matches!(entry, Entry::Gap { .. }))
        .collect();
    let (count, reason) = (1, GapReason::Damaged);
    assert_eq!(gaps, [&Entry::Gap { count, reason }]);
    assert_eq!(fs::read(last).unwrap().len(), whole);
    assert_eq!(running.stored(CLASS_TOLL, "", b"new").1, 1001);
    // Later damage, while it runs, is a gap too.
    let mut bytes = fs::read(&files[1]).unwrap();
    bytes[5000] ^= 1;
    fs::write(&files[1], &bytes).unwrap();
    let entries = running.read(CLASS_TOLL, (ready.0, 1, 1002));
    assert_eq!(bytes_of(&entries).len(), 999);
    let report = outbox::report(&running.shared);
    assert_eq!(report.classes[0].1.appended, 1001);
    running.stop();
}

#[test]
fn lost_counters_or_a_cloud_ahead_begin_a_new_incarnation_with_what_is_held() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("outbox");
    let running = Running::start(&dir, 4 << 20);
    for number in 0..10_u8 {
        running.stored(CLASS_TOLL, "", &[number; 100]);
    }
    let (first, ..) = running.ready(CLASS_TOLL);
    let (class, next) = (CLASS_TOLL, 5);
    let incarnation = first;
    running.job(Job::Acked {
        incarnation,
        class,
        next,
    });
    running.job(Job::Renew { incarnation });
    // The sixth is now the first held record.
    let second = loop {
        let ready = running.ready(CLASS_TOLL);
        if ready.0 != first {
            break ready;
        }
    };
    assert_eq!((second.1, second.2), (1, 7));
    let entries = running.read(CLASS_TOLL, second);
    assert_eq!(bytes_of(&entries)[0], [4; 100]);
    let (incarnation, sequence) = running.stored(CLASS_TOLL, "", b"new");
    assert_eq!((incarnation, sequence), (second.0, 7));
    running.stop();
    let running = Running::start(&dir, 4 << 20);
    assert_eq!(running.ready(CLASS_TOLL), (second.0, 1, 8));
    running.stop();

    fs::remove_file(dir.join("state")).unwrap();
    let running = Running::start(&dir, 4 << 20);
    let third = running.ready(CLASS_TOLL);
    assert!(third.0 != second.0 && third.2 > third.1);
    running.stop();
}

/// Goal: a new incarnation that cannot be written at once is written later, and is the same after
/// a restart: the cloud knows it already. Method: the counters' file is missing for a while.
#[test]
fn a_new_incarnation_that_is_not_written_at_once_is_the_one_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("outbox");
    let running = Running::start(&dir, 4 << 20);
    let (incarnation, _) = running.stored(CLASS_TOLL, "", b"one");
    let (state, away) = (dir.join("state"), folder.path().join("away"));
    let trouble = |running: &Running| loop {
        if let Done::Unwritable(reason) = running.done.recv_blocking().unwrap() {
            break reason.is_some();
        }
    };
    fs::rename(&state, &away).unwrap();
    running.job(Job::Renew { incarnation });
    assert!(trouble(&running));
    fs::rename(&away, &state).unwrap();
    assert!(!trouble(&running), "the trouble ends by itself");
    let (renewed, _) = running.stored(CLASS_TOLL, "", b"two");
    assert!(renewed != incarnation);
    running.stop();
    let running = Running::start(&dir, 4 << 20);
    assert_eq!(running.ready(CLASS_TOLL).0, renewed);
    running.stop();
}

/// Goal: a medium is refused as full before it is full, loses nothing, and works again once
/// there is space.
#[test]
#[ignore = "mounts a file system"]
fn a_full_medium_refuses_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=12m", "none"];
    let status = Command::new("mount")
        .args(mount)
        .arg(folder.path())
        .status();
    assert!(status.unwrap().success());
    let dir = folder.path().join("outbox");
    let running = Running::start(&dir, 64 << 20);
    let mut stored = 0;
    while let Answer::Stored { sequence, .. } = running
        .append(CLASS_TOLL, "", &[7; 4000])
        .recv_blocking()
        .unwrap()
    {
        stored = sequence;
        assert!(stored < 2000, "never full");
    }
    let free = nix::sys::statvfs::statvfs(folder.path()).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    assert!((7 << 20..=8 << 20).contains(&free), "{free} bytes are free");
    let ready = running.ready(CLASS_TOLL);
    assert_eq!(ready.2, stored + 1);
    let incarnation = ready.0;
    let (class, next) = (CLASS_TOLL, stored / 2);
    running.job(Job::Acked {
        incarnation,
        class,
        next,
    });
    let deadline = Instant::now() + STATE_TIMEOUT;
    while !matches!(
        running
            .append(CLASS_TOLL, "", b"again")
            .recv_blocking()
            .unwrap(),
        Answer::Stored { .. }
    ) {
        assert!(Instant::now() < deadline, "still full");
        std::thread::sleep(Duration::from_millis(100));
    }
    let report = outbox::report(&running.shared);
    assert_eq!(report.classes[0].1.lost, [0; 4]);
    running.stop();
    let status = Command::new("umount").arg(folder.path()).status();
    assert!(status.unwrap().success());
}

/// An agent without a cloud.
struct Agent {
    folder: PathBuf,
    child: Child,
}

impl Agent {
    fn start(folder: &Path) -> Self {
        Self::start_by(folder, &[])
    }

    /// Started by a program that executes the agent, or traces it.
    fn start_by(folder: &Path, by: &[&str]) -> Self {
        let text = format!(
            "version = 1\nnode = \"gate\"\nstate-dir = \"{0}/state\"\nrun-dir = \"{0}/run\"\n\
             runc = \"/bin/true\"\ncgroup = \"edge-min-outbox-{1}\"\n",
            folder.display(),
            std::process::id(),
        );
        let config = folder.join("edge-min.toml");
        fs::write(&config, text).unwrap();
        let mut words = by.iter().chain(&[env!("CARGO_BIN_EXE_edge-min")]);
        let child = Command::new(words.next().unwrap())
            .args(words)
            .arg("--config")
            .arg(config)
            .arg("run")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let folder = folder.to_owned();
        Self { folder, child }
    }

    fn connect(&self) -> UnixStream {
        let deadline = Instant::now() + STATE_TIMEOUT;
        loop {
            match UnixStream::connect(self.folder.join("run/api/edge.sock")) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn post(class: &str, body: &str) -> String {
    let length = body.len();
    format!("POST /v1/records/{class} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Status line and body of the next answer; `None` when the connection ended.
fn answer(stream: &mut UnixStream) -> Option<(String, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.split("Content-Length: ").nth(1)?.split('\r').next()?;
    let mut body = vec![0; length.parse().ok()?];
    stream.read_exact(&mut body).ok()?;
    let status = head.lines().next()?.to_owned();
    Some((status, String::from_utf8(body).ok()?))
}

/// Goal: a record that was answered with 201 is on the medium under its number, whenever the
/// agent is killed, and no number is there twice. Method: four writers at full speed, the agent
/// killed several times, each time after another count of answers; then the files are read.
#[test]
#[ignore = "starts an agent"]
fn a_killed_agent_loses_no_record_that_it_acknowledged() {
    let long = std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty());
    let rounds = if long { 100 } else { 20 };
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<u64, String> = BTreeMap::new();
    for round in 0..rounds {
        let agent = Agent::start(folder.path());
        let (answered, count_of_answers) = std::sync::mpsc::channel();
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let mut stream = agent.connect();
                let answered = answered.clone();
                let write = move || {
                    let mut stored = Vec::new();
                    for count in 0.. {
                        let body = format!("round {round} writer {writer} record {count}");
                        if stream.write_all(post("toll", &body).as_bytes()).is_err() {
                            break;
                        }
                        let Some((status, json)) = answer(&mut stream) else {
                            break;
                        };
                        assert_eq!(status, "HTTP/1.1 201 Created", "{json}");
                        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
                        stored.push((json["sequence"].as_u64().unwrap(), body));
                        // The receiver stops counting after the kill.
                        answered.send(()).ok();
                    }
                    stored
                };
                std::thread::Builder::new().spawn(write).unwrap()
            })
            .collect();
        for _ in 0..30 + round * 37 % 300 {
            count_of_answers.recv_timeout(STATE_TIMEOUT).unwrap();
        }
        drop(agent);
        for writer in writers {
            for (sequence, body) in writer.join().unwrap() {
                let before = acknowledged.insert(sequence, body);
                assert_eq!(before, None, "number {sequence} twice");
            }
        }
    }
    assert!(acknowledged.len() > 100, "{} records", acknowledged.len());
    let mut found = BTreeSet::new();
    for file in segments(&folder.path().join("state/outbox")) {
        let bytes = fs::read(file).unwrap();
        for item in Scan::new(&bytes) {
            if let SegmentItem::Record { number, bytes, .. } = item {
                assert!(found.insert(number), "number {number} is there twice");
                if let Some(body) = acknowledged.remove(&number) {
                    assert_eq!(bytes, body.as_bytes());
                }
            }
        }
    }
    assert!(acknowledged.is_empty(), "{} are gone", acknowledged.len());
}

/// Goal: open connections do not lock out a writer. Method: eight idle ones, then eight that
/// send single bytes and never a complete request; each time one more wants to write.
#[test]
#[ignore = "starts an agent"]
fn connections_that_are_kept_keep_no_writer_out() {
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(folder.path());
    let stored = |stream: &mut UnixStream, body: &str| {
        stream.write_all(post("toll", body).as_bytes()).is_ok()
            && answer(stream).is_some_and(|(status, _)| status == "HTTP/1.1 201 Created")
    };
    let mut kept: Vec<_> = (0..edge_min::local::workload_api::CONNECTIONS_MAX)
        .map(|_| agent.connect())
        .collect();
    assert!(kept.iter_mut().all(|stream| stored(stream, "kept")));
    let mut ninth = agent.connect();
    ninth.set_read_timeout(Some(STATE_TIMEOUT)).unwrap();
    assert!(stored(&mut ninth, "ninth"));
    drop(ninth);
    // The first, which was idle longest.
    assert!(!stored(&mut kept[0], "again"));
    assert!(kept[1..].iter_mut().all(|stream| stored(stream, "again")));
    drop(kept);

    let slow: Vec<_> = (0..edge_min::local::workload_api::CONNECTIONS_MAX)
        .map(|_| {
            let mut stream = agent.connect();
            stream.write_all(b"P").unwrap();
            stream
        })
        .collect();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let drip = std::thread::Builder::new()
        .spawn(move || {
            while is_done.recv_timeout(Duration::from_millis(200))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                for mut stream in &slow {
                    // The closed ones are expected to fail.
                    let _gone = stream.write_all(b"P");
                }
            }
        })
        .unwrap();
    let mut ninth = agent.connect();
    ninth.set_read_timeout(Some(STATE_TIMEOUT)).unwrap();
    let served = stored(&mut ninth, "behind the slow ones");
    drop(done);
    drip.join().unwrap();
    assert!(served);
    drop(agent);
}

#[test]
#[ignore = "starts an agent"]
fn the_api_answers_each_request_of_a_connection_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(folder.path());
    let mut stream = agent.connect();
    let long = "x".repeat(4096);
    let requests = [
        post("toll", "one"),
        post("telemetry", "warm"),
        post("nonsense", "?"),
        "GET /v1/records HTTP/1.1\r\n\r\n".to_owned(),
        "GET /v1/records/toll HTTP/1.1\r\n\r\n".to_owned(),
        post("toll", &long),
        post("toll", &[&long, "x"].concat()),
    ];
    stream.write_all(requests.concat().as_bytes()).unwrap();
    let mut statuses = Vec::new();
    let mut bodies = Vec::new();
    while let Some((status, body)) = answer(&mut stream) {
        statuses.push(status);
        bodies.push(body);
    }
    let codes: Vec<_> = statuses.iter().map(|status| &status[9..12]).collect();
    assert_eq!(codes, ["201", "202", "404", "200", "405", "201", "413"]);
    assert!(
        bodies[0].contains("\"class\":\"toll\",\"sequence\":1}"),
        "{}",
        bodies[0]
    );
    let mut stream = agent.connect();
    stream
        .write_all(b"GET /v1/records HTTP/1.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let (_, body) = answer(&mut stream).unwrap();
    let counters: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(counters["classes"][0]["class"], "toll");
    assert_eq!(counters["classes"][0]["appended"], 2);
    assert_eq!(counters["classes"][0]["held"], 2);
    drop(agent);
}

/// Goal: a writer is told that the medium is full or broken, and why, and can store its record once
/// that is over; the counters are correct. Method: system calls of a real agent fail.
#[test]
#[ignore = "starts an agent under strace"]
fn a_writer_hears_what_is_wrong_with_the_medium() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = folder.path().join("state/outbox");
    let log = folder.path().join("strace");
    let mut by = vec!["strace", "-D", "-f", "-o", log.to_str().unwrap()];
    // The second record is not synced, and the third finds no space in the next segment.
    let files = [1, 3].map(|first| outbox.join(format!("0-{first:016x}.seg")));
    for file in &files {
        by.extend(["-P", file.to_str().unwrap()]);
    }
    by.extend(["-e", "trace=fdatasync,write"]);
    by.extend(["-e", "inject=fdatasync:error=EIO:when=2"]);
    by.extend(["-e", "inject=write:error=ENOSPC:when=3"]);
    let agent = Agent::start_by(folder.path(), &by);
    let mut stream = agent.connect();
    let mut write = |body: &str| {
        stream.write_all(post("toll", body).as_bytes()).unwrap();
        answer(&mut stream).unwrap()
    };
    assert_eq!(write("one").0, "HTTP/1.1 201 Created");
    let full = "HTTP/1.1 507 Insufficient Storage";
    for reason in ["the medium cannot be written\n", "the medium is full\n"] {
        // Until the retry after five seconds, the answer is that of the last failure.
        let deadline = Instant::now() + STATE_TIMEOUT;
        loop {
            let (status, body) = write("two");
            assert_eq!(status, full, "{body}");
            if body == reason {
                break;
            }
            assert!(Instant::now() < deadline, "{body}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let deadline = Instant::now() + STATE_TIMEOUT;
    while write("two").0 == full {
        assert!(Instant::now() < deadline, "never again");
        std::thread::sleep(Duration::from_millis(50));
    }
    stream
        .write_all(b"GET /v1/records HTTP/1.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let (_, body) = answer(&mut stream).unwrap();
    let counters: serde_json::Value = serde_json::from_str(&body).unwrap();
    let toll = &counters["classes"][0];
    assert_eq!([&toll["appended"], &toll["held"]], [4, 2], "{body}");
    assert_eq!(toll["lost_damaged"], 2, "{body}");
    drop(agent);
}

/// Goal: records are wiped only after their number was shown. Method: three are written, which
/// no cloud gets; a reset is requested without a terminal, and then with --yes.
#[test]
#[ignore = "starts an agent"]
fn a_reset_says_how_many_records_it_wipes() {
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(folder.path());
    let mut stream = agent.connect();
    for class in ["toll", "toll", "event"] {
        stream.write_all(post(class, "record").as_bytes()).unwrap();
        assert_eq!(answer(&mut stream).unwrap().0, "HTTP/1.1 201 Created");
    }
    drop(agent);
    let reset = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_edge-min"))
            .arg("--config")
            .arg(folder.path().join("edge-min.toml"))
            .args(words)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = reset(&["reset"]);
    assert!(
        code != Some(0) && text.contains("3 unsent records"),
        "{text}"
    );
    assert!(folder.path().join("state/outbox/state").exists());
    let (code, text) = reset(&["reset", "--yes"]);
    assert!(
        code == Some(0) && text.contains("3 unsent records wiped"),
        "{text}"
    );
    assert!(!folder.path().join("state/outbox").exists());
}
