//! Goal: manifests in a folder become desired sets, and a restart, a damaged file and a node that
//! has not reported yet change nothing. Method: the real folder, controller and files; the links
//! are a recorder.
#![expect(clippy::unwrap_used, reason = "a test")]

mod recorder;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edge_cloud::backup::{self, Backup};
use edge_cloud::controller;
use edge_cloud::identity::ca::Ca;
use edge_cloud::identity::registry::Registry;
use edge_cloud::source::{Folder, Status};
use edge_proto::object::{Pod, PodStatus};
use recorder::Recorder;
use tokio::sync::watch;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/toll-gate");

/// Time for any state to come; a busy host must reach it, too.
const STATE_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs the controller until `done` holds for status and links.
async fn run(
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
    tokio::select! {
        () = controller::run(source, sink, Arc::clone(links), data) => panic!("it runs for ever"),
        () = watched => {}
        () = tokio::time::sleep(STATE_TIMEOUT) => panic!("nothing happened in {STATE_TIMEOUT:?}"),
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
    run(folder.path(), data.path(), &links, |status, _| {
        assert!(!status.problems.is_empty());
        true
    })
    .await;
    assert_eq!(links.desired("gate-1"), first);
}

/// Goal: data restored from an old backup touches no workload. Method: a pod goes to the second of
/// two nodes after the backup was made; the restored controller hears the nodes one by one.
#[tokio::test]
async fn after_a_restore_a_node_is_given_nothing_before_its_whole_report_is_here() {
    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: counter}\nspec:\n  \
                       runtimeClassName: process\n  containers: [{name: c, command: [/bin/c]}]\n";
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
            // Half of the second node's report.
            1 => links.report_half("gate-2"),
            _ if links.desired("gate-1").is_none() => {}
            _ if !links.is_heard("gate-2") => {
                assert_eq!(links.desired("gate-2"), None);
                links.report_pod(
                    "gate-2",
                    PodStatus {
                        uid: pod.uid,
                        namespace: pod.namespace.clone(),
                        name: pod.name.clone(),
                        ..PodStatus::default()
                    },
                );
                links.report("gate-2");
            }
            _ => {
                return links
                    .desired("gate-2")
                    .is_some_and(|desired| !desired.is_empty());
            }
        }
        false
    })
    .await;
    assert_eq!(links.desired("gate-2").unwrap(), before);
    assert_eq!(links.desired("gate-1").unwrap().len(), 0);
}

/// Goal: who restores the data and forgets the manifests ends no pod. Method: an empty folder, and
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
                    let (uid, namespace, name) = (pod.uid, pod.namespace, pod.name);
                    let status = PodStatus {
                        uid,
                        namespace,
                        name,
                        ..PodStatus::default()
                    };
                    links.report_pod("gate-1", status);
                }
            }
            links.report("gate-1");
        }
        let told = status
            .problems
            .iter()
            .any(|one| one.reason.contains("is empty"));
        told && has(links, 4)
    })
    .await;
    assert_eq!(again.desired("gate-1").unwrap(), before);
    // Meant: what the folder holds counts from its first object on.
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

#[tokio::test]
async fn a_node_that_never_reported_is_given_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let links = Arc::new(Recorder::default());
    links.join("gate-1");
    run(folder.path(), data.path(), &links, |_, _| true).await;
    assert_eq!(links.desired("gate-1"), None);
}
