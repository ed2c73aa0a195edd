//! Goal: a change of one pod or node costs edge-cloud work for that node only. Method: the real
//! controller with its files, over 10,000 nodes and 50,000 pods from a source and nodes in memory;
//! CPU time of the thread from a change until its node was given its set, or until the change of
//! its report was taken in, as the median of many. Fails above `BAR_MS`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edge_cloud::changes::{ChangeFeed, ChangeNotices};
use edge_cloud::controller;
use edge_cloud::manifest::Manifests;
use edge_cloud::nodes::{DesiredSets, NodeReports, NodeView};
use edge_cloud::objects::{Object, ObjectStore};
use edge_cloud::placement::Desired;
use edge_cloud::source::{Source, SourceChanges, Status};
use edge_proto::key::{Key, Kind};
use edge_proto::object::{NodeStatus, Pod, PodStatus};
use tokio::sync::{Notify, watch};

const NODES: usize = 10_000;
const ROUNDS: usize = 40;
/// CPU time of one change.
const BAR_MS: f64 = 5.0;

/// Documents that are put when the controller asks for changes.
#[derive(Clone, Default)]
struct Memory {
    texts: Arc<Mutex<VecDeque<String>>>,
    touched: Arc<Notify>,
}

impl Memory {
    fn put(&self, text: String) {
        self.texts.lock().unwrap().push_back(text);
        self.touched.notify_one();
    }
}

impl Source for Memory {
    async fn read(&mut self, _: &ObjectStore) -> SourceChanges {
        let mut manifests = Manifests::default();
        for text in self.texts.lock().unwrap().drain(..) {
            manifests.add_file("memory.yaml", &text);
        }
        assert_eq!(manifests.problems, []);
        let objects = manifests.objects.into_iter();
        let objects = objects.map(|(id, (origin, content))| (id, Some(Object { origin, content })));
        SourceChanges {
            objects: objects.collect(),
            problems: Vec::new(),
            has_objects: true,
        }
    }

    async fn changed(&mut self) {
        self.touched.notified().await;
    }
}

/// Nodes that run what they are asked for once they are told to.
#[derive(Default)]
struct Fleet {
    views: Mutex<BTreeMap<String, NodeView>>,
    desired: Mutex<BTreeMap<String, Desired>>,
    feed: ChangeFeed,
    given: Notify,
}

impl Fleet {
    fn new() -> Self {
        let view = |number| {
            let name = format!("gate-{number}");
            let view = NodeView {
                name: name.clone(),
                connected: true,
                heard: true,
                status: Some(NodeStatus {
                    arch: "aarch64".into(),
                    ..NodeStatus::default()
                }),
                ..NodeView::default()
            };
            (name, view)
        };
        Self {
            views: Mutex::new((0..NODES).map(view).collect()),
            ..Self::default()
        }
    }

    /// The node reports what it is asked for.
    fn report(&self, node: &str) {
        let desired = self.desired.lock().unwrap();
        let pods = desired[node]
            .iter()
            .filter(|(key, _)| key.kind() == Kind::Pod);
        let pods = pods.map(|(_, payload)| Pod::decode(payload).unwrap());
        let pods = pods.filter(|pod| !pod.terminating).map(|pod| PodStatus {
            uid: pod.uid,
            namespace: pod.namespace,
            name: pod.name,
            ..PodStatus::default()
        });
        self.views.lock().unwrap().get_mut(node).unwrap().pods = pods.collect();
        drop(desired);
        self.feed.changed(node);
    }

    fn image(&self, node: &str) -> Option<String> {
        let desired = self.desired.lock().unwrap();
        let pods = desired
            .get(node)?
            .iter()
            .filter_map(|(key, payload)| match key {
                Key::Uid(Kind::Pod, _) => Pod::decode(payload).ok(),
                _ => None,
            });
        let mut pods = pods.filter(|pod| pod.name.starts_with("pod-") && !pod.terminating);
        Some(pods.next()?.containers.first()?.image.clone())
    }
}

impl NodeReports for Fleet {
    fn subscribe(&self) -> ChangeNotices {
        self.feed.subscribe()
    }

    fn view(&self, node: &str) -> Option<NodeView> {
        self.views.lock().unwrap().get(node).cloned()
    }

    fn views(&self) -> Vec<NodeView> {
        self.views.lock().unwrap().values().cloned().collect()
    }
}

impl DesiredSets for Fleet {
    fn set_desired(&self, node: &str, desired: &Desired) {
        let mut all = self.desired.lock().unwrap();
        all.insert(node.to_owned(), desired.clone());
        drop(all);
        self.feed.changed(node);
        self.given.notify_one();
    }
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn pod(number: usize, version: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}}}\nspec:\n  hostNetwork: \
         true\n  nodeName: gate-{number}\n  containers: [{{name: c, image: \"i:{version}\"}}]\n"
    )
}

fn fleet_documents() -> Vec<String> {
    let head = |kind: &str, name: &str, rest: &str| {
        format!(
            "---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{rest}  \
             selector: {{matchLabels: {{a: b}}}}\n  template:\n    metadata: {{labels: {{a: \
             b}}}}\n    spec:\n      hostNetwork: true\n      containers: [{{name: c, image: i, \
             envFrom: [{{configMapRef: {{name: lane}}}}]}}]\n"
        )
    };
    let lane = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: lane}\ndata: {a: b}\n";
    let mut texts = vec![lane.to_owned()];
    texts.extend((0..3).map(|number| head("DaemonSet", &format!("ds{number}"), "")));
    let deployments = 0..NODES / 1_000;
    texts.extend(deployments.map(|n| head("Deployment", &format!("web{n}"), "  replicas: 1000\n")));
    texts.extend((0..NODES).map(|number| pod(number, 1)));
    texts
}

/// Lets the controller run until it waits.
async fn rest() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

async fn measure(source: &Memory, fleet: &Fleet, status: &watch::Receiver<Status>) -> [f64; 2] {
    while fleet.desired.lock().unwrap().len() < NODES
        || status.borrow().placement.pods.len() < 5 * NODES
    {
        fleet.given.notified().await;
        rest().await;
    }
    assert!(status.borrow().placement.unplaced.is_empty());
    for number in 0..NODES {
        fleet.report(&format!("gate-{number}"));
    }
    rest().await;
    let (mut pods, mut reports) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let number = round * 200;
        let node = format!("gate-{number}");
        // The whole way of a changed pod: the old one ends, its node says so, and the new one goes out.
        let start = cpu();
        source.put(pod(number, 2));
        rest().await;
        fleet.report(&node);
        rest().await;
        pods.push(cpu() - start);
        assert_eq!(fleet.image(&node).as_deref(), Some("i:2"));
        let start = cpu();
        fleet.report(&node);
        rest().await;
        reports.push(cpu() - start);
    }
    [median(pods), median(reports)]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let data = tempfile::tempdir().unwrap();
    let (source, fleet) = (Memory::default(), Arc::new(Fleet::new()));
    source.put(String::new());
    source.texts.lock().unwrap().extend(fleet_documents());
    let (sink, status) = watch::channel(Status::default());
    let start = cpu();
    let [pod_ms, report_ms] = tokio::select! {
        () = controller::run(source.clone(), sink, Arc::clone(&fleet), data.path()) => {
            panic!("it runs for ever")
        }
        medians = measure(&source, &fleet, &status) => medians,
    };
    println!(
        "nodes={NODES} pods={} all_s={:.1}",
        5 * NODES,
        (cpu() - start).as_secs_f64()
    );
    println!("changed_pod_ms={pod_ms:.2} changed_report_ms={report_ms:.2} bar_ms={BAR_MS}");
    assert!(pod_ms <= BAR_MS && report_ms <= BAR_MS, "over the bar");
}
