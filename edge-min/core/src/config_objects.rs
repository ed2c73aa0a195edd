//! The ConfigMaps and Secrets of the desired set, by namespace and name.

use alloc::string::{String, ToString as _};

use edge_proto::limits::SET_OBJECTS_MAX;
use edge_proto::object::{ConfigMap, Data, Pod, Secret};
use edge_proto::sorted::SortedMap;

/// At most [`SET_OBJECTS_MAX`] of each kind, as in the replicated set; further ones are refused.
#[derive(Debug, Default)]
pub(crate) struct ConfigObjects {
    config_maps: SortedMap<(String, String), ConfigMap>,
    secrets: SortedMap<(String, String), Secret>,
}

impl ConfigObjects {
    /// Sets a ConfigMap, or a Secret, or removes it (`None`).
    pub(crate) fn put(
        &mut self,
        namespace: &str,
        name: &str,
        secret: bool,
        payload: Option<&[u8]>,
    ) -> Result<(), String> {
        let key = (namespace.to_string(), name.to_string());
        if secret {
            let value = payload.map(Secret::decode).transpose();
            replace(&mut self.secrets, key, value.map_err(|e| e.to_string())?)
        } else {
            let value = payload.map(ConfigMap::decode).transpose();
            replace(
                &mut self.config_maps,
                key,
                value.map_err(|e| e.to_string())?,
            )
        }
    }

    /// Data of a ConfigMap or Secret; `None` when it does not exist.
    pub(crate) fn data(&self, namespace: &str, name: &str, secret: bool) -> Option<&Data> {
        let key = (namespace.to_string(), name.to_string());
        if secret {
            self.secrets.get(&key).map(|secret| &secret.data)
        } else {
            self.config_maps.get(&key).map(|map| &map.data)
        }
    }

    /// Human-readable name of the first ConfigMap or Secret that the pod waits for.
    pub(crate) fn missing(&self, pod: &Pod) -> Option<String> {
        pod.needs().find_map(|(secret, name)| {
            let kind = if secret { "Secret " } else { "ConfigMap " };
            let there = self.data(&pod.namespace, name, secret).is_some();
            (!there).then(|| [kind, name, " not found"].concat())
        })
    }
}

fn replace<V>(
    map: &mut SortedMap<(String, String), V>,
    key: (String, String),
    value: Option<V>,
) -> Result<(), String> {
    match value {
        Some(_) if map.len() >= SET_OBJECTS_MAX && !map.contains_key(&key) => {
            return Err("the object limit of the node is reached".to_string());
        }
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
    Ok(())
}
