//! What a restart must not forget: the last good manifests and where pods were placed. Two JSON
//! files in the data folder, for the owner only; losing them costs no workload as long as the
//! nodes report.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge_proto::key::Uid;
use edge_proto::object::{NodePolicy, Pod};
use serde::{Deserialize, Serialize};

use crate::durable::replace;
use crate::manifest::{Accepted, DocumentKind, Id, Manifests, Origin, Policy, Template};
use crate::placement::{Node, PlacedPod};

/// File with the last good manifests.
pub const ACCEPTED: &str = "accepted.json";
/// File with nodes and placed pods.
pub const PLACEMENT: &str = "placement.json";

/// Stands in for the UID that a template does not have yet; a Pod without one does not decode.
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

#[derive(Default, Serialize, Deserialize)]
struct SavedPlacement {
    nodes: BTreeMap<String, Node>,
    /// Node and base64 of the Pod.
    pods: Vec<(String, String)>,
    #[serde(default)]
    restored: Restored,
}

/// What a restore from a backup leaves to be done: the saved placement is older than what runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Nodes that have not reported since; what they run is not known, so they are sent nothing.
    pub unheard: BTreeSet<String>,
    /// Nodes are still expected to report for the first time.
    pub settling: bool,
}

/// What the controller remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Nodes, as they last reported.
    pub nodes: BTreeMap<String, Node>,
    /// Pods that were asked for.
    pub pods: BTreeMap<Uid, PlacedPod>,
    /// After a restore.
    pub restored: Restored,
}

/// The data folder's files, and what was last written: nothing is encoded that has not changed.
#[derive(Debug)]
pub struct Saved {
    folder: PathBuf,
    manifests: Option<Arc<Manifests>>,
    memory: Option<Memory>,
}

impl Saved {
    /// Reads what an earlier run left. A file that is damaged counts as missing.
    #[must_use]
    pub fn load(folder: &Path) -> (Self, Manifests, Memory) {
        let objects: Vec<SavedObject> = read(&folder.join(ACCEPTED));
        let placement: SavedPlacement = read(&folder.join(PLACEMENT));
        let mut manifests = Manifests::default();
        for object in objects {
            if let Some((id, entry)) = object.restore() {
                manifests.objects.insert(id, entry);
            }
        }
        let pods = placement.pods.iter().filter_map(|(node, payload)| {
            let pod = Pod::decode(&STANDARD.decode(payload).ok()?).ok()?;
            let node = node.clone();
            Some((pod.uid, PlacedPod { node, pod }))
        });
        let memory = Memory {
            pods: pods.collect(),
            nodes: placement.nodes,
            restored: placement.restored,
        };
        let saved = Self {
            folder: folder.to_owned(),
            manifests: None,
            memory: None,
        };
        (saved, manifests, memory)
    }

    /// Writes what has changed since the last call.
    ///
    /// # Errors
    /// Those of the file system; the next call tries again.
    pub fn store(&mut self, manifests: &Arc<Manifests>, memory: &Memory) -> io::Result<()> {
        let same = |last: &Arc<Manifests>| {
            Arc::ptr_eq(last, manifests) || last.objects == manifests.objects
        };
        if !self.manifests.as_ref().is_some_and(same) {
            let objects: Vec<_> = manifests
                .objects
                .iter()
                .map(|(id, (origin, object))| SavedObject::new(id, origin, object))
                .collect();
            replace(&self.folder.join(ACCEPTED), &serde_json::to_vec(&objects)?)?;
        }
        self.manifests = Some(Arc::clone(manifests));
        if self.memory.as_ref() != Some(memory) {
            let placement = SavedPlacement {
                nodes: memory.nodes.clone(),
                pods: memory
                    .pods
                    .values()
                    .map(|placed| (placed.node.clone(), STANDARD.encode(placed.pod.encode())))
                    .collect(),
                restored: memory.restored.clone(),
            };
            replace(
                &self.folder.join(PLACEMENT),
                &serde_json::to_vec(&placement)?,
            )?;
            self.memory = Some(memory.clone());
        }
        Ok(())
    }
}

/// Checks the last good manifests of a backup.
///
/// # Errors
/// It is not what [`Saved`] writes.
pub(crate) fn check(accepted: &[u8]) -> serde_json::Result<()> {
    serde_json::from_slice::<Vec<SavedObject>>(accepted).map(drop)
}

/// Marks the placement of a backup as older than what runs.
///
/// # Errors
/// It is not what [`Saved`] writes.
pub(crate) fn restored(placement: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut placement: SavedPlacement = serde_json::from_slice(placement)?;
    placement.restored = Restored {
        unheard: placement.nodes.keys().cloned().collect(),
        settling: true,
    };
    serde_json::to_vec(&placement)
}

impl SavedObject {
    fn new(id: &Id, origin: &Origin, object: &Accepted) -> Self {
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
        let (payload, template) = match object {
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
            origin: origin.clone(),
            payload,
            template,
        }
    }

    fn restore(self) -> Option<(Id, (Origin, Accepted))> {
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
        Some((self.id, (self.origin, object)))
    }
}

fn read<T: Default + for<'de> Deserialize<'de>>(path: &Path) -> T {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            log::error!("saved_state_damaged file={} error={error}", path.display());
            T::default()
        }),
        Err(_) => T::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a round in which nothing has changed costs no write. Method: the files are taken
    /// away, and come back only for a change.
    #[test]
    fn only_what_has_changed_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (mut saved, manifests, mut memory) = Saved::load(folder.path());
        let manifests = Arc::new(manifests);
        saved.store(&manifests, &memory).unwrap();
        let written = || {
            [ACCEPTED, PLACEMENT].map(|name| std::fs::remove_file(folder.path().join(name)).is_ok())
        };
        assert_eq!(written(), [true, true]);
        saved.store(&manifests, &memory).unwrap();
        saved
            .store(&Arc::new(Manifests::clone(&manifests)), &memory)
            .unwrap();
        assert_eq!(written(), [false, false]);
        memory.nodes.insert("gate-1".to_owned(), Node::default());
        saved.store(&manifests, &memory).unwrap();
        assert_eq!(written(), [false, true]);
    }
}
