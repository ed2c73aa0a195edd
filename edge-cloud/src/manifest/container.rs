//! Containers of a pod.

use edge_proto::limits::{ARGV_MAX, ENV_MAX};
use edge_proto::object::{CAPABILITY_NAMES, capability};
use edge_proto::object::{Container, EnvFrom, EnvValue, EnvVar, Pod, Resources, RuntimeClass};

use super::expand::expand;
use super::quantity::{
    absolute_path, config_key, cpu_millis, env_name, label_name, subdomain_name, units,
};
use super::reader::{Field, Object};
use super::volume;

/// Longest image reference.
const IMAGE_BYTES_MAX: usize = 512;
/// Ports that a container may list.
const PORTS_MAX: usize = 64;
/// Kubernetes has no limit of processes; this key of `limits` is our own.
const PIDS: &str = "edge-min.io/pids";

/// Settings of the pod's `securityContext` for each container.
#[derive(Debug, Default)]
pub(super) struct Defaults {
    /// `runAsUser`.
    pub(super) user: Option<u32>,
    /// `runAsGroup`.
    pub(super) group: Option<u32>,
    /// `runAsNonRoot`.
    pub(super) non_root: bool,
}

const PROBE: &str = "is not supported: a container is restarted when its process ends";

/// Why a known field is refused.
const REASONS: &[(&str, &str)] = &[
    ("livenessProbe", PROBE),
    ("readinessProbe", PROBE),
    ("startupProbe", PROBE),
    (
        "lifecycle",
        "is not supported: containers get SIGTERM, then SIGKILL after the grace period",
    ),
];

/// Reads one container of `pod`, whose runtime and volumes are known.
pub(super) fn container(field: &Field<'_>, pod: &Pod, defaults: &Defaults) -> Option<Container> {
    let mut object = field.object()?;
    let name = object.require("name").and_then(|f| f.checked(label_name));
    let mut container = Container {
        name: name.unwrap_or_default(),
        user: defaults.user,
        group: defaults.group,
        ..Container::default()
    };
    image(&mut object, pod.runtime, &mut container);
    environment(&mut object, &mut container);
    for (key, words) in [
        ("command", &mut container.command),
        ("args", &mut container.args),
    ] {
        if let Some(field) = object.take(key) {
            let items = field.list(ARGV_MAX);
            for item in &items {
                let mut word = item.text().unwrap_or_default().to_owned();
                expand_at(item, &mut word, &container.env);
                words.push(word);
            }
        }
    }
    if container.command.len() + container.args.len() > ARGV_MAX {
        object.refuse(
            "args",
            format!("with command has more than {ARGV_MAX} words"),
        );
    }
    if pod.runtime == RuntimeClass::Process && container.command.is_empty() {
        object.refuse("command", "is missing: it names the program of a process");
    }
    container.working_dir = object
        .take_text("workingDir")
        .and_then(|f| f.checked(absolute_path));
    container.mounts = volume::mounts(&mut object, pod);
    if let Some(field) = object.take("resources") {
        container.resources = resources(&field);
    }
    security(&mut object, pod.runtime, defaults, &mut container);
    ports(&mut object);
    object.harmless(&["terminationMessagePath", "terminationMessagePolicy"]);
    object.only("stdin", false, "is not supported");
    object.only("stdinOnce", false, "is not supported");
    object.only("tty", false, "is not supported");
    object.finish(REASONS);
    Some(container)
}

fn image(object: &mut Object<'_>, runtime: RuntimeClass, container: &mut Container) {
    let image = object.take("image");
    object.only_text(
        "imagePullPolicy",
        &["IfNotPresent", "Never"],
        "must be IfNotPresent or Never: images come from the node's preload folder",
    );
    if runtime == RuntimeClass::Process {
        return;
    }
    let Some(field) = image else {
        object.refuse("image", "is missing");
        return;
    };
    container.image = field
        .checked(|text| {
            if text.is_empty()
                || text.len() > IMAGE_BYTES_MAX
                || !text.bytes().all(|c| c.is_ascii_graphic())
            {
                return Err("must be an image reference of at most 512 characters");
            }
            Ok(())
        })
        .unwrap_or_default();
}

fn expand_at(field: &Field<'_>, text: &mut String, env: &[EnvVar]) {
    match expand(text, env) {
        Ok(expanded) => *text = expanded,
        Err(error) => field.refuse(error.to_string()),
    }
}

fn environment(object: &mut Object<'_>, container: &mut Container) {
    let items = object
        .take("envFrom")
        .map(|f| f.list(ENV_MAX))
        .unwrap_or_default();
    container.env_from = items.iter().filter_map(env_from).collect();
    let items = object
        .take("env")
        .map(|f| f.list(ENV_MAX))
        .unwrap_or_default();
    for item in &items {
        if let Some(mut var) = env_var(item) {
            if let EnvValue::Literal(text) = &mut var.value {
                expand_at(item, text, &container.env);
            }
            container.env.push(var);
        }
    }
    if container.env.len() + container.env_from.len() > ENV_MAX {
        object.refuse(
            "env",
            format!("with envFrom has more than {ENV_MAX} entries"),
        );
    }
}

fn env_from(field: &Field<'_>) -> Option<EnvFrom> {
    let mut object = field.object()?;
    let prefix = object.take("prefix").and_then(|f| f.checked(env_name));
    let refs = [
        object.take("configMapRef").map(|f| (false, f)),
        object.take("secretRef").map(|f| (true, f)),
    ];
    object.finish(&[]);
    let ([Some((secret, reference)), None] | [None, Some((secret, reference))]) = refs else {
        field.refuse("must have one of configMapRef and secretRef");
        return None;
    };
    let mut reference = reference.object()?;
    let name = reference
        .require("name")
        .and_then(|f| f.checked(subdomain_name));
    let optional = reference.flag("optional");
    reference.finish(&[]);
    Some(EnvFrom {
        secret,
        name: name?,
        prefix: prefix.unwrap_or_default(),
        optional,
    })
}

fn env_var(field: &Field<'_>) -> Option<EnvVar> {
    let mut object = field.object()?;
    let name = object.require("name").and_then(|f| f.checked(env_name));
    let literal = object.take("value");
    let from = object.take("valueFrom");
    object.finish(&[]);
    let value = match (literal, from) {
        (Some(_), Some(from)) => {
            from.refuse("must not stand beside value");
            return None;
        }
        (None, Some(from)) => value_from(&from)?,
        (Some(literal), None) => EnvValue::Literal(literal.text()?.to_owned()),
        (None, None) => EnvValue::Literal(String::new()),
    };
    Some(EnvVar { name: name?, value })
}

fn value_from(field: &Field<'_>) -> Option<EnvValue> {
    let mut object = field.object()?;
    let config_map = object.take("configMapKeyRef");
    let secret = object.take("secretKeyRef");
    object.finish(&[]);
    let ((Some(reference), None) | (None, Some(reference))) = (&config_map, &secret) else {
        field.refuse("must have one of configMapKeyRef and secretKeyRef");
        return None;
    };
    let mut reference = reference.object()?;
    let name = reference
        .require("name")
        .and_then(|f| f.checked(subdomain_name));
    let key = reference.require("key").and_then(|f| f.checked(config_key));
    let optional = reference.flag("optional");
    reference.finish(&[]);
    let (name, key) = (name?, key?);
    Some(if secret.is_some() {
        EnvValue::Secret {
            name,
            key,
            optional,
        }
    } else {
        EnvValue::ConfigMap {
            name,
            key,
            optional,
        }
    })
}

fn resources(field: &Field<'_>) -> Resources {
    let mut resources = Resources::default();
    let Some(mut object) = field.object() else {
        return resources;
    };
    if let Some(mut limits) = object.take("limits").and_then(|f| f.object()) {
        resources.cpu_millis = amount(&mut limits, "cpu", cpu_millis);
        resources.memory_bytes = amount(&mut limits, "memory", units);
        resources.pids = amount(&mut limits, PIDS, |text| {
            units(text).and_then(|count| u32::try_from(count).ok())
        });
        limits.finish(&[]);
    }
    // Requests are for schedulers that use them; ours counts pods.
    if let Some(mut requests) = object.take("requests").and_then(|f| f.object()) {
        let cpu = amount(&mut requests, "cpu", cpu_millis);
        let memory = amount(&mut requests, "memory", units);
        if over(cpu, resources.cpu_millis) {
            requests.refuse("cpu", "is above the limit");
        }
        if over(memory, resources.memory_bytes) {
            requests.refuse("memory", "is above the limit");
        }
        requests.finish(&[]);
    }
    object.finish(&[]);
    resources
}

fn over<T: PartialOrd>(request: Option<T>, limit: Option<T>) -> bool {
    matches!((request, limit), (Some(request), Some(limit)) if request > limit)
}

/// A quantity above 0.
fn amount<T: Default + PartialEq>(
    object: &mut Object<'_>,
    key: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let field = object.take(key)?;
    let amount = read(&field.scalar()?).filter(|amount| *amount != T::default());
    if amount.is_none() {
        field.refuse("must be a quantity above 0, such as 500m, 2 or 64Mi");
    }
    amount
}

fn security(
    object: &mut Object<'_>,
    runtime: RuntimeClass,
    defaults: &Defaults,
    container: &mut Container,
) {
    let mut non_root = defaults.non_root;
    if let Some(mut context) = object.take("securityContext").and_then(|f| f.object()) {
        if let Some(field) = context.take("runAsUser") {
            container.user = field.integer(0, i32::MAX as u32);
        }
        if let Some(field) = context.take("runAsGroup") {
            container.group = field.integer(0, i32::MAX as u32);
        }
        if let Some(field) = context.take("runAsNonRoot") {
            non_root = field.boolean().unwrap_or_default();
        }
        container.read_only_root = context.flag("readOnlyRootFilesystem");
        if container.read_only_root && runtime == RuntimeClass::Process {
            context.refuse(
                "readOnlyRootFilesystem",
                "is not supported for a process: it runs on the node's own root",
            );
        }
        container.privileged = context.flag("privileged");
        if container.privileged && runtime == RuntimeClass::Runc {
            context.refuse("privileged", "is supported for a process only");
        }
        // No container gains privileges after its start, so the field changes nothing.
        let escalation = context.take("allowPrivilegeEscalation");
        if let Some(field) = escalation
            && field.boolean() == Some(false)
            && container.privileged
        {
            field.refuse("must not be false for a privileged container");
        }
        if let Some(mut lists) = context.take("capabilities").and_then(|f| f.object()) {
            container.add_capabilities = capabilities(&mut lists, "add");
            container.drop_capabilities = capabilities(&mut lists, "drop");
            lists.finish(&[]);
        }
        context.finish(&[]);
    }
    if non_root && container.user.unwrap_or_default() == 0 {
        object.refuse(
            "securityContext.runAsUser",
            "must be a user above 0 because of runAsNonRoot: the image's own user is not known here",
        );
    }
}

/// The bits of a list of capabilities.
fn capabilities(lists: &mut Object<'_>, key: &str) -> u64 {
    let items = lists.take(key).map(|f| f.list(CAPABILITY_NAMES.len() + 1));
    let mut bits = 0;
    for item in items.unwrap_or_default() {
        match item.text().map(capability) {
            Some(Some(bit)) => bits |= bit,
            Some(None) => {
                item.refuse("must be ALL or a capability without CAP_, such as NET_ADMIN")
            }
            None => {}
        }
    }
    bits
}

/// Ports are informative; on the node's own network they change nothing, as
/// long as no port is to be mapped.
fn ports(object: &mut Object<'_>) {
    let items = object
        .take("ports")
        .map(|f| f.list(PORTS_MAX))
        .unwrap_or_default();
    for item in &items {
        let Some(mut port) = item.object() else {
            continue;
        };
        port.harmless(&["name", "protocol"]);
        let inner = port
            .require("containerPort")
            .and_then(|f| f.integer(1, 65_535));
        if let Some(field) = port.take("hostPort")
            && field.integer(1, 65_535) != inner
        {
            field.refuse("must equal containerPort: pods share the node's network");
        }
        port.finish(&[]);
    }
}
