//! State that must survive a restart: the last accepted objects and the placement of pods. Two journals
//! in the data folder, for the owner only; if they are lost, no workload is affected as long as the nodes
//! report. A round writes only what it has changed.
//!
//! A placement that cannot be read, as a whole or a pod of it, counts like one of a backup ([`Restored`]):
//! missing pods may run, and must not be started on a second node. So does a missing file if the file of the
//! objects exists; if not, this is a first start.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge_proto::key::Uid;
use edge_proto::object::{NodePolicy, Pod};
use serde::{Deserialize, Serialize};

use crate::journal::{self, Journal};
use crate::manifest::{Accepted, DocumentKind, Id, Manifests, Origin, Policy, Template};
use crate::objects::{Object, ObjectStore};
use crate::placement::{NodeState, PlacedPod, Placer};

/// File with the last good manifests.
pub const ACCEPTED: &str = "accepted.json";
/// File with nodes and placed pods.
pub const PLACEMENT: &str = "placement.json";

/// Placeholder for the UID that a template does not have yet; a Pod without one does not decode.
const NO_UID: Uid = Uid([0xff; 16]);

#[derive(Serialize, Deserialize)]
struct SavedObject {
    id: Id,
    origin: Origin,
    /// Base64 of the ConfigMap, Secret, Pod or NodePolicy.
    payload: String,
    template: Option<SavedTemplate>,
}

#[derive(Serialize, Deserialize)]
struct SavedTemplate {
    node: Option<String>,
    selector: BTreeMap<String, String>,
    replicas: Option<u32>,
}

/// Line of the journal of objects.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ObjectChange {
    Put(SavedObject),
    Remove(Id),
}

/// Nodes and pods in their stored form.
#[derive(Default, Serialize, Deserialize)]
struct SavedPlacement {
    nodes: BTreeMap<String, NodeState>,
    /// Node and base64 of the Pod.
    pods: Vec<(String, String)>,
    #[serde(default)]
    restored: Restored,
}

/// A change of nodes and pods.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PlacementChange {
    Node(String, NodeState),
    NodeLeft(String),
    /// Node and base64 of the Pod.
    Pod(String, String),
    /// Base64 of the UID.
    PodLeft(String),
    /// The node has reported for the first time after a restore.
    Reported(String),
    /// No node is expected to report for the first time any more.
    Settled,
    /// The source has an object.
    SourceRead,
}

/// Pending consequences of a restore from a backup: the saved placement is older than the running pods, or
/// has gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Nodes that have not reported since; their running pods are unknown, so they are sent nothing.
    pub unreported: BTreeSet<String>,
    /// Nodes are still expected to report for the first time.
    pub settling: bool,
    /// The source has not had an object since the restore, so the objects of the backup stay: an empty
    /// or unreadable folder is probably a mistake, and would end every pod.
    pub awaits_source: bool,
}

/// State of an earlier run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Nodes, as they last reported.
    pub nodes: BTreeMap<String, NodeState>,
    /// Pods that were placed.
    pub pods: BTreeMap<Uid, PlacedPod>,
    /// State of a restore.
    pub restored: Restored,
}

impl Memory {
    /// Used when the file is damaged.
    fn lost() -> Self {
        let restored = Restored {
            settling: true,
            ..Restored::default()
        };
        Self {
            restored,
            ..Self::default()
        }
    }

    fn read(saved: SavedPlacement, changes: Vec<PlacementChange>) -> Self {
        let mut memory = Self {
            nodes: saved.nodes,
            pods: BTreeMap::new(),
            restored: saved.restored,
        };
        let mut unreadable = BTreeSet::new();
        let pods = saved.pods.into_iter();
        let pods = pods.map(|(node, pod)| PlacementChange::Pod(node, pod));
        for change in pods.chain(changes) {
            memory.make(change, &mut unreadable);
        }
        // Last: lines about an earlier restore do not apply to this one.
        memory.restored.settling |= !unreadable.is_empty();
        memory.restored.unreported.append(&mut unreadable);
        memory
    }

    /// Adds the node of a pod that cannot be read to `unreadable`.
    fn make(&mut self, change: PlacementChange, unreadable: &mut BTreeSet<String>) {
        match change {
            PlacementChange::Node(name, node) => drop(self.nodes.insert(name, node)),
            PlacementChange::NodeLeft(name) => drop(self.nodes.remove(&name)),
            PlacementChange::Pod(node, pod) => {
                let pod = STANDARD.decode(pod).ok();
                match pod.and_then(|pod| Pod::decode(&pod).ok()) {
                    Some(pod) => drop(self.pods.insert(pod.uid, PlacedPod { node, pod })),
                    // Of a version with another encoding: its node reports whether it runs.
                    None => {
                        log::error!("saved_pod_unreadable node={node}");
                        unreadable.insert(node);
                    }
                }
            }
            PlacementChange::PodLeft(uid) => {
                let uid = STANDARD.decode(uid).ok();
                if let Some(uid) = uid.and_then(|uid| uid.try_into().ok()) {
                    self.pods.remove(&Uid(uid));
                }
            }
            PlacementChange::Reported(name) => drop(self.restored.unreported.remove(&name)),
            PlacementChange::Settled => self.restored.settling = false,
            PlacementChange::SourceRead => self.restored.awaits_source = false,
        }
    }
}

/// Names of changes that are not written yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsaved {
    /// Changed or removed.
    pub objects: BTreeSet<Id>,
    /// Nodes, except for their reports.
    pub nodes: BTreeSet<String>,
    /// Pods in desired sets.
    pub pods: BTreeSet<Uid>,
    /// Nodes that were unreported.
    pub reported: BTreeSet<String>,
    /// [`Restored::settling`] has ended.
    pub settled: bool,
    /// [`Restored::awaits_source`] has ended.
    pub source_read: bool,
}

/// Both journals.
#[derive(Debug)]
pub struct Saved {
    objects: Journal,
    placement: Journal,
}

impl Saved {
    /// Reads the state of an earlier run. The first [`Self::store`] rewrites both files.
    #[must_use]
    pub fn load(folder: &Path) -> (Self, Manifests, Memory) {
        let objects = read(&folder.join(ACCEPTED), objects, Objects::new);
        let mut manifests = Manifests::default();
        manifests.objects.extend(objects);
        let is_lost = folder.join(ACCEPTED).exists() && !folder.join(PLACEMENT).exists();
        let memory = match is_lost {
            true => Memory::lost(),
            false => read(&folder.join(PLACEMENT), memory, Memory::lost),
        };
        let saved = Self {
            objects: Journal::new(folder.join(ACCEPTED)),
            placement: Journal::new(folder.join(PLACEMENT)),
        };
        (saved, manifests, memory)
    }

    /// Writes the changes since the last call, and clears `unsaved`.
    ///
    /// # Errors
    /// Those of the file system; the next call repeats it.
    pub fn store(
        &mut self,
        store: &ObjectStore,
        placer: &Placer,
        restored: &Restored,
        unsaved: &mut Unsaved,
    ) -> io::Result<()> {
        let changed: Vec<_> = unsaved
            .objects
            .iter()
            .map(|id| match store.object(id) {
                Some(object) => ObjectChange::Put(SavedObject::new(id, object)),
                None => ObjectChange::Remove(id.clone()),
            })
            .collect();
        save(&mut self.objects, &changed, || {
            let all = store.iter();
            all.map(|(id, object)| SavedObject::new(id, object))
                .collect::<Vec<_>>()
        })?;
        unsaved.objects.clear();
        save(&mut self.placement, &changes(placer, unsaved), || {
            SavedPlacement {
                nodes: placer
                    .nodes()
                    .map(|(name, node)| (name.to_owned(), without_reports(node)))
                    .collect(),
                pods: placer
                    .placement()
                    .pods
                    .values()
                    .map(|one| pod(one))
                    .collect(),
                restored: restored.clone(),
            }
        })?;
        *unsaved = Unsaved::default();
        Ok(())
    }
}

/// Reports are not saved: the node sends them again.
fn without_reports(node: &NodeState) -> NodeState {
    NodeState {
        labels: node.labels.clone(),
        arch: node.arch.clone(),
        pods_max: node.pods_max,
        ..NodeState::default()
    }
}

fn pod(placed: &PlacedPod) -> (String, String) {
    (placed.node.clone(), STANDARD.encode(placed.pod.encode()))
}

fn changes(placer: &Placer, unsaved: &Unsaved) -> Vec<PlacementChange> {
    let nodes = unsaved.nodes.iter().map(|name| match placer.node(name) {
        Some(node) => PlacementChange::Node(name.clone(), without_reports(node)),
        None => PlacementChange::NodeLeft(name.clone()),
    });
    let pods = unsaved.pods.iter().map(|uid| {
        let placed = placer.placement().pods.get(uid);
        placed.map_or_else(
            || PlacementChange::PodLeft(STANDARD.encode(uid.0)),
            |placed| {
                let (node, pod) = pod(placed);
                PlacementChange::Pod(node, pod)
            },
        )
    });
    let reported = unsaved
        .reported
        .iter()
        .cloned()
        .map(PlacementChange::Reported);
    let settled = unsaved.settled.then_some(PlacementChange::Settled);
    let source_read = unsaved.source_read.then_some(PlacementChange::SourceRead);
    let restored = reported.chain(settled).chain(source_read);
    nodes.chain(pods).chain(restored).collect()
}

/// Adds the changes to a journal, or writes it as a whole.
fn save<V: Serialize>(
    journal: &mut Journal,
    changes: &[impl Serialize],
    whole: impl FnOnce() -> V,
) -> io::Result<()> {
    let is_added = if changes.is_empty() {
        journal.is_written()
    } else {
        journal.append(changes)?
    };
    if is_added {
        Ok(())
    } else {
        journal.write(&whole())
    }
}

type Objects = BTreeMap<Id, (Origin, Accepted)>;

fn objects(bytes: &[u8]) -> serde_json::Result<Objects> {
    let mut changes = Vec::new();
    let saved = journal::parse(bytes, |_: &mut Vec<SavedObject>, change| {
        changes.push(change)
    })?;
    let saved = saved.into_iter().map(ObjectChange::Put);
    let mut objects = Objects::new();
    for change in saved.chain(changes) {
        match change {
            ObjectChange::Put(object) => {
                let id = object.id.clone();
                match object.restore() {
                    Some(object) => drop(objects.insert(id, object)),
                    None => log::error!("saved_object_unreadable object={id}"),
                }
            }
            ObjectChange::Remove(id) => drop(objects.remove(&id)),
        }
    }
    Ok(objects)
}

fn memory(bytes: &[u8]) -> serde_json::Result<Memory> {
    let mut changes = Vec::new();
    let saved = journal::parse(bytes, |_: &mut SavedPlacement, change| changes.push(change))?;
    Ok(Memory::read(saved, changes))
}

/// Checks the last accepted objects of a backup.
///
/// # Errors
/// Not written by [`Saved`].
pub(crate) fn check(accepted: &[u8]) -> serde_json::Result<()> {
    objects(accepted).map(drop)
}

/// Marks the placement of a backup as older than the running pods.
///
/// # Errors
/// Not written by [`Saved`].
pub(crate) fn restored(placement: &[u8]) -> serde_json::Result<Vec<u8>> {
    let memory = memory(placement)?;
    journal::whole(&SavedPlacement {
        restored: Restored {
            unreported: memory.nodes.keys().cloned().collect(),
            settling: true,
            awaits_source: true,
        },
        nodes: memory.nodes,
        pods: memory.pods.values().map(pod).collect(),
    })
}

impl SavedObject {
    fn new(id: &Id, object: &Object) -> Self {
        let template = |template: &Template, replicas| {
            let pod = Pod {
                uid: NO_UID,
                ..template.pod.clone()
            };
            let saved = SavedTemplate {
                node: template.node.clone(),
                selector: template.selector.clone(),
                replicas,
            };
            (STANDARD.encode(pod.encode()), Some(saved))
        };
        let (payload, template) = match &object.content {
            Accepted::Config(payload) => (STANDARD.encode(payload), None),
            Accepted::Workload(workload) => template(workload, None),
            Accepted::Replicated(workload, replicas) => template(workload, Some(*replicas)),
            Accepted::Policy(policy) => {
                let saved = SavedTemplate {
                    node: policy.node.clone(),
                    selector: policy.selector.clone(),
                    replicas: None,
                };
                (STANDARD.encode(policy.policy.encode()), Some(saved))
            }
        };
        Self {
            id: id.clone(),
            origin: object.origin.clone(),
            payload,
            template,
        }
    }

    fn restore(self) -> Option<(Origin, Accepted)> {
        let payload = STANDARD.decode(self.payload).ok()?;
        let object = match self.template {
            None => Accepted::Config(payload.into()),
            Some(saved) if self.id.kind == DocumentKind::NodePolicy => {
                Accepted::Policy(Box::new(Policy {
                    node: saved.node,
                    selector: saved.selector,
                    policy: NodePolicy::decode(&payload).ok()?,
                }))
            }
            Some(saved) => {
                let pod = Pod {
                    uid: Uid::default(),
                    ..Pod::decode(&payload).ok()?
                };
                let template = Box::new(Template {
                    pod,
                    node: saved.node,
                    selector: saved.selector,
                });
                match saved.replicas {
                    Some(replicas) => Accepted::Replicated(template, replicas),
                    None => Accepted::Workload(template),
                }
            }
        };
        Some((self.origin, object))
    }
}

fn read<T: Default>(
    path: &Path,
    parse: impl Fn(&[u8]) -> serde_json::Result<T>,
    damaged: impl Fn() -> T,
) -> T {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return T::default(),
        bytes => bytes,
    };
    let parsed = bytes.and_then(|bytes| Ok(parse(&bytes)?));
    parsed.unwrap_or_else(|error| {
        log::error!("saved_state_damaged file={} error={error}", path.display());
        damaged()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::PodIds;

    fn gate() -> NodeState {
        NodeState {
            arch: "aarch64".to_owned(),
            connected: true,
            ..NodeState::default()
        }
    }

    fn template(image: &str) -> Object {
        let mut manifests = Manifests::default();
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  hostNetwork: true\n  \
             containers: [{{name: c, image: {image}}}]\n"
        );
        manifests.add_file("web.yaml", &text);
        let (origin, content) = manifests.objects.into_values().next().unwrap();
        Object { origin, content }
    }

    /// Goal: a round without a change costs no write, and a change is added. Method: the
    /// files are removed, and are written only for a change.
    #[test]
    fn only_what_has_changed_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (mut saved, _, memory) = Saved::load(folder.path());
        let (store, mut placer) = (ObjectStore::default(), Placer::default());
        let mut unsaved = Unsaved::default();
        let restored = memory.restored;
        saved
            .store(&store, &placer, &restored, &mut unsaved)
            .unwrap();
        let written = || {
            [ACCEPTED, PLACEMENT].map(|name| std::fs::remove_file(folder.path().join(name)).is_ok())
        };
        assert_eq!(written(), [true, true]);
        saved
            .store(&store, &placer, &restored, &mut unsaved)
            .unwrap();
        assert_eq!(written(), [false, false]);
        placer.node_changed(&store, "gate-1", Some(gate()));
        unsaved.nodes.insert("gate-1".to_owned());
        saved
            .store(&store, &placer, &restored, &mut unsaved)
            .unwrap();
        assert_eq!(written(), [false, true]);
    }

    /// Goal: pods that are missing in the saved state may run somewhere, and no earlier line
    /// contradicts this. Method: a pod that does not decode, alone and with the end of an earlier
    /// restore after it; a file that is damaged completely; and no file.
    #[test]
    fn a_placement_with_gaps_waits_for_the_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PLACEMENT);
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let restored = Saved::load(folder.path()).2.restored;
            (restored.settling, restored.unreported.into_iter().collect())
        };
        let node = || vec!["gate-1".to_owned()];
        let whole = r#"{"nodes":{},"pods":[["gate-1","AAAA"]]}"#;
        assert_eq!(load(whole), (true, node()));
        let reported = r#"[{"reported":"gate-1"},"settled"]"#;
        assert_eq!(load(&format!("{whole}\n{reported}\n")), (true, node()));
        let added = r#"[{"pod":["gate-1","AAAA"]}]"#;
        let sound = r#"{"nodes":{},"pods":[]}"#;
        assert_eq!(load(&format!("{sound}\n{added}\n")), (true, node()));
        assert_eq!(load(sound), (false, vec![]));
        assert_eq!(load("{"), (true, vec![]));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Saved::load(folder.path()).2, Memory::default());
        std::fs::write(folder.path().join(ACCEPTED), "[]").unwrap();
        assert!(Saved::load(folder.path()).2.restored.settling);
        std::fs::create_dir(&path).unwrap();
        assert!(Saved::load(folder.path()).2.restored.settling);
    }

    /// Goal: added lines are read as they were written. Method: an object, a node and their pod
    /// are added, changed and removed, and after each step the files are read.
    #[test]
    fn what_was_added_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let (mut saved, ..) = Saved::load(folder.path());
        let (mut store, mut placer) = (
            ObjectStore::default(),
            Placer::new(PodIds::default(), BTreeMap::new(), true),
        );
        let mut restored = Restored {
            unreported: ["gate-1".to_owned()].into(),
            settling: true,
            awaits_source: true,
        };
        let mut unsaved = Unsaved::default();
        saved
            .store(&store, &placer, &restored, &mut unsaved)
            .unwrap();
        let id = Id {
            kind: DocumentKind::Pod,
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        };
        for step in 0..5 {
            match step {
                0 => assert!(store.put(&id, &template("i:1"))),
                1 => placer.node_changed(&store, "gate-1", Some(gate())),
                2 => assert!(store.put(&id, &template("i:2"))),
                3 => {
                    restored = Restored::default();
                    unsaved.reported.insert("gate-1".to_owned());
                    unsaved.settled = true;
                    unsaved.source_read = true;
                }
                _ => {
                    assert!(store.remove(&id));
                    placer.node_changed(&store, "gate-1", None);
                }
            }
            placer.object_changed(&store, &id);
            while !placer.is_settled() {
                placer.round(&store);
            }
            unsaved.objects.insert(id.clone());
            unsaved.nodes.insert("gate-1".to_owned());
            unsaved.pods = placer.take_changes().pods;
            saved
                .store(&store, &placer, &restored, &mut unsaved)
                .unwrap();
            let (_, manifests, memory) = Saved::load(folder.path());
            let mut again = ObjectStore::default();
            again.apply(&manifests);
            assert!(store.iter().eq(again.iter()), "step {step}");
            let pods = &placer.placement().pods;
            assert!(
                pods.iter().map(|(uid, one)| (uid, &**one)).eq(&memory.pods),
                "step {step}"
            );
            assert_eq!(
                pods.len(),
                usize::from((1..4).contains(&step)),
                "step {step}"
            );
            assert_eq!(memory.nodes.len(), placer.nodes().count(), "step {step}");
            assert_eq!(memory.restored, restored, "step {step}");
            assert!(check(&std::fs::read(folder.path().join(ACCEPTED)).unwrap()).is_ok());
        }
        let lines = std::fs::read_to_string(folder.path().join(PLACEMENT)).unwrap();
        assert_eq!(lines.lines().count(), 6, "{lines}");
    }
}
