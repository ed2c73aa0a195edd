//! Pod specs: converts Kubernetes' fields to [`edge_proto::object::Pod`]. `docs/pods.md` lists every field.

use std::collections::{BTreeMap, BTreeSet};

use edge_proto::limits::{CONTAINERS_MAX, LABELS_MAX, VOLUMES_MAX};
use edge_proto::object::{Pod, RestartPolicy, RuntimeClass};

use super::container::{self, Defaults};
use super::quantity::{label_key, label_name, label_value, subdomain_name};
use super::reader::{Field, Object};
use super::volume;

/// A pod without its identity, and the nodes that may run it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// UID, namespace and name are filled in when it is placed.
    pub pod: Pod,
    /// Only this node may run it.
    pub node: Option<String>,
    /// Only nodes with these labels may run it.
    pub selector: BTreeMap<String, String>,
}

/// Why a known field is refused, where "is not supported" would not be enough.
const REASONS: &[(&str, &str)] = &[
    (
        "affinity",
        "is not supported: select nodes with nodeSelector",
    ),
    ("dnsConfig", "is not supported: the node's resolver is used"),
    (
        "initContainers",
        "is not supported: all containers start at once; do it in the container's command",
    ),
    (
        "priorityClassName",
        "is not supported: no pod is ever evicted for another",
    ),
    (
        "topologySpreadConstraints",
        "is not supported: replicas go to the nodes with the fewest pods",
    ),
];

/// `runc` runs containers without a pod network.
const RUNC_NETWORK: &str =
    "must be true with runtimeClassName runc: there is no pod network yet, pods share the node's";

/// Reads a `PodSpec`.
pub(super) fn spec(field: &Field<'_>) -> Option<Template> {
    let mut spec = field.object()?;
    let mut template = Template::default();
    let pod = &mut template.pod;
    match spec
        .take_text("runtimeClassName")
        .and_then(|f| Some((f.text()?, f)))
    {
        None | Some(("runc", _)) => pod.runtime = RuntimeClass::Runc,
        Some(("process", _)) => pod.runtime = RuntimeClass::Process,
        Some((_, field)) => field.refuse("must be runc or process"),
    }
    match spec
        .take_text("restartPolicy")
        .and_then(|f| Some((f.text()?, f)))
    {
        None | Some(("Always", _)) => pod.restart_policy = RestartPolicy::Always,
        Some(("OnFailure", _)) => pod.restart_policy = RestartPolicy::OnFailure,
        Some(("Never", _)) => pod.restart_policy = RestartPolicy::Never,
        Some((_, field)) => field.refuse("must be Always, OnFailure or Never"),
    }
    pod.grace_s = spec
        .take("terminationGracePeriodSeconds")
        .and_then(|f| f.integer(0, 86_400));
    pod.host_network = spec.flag("hostNetwork");
    if pod.runtime == RuntimeClass::Runc && !pod.host_network {
        spec.refuse("hostNetwork", RUNC_NETWORK);
    }
    template.node = spec
        .take_text("nodeName")
        .and_then(|f| f.checked(label_name));
    template.selector = spec
        .take("nodeSelector")
        .map(|f| labels(&f))
        .unwrap_or_default();
    let defaults = security(&mut spec);
    pod.volumes = volumes(&mut spec);
    pod.containers = containers(&mut spec, pod, &defaults);
    harmless(&mut spec);
    spec.finish(REASONS);
    Some(template)
}

/// Fields that change nothing on a node.
fn harmless(spec: &mut Object<'_>) {
    spec.harmless(&[
        "schedulerName",
        "serviceAccount",
        "serviceAccountName",
        "enableServiceLinks",
        "preemptionPolicy",
        "imagePullSecrets",
        "tolerations",
    ]);
    spec.only_text(
        "dnsPolicy",
        &["Default", "ClusterFirst"],
        "must be Default: a node has no cluster DNS, pods use the node's resolver",
    );
    let no_token = "must be false: there is no API server to reach from a node";
    spec.only("automountServiceAccountToken", false, no_token);
    spec.only_zero("priority", "must be 0: no pod is ever evicted for another");
    spec.only("hostPID", false, "is not supported");
    spec.only("hostIPC", false, "is not supported");
    spec.only("shareProcessNamespace", false, "is not supported");
    spec.only("setHostnameAsFQDN", false, "is not supported");
    spec.only("hostUsers", true, "is not supported");
    if let Some(mut os) = spec.take("os").and_then(|f| f.object()) {
        os.only_text("name", &["linux"], "must be linux");
        os.finish(&[]);
    }
}

/// `securityContext` of the pod: defaults for its containers.
fn security(spec: &mut Object<'_>) -> Defaults {
    let mut defaults = Defaults::default();
    if let Some(mut context) = spec.take("securityContext").and_then(|f| f.object()) {
        defaults.user = context
            .take("runAsUser")
            .and_then(|f| f.integer(0, i32::MAX as u32));
        defaults.group = context
            .take("runAsGroup")
            .and_then(|f| f.integer(0, i32::MAX as u32));
        defaults.non_root = context.flag("runAsNonRoot");
        context.finish(&[]);
    }
    defaults
}

fn volumes(spec: &mut Object<'_>) -> Vec<edge_proto::object::Volume> {
    let items = spec
        .take("volumes")
        .map(|f| f.list(VOLUMES_MAX))
        .unwrap_or_default();
    let mut names = BTreeSet::new();
    let read = |item: &Field<'_>| {
        let volume = volume::volume(item)?;
        if !names.insert(volume.name.clone()) {
            item.refuse(format!("volume {} is named twice", volume.name));
        }
        Some(volume)
    };
    items.iter().filter_map(read).collect()
}

fn containers(
    spec: &mut Object<'_>,
    pod: &Pod,
    defaults: &Defaults,
) -> Vec<edge_proto::object::Container> {
    let Some(field) = spec.require("containers") else {
        return Vec::new();
    };
    let items = field.list(CONTAINERS_MAX);
    if items.is_empty() {
        field.refuse("must have at least one container");
    }
    let mut names = BTreeSet::new();
    let read = |item: &Field<'_>| {
        let container = container::container(item, pod, defaults)?;
        if !names.insert(container.name.clone()) {
            item.refuse(format!("container {} is named twice", container.name));
        }
        Some(container)
    };
    items.iter().filter_map(read).collect()
}

/// A map of labels.
pub(super) fn labels(field: &Field<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (key, value) in field.entries(LABELS_MAX).unwrap_or_default() {
        if let Err(reason) = label_key(key) {
            value.refuse(reason);
        }
        if let Some(value) = value.checked(label_value) {
            labels.insert(key.to_owned(), value);
        }
    }
    labels
}

/// Content of `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    /// `default` when absent.
    pub namespace: String,
    /// Empty when a template has none.
    pub name: String,
    /// At most `LABELS_MAX`.
    pub labels: BTreeMap<String, String>,
}

/// Reads `metadata`; in a template the name is not required and has no effect.
pub(super) fn metadata(document: &mut Object<'_>, template: bool) -> Metadata {
    let mut metadata = Metadata {
        namespace: "default".to_owned(),
        ..Metadata::default()
    };
    let field = if template {
        document.take("metadata")
    } else {
        document.require("metadata")
    };
    let Some(mut object) = field.and_then(|f| f.object()) else {
        return metadata;
    };
    if template {
        object.harmless(&["name", "namespace"]);
    } else {
        metadata.name = object
            .require("name")
            .and_then(|f| f.checked(subdomain_name))
            .unwrap_or_default();
        if let Some(field) = object.take_text("namespace") {
            metadata.namespace = field.checked(label_name).unwrap_or_default();
        }
    }
    metadata.labels = object
        .take("labels")
        .map(|f| labels(&f))
        .unwrap_or_default();
    object.harmless(&[
        "annotations",
        "creationTimestamp",
        "generation",
        "managedFields",
        "resourceVersion",
        "selfLink",
        "uid",
    ]);
    object.finish(&[("generateName", "is not supported: give a name")]);
    metadata
}
