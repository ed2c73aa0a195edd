//! Decisions of placement, on examples; the incremental one and the reference agree on each.

use edge_proto::key::Kind;

use super::*;
use crate::manifest::Manifests;
use crate::objects::ObjectStore;

mod incremental;

fn manifests(text: &str) -> ObjectStore {
    let mut manifests = Manifests::default();
    manifests.add_file("gate.yaml", text);
    assert_eq!(manifests.problems, []);
    let mut store = ObjectStore::default();
    assert_eq!(store.apply(&manifests), store.len());
    store
}

/// A placement with the nodes' sets.
#[derive(Debug, PartialEq)]
struct Result {
    pods: Pods,
    desired: BTreeMap<String, Desired>,
    unplaced: Vec<Unplaced>,
}

type Pods = BTreeMap<Uid, Arc<PlacedPod>>;

/// One round from scratch, by the placer and by the reference.
fn place(
    store: &ObjectStore,
    nodes: &BTreeMap<String, NodeState>,
    before: &Pods,
    settled: bool,
) -> Result {
    let (placement, desired) = reference::place(store, nodes, before, &BTreeMap::new(), settled);
    let start = before
        .iter()
        .map(|(uid, placed)| (*uid, PlacedPod::clone(placed)));
    let mut placer = Placer::new(PodIds::default(), start.collect(), settled);
    for (name, node) in nodes {
        placer.node_changed(store, name, Some(node.clone()));
    }
    for (id, _) in store.iter() {
        placer.object_changed(store, id);
    }
    placer.round(store);
    assert_eq!(placer.placement(), &placement);
    for (name, set) in &desired {
        assert_eq!(placer.desired(name), Some(set), "{name}");
    }
    Result {
        pods: placement.pods,
        desired,
        unplaced: placement.unplaced.into_values().collect(),
    }
}

fn nodes(names: &[&str]) -> BTreeMap<String, NodeState> {
    let node = |name: &&str| {
        let labels = [("site".to_owned(), name[..1].to_owned())].into();
        let node = NodeState {
            labels,
            arch: "aarch64".to_owned(),
            connected: true,
            ..NodeState::default()
        };
        ((*name).to_owned(), node)
    };
    names.iter().map(node).collect()
}

/// The nodes report exactly their desired pods.
fn report(nodes: &mut BTreeMap<String, NodeState>, placement: &Result) {
    for (name, node) in nodes {
        node.reported = placement
            .pods
            .iter()
            .filter(|(_, placed)| placed.node == *name && !placed.pod.terminating)
            .map(|(uid, placed)| {
                let pod = &placed.pod;
                (*uid, (pod.namespace.clone(), pod.name.clone()))
            })
            .collect();
    }
}

fn lines(placement: &Result) -> Vec<String> {
    let mut lines: Vec<_> = placement
        .pods
        .values()
        .map(|placed| {
            let state = if placed.pod.terminating {
                " terminating"
            } else {
                ""
            };
            format!("{} {}{state}", placed.node, placed.pod.name)
        })
        .collect();
    lines.sort();
    lines
}

/// Goal: an offline board gets no pod that another could run, and loses none. Method: two
/// replicas and a DaemonSet while one node of two is offline, then the other.
#[test]
fn a_node_that_is_away_is_given_nothing_new_and_keeps_what_it_has() {
    let web = |replicas: u32| {
        manifests(&format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  \
             replicas: {replicas}\n  selector: {{matchLabels: {{a: b}}}}\n  template:\n    \
             metadata: {{labels: {{a: b}}}}\n    spec:\n      hostNetwork: true\n      \
             containers: [{{name: c, image: i}}]\n---\n\
             apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: ds}}\nspec:\n  \
             selector: {{matchLabels: {{a: b}}}}\n  template:\n    \
             metadata: {{labels: {{a: b}}}}\n    spec:\n      hostNetwork: true\n      \
             containers: [{{name: c, image: i}}]\n"
        ))
    };
    let mut nodes = nodes(&["a", "b"]);
    nodes.get_mut("a").unwrap().connected = false;
    let one = place(&web(2), &nodes, &BTreeMap::new(), true);
    assert_eq!(lines(&one), ["a ds-a", "b ds-b", "b web-0", "b web-1"]);
    nodes.get_mut("b").unwrap().connected = false;
    let two = place(&web(3), &nodes, &one.pods, true);
    assert_eq!(lines(&two), lines(&one));
    assert_eq!(
        two.unplaced[0].reason,
        "no node that it may run on is connected"
    );
    nodes.get_mut("a").unwrap().connected = true;
    let three = place(&web(3), &nodes, &two.pods, true);
    assert_eq!(
        lines(&three),
        ["a ds-a", "a web-2", "b ds-b", "b web-0", "b web-1"]
    );
}

/// Goal: a new document cannot take the name of a running pod. Method: a Pod, which comes first by
/// its kind, named as the pod of a Deployment that is placed, and both at once.
#[test]
fn of_two_pods_with_one_name_the_placed_one_holds() {
    let web = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  \
               selector: {matchLabels: {a: b}}\n  template:\n    \
               metadata: {labels: {a: b}}\n    spec:\n      hostNetwork: true\n      \
               containers: [{name: c, image: i}]\n";
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-0}\nspec:\n  \
               hostNetwork: true\n  containers: [{name: other, image: i}]\n";
    let mut nodes = nodes(&["a"]);
    let first = place(&manifests(web), &nodes, &BTreeMap::new(), true);
    report(&mut nodes, &first);
    let both = manifests(&(web.to_owned() + pod));
    let second = place(&both, &nodes, &first.pods, true);
    assert_eq!(second.pods, first.pods);
    assert_eq!(second.unplaced[0].owner.kind, DocumentKind::Pod);
    assert!(second.unplaced[0].reason.contains("Deployment default/web"));
    let fresh = place(&both, &nodes, &BTreeMap::new(), true);
    let refused = |one: &&Unplaced| one.reason.starts_with("Pod default/web-0 has a pod");
    let refused = fresh.unplaced.iter().find(refused).unwrap();
    assert_eq!(refused.owner.kind, DocumentKind::Deployment);
}

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  hostNetwork: true
  nodeSelector: {kubernetes.io/hostname: a1}
  containers:
  - name: c
    image: i:1
    envFrom: [{configMapRef: {name: lane}}, {secretRef: {name: gone, optional: true}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: lane}
data: {a: b}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: unused}
"#;

const SETS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      hostNetwork: true
      containers: [{name: c, image: i:1}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: log}
spec:
  selector: {matchLabels: {app: log}}
  template:
    metadata: {labels: {app: log}}
    spec:
      hostNetwork: true
      nodeSelector: {site: a, kubernetes.io/arch: arm64}
      containers: [{name: c, image: i:1}]
"#;

#[test]
fn pods_go_where_they_may_with_what_they_name() {
    let manifests = manifests(&format!("{POD}---{SETS}"));
    let placement = place(
        &manifests,
        &nodes(&["a1", "a2", "b1"]),
        &BTreeMap::new(),
        true,
    );
    assert_eq!(placement.unplaced, []);
    assert_eq!(
        lines(&placement),
        [
            "a1 log-a1",
            "a1 reader",
            "a1 web-2",
            "a2 log-a2",
            "a2 web-0",
            "a2 web-3",
            "b1 web-1",
        ]
        .map(str::to_owned)
    );
    let keys: Vec<_> = placement.desired["a1"]
        .keys()
        .filter(|key| key.kind() != Kind::Pod)
        .map(ToString::to_string)
        .collect();
    assert_eq!(keys, ["ConfigMap/default/lane"]);
    for (key, payload) in &placement.desired["a1"] {
        if let Key::Uid(_, uid) = key {
            assert_eq!(Pod::decode(payload).unwrap().uid, *uid);
        }
    }
}

/// Golden: a cloud of a later version must create the same pods, or all of them restart.
#[test]
fn uids_never_change() {
    let placement = place(&manifests(POD), &nodes(&["a1"]), &BTreeMap::new(), true);
    let uids: Vec<_> = placement.pods.keys().map(ToString::to_string).collect();
    assert_eq!(uids, ["fb12060888fc8bdc82c603271549bd4e"]);
}

#[test]
fn replicas_stay_when_nodes_come_and_memory_is_lost() {
    let manifests = manifests(SETS);
    let mut few = nodes(&["b1"]);
    let first = place(&manifests, &few, &BTreeMap::new(), true);
    report(&mut few, &first);
    let mut more = nodes(&["a1"]);
    more.append(&mut few);
    let second = place(&manifests, &more, &BTreeMap::new(), false);
    for uid in first.pods.keys() {
        assert_eq!(second.pods[uid].node, "b1");
    }
    // A pod that is stored but not reported yet holds its name as well.
    let third = place(&manifests, &nodes(&["a1", "b1"]), &second.pods, true);
    assert_eq!(third.pods, second.pods);
}

/// UID and name of this replica if it was placed on `node`.
fn replica_of(store: &ObjectStore, ordinal: u32, node: &str) -> (Uid, PodName) {
    let id = Id {
        kind: DocumentKind::Deployment,
        namespace: "default".to_owned(),
        name: "web".to_owned(),
    };
    let claim = claims::Claim {
        owner: Arc::new(id.clone()),
        ordinal,
        only: None,
    };
    let uid = PodIds::default().uid(&claim, store.template(&id).unwrap(), node);
    (uid, claim.name())
}

/// Goal: what a node reports neither takes pods of others, nor ends them, nor holds their names. Method:
/// the node of one replica reports the others under the UIDs that they would have there, which it cannot
/// even know, under those that they have, and under any.
#[test]
fn a_report_of_pods_that_were_not_asked_for_moves_and_blocks_nothing() {
    let store = manifests(SETS);
    let mut nodes = nodes(&["a1", "b1", "c1"]);
    let first = place(&store, &nodes, &BTreeMap::new(), true);
    report(&mut nodes, &first);
    let lies = (0..6).map(|ordinal| replica_of(&store, ordinal, "a1"));
    let theirs = first.pods.iter().map(|(uid, placed)| (*uid, placed.name()));
    let any = [
        "web-0", "web-1", "web-2", "web-3", "web-4", "web-5", "log-c1",
    ];
    let any = any.iter().zip(0..);
    let any = any.map(|(name, n)| (Uid([n; 16]), ("default".to_owned(), (*name).to_owned())));
    let lies: Vec<_> = lies.chain(theirs).chain(any).collect();
    nodes.get_mut("a1").unwrap().reported.extend(lies);
    let second = place(&store, &nodes, &first.pods, true);
    assert_eq!(second, first);
    let more = manifests(&SETS.replace("replicas: 4", "replicas: 6"));
    let third = place(&more, &nodes, &first.pods, true);
    assert_eq!(
        (third.pods.len(), third.unplaced),
        (first.pods.len() + 2, vec![])
    );
}

/// Goal: after a restore, too, a node neither holds nor takes what another one reports. Method: the backup
/// knows replica 0 on the honest node, and replica 1 went there later; the other node reports both.
#[test]
fn after_a_restore_the_other_reporter_neither_holds_nor_takes() {
    let text = SETS.replace("replicas: 4", "replicas: 2");
    let store = manifests(&text);
    let mut honest = nodes(&["b1"]);
    let all = place(&store, &honest, &BTreeMap::new(), true);
    report(&mut honest, &all);
    let mut both = nodes(&["a1"]);
    both.append(&mut honest);
    let (first, name) = replica_of(&store, 0, "b1");
    let backup: Pods = [(first, Arc::clone(&all.pods[&first]))].into();
    let evil = both.get_mut("a1").unwrap();
    // It had this replica once. Of the other one it knows the name only.
    evil.reported.extend([replica_of(&store, 0, "a1")]);
    let other = replica_of(&store, 1, "b1").1;
    let old = ("default".to_owned(), "old".to_owned());
    evil.reported.extend([
        (Uid([1; 16]), other),
        (Uid([2; 16]), name),
        (Uid([3; 16]), old),
    ]);
    let restored = place(&store, &both, &backup, false);
    for uid in all.pods.keys() {
        assert_eq!(restored.pods[uid].node, "b1");
    }
    // A name that only one node can have is not held by another one either.
    let fixed = "apiVersion: v1\nkind: Pod\nmetadata: {name: old}\nspec:\n  hostNetwork: true\n  \
                 nodeName: b1\n  containers: [{name: c, image: i}]\n";
    let fixed = place(&manifests(fixed), &both, &BTreeMap::new(), false);
    assert!(lines(&fixed).contains(&"b1 old".to_owned()), "{fixed:?}");
}

/// After a restore the stored placement is old: replica 1 went to b1 after the backup was made.
#[test]
fn until_settled_a_pod_with_a_choice_waits_and_one_without_does_not() {
    let text = format!("{SETS}---{}", POD.replace("spec:", "spec:\n  nodeName: a1"));
    let manifests = manifests(&text);
    let mut all = nodes(&["b1"]);
    let real = place(&manifests, &all, &BTreeMap::new(), true);
    report(&mut all, &real);
    let running: Vec<_> = real.pods.keys().copied().collect();
    all.append(&mut nodes(&["a1"]));
    let unreported = nodes(&["a1", "b1"]);

    let first = place(&manifests, &unreported, &BTreeMap::new(), false);
    assert!(
        first
            .pods
            .values()
            .all(|placed| !placed.pod.name.starts_with("set-"))
    );
    assert!(
        lines(&first).contains(&"a1 reader".to_owned()),
        "{:?}",
        lines(&first)
    );
    let waits = first
        .unplaced
        .iter()
        .filter(|one| one.reason.contains("restore"));
    assert_ne!(waits.count(), 0);

    let heard = place(&manifests, &all, &first.pods, false);
    for uid in running {
        assert_eq!(heard.pods[&uid].node, "b1");
    }
}

#[test]
fn a_changed_pod_ends_before_its_successor_starts() {
    let mut nodes = nodes(&["a1"]);
    let old = place(&manifests(POD), &nodes, &BTreeMap::new(), true);
    report(&mut nodes, &old);
    let changed = manifests(&POD.replace("i:1", "i:2"));
    let both = place(&changed, &nodes, &old.pods, true);
    assert_eq!(lines(&both), ["a1 reader terminating"]);
    assert!(both.unplaced[0].reason.starts_with("waits until node a1"));
    let lane = |placement: &Result| placement.desired["a1"].len();
    assert_eq!(lane(&both), 2, "the ConfigMap stays with the old pod");
    nodes.values_mut().for_each(|node| node.reported.clear());
    let new = place(&changed, &nodes, &both.pods, true);
    assert_eq!(lines(&new), ["a1 reader"]);
    assert_ne!(
        new.pods.keys().collect::<Vec<_>>(),
        old.pods.keys().collect::<Vec<_>>()
    );
}

#[test]
fn a_label_changes_no_uid_and_a_deleted_pod_leaves_when_it_is_gone() {
    let mut nodes = nodes(&["a1"]);
    let old = place(&manifests(POD), &nodes, &BTreeMap::new(), true);
    report(&mut nodes, &old);
    let labelled = POD.replace("{name: reader}", "{name: reader, labels: {a: b}}");
    let labelled = place(&manifests(&labelled), &nodes, &old.pods, true);
    assert!(labelled.pods.keys().eq(old.pods.keys()));
    let none = ObjectStore::default();
    let leaving = place(&none, &nodes, &labelled.pods, true);
    assert_eq!(lines(&leaving), ["a1 reader terminating"]);
    nodes.values_mut().for_each(|node| node.reported.clear());
    let gone = place(&none, &nodes, &leaving.pods, true);
    assert_eq!(gone.desired["a1"], Desired::new());
}

#[test]
fn what_cannot_be_placed_says_why() {
    let reason = |text: &str, nodes: &BTreeMap<String, NodeState>| {
        let unplaced = place(&manifests(text), nodes, &BTreeMap::new(), true).unplaced;
        assert_eq!(unplaced.len(), 1, "{unplaced:?}");
        unplaced[0].to_string()
    };
    let b1 = nodes(&["b1"]);
    assert!(reason(POD, &b1).contains("no node has the labels"));
    let named = POD.replace("nodeSelector: {kubernetes.io/hostname: a1}", "nodeName: a1");
    assert!(reason(&named, &b1).contains("node a1 has not joined"));
    let a1 = nodes(&["a1"]);
    let missing = POD.replace("configMapRef: {name: lane}", "configMapRef: {name: x}");
    assert!(reason(&missing, &a1).contains("waits for ConfigMap default/x"));
    let mut full = nodes(&["b1"]);
    full.values_mut().for_each(|node| node.pods_max = 3);
    assert!(reason(SETS, &full).contains("pod web-3: node b1 is full"));
}

/// Goal: a node has one policy, the most specific one, under one key. Method: policies that fit
/// all, some and one of three nodes.
#[test]
fn the_most_particular_policy_is_the_one() {
    let policy = |name: &str, rest: &str, kbit: u32| {
        format!(
            "---\napiVersion: edge-min.io/v1\nkind: NodePolicy\nmetadata: {{name: {name}}}\n\
             spec: {{bandwidth: {{down: {kbit}k}}{rest}}}\n"
        )
    };
    let text = [
        policy("all", "", 1_000),
        policy("some", ", nodeSelector: {site: b}", 2_000),
        policy("some-more", ", nodeSelector: {site: b}", 3_000),
        policy("one", ", nodeName: b-2", 4_000),
    ];
    let nodes = nodes(&["a-1", "b-1", "b-2"]);
    let rate = |placement: &Result, node: &str| {
        let key = Key::Name(Kind::NodePolicy, String::new(), "node".to_owned());
        let payload = placement.desired[node].get(&key)?;
        edge_proto::object::NodePolicy::decode(payload)
            .unwrap()
            .bandwidth_down
    };
    let placement = place(&manifests(&text.concat()), &nodes, &BTreeMap::new(), true);
    let rates = ["a-1", "b-1", "b-2"].map(|node| rate(&placement, node));
    assert_eq!(rates, [1_000_000, 2_000_000, 4_000_000].map(Some));
    let placement = place(&manifests(&text[3]), &nodes, &BTreeMap::new(), true);
    let rates = ["a-1", "b-1", "b-2"].map(|node| rate(&placement, node));
    assert_eq!(rates, [None, None, Some(4_000_000)]);
}
