//! Records from a board's outbox to every kind of sink, over real TLS and MQTT: edge-cloud is ended
//! and started again at random, and so is the sink.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod board;
#[path = "records/process.rs"]
mod process;
#[path = "records/secure.rs"]
mod secure;
#[path = "records/servers.rs"]
mod servers;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use board::{Answers, Board, Cloud, Identity, Outbox, STATE_TIMEOUT, identity, now};
use edge_cloud::backup::{self, Backup};
use edge_cloud::fleet::Fleet;
use edge_cloud::identity::ca::Ca;
use edge_cloud::identity::registry::{Enrolment, Registry};
use edge_cloud::nodes::{EventLog as _, RecordReports as _};
use edge_cloud::records::{Records, View, target};
use edge_cloud::serve;
use edge_cloud::sessions::ADMISSIONS_PER_S;
use edge_proto::frame::{Entry, GapReason};
use servers::{Http, Jetstream, Mosquitto};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const NODE: &str = "gate";
const POLL: Duration = Duration::from_millis(10);

/// A data folder with one node.
struct Place {
    data: tempfile::TempDir,
    identity: Identity,
    config: target::Config,
}

impl Place {
    fn new(url: Option<String>) -> Self {
        let data = tempfile::tempdir().unwrap();
        let ca = Ca::open(data.path()).unwrap();
        let identity = identity(&ca, NODE, now(), 3_600);
        let enrolment = Enrolment {
            serial: identity.serial.clone(),
            ..Enrolment::default()
        };
        let registry = Registry::open(data.path(), now()).unwrap();
        registry.add(NODE, enrolment).unwrap();
        Self {
            data,
            identity,
            config: target::Config {
                url,
                ..target::Config::default()
            },
        }
    }

    /// An edge-cloud over the folder, and the node's board.
    async fn start(&self, outbox: &Arc<Mutex<Outbox>>) -> Running {
        let data = self.data.path();
        // The previous one may still be writing.
        let records = until(|| Records::open(data, &self.config).ok()).await;
        let fleet = board::open(data, records);
        let hub = serve::hub(&fleet, vec!["127.0.0.1".to_owned()], ADMISSIONS_PER_S).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cloud = Arc::new(Cloud::at(address, data, Arc::clone(&fleet)));
        let (ticking, writing) = (Arc::clone(&fleet.sessions), Arc::clone(&fleet));
        let mut tasks = vec![
            tokio::spawn(async move { hub.serve(listener).await }),
            tokio::spawn(async move { ticking.tick().await }),
            tokio::spawn(async move { writing.records.run(&writing.sessions).await }),
        ];
        tasks.push(self.board(cloud, outbox));
        Running {
            address,
            fleet,
            tasks,
        }
    }

    /// The node's board, which reconnects whenever its link ends.
    fn board(&self, cloud: Arc<Cloud>, outbox: &Arc<Mutex<Outbox>>) -> JoinHandle<()> {
        let (identity, outbox) = (self.identity.clone(), Arc::clone(outbox));
        tokio::spawn(async move {
            loop {
                let board = Board::open(&cloud, NODE, &identity, Answers::Never).await;
                if let Ok(mut board) = board {
                    board.outbox = Arc::clone(&outbox);
                    if board.ready().await.is_ok() {
                        board.run().await.ok();
                    }
                }
                tokio::time::sleep(POLL).await;
            }
        })
    }
}

/// A running edge-cloud; dropping it ends it at any point of its work.
struct Running {
    address: std::net::SocketAddr,
    fleet: Arc<Fleet>,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    fn view(&self) -> View {
        self.fleet.records()
    }

    fn events(&self, reason: &str) -> usize {
        let events = self.fleet.events();
        events.iter().filter(|event| event.reason == reason).count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn until<T>(reached: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = reached() {
            return found;
        }
        assert!(start.elapsed() < STATE_TIMEOUT, "a state does not come");
        tokio::time::sleep(POLL).await;
    }
}

fn record(number: u64) -> Entry {
    Entry::Record {
        unix_ms: 1_000 + number,
        bytes: format!("vehicle {number}").into_bytes(),
    }
}

/// So many records with a loss of 3 after each hundred, and the count of all numbers.
fn outbox(count: u64) -> (Arc<Mutex<Outbox>>, u64) {
    let mut records = Vec::new();
    let mut end = 1;
    for number in 1..=count {
        records.push(record(number));
        end += 1;
        if number % 100 == 0 {
            // One number each, as the outbox here has one entry for each number.
            records.extend((0..3).map(|_| Entry::Gap {
                count: 1,
                reason: GapReason::Quota,
            }));
            end += 3;
        }
    }
    let outbox = Outbox {
        incarnation: [9; 8],
        records,
        acknowledged: 1,
    };
    (Arc::new(Mutex::new(outbox)), end)
}

fn acknowledged(outbox: &Mutex<Outbox>) -> u64 {
    outbox.lock().unwrap().acknowledged
}

/// Ends and starts edge-cloud repeatedly, until all is acknowledged; returns its final state.
/// `meanwhile` gets the round, once before and once after the start.
async fn through(
    place: &Place,
    outbox: &Arc<Mutex<Outbox>>,
    end: u64,
    mut meanwhile: impl FnMut(u32, bool),
) -> View {
    let mut rounds = 0;
    loop {
        rounds += 1;
        meanwhile(rounds, false);
        let cloud = place.start(outbox).await;
        meanwhile(rounds, true);
        // A part of the records each time, and the rest in the end.
        let goal = match rounds < 5 {
            true => acknowledged(outbox) + end / 8,
            false => end,
        };
        until(|| (acknowledged(outbox) >= goal.min(end)).then_some(())).await;
        if acknowledged(outbox) >= end {
            // Also records that were acknowledged at the last moment are in the ledger.
            return until(|| {
                let view = cloud.view();
                (view.streams.first()?.next == end).then_some(view)
            })
            .await;
        }
    }
}

fn check_ledger(view: &View, delivered: u64, lost: u64) {
    let [stream] = view.streams.as_slice() else {
        panic!("{view:?}");
    };
    assert!(stream.balanced);
    assert_eq!(stream.class, "toll");
    assert_eq!(stream.numbered, stream.delivered + stream.lost_total);
    assert_eq!((stream.delivered, stream.lost.quota), (delivered, lost));
    assert_eq!(stream.lost_total, lost);
}

/// Payloads in the files of a folder, in order. An incomplete line of a killed process
/// does not count, as for every reader of the files.
fn in_files(dir: &Path) -> Vec<String> {
    let mut days: Vec<_> = std::fs::read_dir(dir.join(NODE))
        .unwrap()
        .map(|day| day.unwrap().path().join("toll.jsonl"))
        .collect();
    days.sort();
    let mut payloads = Vec::new();
    for file in days {
        let text = std::fs::read_to_string(file).unwrap();
        for line in text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            payloads.extend(line["text"].as_str().map(str::to_owned));
        }
    }
    payloads
}

fn expected(count: u64) -> Vec<String> {
    (1..=count)
        .map(|number| format!("vehicle {number}"))
        .collect()
}

/// Goal: each record is in the files exactly once, in order, and the ledger agrees. Method: edge-cloud
/// is ended five times; its data folder is then restored from a backup of the beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_have_each_record_once() {
    let place = Place::new(None);
    let (outbox, end) = outbox(2_000);
    let before = Backup::of(place.data.path(), now()).unwrap();
    let view = through(&place, &outbox, end, |_, _| {}).await;
    assert_eq!(view.sink.guarantee, "effectively once");
    check_ledger(&view, 2_000, 60);
    let records = place.data.path().join("records");
    assert_eq!(in_files(&records), expected(2_000));

    // The files were kept: nothing is lost, and nothing is repeated.
    let options = backup::Options {
        force: true,
        keep_tokens: false,
        grace_s: 0,
    };
    until(|| backup::restore(&before, place.data.path(), options, now()).ok()).await;
    outbox.lock().unwrap().records.push(record(2_001));
    let cloud = place.start(&outbox).await;
    until(|| (acknowledged(&outbox) == end + 1).then_some(())).await;
    check_ledger(&cloud.view(), 2_001, 60);
    assert_eq!(in_files(&records), expected(2_001));
    drop(cloud);

    // Then they are deleted, too: records that the node no longer has are reported.
    until(|| std::fs::remove_dir_all(records.join(NODE)).ok()).await;
    outbox.lock().unwrap().records.push(record(2_002));
    let cloud = place.start(&outbox).await;
    until(|| (acknowledged(&outbox) == end + 2).then_some(())).await;
    let view = cloud.view();
    assert_eq!(view.streams[0].lost.forgotten, end);
    assert_eq!(
        (view.streams[0].delivered, view.streams[0].balanced),
        (1, true)
    );
    until(|| (cloud.events("RecordsLost") == 1).then_some(())).await;

    // A board with a new disk.
    {
        let mut outbox = outbox.lock().unwrap();
        outbox.incarnation = [8; 8];
        outbox.records = vec![record(1)];
        outbox.acknowledged = 1;
    }
    drop(cloud);
    let cloud = place.start(&outbox).await;
    until(|| (acknowledged(&outbox) == 2).then_some(())).await;
    until(|| (cloud.events("OutboxLost") == 1).then_some(())).await;
    let view = cloud.view();
    assert_eq!(
        (view.streams[0].outboxes, view.streams[0].balanced),
        (2, true)
    );
}

/// Goal: a server that fails in every way gets every record, and the same ones under the same key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_gets_each_record_at_least_once_with_a_key() {
    let server = Http::start().await;
    let place = Place::new(Some(server.url()));
    let (outbox, end) = outbox(1_000);
    let view = through(&place, &outbox, end, |_, _| {}).await;
    check_ledger(&view, 1_000, 30);
    let posts = server.posts();
    let mut by_key = BTreeMap::new();
    let mut by_seq = BTreeMap::new();
    for (key, body) in &posts.taken {
        let first = by_key.entry(key.clone()).or_insert_with(|| body.clone());
        assert_eq!(first, body, "{key}");
        assert!(key.starts_with("gate/0909090909090909/toll/"), "{key}");
        for line in body.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            by_seq.insert(
                line["seq"].as_u64().unwrap(),
                line["text"].as_str().map(str::to_owned),
            );
        }
    }
    assert!(posts.refused > 0 && !posts.denied.is_empty());
    // Records that were stored but answered with an error were sent again with their key. The last one may
    // have been in flight when edge-cloud ended; then its records were sent again in other batches.
    let again = |key: &&String| {
        posts
            .taken
            .iter()
            .filter(|(other, _)| other == *key)
            .count()
            > 1
    };
    assert!(posts.denied.iter().filter(again).count() > 0);
    let texts: Vec<String> = by_seq.into_values().flatten().collect();
    assert_eq!(texts, expected(1_000));
}

/// Goal: an MQTT broker that is down at times passes every record on, and one without a
/// subscriber loses none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_gets_each_record_at_least_once() {
    let mut broker = Mosquitto::start();
    let place = Place::new(Some(broker.url("edge/records")));
    let (outbox, end) = outbox(600);
    {
        let cloud = place.start(&outbox).await;
        until(|| {
            cloud
                .view()
                .sink
                .error
                .filter(|why| why.contains("subscribes"))
        })
        .await;
        assert_eq!(acknowledged(&outbox), 1);
        until(|| (cloud.events("RecordsFailing") > 0).then_some(())).await;
    }
    broker.subscribe("edge/records/#").await;
    let view = through(&place, &outbox, end, |round, runs| {
        if round == 3 && runs {
            broker.restart();
        }
    })
    .await;
    check_ledger(&view, 600, 18);
    // Some arrive twice, and the last one arrives after its acknowledgement.
    let texts = until(|| {
        let mut texts = BTreeMap::new();
        for (topic, payload, seq) in broker.heard() {
            if topic == "edge/records/gate/toll" {
                texts.insert(seq, payload);
            } else {
                assert_eq!(topic, "edge/records/gate/toll/lost");
            }
        }
        (texts.len() >= 600).then_some(texts)
    })
    .await;
    assert_eq!(texts.into_values().collect::<Vec<_>>(), expected(600));
}

/// Goal: a JetStream contains each record once, although edge-cloud loses its own position,
/// and the server is killed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jetstream_has_each_record_once() {
    let mut server = Jetstream::start();
    let place = Place::new(Some(server.url("edge")));
    let (outbox, end) = outbox(600);
    {
        let cloud = place.start(&outbox).await;
        until(|| {
            cloud
                .view()
                .sink
                .error
                .filter(|why| why.contains("no stream"))
        })
        .await;
        assert_eq!(acknowledged(&outbox), 1);
    }
    server.make_stream("edge.>").await;
    let cursors = place.data.path().join("cursors");
    let view = through(&place, &outbox, end, |round, runs| match (round, runs) {
        (2 | 4, false) => drop(std::fs::remove_file(cursors.join("gate.json"))),
        (3, true) => server.restart(),
        _ => {}
    })
    .await;
    check_ledger(&view, 600, 18);
    let messages = server.messages("edge.gate.toll").await;
    let texts = messages
        .iter()
        .filter(|(_, lost)| !lost)
        .map(|(text, _)| text.clone());
    assert_eq!(texts.collect::<Vec<_>>(), expected(600));
    assert_eq!(messages.len() as u64, end - 1);
}

/// Goal: a start waits for no ledger, a node waits only for its own, and its session then uses
/// that ledger. Method: the ledgers of many nodes, and one node's that cannot be read for now, because
/// it is a pipe without a writer.
#[tokio::test]
async fn a_start_does_not_wait_for_the_ledgers() {
    let long = std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty());
    let others = if long { 10_000 } else { 1_000 };
    let server = Http::start().await;
    let place = Place::new(Some(server.url()));
    let data = place.data.path();
    let nodes = data.join("nodes.json");
    // A start writes it as one value.
    drop(Registry::open(data, 0).unwrap());
    let mut state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&nodes).unwrap()).unwrap();
    let enrolment = state["nodes"][NODE].clone();
    let ledger = |next: u64| {
        let delivered = next - 1;
        let outbox = serde_json::json!(
            { "incarnation": "0909090909090909", "next": next, "delivered": delivered }
        );
        serde_json::json!({ "streams": { "0": { "outboxes": [outbox] } } }).to_string()
    };
    let cursors = data.join("cursors");
    std::fs::create_dir_all(&cursors).unwrap();
    for number in 0..others {
        let name = format!("gate-{number}");
        std::fs::write(cursors.join(&name).with_extension("json"), ledger(8)).unwrap();
        let mut enrolment = enrolment.clone();
        enrolment["serial"] = format!("{number:x}").into();
        state["nodes"][&name] = enrolment;
    }
    let ca = Ca::open(data).unwrap();
    let late = identity(&ca, "late", now(), 3_600);
    let mut enrolment = enrolment.clone();
    enrolment["serial"] = late.serial.clone().into();
    state["nodes"]["late"] = enrolment;
    std::fs::write(&nodes, state.to_string()).unwrap();
    let pipe = cursors.join("late.json");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());

    let (records, end) = outbox(5);
    let cloud = place.start(&records).await;
    // A node among them delivers, and all ledgers but one are there.
    until(|| (acknowledged(&records) >= end).then_some(())).await;
    let view = until(|| Some(cloud.view()).filter(|view| view.sink.unread <= 1)).await;
    assert_eq!(view.sink.unread, 1);
    assert_eq!(view.streams.len(), others + 1);
    assert!(view.streams.iter().all(|stream| stream.balanced));

    // The other node is connected, and its session waits.
    let at = Arc::new(Cloud::at(cloud.address, data, Arc::clone(&cloud.fleet)));
    let (boards, _) = outbox(9);
    let mut board = Board::open(&at, "late", &late, Answers::Never)
        .await
        .unwrap();
    board.outbox = Arc::clone(&boards);
    board.ready().await.unwrap();
    let running = tokio::spawn(async move { board.run().await });
    let waited = tokio::time::timeout(
        Duration::from_millis(1_500),
        at.until("", |at| at.is_live("late")),
    );
    assert!(waited.await.is_err(), "a session without a ledger");
    assert_eq!(acknowledged(&boards), 1);
    tokio::task::spawn_blocking(move || std::fs::write(pipe, ledger(8)))
        .await
        .unwrap()
        .unwrap();
    until(|| (acknowledged(&boards) == 10).then_some(())).await;
    let view = until(|| Some(cloud.view()).filter(|view| view.sink.unread == 0)).await;
    let row = view.streams.iter().find(|row| row.node == "late").unwrap();
    // Two of its nine were not in the ledger.
    assert_eq!((row.next, row.delivered, row.balanced), (10, 9, true));
    assert!(!running.is_finished());
    // The server may have answered a stored post with an error: the same again, with one key.
    let posts = server.posts().taken.into_iter().map(|(key, _)| key);
    let late: std::collections::BTreeSet<String> =
        posts.filter(|key| key.starts_with("late/")).collect();
    let late: Vec<String> = late.into_iter().collect();
    assert_eq!(late, ["late/0909090909090909/toll/8-9"]);
}
