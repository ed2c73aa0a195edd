//! What a container is started with: environment and volumes, resolved from the desired objects.

use std::path::PathBuf;

use edge_core::Agent;
use edge_proto::key::Uid;
use edge_proto::object::{Container, Data, EnvValue, Pod, RuntimeClass, VolumeSource};
use edge_proto::sorted::SortedSet;

use crate::driver::workers::{RuntimeJob, Start};
use crate::workload::runtime::LOG_BYTES_MAX;
use crate::workload::volume::{self, Content};

/// Bytes of one log ring: at most 1/16 of the smallest memory limit, for tmpfs pages are
/// charged to the writer.
pub(crate) fn log_bytes(agent: &Agent, uid: Uid) -> u64 {
    let limits = agent.pod(&uid).into_iter().flat_map(|pod| &pod.containers);
    limits
        .filter_map(|container| container.resources.memory_bytes)
        .map(|bytes| bytes / 16)
        .min()
        .unwrap_or(LOG_BYTES_MAX)
        .clamp(16 * 1024, LOG_BYTES_MAX)
}

/// The job that clears a pod, and after it the layers that only this pod used.
pub(crate) fn removal(agent: &Agent, uid: Uid) -> RuntimeJob {
    RuntimeJob::RemovePod(uid, images(agent, Some(uid)))
}

/// Images of all desired pods but `gone`.
fn images(agent: &Agent, gone: Option<Uid>) -> Vec<String> {
    let uids = agent.statuses().map(|status| status.uid);
    let pods = uids
        .filter(|uid| Some(*uid) != gone)
        .filter_map(|uid| agent.pod(&uid))
        .filter(|pod| pod.runtime == RuntimeClass::Runc);
    let containers = pods.flat_map(|pod| &pod.containers);
    let images: SortedSet<&String> = containers.map(|container| &container.image).collect();
    images.into_iter().cloned().collect()
}

pub(crate) fn start(agent: &Agent, uid: Uid, container: &str, run: u32) -> Option<Start> {
    let pod = agent.pod(&uid)?;
    let spec = pod.containers.iter().find(|one| one.name == container)?;
    let mounted = pod
        .volumes
        .iter()
        .filter(|volume| spec.mounts.iter().any(|mount| mount.volume == volume.name));
    Some(Start {
        uid,
        pod: pod.name.clone(),
        run,
        hash: agent.spec_hash(&uid, container)?,
        runtime: pod.runtime,
        container: spec.clone(),
        images: images(agent, None),
        env: env(agent, pod, spec),
        volumes: mounted
            .map(|volume| (volume.name.clone(), content(agent, pod, &volume.source)))
            .collect(),
    })
}

fn env(agent: &Agent, pod: &Pod, container: &Container) -> Result<Vec<(String, String)>, String> {
    let mut env = Vec::new();
    for from in &container.env_from {
        match data(agent, pod, &from.name, from.secret) {
            Some(data) => {
                for (key, value) in data {
                    env.push(([&from.prefix, key.as_str()].concat(), text(key, value)?));
                }
            }
            None if from.optional => {}
            None => return Err([&from.name, " is not there"].concat()),
        }
    }
    for var in &container.env {
        let (name, key, optional, secret) = match &var.value {
            EnvValue::Literal(value) => {
                env.push((var.name.clone(), value.clone()));
                continue;
            }
            EnvValue::ConfigMap {
                name,
                key,
                optional,
            } => (name, key, *optional, false),
            EnvValue::Secret {
                name,
                key,
                optional,
            } => (name, key, *optional, true),
        };
        let data = data(agent, pod, name, secret);
        let value = data.and_then(|data| data.iter().find(|(have, _)| have == key));
        match value {
            Some((key, value)) => env.push((var.name.clone(), text(key, value)?)),
            None if optional => {}
            None => return Err(["key ", key, " of ", name, " is not there"].concat()),
        }
    }
    Ok(env)
}

fn data<'a>(agent: &'a Agent, pod: &Pod, name: &str, secret: bool) -> Option<&'a Data> {
    if secret {
        agent
            .secret(&pod.namespace, name)
            .map(|secret| &secret.data)
    } else {
        agent.config_map(&pod.namespace, name).map(|map| &map.data)
    }
}

pub(crate) fn content(agent: &Agent, pod: &Pod, source: &VolumeSource) -> Result<Content, String> {
    let (name, items, mode, optional, secret) = match source {
        VolumeSource::EmptyDir { memory, size_bytes } => {
            return Ok(Content::Empty {
                memory: *memory,
                size_bytes: *size_bytes,
            });
        }
        VolumeSource::HostPath { path, create } => {
            return Ok(Content::Host {
                path: PathBuf::from(path),
                create: *create,
            });
        }
        VolumeSource::ConfigMap {
            name,
            items,
            mode,
            optional,
        } => (name, items, *mode, *optional, false),
        VolumeSource::Secret {
            name,
            items,
            mode,
            optional,
        } => (name, items, *mode, *optional, true),
    };
    let files = match data(agent, pod, name, secret) {
        Some(data) => volume::select(data, items)?,
        None if optional => Vec::new(),
        None => return Err([name, " is not there"].concat()),
    };
    let mode = if mode == 0 { 0o644 } else { u32::from(mode) };
    Ok(Content::Files {
        files,
        mode,
        secret,
    })
}
fn text(key: &str, value: &[u8]) -> Result<String, String> {
    String::from_utf8(value.to_vec())
        .map_err(|_| [key, " is not text and cannot be an environment variable"].concat())
}
