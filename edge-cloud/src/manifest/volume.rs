//! Volumes of a pod and their mounts in a container.

use std::path::Path;

use edge_proto::limits::{FILES_MAX, VOLUMES_MAX};
use edge_proto::object::{Pod, Volume, VolumeMount, VolumeSource};

use super::quantity::{
    absolute_path, config_key, label_name, relative_path, subdomain_name, units,
};
use super::reader::{Field, Object};

/// Reads one volume.
pub(super) fn volume(field: &Field<'_>) -> Option<Volume> {
    let mut object = field.object()?;
    let name = object.require("name").and_then(|f| f.checked(label_name));
    let mut sources = [
        object.take("emptyDir").map(|f| empty_dir(&f)),
        object.take("hostPath").map(|f| host_path(&f)),
        object.take("configMap").map(|f| config_map(&f)),
        object.take("secret").map(|f| secret(&f)),
    ]
    .into_iter()
    .flatten();
    let source = sources.next();
    match (&source, sources.next()) {
        (Some(_), Some(_)) => field.refuse("must have one source"),
        (None, _) => field.refuse("must have one of emptyDir, hostPath, configMap and secret"),
        _ => {}
    }
    object.finish(&[(
        "projected",
        "is not supported: mount each ConfigMap and Secret by itself",
    )]);
    Some(Volume {
        name: name?,
        source: source??,
    })
}

fn empty_dir(field: &Field<'_>) -> Option<VolumeSource> {
    let mut object = field.object()?;
    let memory = match object.take("medium").and_then(|f| Some((f.text()?, f))) {
        None | Some(("", _)) => false,
        Some(("Memory", _)) => true,
        Some((_, field)) => {
            field.refuse("must be empty or Memory");
            false
        }
    };
    let mut size_bytes = 0;
    if let Some(field) = object.take("sizeLimit")
        && let Some(text) = field.scalar()
    {
        size_bytes = units(&text).unwrap_or_default();
        if size_bytes == 0 {
            field.refuse("must be a quantity above 0, such as 16Mi");
        } else if !memory {
            field.refuse("is supported with medium Memory only: a directory has no cap of its own");
        }
    }
    object.finish(&[]);
    Some(VolumeSource::EmptyDir { memory, size_bytes })
}

fn host_path(field: &Field<'_>) -> Option<VolumeSource> {
    let mut object = field.object()?;
    let path = object
        .require("path")
        .and_then(|f| f.checked(absolute_path));
    let create = match object.take("type").and_then(|f| Some((f.text()?, f))) {
        None | Some(("", _)) => false,
        Some(("DirectoryOrCreate", _)) => true,
        Some((_, field)) => {
            field.refuse("must be DirectoryOrCreate or left out: other types are not checked");
            false
        }
    };
    object.finish(&[]);
    Some(VolumeSource::HostPath {
        path: path?,
        create,
    })
}

fn config_map(field: &Field<'_>) -> Option<VolumeSource> {
    let mut object = field.object()?;
    let name = object
        .require("name")
        .and_then(|f| f.checked(subdomain_name));
    let (items, mode, optional) = files(object);
    Some(VolumeSource::ConfigMap {
        name: name?,
        items,
        mode,
        optional,
    })
}

fn secret(field: &Field<'_>) -> Option<VolumeSource> {
    let mut object = field.object()?;
    let name = object
        .require("secretName")
        .and_then(|f| f.checked(subdomain_name));
    let (items, mode, optional) = files(object);
    Some(VolumeSource::Secret {
        name: name?,
        items,
        mode,
        optional,
    })
}

/// `items`, `defaultMode` and `optional` of a ConfigMap or Secret volume.
fn files(mut object: Object<'_>) -> (Vec<(String, String)>, u16, bool) {
    let items = object
        .take("items")
        .map(|f| f.list(FILES_MAX))
        .unwrap_or_default();
    let items = items
        .iter()
        .filter_map(|item| {
            let mut item = item.object()?;
            let key = item.require("key").and_then(|f| f.checked(config_key));
            let path = item.require("path").and_then(|f| f.checked(relative_path));
            item.finish(&[("mode", "is not supported: defaultMode holds for the volume")]);
            Some((key?, path?))
        })
        .collect();
    let mode = object
        .take("defaultMode")
        .and_then(|f| mode(&f))
        .unwrap_or_default();
    let optional = object.flag("optional");
    object.finish(&[]);
    (items, mode, optional)
}

/// A file mode. YAML 1.1, which Kubernetes reads, writes octal as `0644`; YAML 1.2 as `0o644`.
fn mode(field: &Field<'_>) -> Option<u16> {
    let text = field.scalar()?;
    let mode = match text.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => {
            u16::from_str_radix(octal.strip_prefix('o').unwrap_or(octal), 8).ok()
        }
        _ => text.parse().ok(),
    };
    let mode = mode.filter(|mode| (1..=0o777).contains(mode));
    if mode.is_none() {
        field.refuse("must be a file mode from 0001 to 0777");
    }
    mode
}

/// Reads `volumeMounts`.
pub(super) fn mounts(object: &mut Object<'_>, pod: &Pod) -> Vec<VolumeMount> {
    let items = object
        .take("volumeMounts")
        .map(|f| f.list(VOLUMES_MAX))
        .unwrap_or_default();
    let mut mounts: Vec<VolumeMount> = Vec::with_capacity(items.len());
    for item in &items {
        let Some(mount) = mount(item) else { continue };
        if !pod.volumes.iter().any(|volume| volume.name == mount.volume) {
            item.refuse(format!("volume {} is not in spec.volumes", mount.volume));
        }
        // `/a/` and `//a` are `/a`.
        let same = |other: &VolumeMount| Path::new(&other.path) == Path::new(&mount.path);
        if mounts.iter().any(same) {
            item.refuse(format!("{} is mounted twice", mount.path));
        }
        mounts.push(mount);
    }
    mounts
}

/// A container's root is its image, or that of the board: nothing can be mounted over it.
fn mount_path(path: &str) -> Result<(), &'static str> {
    absolute_path(path)?;
    if Path::new(path) == Path::new("/") {
        return Err("must not be the root");
    }
    Ok(())
}

fn mount(field: &Field<'_>) -> Option<VolumeMount> {
    let mut object = field.object()?;
    let volume = object.require("name").and_then(|f| f.checked(label_name));
    let path = object
        .require("mountPath")
        .and_then(|f| f.checked(mount_path));
    let sub_path = match object.take_text("subPath") {
        Some(field) => field.checked(relative_path)?,
        None => String::new(),
    };
    let read_only = object.flag("readOnly");
    object.only_text("mountPropagation", &["None"], "must be None");
    object.finish(&[("subPathExpr", "is not supported: use subPath")]);
    Some(VolumeMount {
        volume: volume?,
        path: path?,
        sub_path,
        read_only,
    })
}
