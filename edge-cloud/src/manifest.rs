//! Reads a folder of plain Kubernetes YAML (or JSON): Pod, ConfigMap, Secret, Deployment and
//! DaemonSet, and our own NodePolicy, several documents a file.
//!
//! A document is accepted as a whole or refused with a [`Problem`] for each wrong field; the others
//! still apply. No field is ignored silently: a field is supported, harmless
//! (`docs/pods.md`), or refused. Bounds: [`FILES_MAX`] files of [`FILE_BYTES_MAX`] bytes.

mod config;
mod container;
mod expand;
mod pod;
mod policy;
mod quantity;
mod reader;
mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_proto::limits::POD_BYTES_MAX;
use edge_proto::object::RestartPolicy;
use serde::{Deserialize, Serialize};
use serde_norway::Value;

pub use pod::Template;
pub use policy::Policy;
use reader::{Faults, Field, Object};

/// Largest manifest file that is read, bytes.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Files of the folder that are read; more are a problem of the folder.
pub const FILES_MAX: usize = 1000;
/// Problems that are kept; further ones are only counted.
pub const PROBLEMS_MAX: usize = 1000;
/// Documents of one file.
pub const DOCUMENTS_MAX: usize = 1000;
/// Bound of the parser's cost of a document: at each character that may end a token the parser checks
/// every open bracket, so 200 KB of `[` would take minutes. A maximal file of JSON, nested 50 deep,
/// is below.
pub const PARSER_STEPS_MAX: usize = 200_000_000;
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
    fn parse(version: &str, kind: &str) -> Option<Self> {
        Some(match (version, kind) {
            ("v1", "Pod") => Self::Pod,
            ("v1", "ConfigMap") => Self::ConfigMap,
            ("v1", "Secret") => Self::Secret,
            ("apps/v1", "Deployment") => Self::Deployment,
            ("apps/v1", "DaemonSet") => Self::DaemonSet,
            ("edge-min.io/v1", "NodePolicy") => Self::NodePolicy,
            _ => return None,
        })
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

/// A refused document or field, or an unreadable file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
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
}

impl Manifests {
    /// Reads every file below `folder`, see [`files`].
    #[must_use]
    pub fn read(folder: &Path) -> Self {
        let mut manifests = Self::default();
        let (files, faults) = files(folder);
        manifests.problems.extend(faults);
        for (name, path) in files {
            manifests.read_file(&name, &path);
        }
        manifests
    }

    /// Adds the documents of a file.
    pub fn read_file(&mut self, name: &str, path: &Path) {
        match text_of(path) {
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
        for (line, document) in documents(text) {
            let parsed = match parser_steps(&document) {
                0..=PARSER_STEPS_MAX => serde_norway::from_str::<Value>(&document),
                _ => {
                    number += 1;
                    self.unread.insert(file.to_owned());
                    let reason = format!("line {line}: too many nested brackets");
                    self.problem(file, number, None, "", reason);
                    continue;
                }
            };
            match parsed {
                Ok(Value::Null) => {}
                Ok(value) => {
                    number += 1;
                    self.add_document(file, number, &value);
                }
                Err(error) => {
                    number += 1;
                    self.unread.insert(file.to_owned());
                    let at = error.location().map_or(line, |at| line + at.line() - 1);
                    let reason = format!("line {at}: {}", in_file(&error.to_string(), line));
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

    fn add_document(&mut self, file: &str, document: usize, value: &Value) {
        let faults = Faults::default();
        let (id, object) = read_document(&Field::document(value, &faults));
        let sound = faults.is_empty();
        let label = id.as_ref().map(ToString::to_string);
        for fault in faults.into_vec() {
            let object = label.clone();
            self.problem(file, document, object, &fault.path, fault.reason);
        }
        let Some(id) = id else {
            self.unread.insert(file.to_owned());
            return;
        };
        if let Some((first, _)) = self.objects.get(&id) {
            let reason = format!(
                "stands in {} document {}, too: that one holds",
                first.file, first.document
            );
            self.problem(file, document, label, "metadata.name", reason);
        } else if let (true, Some(object)) = (sound, object) {
            let file = file.to_owned();
            self.objects.insert(id, (Origin { file, document }, object));
        } else {
            self.refused.insert(id);
        }
    }

    /// Whether a file could not be read completely: its content is unknown.
    #[must_use]
    pub fn is_unread(&self, file: &str) -> bool {
        self.unread.contains(file)
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
        if self.problems.len() < PROBLEMS_MAX {
            let file = file.to_owned();
            self.problems.push(Problem {
                origin: Origin { file, document },
                object,
                path: path.to_owned(),
                reason,
            });
        }
    }
}

/// Every `.yaml`, `.yml` and `.json` below `folder` by its path from there, or the one file that it is,
/// and why some may be missing. Hidden files and folders are skipped: editors and Kubernetes' own
/// volumes create them.
#[must_use]
pub fn files(folder: &Path) -> (BTreeMap<String, PathBuf>, Vec<Problem>) {
    let (mut files, mut faults) = (Vec::new(), Manifests::default());
    if folder.is_file() {
        files.push(folder.to_owned());
    } else if let Err(error) = find(folder, &mut files, 0) {
        faults.problem("", 0, None, "", format!("{}: {error}", folder.display()));
    }
    files.sort();
    if files.len() > FILES_MAX {
        let reason = format!("more than {FILES_MAX} files, those after are not read");
        faults.problem("", 0, None, "", reason);
        files.truncate(FILES_MAX);
    }
    let named = files.into_iter().map(|path| {
        let below = path.strip_prefix(folder).ok();
        let below = below.filter(|below| !below.as_os_str().is_empty());
        let name = below.unwrap_or(&path).to_string_lossy().into_owned();
        (name, path)
    });
    (named.collect(), faults.problems)
}

/// Deepest folder that is searched: links may form a circle.
const DEPTH_MAX: usize = 8;

fn find(folder: &Path, files: &mut Vec<PathBuf>, depth: usize) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') || files.len() > FILES_MAX {
            continue;
        }
        let extension = path.extension().unwrap_or_default();
        if path.is_dir() {
            if depth < DEPTH_MAX {
                find(&path, files, depth + 1)?;
            }
        } else if ["yaml", "yml", "json"]
            .iter()
            .any(|known| extension == *known)
        {
            files.push(path);
        }
    }
    Ok(())
}

fn text_of(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    // Before it is opened: opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

/// Upper bound of the parser's checks of open brackets. Brackets in text are counted, too: distinguishing
/// them would require parsing.
fn parser_steps(document: &str) -> usize {
    let (mut open, mut steps) = (0_usize, 0_usize);
    for byte in document.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            b',' | b':' | b'?' | b'-' | b'"' | b'\'' | b'&' | b'*' | b' ' | b'\n' => {}
            _ => continue,
        }
        steps = steps.saturating_add(open);
    }
    steps
}

/// The documents of a file and the line each begins at. YAML ends a document at a line that
/// begins with `---` or `...`, even inside a quoted or block scalar, so lines are enough; and a
/// document that does not parse does not affect the following ones.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut documents = vec![(1, String::new())];
    for (index, line) in text.lines().enumerate() {
        let marker = |marker| {
            line.strip_prefix(marker)
                .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
        };
        let rest = marker("---").or_else(|| marker("..."));
        if rest.is_some() {
            documents.push((index + 1, String::new()));
        }
        if let Some((_, document)) = documents.last_mut() {
            document.push_str(rest.unwrap_or(line));
            document.push('\n');
        }
    }
    documents
}

/// The message of the YAML reader, with line numbers of the file instead of the document.
fn in_file(words: &str, first: usize) -> String {
    let mut parts = words.split(" at line ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        let (number, rest) = part.split_at(end);
        let line = number.parse::<usize>().map_or(0, |line| line + first - 1);
        text += &format!(" at line {line}{rest}");
    }
    text
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
