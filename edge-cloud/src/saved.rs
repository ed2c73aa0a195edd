//! What a restart must not forget: the last good manifests and where pods were placed. Two JSON
//! files in the data folder, for the owner only; losing them costs no workload as long as the
//! nodes report.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge_proto::key::Uid;
use edge_proto::object::Pod;
use serde::{Deserialize, Serialize};

use crate::manifest::{Accepted, Id, Manifests, Origin, Template};
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
    /// Base64 of the ConfigMap, Secret or Pod.
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
}

/// The data folder's files, and what was last written.
#[derive(Debug)]
pub struct Saved {
    folder: PathBuf,
    accepted: String,
    placement: String,
}

impl Saved {
    /// Reads what an earlier run left. A file that is damaged counts as missing.
    #[must_use]
    pub fn load(
        folder: &Path,
    ) -> (
        Self,
        Manifests,
        BTreeMap<String, Node>,
        BTreeMap<Uid, PlacedPod>,
    ) {
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
        let pods = pods.collect();
        let saved = Self {
            folder: folder.to_owned(),
            accepted: String::new(),
            placement: String::new(),
        };
        (saved, manifests, placement.nodes, pods)
    }

    /// Writes what has changed since the last call.
    ///
    /// # Errors
    /// Those of the file system; the next call tries again.
    pub fn store(
        &mut self,
        manifests: &Manifests,
        nodes: &BTreeMap<String, Node>,
        pods: &BTreeMap<Uid, PlacedPod>,
    ) -> io::Result<()> {
        let objects: Vec<_> = manifests
            .objects
            .iter()
            .map(|(id, (origin, object))| SavedObject::new(id, origin, object))
            .collect();
        let accepted = serde_json::to_string(&objects)?;
        let placement = serde_json::to_string(&SavedPlacement {
            nodes: nodes.clone(),
            pods: pods
                .values()
                .map(|placed| (placed.node.clone(), STANDARD.encode(placed.pod.encode())))
                .collect(),
        })?;
        if accepted != self.accepted {
            write(&self.folder, ACCEPTED, &accepted)?;
            self.accepted = accepted;
        }
        if placement != self.placement {
            write(&self.folder, PLACEMENT, &placement)?;
            self.placement = placement;
        }
        Ok(())
    }
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

/// Replaces a file so that a power cut leaves the old or the new one.
fn write(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    // The temporary file has mode 0600, and the name stays.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name))?;
    std::fs::File::open(folder)?.sync_all()
}
