//! The object that a refused or unparsable document is intended for, as far as it is known. Such an
//! object does not count as missing in its file.

use serde_norway::Value;

use super::text::Document;
use super::{DocumentKind, Id};
use crate::manifest::quantity::{label_name, subdomain_name};

/// Unsupported kinds of Kubernetes in the groups of the supported ones. Any other kind in these groups is
/// a typing error and may stand for a supported one.
const FOREIGN: [(&str, &[&str]); 2] = [
    (
        "v1",
        &[
            "Binding",
            "ComponentStatus",
            "Endpoints",
            "Event",
            "LimitRange",
            "Namespace",
            "Node",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "Service",
            "ServiceAccount",
        ],
    ),
    (
        "apps/v1",
        &["ControllerRevision", "ReplicaSet", "StatefulSet"],
    ),
];

/// The known parts of an object's identity; `None` matches every object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meant {
    kind: Option<DocumentKind>,
    namespace: Option<String>,
    name: Option<String>,
}

impl Meant {
    /// For a parsed document; `None` for a document of an unsupported kind.
    pub(super) fn of(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let kind = text("kind").and_then(DocumentKind::of_name);
        if let (None, Some(name)) = (kind, text("kind"))
            && text("apiVersion").is_some_and(|version| is_foreign(version, name))
        {
            return None;
        }
        Some(Self::named(kind, value.get("metadata")))
    }

    /// For a document that cannot be parsed: reads the lines `kind:` and `metadata:` of block style.
    pub(super) fn of_lines(document: &Document) -> Self {
        let (mut kind, mut metadata, mut inner) = (None, String::new(), false);
        for line in document.whole_lines() {
            if line.starts_with([' ', '#']) || line.is_empty() {
                if inner {
                    metadata += line;
                    metadata.push('\n');
                }
                continue;
            }
            inner = false;
            if let Some(rest) = line.strip_prefix("kind:") {
                kind = scalar(rest).and_then(|kind| DocumentKind::of_name(&kind));
            } else if let Some(rest) = line.strip_prefix("metadata:") {
                inner = true;
                metadata = rest.trim_start().to_owned() + "\n";
            }
        }
        let metadata = serde_norway::from_str::<Value>(&metadata).ok();
        Self::named(kind, metadata.as_ref())
    }

    fn named(kind: Option<DocumentKind>, metadata: Option<&Value>) -> Self {
        let Some(Value::Mapping(metadata)) = metadata else {
            return Self {
                kind,
                ..Self::default()
            };
        };
        let text = |key: &str| metadata.get(key).and_then(Value::as_str);
        let namespace = match metadata.get("namespace") {
            None | Some(Value::Null) => Some("default"),
            Some(_) => text("namespace").map(|name| if name.is_empty() { "default" } else { name }),
        };
        let namespace = namespace.filter(|name| label_name(name).is_ok());
        let name = text("name").filter(|name| subdomain_name(name).is_ok());
        Self {
            kind,
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
        }
    }

    /// Whether all known parts are equal.
    pub(super) fn may_be(&self, id: &Id) -> bool {
        self.kind.is_none_or(|kind| kind == id.kind)
            && self
                .namespace
                .as_ref()
                .is_none_or(|name| *name == id.namespace)
            && self.name.as_ref().is_none_or(|name| *name == id.name)
    }
}

fn is_foreign(version: &str, kind: &str) -> bool {
    if version == DocumentKind::NodePolicy.version() {
        return false;
    }
    let group = FOREIGN.iter().find(|(group, _)| *group == version);
    group.is_none_or(|(_, kinds)| kinds.contains(&kind))
}

fn scalar(text: &str) -> Option<String> {
    serde_norway::from_str(text.trim()).ok()
}
