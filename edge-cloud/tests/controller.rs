//! Goal: manifests in a folder become desired sets, and a restart, a damaged file and a node that
//! has not reported yet change nothing. Method: the real folder, controller and files; the links
//! are a recorder.
#![expect(clippy::unwrap_used, reason = "a test")]

mod recorder;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge_cloud::backup::{self, Backup};
use edge_cloud::controller::{self, SETTLE};
use edge_cloud::identity::ca::Ca;
use edge_cloud::identity::registry::Registry;
use edge_cloud::nodes::{NodeAdmin as _, NodeView};
use edge_cloud::pod_key;
use edge_cloud::saved::PLACEMENT;
use edge_cloud::source::{Folder, Status, StatusChange, StatusSink};
use edge_proto::object::{Pod, PodStatus};
use recorder::Recorder;
use tokio::sync::{mpsc, watch};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/toll-gate");

/// A pod that any node may run.
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: counter}\nspec:\n  \
                   runtimeClassName: process\n  containers: [{name: c, command: [/bin/c]}]\n";

/// Timeout for any state to be reached, also on a busy host.
const STATE_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs the controller until `done` holds for status and links.
async fn run(
    folder: &Path,
    data: &Path,
    links: &Arc<Recorder>,
    done: impl Fn(&Status, &Recorder) -> bool,
) {
    run_for(STATE_TIMEOUT, folder, data, links, done).await;
}

/// The same, within a time of the test's own.
async fn run_for(
    timeout: Duration,
    folder: &Path,
    data: &Path,
    links: &Arc<Recorder>,
    done: impl Fn(&Status, &Recorder) -> bool,
) {
    let (sink, mut status) = watch::channel(Status::default());
    let watched = async {
        loop {
            status.changed().await.unwrap();
            if done(&status.borrow_and_update(), links) {
                return;
            }
        }
    };
    let source = Folder::new(folder.to_owned());
    let ids = pod_key::open(data).unwrap();
    tokio::select! {
        () = controller::run(source, sink, Arc::clone(links), data, ids) => panic!("it runs for ever"),
        () = watched => {}
        () = tokio::time::sleep(timeout) => panic!("nothing happened in {timeout:?}"),
    }
}

fn copy_example(folder: &Path) {
    for entry in std::fs::read_dir(EXAMPLE).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
}

#[tokio::test]
async fn the_example_reaches_the_node_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    copy_example(folder.path());
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    run(folder.path(), data.path(), &links, |status, links| {
        assert_eq!(status.problems, []);
        assert!(status.placement.unplaced.is_empty());
        // Two pods, the ConfigMap and the Secret.
        links
            .desired("gate-1")
            .is_some_and(|desired| desired.len() == 4)
    })
    .await;
    let first = links.desired("gate-1");

    // Restarted: the node is known by name only, and one file is damaged meanwhile.
    std::fs::write(folder.path().join("toll-counter.yaml"), "apiVersion: [").unwrap();
    let links = Arc::new(Recorder::default());
    links.join("gate-1");
    run(folder.path(), data.path(), &links, |status, links| {
        assert_eq!(links.desired("gate-1"), first);
        // Also those that were placed before.
        assert_eq!(status.placement.pods.len(), 2);
        !status.problems.is_empty()
    })
    .await;
    assert_eq!(links.desired("gate-1"), first);
}

/// Goal: no node selects a workload by what its own config says, and none gets pods that nobody has approved.
/// Method: two nodes that claim the label; one is given it, and gets the pod once it is approved.
#[tokio::test]
async fn labels_and_approval_come_from_the_registry() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let links = Arc::new(Recorder::default());
    let claimed = vec![("role".to_owned(), "bank".to_owned())];
    for node in ["evil", "gate"] {
        links.report(node);
        links.change(node, |view| {
            view.awaits_approval = true;
            let status = view.status.as_mut().unwrap();
            status.labels.clone_from(&claimed);
        });
    }
    let pod = POD.replace("spec:", "spec:\n  nodeSelector: {role: bank}");
    std::fs::write(folder.path().join("pod.yaml"), pod).unwrap();
    let why = |status: &Status| {
        let unplaced = status.placement.unplaced.values().next();
        unplaced.map(|one| one.reason.clone()).unwrap_or_default()
    };
    let step = std::sync::atomic::AtomicU32::new(0);
    run(folder.path(), data.path(), &links, |status, links| {
        let next = || step.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        match step.load(std::sync::atomic::Ordering::Relaxed) {
            0 if why(status) == "no node has the labels of nodeSelector" => {
                links.change("evil", |view| view.awaits_approval = false);
                let role = [("role".to_owned(), "bank".to_owned())];
                links.change("gate", |view| view.labels.extend(role.clone()));
                next();
            }
            1 if links.desired("evil").is_some() => {
                assert_eq!(why(status), "no node has the labels of nodeSelector");
                assert_eq!(links.desired("gate"), None);
                links.change("gate", |view| view.awaits_approval = false);
                next();
            }
            2 => return links.desired("gate").is_some_and(|set| set.len() == 1),
            _ => {}
        }
        false
    })
    .await;
    assert_eq!(links.desired("evil").unwrap().len(), 0);
}

/// What a node reports of a pod, as far as placement reads it.
fn status_of(pod: &Pod) -> PodStatus {
    PodStatus {
        uid: pod.uid,
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        ..PodStatus::default()
    }
}

/// Goal: data restored from an old backup affects no workload. Method: a pod goes to the second of
/// two nodes after the backup was made; the restored controller gets the nodes' reports one by one.
#[tokio::test]
async fn after_a_restore_a_node_is_given_nothing_before_its_whole_report_is_here() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    Ca::open(data.path()).unwrap();
    Registry::open(data.path(), 0).unwrap();
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    links.report("gate-2");
    let first = POD
        .replace("counter", "first")
        .replace("spec:", "spec:\n  nodeName: gate-1");
    std::fs::write(folder.path().join("first.yaml"), first).unwrap();
    let has_one = |links: &Recorder, node: &str| {
        links
            .desired(node)
            .is_some_and(|desired| desired.len() == 1)
    };
    run(folder.path(), data.path(), &links, |_, links| {
        has_one(links, "gate-1")
    })
    .await;
    let backup = Backup::of(data.path(), 10).unwrap();

    // The first node has a pod already, so the new one goes to the second.
    std::fs::write(folder.path().join("counter.yaml"), POD).unwrap();
    run(folder.path(), data.path(), &links, |_, links| {
        has_one(links, "gate-2")
    })
    .await;
    let before = links.desired("gate-2").unwrap();
    let pod = Pod::decode(before.values().next().unwrap()).unwrap();
    std::fs::remove_file(folder.path().join("first.yaml")).unwrap();

    let options = backup::Options {
        force: true,
        keep_tokens: false,
        grace_s: 60,
    };
    backup::restore(&backup, data.path(), options, 20).unwrap();
    let links = Arc::new(Recorder::default());
    links.join("gate-1");
    links.join("gate-2");
    let step = std::sync::atomic::AtomicU32::new(0);
    run(folder.path(), data.path(), &links, |status, links| {
        match step.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => {
                assert!(!status.placement.unplaced.is_empty());
                links.report("gate-1");
            }
            // An incomplete report of the second node.
            1 => links.report_half("gate-2"),
            _ if links.desired("gate-1").is_none() => {}
            _ if !links.is_heard("gate-2") => {
                assert_eq!(links.desired("gate-2"), None);
                links.report_pod("gate-2", status_of(&pod));
                links.report("gate-2");
            }
            _ => {
                let count = |node: &str| links.desired(node).map(|desired| desired.len());
                return (count("gate-1"), count("gate-2")) == (Some(0), Some(1));
            }
        }
        false
    })
    .await;
    assert_eq!(links.desired("gate-2").unwrap(), before);
    assert_eq!(links.desired("gate-1").unwrap().len(), 0);
}

/// Goal: a pod that is not wanted any more ends before its name is free, also over a restart of edge-cloud.
/// Method: its manifest goes while edge-cloud is down; its node reports after the next start but one.
#[tokio::test]
async fn a_pod_that_must_end_is_waited_for_until_its_node_has_reported() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    let file = folder.path().join("counter.yaml");
    std::fs::write(&file, POD).unwrap();
    run(folder.path(), data.path(), &links, |_, links| {
        links.desired("gate-1").is_some_and(|all| all.len() == 1)
    })
    .await;
    std::fs::remove_file(&file).unwrap();
    let links = Arc::new(Recorder::default());
    links.join("gate-1");
    run(folder.path(), data.path(), &links, |status, _| {
        let mut pods = status.placement.pods.values();
        assert_eq!(pods.len(), 1, "the node may still run it");
        pods.all(|placed| placed.pod.terminating)
    })
    .await;
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    run(folder.path(), data.path(), &links, |status, _| {
        status.placement.pods.is_empty()
    })
    .await;
}

/// Goal: a saved pod that cannot be read is not started a second time. Method: a pod that may go to any
/// node runs on the second one; its line in the file is damaged, and the first node reports first.
#[tokio::test]
async fn a_saved_pod_that_cannot_be_read_starts_on_no_other_node() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    links.report("gate-2");
    let first = POD
        .replace("counter", "first")
        .replace("spec:", "spec:\n  nodeName: gate-1");
    std::fs::write(folder.path().join("first.yaml"), first).unwrap();
    let count = |links: &Recorder, node: &str| links.desired(node).map_or(0, |all| all.len());
    run(folder.path(), data.path(), &links, |_, links| {
        count(links, "gate-1") == 1
    })
    .await;
    std::fs::write(folder.path().join("counter.yaml"), POD).unwrap();
    run(folder.path(), data.path(), &links, |_, links| {
        count(links, "gate-2") == 1
    })
    .await;
    let before = links.desired("gate-2").unwrap();
    let payload = before.values().next().unwrap();
    let pod = Pod::decode(payload).unwrap();

    let file = data.path().join(PLACEMENT);
    let (text, saved) = (
        std::fs::read_to_string(&file).unwrap(),
        STANDARD.encode(payload),
    );
    assert!(text.contains(&saved));
    std::fs::write(&file, text.replace(&saved, "AAAA")).unwrap();
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    links.join("gate-2");
    run(folder.path(), data.path(), &links, |status, links| {
        assert!(count(links, "gate-1") <= 1);
        if count(links, "gate-1") == 1 && !links.is_heard("gate-2") {
            assert_eq!(links.desired("gate-2"), None);
            assert_eq!(status.placement.unplaced.len(), 1);
            links.report_pod("gate-2", status_of(&pod));
            links.report("gate-2");
        }
        count(links, "gate-2") == 1
    })
    .await;
    assert_eq!(links.desired("gate-2").unwrap(), before);
}

/// Goal: after a restore a pod does not wait for ever because the folder cannot be read. Method: the
/// pod of the backup may go to any node; the folder is missing, and the time is virtual.
#[tokio::test(start_paused = true)]
async fn after_a_restore_pods_are_placed_although_the_folder_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    Ca::open(data.path()).unwrap();
    Registry::open(data.path(), 0).unwrap();
    std::fs::write(folder.path().join("counter.yaml"), POD).unwrap();
    let links = Arc::new(Recorder::default());
    run(folder.path(), data.path(), &links, |status, _| {
        status.objects == 1
    })
    .await;
    let backup = Backup::of(data.path(), 10).unwrap();
    let options = backup::Options {
        force: true,
        keep_tokens: false,
        grace_s: 0,
    };
    backup::restore(&backup, data.path(), options, 20).unwrap();

    let missing = folder.path().join("missing");
    links.report("gate-1");
    let count = |links: &Recorder| links.desired("gate-1").map_or(0, |all| all.len());
    let start = tokio::time::Instant::now();
    run_for(
        2 * SETTLE,
        &missing,
        data.path(),
        &links,
        |status, links| {
            assert!(!status.problems.is_empty());
            count(links) == 1
        },
    )
    .await;
    assert!(
        start.elapsed() >= SETTLE,
        "a node might still have reported"
    );
    // After a restart the unreadable folder does not end it either.
    let again = Arc::new(Recorder::default());
    again.report("gate-1");
    run(&missing, data.path(), &again, |_, links| count(links) == 1).await;
}

/// Goal: a node that was deleted and has joined before the controller read it gets its set. Method:
/// one notice for both.
#[tokio::test]
async fn a_node_that_was_deleted_and_has_joined_within_one_round_is_given_its_set() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    copy_example(folder.path());
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    let given = std::sync::Mutex::new(Vec::new());
    run(folder.path(), data.path(), &links, |_, links| {
        let desired = links.desired("gate-1").filter(|desired| desired.len() == 4);
        let Some(desired) = desired else {
            return false;
        };
        let mut given = given.lock().unwrap();
        given.push(desired);
        if given.len() == 1 {
            links.rejoin("gate-1");
        }
        given.len() == 2
    })
    .await;
    let given = given.into_inner().unwrap();
    assert_eq!(given[0], given[1]);
}

/// Goal: restoring the data without the manifests ends no pod. Method: an empty folder, and
/// then one with a single object.
#[tokio::test]
async fn after_a_restore_an_empty_folder_ends_no_pod() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    Ca::open(data.path()).unwrap();
    Registry::open(data.path(), 0).unwrap();
    copy_example(folder.path());
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    let has = |links: &Recorder, count: usize| {
        links
            .desired("gate-1")
            .is_some_and(|desired| desired.len() == count)
    };
    run(folder.path(), data.path(), &links, |_, links| has(links, 4)).await;
    let before = links.desired("gate-1").unwrap();
    let backup = Backup::of(data.path(), 10).unwrap();
    let options = backup::Options {
        force: true,
        keep_tokens: false,
        grace_s: 0,
    };
    backup::restore(&backup, data.path(), options, 20).unwrap();

    let empty = tempfile::tempdir().unwrap();
    let again = Arc::new(Recorder::default());
    again.join("gate-1");
    run(empty.path(), data.path(), &again, |status, links| {
        if !links.is_heard("gate-1") {
            for payload in before.values() {
                if let Ok(pod) = Pod::decode(payload) {
                    links.report_pod("gate-1", status_of(&pod));
                }
            }
            links.report("gate-1");
        }
        let is_reported = status
            .problems
            .iter()
            .any(|one| one.reason.contains("is empty"));
        is_reported && has(links, 4)
    })
    .await;
    assert_eq!(again.desired("gate-1").unwrap(), before);
    // Intended: the content of the folder counts from its first object on.
    let lane = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\ndata: {a: b}\n";
    std::fs::write(empty.path().join("lane.yaml"), lane).unwrap();
    run(empty.path(), data.path(), &again, |status, _| {
        status.problems.is_empty() && status.objects == 1
    })
    .await;
}

#[tokio::test]
async fn a_change_of_the_folder_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    let path = folder.path().to_owned();
    run(folder.path(), data.path(), &links, |_, links| {
        if links
            .desired("gate-1")
            .is_some_and(|desired| desired.is_empty())
        {
            copy_example(&path);
        }
        links
            .desired("gate-1")
            .is_some_and(|desired| desired.len() == 4)
    })
    .await;
}

/// Goal: a file that is being written ends nothing, however long that takes. Method: the file of a pod is
/// emptied and left open, as a shell does for `helm template > file`; files beside it show that the folder
/// was read meanwhile.
#[tokio::test]
async fn a_file_that_is_being_written_ends_no_pod() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    let add = |name: &str| {
        let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
        let staged = folder.path().join(".staged");
        std::fs::write(&staged, text).unwrap();
        std::fs::rename(staged, folder.path().join(format!("{name}.yaml"))).unwrap();
    };
    let path = folder.path().join("counter.yaml");
    std::fs::write(&path, POD).unwrap();
    let first = std::sync::Mutex::new(None);
    let open = std::sync::Mutex::new(None);
    run(folder.path(), data.path(), &links, |status, links| {
        use std::io::Write as _;
        let desired = links
            .desired("gate-1")
            .filter(|desired| !desired.is_empty());
        let mut first = first.lock().unwrap();
        match (status.objects, desired) {
            (1, Some(desired)) if first.is_none() => {
                *first = Some(desired);
                *open.lock().unwrap() = Some(std::fs::File::create(&path).unwrap());
                add("one");
            }
            (2, desired) => {
                assert_eq!(desired, *first);
                if let Some(mut file) = open.lock().unwrap().take() {
                    file.write_all(POD.as_bytes()).unwrap();
                    drop(file);
                    add("two");
                }
            }
            (3, desired) => {
                assert_eq!(desired, *first);
                return true;
            }
            _ => assert!(first.is_none(), "the pod has gone"),
        }
        false
    })
    .await;
}

#[tokio::test]
async fn a_node_that_never_reported_is_given_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let links = Arc::new(Recorder::default());
    links.join("gate-1");
    run(folder.path(), data.path(), &links, |_, _| true).await;
    assert_eq!(links.desired("gate-1"), None);
}

/// A sink that passes on the reports of nodes: the name, and whether it is connected with how many
/// pods.
struct Reports(mpsc::Sender<Report>);

type Report = (String, Option<(bool, usize)>);

impl StatusSink for Reports {
    fn placed(&mut self, _: StatusChange<'_>) {}

    fn reported(&mut self, node: &str, view: Option<&NodeView>) {
        let view = view.map(|view| (view.connected, view.pods.len()));
        self.0.try_send((node.to_owned(), view)).unwrap();
    }
}

/// Goal: a sink gets each change of a node once, and no node that has not changed. Method: one change
/// after the other, each when the previous one has arrived; the last one shows that nothing is left.
#[tokio::test]
async fn the_sink_is_given_each_change_of_a_node_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let links = Arc::new(Recorder::default());
    let (sink, mut reports) = mpsc::channel(64);
    let report = |name: &str, view| (name.to_owned(), view);
    links.join("gate-1");
    links.join("gate-2");
    let changes = async {
        let mut next = async || reports.recv().await.unwrap();
        assert_eq!(next().await, report("gate-1", Some((false, 0))));
        assert_eq!(next().await, report("gate-2", Some((false, 0))));
        links.report("gate-1");
        assert_eq!(next().await, report("gate-1", Some((true, 0))));
        // It got its set.
        assert_eq!(next().await, report("gate-1", Some((true, 0))));
        links.report_pod("gate-1", PodStatus::default());
        assert_eq!(next().await, report("gate-1", Some((true, 1))));
        assert_eq!(links.delete("gate-1").await, Ok(true));
        assert_eq!(next().await, report("gate-1", None));
        links.report_pod("gate-2", PodStatus::default());
        assert_eq!(next().await, report("gate-2", Some((false, 1))));
    };
    let source = Folder::new(folder.path().to_owned());
    let ids = pod_key::open(data.path()).unwrap();
    tokio::select! {
        () = controller::run(source, Reports(sink), Arc::clone(&links), data.path(), ids) => {
            panic!("it runs for ever")
        }
        () = changes => {}
        () = tokio::time::sleep(STATE_TIMEOUT) => panic!("nothing happened in {STATE_TIMEOUT:?}"),
    }
}
