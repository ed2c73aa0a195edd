//! A fleet of 10,000 nodes and 50,000 pods, and the controller's cost of one change in it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a measurement")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edge_cloud::changes::{ChangeFeed, ChangeNotices};
use edge_cloud::controller;
use edge_cloud::manifest::Manifests;
use edge_cloud::nodes::{DesiredSets, NodeReports, NodeView};
use edge_cloud::objects::{Object, ObjectStore};
use edge_cloud::placement::Desired;
use edge_cloud::pod_key;
use edge_cloud::source::{Source, SourceChanges, Status};
use edge_proto::key::{Key, Kind};
use edge_proto::object::{NodeStatus, Pod, PodStatus};
use memtests::measure::Figure;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, watch};

const NODES: usize = 10_000;
const PODS: usize = 5 * NODES;
/// Nodes with a change of each kind.
const ROUNDS: usize = 40;
/// From one such node to the next.
const STEP: usize = NODES / ROUNDS;
/// CPU time of one change, milliseconds.
const BAR_MS: f64 = 5.0;

/// A source in memory: documents that the benchmark has put.
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
            is_partial: false,
        }
    }

    async fn changed(&mut self) {
        self.touched.notified().await;
    }
}

/// Nodes that report their desired pods as running when `report` is called.
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
                has_report: true,
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

    /// The node reports its desired pods.
    fn report(&self, node: &str) {
        let pods = self.pods(node).into_iter().map(|pod| PodStatus {
            uid: pod.uid,
            namespace: pod.namespace,
            name: pod.name,
            ..PodStatus::default()
        });
        let pods: Vec<PodStatus> = pods.collect();
        self.change(node, |view| view.pods.clone_from(&pods));
    }

    fn change(&self, node: &str, change: impl Fn(&mut NodeView)) {
        change(self.views.lock().unwrap().get_mut(node).unwrap());
        self.feed.changed(node);
    }

    /// The pods of a node that are not to end.
    fn pods(&self, node: &str) -> Vec<Pod> {
        let desired = self.desired.lock().unwrap();
        let pods = desired[node].iter();
        let pods = pods.filter(|(key, _)| key.kind() == Kind::Pod);
        let pods = pods.map(|(_, payload)| Pod::decode(payload).unwrap());
        pods.filter(|pod| !pod.terminating).collect()
    }

    /// The image of the node's own pod.
    fn image(&self, node: &str) -> Option<String> {
        let mut pods = self.pods(node).into_iter();
        let pod = pods.find(|pod| pod.name.starts_with("pod-"))?;
        Some(pod.containers.first()?.image.clone())
    }

    /// Whether the node's set has this ConfigMap with this text.
    fn has_config(&self, node: &str, name: &str, value: &str) -> bool {
        let desired = self.desired.lock().unwrap();
        desired[node].iter().any(|(key, payload)| {
            let is_it = matches!(key, Key::Name(Kind::ConfigMap, _, one) if one == name);
            let mut parts = payload.windows(value.len());
            is_it && parts.any(|part| part == value.as_bytes())
        })
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

/// CPU time of this thread. Not from `/proc`, where it moves with the ticks of the scheduler.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap(),
        time.tv_nsec.try_into().unwrap(),
    )
}

/// A node's own pod, with a ConfigMap of its own if that is going to change.
fn pod(number: usize, version: usize) -> String {
    let config = match number % STEP {
        0 => format!(", envFrom: [{{configMapRef: {{name: own-{number}}}}}]"),
        _ => String::new(),
    };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}}}\nspec:\n  hostNetwork: \
         true\n  nodeName: gate-{number}\n  containers: [{{name: c, image: \"i:{version}\"{config}}}]\n"
    )
}

fn config(name: &str, value: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: {value}}}\n"
    )
}

/// Three DaemonSets, ten Deployments with 1,000 replicas each and a pod for each node, of which all name
/// a ConfigMap; and a DaemonSet for nodes with a label that none has.
fn fleet_documents() -> Vec<String> {
    let head = |kind: &str, name: &str, rest: &str, selector: &str| {
        format!(
            "---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{rest}  \
             selector: {{matchLabels: {{a: b}}}}\n  template:\n    metadata: {{labels: {{a: \
             b}}}}\n    spec:\n      hostNetwork: true\n{selector}      containers: [{{name: c, \
             image: i, envFrom: [{{configMapRef: {{name: lane}}}}]}}]\n"
        )
    };
    let mut texts = vec![config("lane", "b")];
    texts.extend((0..3).map(|number| head("DaemonSet", &format!("ds{number}"), "", "")));
    let selector = "      nodeSelector: {role: extra}\n";
    texts.push(head("DaemonSet", "extra", "", selector));
    let replicas = "  replicas: 1000\n";
    let deployments = 0..NODES / 1_000;
    texts.extend(deployments.map(|n| head("Deployment", &format!("web{n}"), replicas, "")));
    texts.extend((0..NODES).map(|number| pod(number, 1)));
    let changing = (0..NODES).step_by(STEP);
    texts.extend(changing.map(|number| config(&format!("own-{number}"), "first")));
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

/// CPU time of a change and of all its consequences.
async fn cost(change: impl Future<Output = ()>) -> Duration {
    let start = cpu();
    change.await;
    rest().await;
    cpu() - start
}

/// Waits until every node has its set and has reported that it runs it.
async fn until_all_run(fleet: &Fleet, status: &watch::Receiver<Status>) {
    while fleet.desired.lock().unwrap().len() < NODES || status.borrow().placement.pods.len() < PODS
    {
        fleet.given.notified().await;
        rest().await;
    }
    assert!(status.borrow().placement.unplaced.is_empty());
    for number in 0..NODES {
        fleet.report(&format!("gate-{number}"));
    }
    rest().await;
}

/// The figures, in milliseconds; each change is of another node and is checked.
async fn changes(source: &Memory, fleet: &Fleet) -> Vec<Figure> {
    let mut costs: [Vec<Duration>; 5] = Default::default();
    for number in (0..NODES).step_by(STEP) {
        let node = format!("gate-{number}");
        let count = fleet.pods(&node).len();
        // All steps of a changed pod: the old one ends, its node reports it, and the new one is sent.
        let pod = cost(async {
            source.put(pod(number, 2));
            rest().await;
            fleet.report(&node);
        });
        costs[0].push(pod.await);
        assert_eq!(fleet.image(&node).as_deref(), Some("i:2"));
        costs[1].push(cost(async { fleet.report(&node) }).await);
        let label = cost(async {
            fleet.change(&node, |view| {
                view.labels = [("role".into(), "extra".into())].into_iter().collect();
            });
        });
        costs[2].push(label.await);
        assert_eq!(fleet.pods(&node).len(), count + 1);
        let connect = cost(async {
            for connected in [false, true] {
                fleet.change(&node, |view| view.connected = connected);
                rest().await;
            }
        });
        costs[3].push(connect.await);
        let name = format!("own-{number}");
        costs[4].push(cost(async { source.put(config(&name, "second")) }).await);
        assert!(fleet.has_config(&node, &name, "second"));
    }
    let what = [
        "one changed pod",
        "one report",
        "one label of a node",
        "one link, lost and back",
        "one changed ConfigMap",
    ];
    let figures = what.into_iter().zip(costs).map(|(what, costs)| {
        let promise = format!("edge-cloud, {NODES} nodes: CPU time of {what}");
        Figure::new(promise, median(costs), "ms", BAR_MS)
    });
    figures.collect()
}

/// Cost of changes, and of placing everything.
pub(crate) async fn measure() -> Vec<Figure> {
    let data = tempfile::tempdir().unwrap();
    let (source, fleet) = (Memory::default(), Arc::new(Fleet::new()));
    source.put(String::new());
    source.texts.lock().unwrap().extend(fleet_documents());
    let (sink, status) = watch::channel(Status::default());
    let measured = async {
        let start = cpu();
        until_all_run(&fleet, &status).await;
        let promise = format!("edge-cloud, {NODES} nodes: CPU time to place all {PODS} pods");
        let all = Figure::recorded(promise, (cpu() - start).as_secs_f64(), "s");
        let mut figures = changes(&source, &fleet).await;
        figures.push(all);
        figures
    };
    let ids = pod_key::open(data.path()).unwrap();
    tokio::select! {
        () = controller::run(source.clone(), sink, Arc::clone(&fleet), data.path(), ids) => {
            panic!("it runs for ever")
        }
        figures = measured => figures,
    }
}
