//! Reads a folder of plain Kubernetes YAML (or JSON): Pod, ConfigMap, Secret, Deployment and
//! DaemonSet, and our own NodePolicy, several documents a file.
//!
//! A document is accepted as a whole or refused with a [`Problem`] for each wrong field; the others
//! still apply. No field is ignored silently: a field is supported, harmless
//! (`docs/pods.md`), or refused. Bounds: [`FILES_MAX`] files of [`FILE_BYTES_MAX`] bytes.

mod config;
mod container;
mod expand;
mod folder;
mod meant;
mod pod;
mod policy;
mod quantity;
mod reader;
mod text;
mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use edge_proto::limits::POD_BYTES_MAX;
use edge_proto::object::RestartPolicy;
use serde::{Deserialize, Serialize};
use serde_norway::Value;

pub use folder::{FILE_BYTES_MAX, FILES_MAX, files, text_of};
use meant::Meant;
pub use pod::Template;
pub use policy::Policy;
use reader::{Faults, Field, Object};
use text::{Document, documents};

/// Problems that are kept; further ones are only counted.
pub const PROBLEMS_MAX: usize = 1000;
/// Documents of one file.
pub const DOCUMENTS_MAX: usize = 1000;
/// Replicas of one Deployment.
pub const REPLICAS_MAX: u32 = 1000;

/// Supported kinds of documents, with their `apiVersion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DocumentKind {
    /// v1.
    Pod,
    /// v1.
    ConfigMap,
    /// v1.
    Secret,
    /// apps/v1.
    Deployment,
    /// apps/v1.
    DaemonSet,
    /// edge-min.io/v1, our own.
    NodePolicy,
}

impl DocumentKind {
    const ALL: [Self; 6] = [
        Self::Pod,
        Self::ConfigMap,
        Self::Secret,
        Self::Deployment,
        Self::DaemonSet,
        Self::NodePolicy,
    ];

    fn parse(version: &str, kind: &str) -> Option<Self> {
        Self::of_name(kind).filter(|kind| kind.version() == version)
    }

    /// The kind of this name in any version.
    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    const fn version(self) -> &'static str {
        match self {
            Self::Pod | Self::ConfigMap | Self::Secret => "v1",
            Self::Deployment | Self::DaemonSet => "apps/v1",
            Self::NodePolicy => "edge-min.io/v1",
        }
    }

    /// The name of the kind in Kubernetes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Deployment => "Deployment",
            Self::DaemonSet => "DaemonSet",
            Self::NodePolicy => "NodePolicy",
        }
    }
}

/// Identity of an object in the manifests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Id {
    /// From `kind` and `apiVersion`.
    pub kind: DocumentKind,
    /// From `metadata`; `default` without one.
    pub namespace: String,
    /// From `metadata`.
    pub name: String,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// Place of an object's document.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// Path below the folder.
    pub file: String,
    /// Number of the document in the file, from 1; 0 is the file itself.
    pub document: usize,
}

/// Whether a problem affects the desired state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A part of the desired state is not applied.
    #[default]
    Error,
    /// Everything that edge-cloud supports is applied.
    Warning,
}

impl Severity {
    /// As in JSON and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A refused document or field, an unreadable file, or a warning about a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Its effect on the desired state.
    pub severity: Severity,
    /// Place of the document.
    #[serde(flatten)]
    pub origin: Origin,
    /// `Pod default/web`, when it could be read.
    pub object: Option<String>,
    /// Path of the field; empty for the document itself.
    pub path: String,
    /// Human-readable.
    pub reason: String,
}

/// `gate.yaml: document 2: Pod default/web: spec.containers[0].livenessProbe: is not supported`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin.file.is_empty() {
            return f.write_str(&self.reason);
        }
        write!(f, "{}", self.origin.file)?;
        if self.origin.document > 0 {
            write!(f, ": document {}", self.origin.document)?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        if self.severity == Severity::Warning {
            f.write_str(": warning")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// An accepted object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Payload of a ConfigMap or Secret.
    Config(Arc<[u8]>),
    /// A Pod, or the template of a DaemonSet.
    Workload(Box<Template>),
    /// Template and replicas of a Deployment.
    Replicated(Box<Template>, u32),
    /// A NodePolicy.
    Policy(Box<Policy>),
}

/// Content of a folder.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// Accepted objects and the places of their documents.
    pub objects: BTreeMap<Id, (Origin, Accepted)>,
    /// What was refused, at most [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// Files that could not be read completely: their content is unknown.
    unread: BTreeSet<String>,
    /// Objects whose document was refused.
    refused: BTreeSet<Id>,
    /// Possible objects of the refused documents without a complete identity, by file.
    unclear: BTreeMap<String, Vec<Meant>>,
}

impl Manifests {
    /// Reads every file below `folder`, see [`files`].
    #[must_use]
    pub fn read(folder: &Path) -> Self {
        let mut manifests = Self::default();
        let (files, faults) = files(folder);
        manifests.problems.extend(faults);
        for (name, path) in files {
            manifests.add_text(&name, text_of(&path));
        }
        manifests
    }

    /// Adds the documents of a file, or the reason why it cannot be read.
    pub fn add_text(&mut self, name: &str, text: Result<String, String>) {
        match text {
            Ok(text) => self.add_file(name, &text),
            Err(reason) => {
                self.unread.insert(name.to_owned());
                self.problem(name, 0, None, "", reason);
            }
        }
    }

    /// Adds the documents of one file.
    pub fn add_file(&mut self, file: &str, text: &str) {
        let mut number = 0;
        for document in documents(text) {
            match document.parse() {
                Ok(Value::Null) => {}
                Ok(value) => {
                    number += 1;
                    self.add_document(file, number, &document, &value);
                }
                Err(reason) => {
                    number += 1;
                    self.unclear(file, Meant::of_lines(&document));
                    self.problem(file, number, None, "", reason);
                }
            }
            if number > DOCUMENTS_MAX {
                self.unread.insert(file.to_owned());
                let reason = format!("more than {DOCUMENTS_MAX} documents");
                self.problem(file, 0, None, "", reason);
                return;
            }
        }
    }

    fn add_document(&mut self, file: &str, number: usize, document: &Document, value: &Value) {
        let Some(meant) = Meant::of(value) else {
            self.add_foreign(file, number, value);
            return;
        };
        let faults = Faults::default();
        let (id, object) = read_document(&Field::document(value, &faults));
        let sound = faults.is_empty();
        let label = id.as_ref().map(ToString::to_string);
        for fault in faults.into_vec() {
            let object = label.clone();
            self.problem(file, number, object, &fault.path, fault.reason);
        }
        if !sound && document.may_be_cut() {
            // Its name may be truncated, too.
            self.unclear(file, Meant::default());
        }
        let Some(id) = id else {
            self.unclear(file, meant);
            return;
        };
        if let Some((first, _)) = self.objects.get(&id) {
            let reason = format!(
                "stands in {} document {}, too: that one holds",
                first.file, first.document
            );
            self.problem(file, number, label, "metadata.name", reason);
        } else if let (true, Some(object)) = (sound, object) {
            let file = file.to_owned();
            let document = number;
            self.objects.insert(id, (Origin { file, document }, object));
        } else {
            self.refused.insert(id);
        }
    }

    /// Adds a warning: a document of an unsupported kind cannot be a document of one of our objects.
    fn add_foreign(&mut self, file: &str, document: usize, value: &Value) {
        let text =
            |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text(value.get("apiVersion")), text(value.get("kind")));
        let name = text(value.get("metadata").and_then(|all| all.get("name")));
        self.report(Problem {
            severity: Severity::Warning,
            origin: Origin {
                file: file.to_owned(),
                document,
            },
            object: Some(format!("{kind} {name}")),
            path: "kind".to_owned(),
            reason: format!("{version} {kind} is not supported and has no effect"),
        });
    }

    fn unclear(&mut self, file: &str, meant: Meant) {
        self.unclear.entry(file.to_owned()).or_default().push(meant);
    }

    /// Whether a file could not be read completely: its content is unknown.
    #[must_use]
    pub fn is_unread(&self, file: &str) -> bool {
        self.unread.contains(file)
    }

    /// Whether a refused document of this file may be the document of an object.
    #[must_use]
    pub fn may_have(&self, file: &str, id: &Id) -> bool {
        let mut unclear = self.unclear.get(file).into_iter().flatten();
        self.is_unread(file) || unclear.any(|meant| meant.may_be(id))
    }

    /// Whether a document of this object was refused.
    #[must_use]
    pub fn is_refused(&self, id: &Id) -> bool {
        self.refused.contains(id)
    }

    fn problem(
        &mut self,
        file: &str,
        document: usize,
        object: Option<String>,
        path: &str,
        reason: String,
    ) {
        self.report(Problem {
            severity: Severity::Error,
            origin: Origin {
                file: file.to_owned(),
                document,
            },
            object,
            path: path.to_owned(),
            reason,
        });
    }

    fn report(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}

fn read_document(field: &Field<'_>) -> (Option<Id>, Option<Accepted>) {
    let Some(mut document) = field.object() else {
        return (None, None);
    };
    let version = document.require("apiVersion").and_then(|f| f.text());
    let kind = document.require("kind").and_then(|f| f.text());
    let (Some(version), Some(kind)) = (version, kind) else {
        return (None, None);
    };
    let Some(kind) = DocumentKind::parse(version, kind) else {
        let reason = format!(
            "{version} {kind} is not supported: v1 Pod, ConfigMap, Secret, apps/v1 Deployment, \
             DaemonSet, edge-min.io/v1 NodePolicy are"
        );
        field.faults.add("kind", reason);
        return (None, None);
    };
    let metadata = pod::metadata(&mut document, false);
    document.harmless(&["status"]);
    let object = match kind {
        DocumentKind::ConfigMap => Some(Accepted::Config(config::config_map(&mut document).into())),
        DocumentKind::Secret => Some(Accepted::Config(config::secret(&mut document).into())),
        DocumentKind::NodePolicy => document
            .require("spec")
            .and_then(|f| policy::spec(&f))
            .map(|policy| Accepted::Policy(Box::new(policy))),
        DocumentKind::Pod => document
            .require("spec")
            .and_then(|f| pod::spec(&f))
            .map(|template| {
                Accepted::Workload(Box::new(finish(template, &metadata, &document, "spec")))
            }),
        DocumentKind::Deployment | DocumentKind::DaemonSet => document
            .require("spec")
            .and_then(|f| owner(&f, kind, &metadata)),
    };
    document.finish(&[]);
    let id = Id {
        kind,
        namespace: metadata.namespace,
        name: metadata.name,
    };
    let named = !id.namespace.is_empty() && !id.name.is_empty();
    (named.then_some(id), object)
}

/// Adds labels and namespace to a template and checks its size.
fn finish(
    mut template: Template,
    metadata: &pod::Metadata,
    at: &Object<'_>,
    key: &str,
) -> Template {
    template.pod.namespace.clone_from(&metadata.namespace);
    template.pod.name.clone_from(&metadata.name);
    template.pod.labels = metadata.labels.clone().into_iter().collect();
    // UID and the longest name are added later.
    if template.pod.encode().len() + 512 > POD_BYTES_MAX {
        at.refuse(key, format!("is larger than {POD_BYTES_MAX} bytes"));
    }
    template
}

/// Reads the spec of a Deployment or DaemonSet.
fn owner(field: &Field<'_>, kind: DocumentKind, metadata: &pod::Metadata) -> Option<Accepted> {
    let mut spec = field.object()?;
    let selector = selector(&mut spec);
    let template = spec.require("template").and_then(|f| {
        let mut object = f.object()?;
        let inner = pod::metadata(&mut object, true);
        let template = object.require("spec").and_then(|f| pod::spec(&f));
        if !selector
            .iter()
            .all(|(key, value)| inner.labels.get(key) == Some(value))
        {
            object.refuse("metadata.labels", "must have the labels of spec.selector");
        }
        let metadata = pod::Metadata {
            labels: inner.labels,
            ..metadata.clone()
        };
        let template = template.map(|template| finish(template, &metadata, &object, "spec"));
        object.finish(&[]);
        if template
            .as_ref()
            .is_some_and(|t| t.pod.restart_policy != RestartPolicy::Always)
        {
            f.faults
                .add("spec.template.spec.restartPolicy", "must be Always");
        }
        template
    });
    spec.harmless(&["revisionHistoryLimit", "progressDeadlineSeconds"]);
    spec.only_zero("minReadySeconds", "is not supported");
    let object = if kind == DocumentKind::Deployment {
        let replicas = spec
            .take("replicas")
            .map_or(Some(1), |f| f.integer(0, REPLICAS_MAX));
        spec.only("paused", false, "is not supported");
        if let Some(mut strategy) = spec.take("strategy").and_then(|f| f.object()) {
            let reason = "must be Recreate or left out: the old pod ends before the new one starts";
            strategy.only_text("type", &["Recreate"], reason);
            strategy.finish(&[]);
        }
        Accepted::Replicated(Box::new(template?), replicas?)
    } else {
        Accepted::Workload(Box::new(template?))
    };
    spec.finish(&[(
        "updateStrategy",
        "is not supported: every node's old pod ends before its new one starts",
    )]);
    Some(object)
}

fn selector(spec: &mut Object<'_>) -> BTreeMap<String, String> {
    let Some(mut object) = spec.require("selector").and_then(|f| f.object()) else {
        return BTreeMap::new();
    };
    let labels = object
        .require("matchLabels")
        .map(|f| pod::labels(&f))
        .unwrap_or_default();
    object.finish(&[]);
    labels
}

#[cfg(test)]
mod tests;
