//! Random changes: the placer, which recomputes what a change touches, has the same result as the
//! reference, which computes everything, after each round. The cost is counted, too.

use super::*;

/// A generator of numbers, the same ones for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // xorshift64*, whose high bits are good.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        (high as usize) % end
    }

    fn often(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// All documents of the simulation, each in a few versions; names collide on purpose.
fn document(random: &mut Random) -> (&'static str, String) {
    let version = random.below(3);
    let placed = *random.pick(&[
        "",
        "      nodeSelector: {site: a}\n",
        "      nodeSelector: {site: b, kubernetes.io/arch: arm64}\n",
        "      nodeName: a1\n",
        "      nodeSelector: {kubernetes.io/hostname: b1}\n",
    ]);
    let uses = *random.pick(&[
        "",
        "        envFrom: [{configMapRef: {name: lane}}]\n",
        "        envFrom: [{secretRef: {name: key, optional: true}}]\n",
    ]);
    let spec = format!(
        "      hostNetwork: true\n{placed}      containers:\n      - name: c\n        \
         image: i:{version}\n{uses}"
    );
    let set = |kind: &str, name: &str, replicas: String| {
        format!(
            "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{replicas}  \
             selector: {{matchLabels: {{a: b}}}}\n  template:\n    metadata: {{labels: {{a: b, \
             v: \"{version}\"}}}}\n    spec:\n{spec}"
        )
    };
    let name = *random.pick(&["web", "log", "web-0", "web-a1"]);
    match random.below(6) {
        0 | 1 => {
            let replicas = format!("  replicas: {}\n", random.below(7));
            ("Deployment", set("Deployment", name, replicas))
        }
        2 => ("DaemonSet", set("DaemonSet", name, String::new())),
        3 => {
            let spec: String = spec
                .lines()
                .map(|line| format!("{}\n", &line[4..]))
                .collect();
            let head = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n");
            ("Pod", head + &spec)
        }
        4 => {
            let (kind, name) = *random.pick(&[("ConfigMap", "lane"), ("Secret", "key")]);
            let field = if kind == "Secret" {
                "stringData"
            } else {
                "data"
            };
            let text = format!(
                "apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\n{field}: {{a: b{version}}}\n"
            );
            (kind, text)
        }
        _ => {
            let name = *random.pick(&["all", "some", "one"]);
            let whom = *random.pick(&["", ", nodeSelector: {site: b}", ", nodeName: b1"]);
            let text = format!(
                "apiVersion: edge-min.io/v1\nkind: NodePolicy\nmetadata: {{name: {name}}}\n\
                 spec: {{bandwidth: {{down: {}k}}{whom}}}\n",
                version + 8
            );
            ("NodePolicy", text)
        }
    }
}

/// The documents and nodes of the simulation, and the placer that follows them.
struct World {
    random: Random,
    store: ObjectStore,
    nodes: BTreeMap<String, NodeState>,
    placer: Placer,
    settled: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let settled = random.often(70);
        Self {
            random,
            store: ObjectStore::default(),
            nodes: BTreeMap::new(),
            placer: Placer::new(PodIds::default(), BTreeMap::new(), settled),
            settled,
        }
    }

    /// edge-cloud starts again with the pods that it has saved, and the former state of the nodes.
    fn restart(&mut self) {
        let pods = &self.placer.placement().pods;
        let before = pods
            .iter()
            .map(|(uid, placed)| (*uid, PlacedPod::clone(placed)));
        self.settled = self.random.often(50);
        self.placer = Placer::new(PodIds::default(), before.collect(), self.settled);
        for (id, _) in self.store.iter() {
            self.placer.object_changed(&self.store, id);
        }
        for (name, node) in &mut self.nodes {
            node.reported.clear();
            node.awaits_report = true;
            self.placer
                .node_changed(&self.store, name, Some(node.clone()));
        }
    }

    fn change(&mut self) {
        match self.random.below(20) {
            0..5 => self.put(),
            5 => self.remove(),
            6 if !self.settled => {
                self.settled = true;
                self.placer.settle();
            }
            7 if self.random.often(20) => self.restart(),
            8 if self.random.often(50) => {
                // Deleted or revoked.
                let name = self.name();
                self.nodes.remove(&name);
                self.placer.node_changed(&self.store, &name, None);
            }
            _ => self.change_node(),
        }
    }

    fn put(&mut self) {
        let mut manifests = Manifests::default();
        let (_, text) = document(&mut self.random);
        manifests.add_file("file.yaml", &text);
        assert_eq!(manifests.problems, [], "{text}");
        for (id, (origin, content)) in manifests.objects {
            if self
                .store
                .put(&id, &crate::objects::Object { origin, content })
            {
                self.placer.object_changed(&self.store, &id);
            }
        }
    }

    fn remove(&mut self) {
        let ids: Vec<_> = self.store.iter().map(|(id, _)| id.clone()).collect();
        if !ids.is_empty() {
            let id = self.random.pick(&ids).clone();
            assert!(self.store.remove(&id));
            self.placer.object_changed(&self.store, &id);
        }
    }

    fn name(&mut self) -> String {
        (*self.random.pick(&["a1", "a2", "b1", "b2", "c1"])).to_owned()
    }

    fn change_node(&mut self) {
        let name = self.name();
        let asked: Vec<_> = self
            .placer
            .placement()
            .pods
            .values()
            .filter(|placed| placed.node == name)
            .cloned()
            .collect();
        let random = &mut self.random;
        let fresh = || NodeState {
            labels: [("site".to_owned(), name[..1].to_owned())].into(),
            arch: "aarch64".to_owned(),
            connected: true,
            ..NodeState::default()
        };
        let node = self.nodes.entry(name.clone()).or_insert_with(fresh);
        match random.below(10) {
            0 => node.connected = !node.connected,
            1 => node.pods_max = *random.pick(&[0, 1, 2, 3, 5]),
            2 => {
                let site = *random.pick(&["a", "b", "c"]);
                node.labels.insert("site".to_owned(), site.to_owned());
            }
            3 => node.arch = (*random.pick(&["aarch64", "x86_64"])).to_owned(),
            4 => {
                // A pod without an owner, whose name is required elsewhere.
                let pod = (*random.pick(&["web-0", "web-1", "log", "log-a1"])).to_owned();
                let uid = Uid([random.below(5) as u8; 16]);
                node.reported.insert(uid, ("default".to_owned(), pod));
            }
            5 if random.often(30) => {
                // It copies what another node was asked for, and then whatever it may be.
                let pods: Vec<_> = self.placer.placement().pods.values().collect();
                if !pods.is_empty() {
                    let placed = random.pick(&pods);
                    node.reported.insert(placed.pod.uid, placed.name());
                }
            }
            5 if random.often(10) => {
                // It reports a pod of ours with another name.
                if let Some(name) = node.reported.values_mut().next() {
                    name.1 = "web-1".to_owned();
                }
            }
            // It performs a part of its desired set.
            _ => {
                node.awaits_report = false;
                for placed in asked {
                    if random.often(60) && !placed.pod.terminating {
                        node.reported.insert(placed.pod.uid, placed.name());
                    }
                }
                let pods = &self.placer.placement().pods;
                node.reported.retain(|uid, _| {
                    pods.get(uid).is_some_and(|placed| !placed.pod.terminating) || random.often(50)
                });
            }
        }
        let node = node.clone();
        self.placer.node_changed(&self.store, &name, Some(node));
    }

    /// Rounds until nothing changes, each compared with the reference.
    fn check(&mut self, what: &str) {
        for round in 0.. {
            let before = self.placer.placement().pods.clone();
            let ending = self.placer.ending();
            let (placement, sets) =
                reference::place(&self.store, &self.nodes, &before, &ending, self.settled);
            let was_settled = self.placer.is_settled();
            self.placer.round(&self.store);
            let what = format!("{what} round {round}");
            let now = self.placer.placement();
            assert_eq!(now.pods, placement.pods, "{what}");
            assert!(
                now.unplaced.keys().eq(placement.unplaced.keys()),
                "{what}: {:?} not {:?}",
                now.unplaced,
                placement.unplaced
            );
            for (now, wanted) in now.unplaced.values().zip(placement.unplaced.values()) {
                // Which of the full nodes was tried last is as of the last attempt.
                let both_full = [now, wanted].map(|one| one.reason.contains(" is full: "));
                assert!(
                    now.reason == wanted.reason || both_full == [true; 2],
                    "{what}: {now} not {wanted}"
                );
            }
            assert_eq!(self.placer.nodes().count(), sets.len(), "{what}");
            for (name, set) in &sets {
                assert_eq!(self.placer.desired(name), Some(set), "{what} {name}");
            }
            if was_settled {
                // A round without a change changes nothing.
                assert_eq!(before, placement.pods, "{what}");
                return;
            }
            assert!(round < 20, "{what}: it never settles");
        }
    }
}

/// Goal: recomputing after a change equals computing everything. Method: random documents
/// whose names collide, and random nodes that join, leave, become full, report and restart with
/// edge-cloud; after each change every round is compared with the reference.
#[test]
fn random_changes_give_the_same_as_from_scratch() {
    let is_long = std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty());
    let seeds = if is_long { 2_000 } else { 12 };
    for seed in 0..seeds {
        let mut world = World::new(seed);
        for step in 0..60 {
            for _ in 0..=world.random.below(3) {
                world.change();
            }
            world.check(&format!("seed {seed} step {step}"));
        }
    }
}

/// A fleet of `nodes` nodes with five pods each: three of DaemonSets, one of Deployments and one Pod.
fn fleet(nodes: usize) -> (ObjectStore, Placer) {
    let mut text = String::new();
    let spec = "      hostNetwork: true\n      containers: [{name: c, image: i:1, envFrom: \
                [{configMapRef: {name: lane}}]}]\n";
    let head = |kind: &str, name: &str, rest: &str| {
        format!(
            "---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{rest}  \
             selector: {{matchLabels: {{a: b}}}}\n  template:\n    metadata: {{labels: {{a: \
             b}}}}\n    spec:\n{spec}"
        )
    };
    for number in 0..3 {
        text.push_str(&head("DaemonSet", &format!("ds{number}"), ""));
    }
    for number in 0..nodes.div_ceil(1_000) {
        let replicas = nodes.min((number + 1) * 1_000) - number * 1_000;
        let rest = format!("  replicas: {replicas}\n");
        text.push_str(&head("Deployment", &format!("web{number}"), &rest));
    }
    text.push_str("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: lane}\ndata: {a: b}\n");
    let mut store = manifests(&text);
    for number in 0..nodes {
        put(&mut store, &pod(number, 1));
    }
    let mut placer = Placer::new(PodIds::default(), BTreeMap::new(), true);
    for (id, _) in store.iter() {
        placer.object_changed(&store, id);
    }
    for number in 0..nodes {
        placer.node_changed(&store, &format!("gate-{number}"), Some(gate()));
    }
    while !placer.is_settled() {
        placer.round(&store);
    }
    for number in 0..nodes {
        let name = format!("gate-{number}");
        report(&mut placer, &store, &name);
    }
    while !placer.is_settled() {
        placer.round(&store);
    }
    assert_eq!(placer.placement().pods.len(), nodes * 5);
    assert!(placer.placement().unplaced.is_empty());
    drop(placer.take_changes());
    (store, placer)
}

fn gate() -> NodeState {
    NodeState {
        arch: "aarch64".to_owned(),
        connected: true,
        ..NodeState::default()
    }
}

fn pod(number: usize, version: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}}}\nspec:\n  hostNetwork: true\n  \
         nodeName: gate-{number}\n  containers: [{{name: c, image: i:{version}}}]\n"
    )
}

fn put(store: &mut ObjectStore, text: &str) -> Vec<Id> {
    let mut manifests = Manifests::default();
    manifests.add_file("pod.yaml", text);
    let put = |(id, (origin, content))| {
        store
            .put(&id, &crate::objects::Object { origin, content })
            .then_some(id)
    };
    manifests.objects.into_iter().filter_map(put).collect()
}

/// The node runs its desired pods.
fn report(placer: &mut Placer, store: &ObjectStore, name: &str) {
    let here = placer
        .desired(name)
        .unwrap()
        .keys()
        .filter_map(|key| match key {
            Key::Uid(Kind::Pod, uid) => placer.placement().pods.get(uid),
            _ => None,
        });
    let here = here.filter(|placed| !placed.pod.terminating);
    let mut state = gate();
    state.reported = here.map(|placed| (placed.pod.uid, placed.name())).collect();
    placer.node_changed(store, name, Some(state));
}

fn rounds(placer: &mut Placer, store: &ObjectStore) -> Work {
    let before = placer.work();
    while !placer.is_settled() {
        placer.round(store);
    }
    let after = placer.work();
    Work {
        sets: after.sets - before.sets,
        names: after.names - before.names,
        visited: after.visited - before.visited,
        retried: after.retried - before.retried,
    }
}

/// Goal: a change of one pod or one node costs work for that pod and node, however many there are.
/// Method: the cost is counted, in a fleet of 100 nodes and in one of 1,000: one pod's spec
/// changes, its node ends the old pod, runs the new one, disconnects and reconnects.
#[test]
fn one_change_costs_the_same_in_every_fleet() {
    let cost = |nodes: usize| {
        let (mut store, mut placer) = fleet(nodes);
        let changed = put(&mut store, &pod(7, 2));
        assert_eq!(changed.len(), 1);
        placer.object_changed(&store, &changed[0]);
        let mut work = vec![rounds(&mut placer, &store)];
        for _ in 0..2 {
            report(&mut placer, &store, "gate-7");
            work.push(rounds(&mut placer, &store));
        }
        let changes = placer.take_changes();
        assert_eq!(changes.nodes.into_iter().collect::<Vec<_>>(), ["gate-7"]);
        assert_eq!(changes.pods.len(), 2, "the old one and the new one");
        let away = NodeState {
            connected: false,
            ..placer.node("gate-9").unwrap().clone()
        };
        placer.node_changed(&store, "gate-9", Some(away));
        work.push(rounds(&mut placer, &store));
        report(&mut placer, &store, "gate-9");
        work.push(rounds(&mut placer, &store));
        work
    };
    let (few, many) = (cost(100), cost(1_000));
    assert_eq!(few, many);
    for work in &many {
        assert!(
            work.sets <= 2 && work.names <= 4 && work.visited <= 2,
            "{many:?}"
        );
    }
}

/// Replicas on the nodes with this label, with this ConfigMap.
fn replicas(name: &str, count: u32, selector: &str, config: &str) -> String {
    format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: \
         {count}\n  selector: {{matchLabels: {{a: b}}}}\n  template:\n    metadata: {{labels: {{a: \
         b}}}}\n    spec:\n      hostNetwork: true\n      nodeSelector: {{{selector}}}\n      \
         containers: [{{name: c, image: i:1, envFrom: [{{configMapRef: {{name: {config}}}}}]}}]\n"
    )
}

/// Goal: a change of a node or a ConfigMap costs nothing for waiting pods that it does not concern.
/// Method: the retried pods are counted while many wait for labels, for nodes that have not
/// joined and for ConfigMaps.
#[test]
fn a_change_retries_the_waiting_pods_that_it_concerns() {
    let (mut store, mut placer) = fleet(20);
    let mut text = replicas("away", 60, "site: away", "one");
    text += &replicas("none", 2, "site: none, kubernetes.io/os: linux", "other");
    for number in 100..150 {
        text += &format!("---\n{}", pod(number, 1));
    }
    for id in put(&mut store, &text) {
        placer.object_changed(&store, &id);
    }
    rounds(&mut placer, &store);
    assert_eq!(placer.placement().unplaced.len(), 112);

    let changed = |placer: &mut Placer, name: &str, labels: &[(&str, &str)]| {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let node = NodeState {
            labels: labels.iter().map(own).collect(),
            ..placer.node(name).cloned().unwrap_or_else(gate)
        };
        placer.node_changed(&store, name, Some(node));
        rounds(placer, &store).retried
    };
    assert_eq!(changed(&mut placer, "gate-9", &[("zone", "b")]), 0);
    assert_eq!(changed(&mut placer, "gate-120", &[]), 1, "it has joined");
    assert_eq!(changed(&mut placer, "gate-9", &[("site", "away")]), 60);
    assert_eq!(placer.placement().pods.len(), 20 * 5 + 4 + 60);

    let mut put_config = |placer: &mut Placer, name: &str| {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: b}}\n"
        );
        for id in put(&mut store, &text) {
            placer.object_changed(&store, &id);
        }
        rounds(placer, &store).retried
    };
    assert_eq!(put_config(&mut placer, "unused"), 0);
    assert_eq!(put_config(&mut placer, "one"), 0, "its pods are placed");
    assert_eq!(put_config(&mut placer, "other"), 2);
}

/// Goal: replicas that wait because every node is full cost one check of the nodes when one of them
/// changes, however many wait. Method: the checked nodes are counted.
#[test]
fn waiting_replicas_look_at_the_nodes_once() {
    let mut store = manifests(&replicas("web", 100, "kubernetes.io/os: linux", "one"));
    let mut placer = Placer::new(PodIds::default(), BTreeMap::new(), true);
    for (id, _) in store.iter() {
        placer.object_changed(&store, id);
    }
    let full = NodeState {
        pods_max: 1,
        ..gate()
    };
    for number in 0..20 {
        let name = format!("gate-{number}");
        placer.node_changed(&store, &name, Some(full.clone()));
    }
    rounds(&mut placer, &store);
    assert_eq!(placer.placement().pods.len(), 20);
    let away = NodeState {
        connected: false,
        ..full.clone()
    };
    placer.node_changed(&store, "gate-7", Some(away));
    let work = rounds(&mut placer, &store);
    assert_eq!((work.retried, work.visited), (80, 20));
    let larger = NodeState {
        pods_max: 3,
        ..full
    };
    placer.node_changed(&store, "gate-7", Some(larger));
    rounds(&mut placer, &store);
    assert_eq!(placer.placement().pods.len(), 22);
    let gone: Vec<_> = store.iter().map(|(id, _)| id.clone()).collect();
    for id in gone {
        assert!(store.remove(&id));
        placer.object_changed(&store, &id);
    }
    rounds(&mut placer, &store);
    assert!(placer.placement().unplaced.is_empty());
}
