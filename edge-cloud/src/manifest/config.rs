//! ConfigMaps and Secrets.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge_proto::limits::{CONFIG_BYTES_MAX, DATA_KEYS_MAX};
use edge_proto::object::{ConfigMap, Data, Secret};

use super::quantity::config_key;
use super::reader::{Field, Object};

/// Reads the remaining fields of a ConfigMap and returns its payload.
pub(super) fn config_map(object: &mut Object<'_>) -> Vec<u8> {
    let mut data = BTreeMap::new();
    plain(object.take("data"), &mut data);
    let binary = object.take("binaryData");
    if let Some(field) = &binary {
        for (key, value) in field.entries(DATA_KEYS_MAX).unwrap_or_default() {
            if data.contains_key(key) {
                value.refuse("stands in data, too");
            }
        }
    }
    encoded(binary, &mut data);
    object.harmless(&["immutable"]);
    let data = sorted(object, data);
    capped(object, ConfigMap { data }.encode())
}

/// Reads the remaining fields of a Secret and returns its payload.
pub(super) fn secret(object: &mut Object<'_>) -> Vec<u8> {
    let mut data = BTreeMap::new();
    encoded(object.take("data"), &mut data);
    plain(object.take("stringData"), &mut data);
    object.harmless(&["immutable", "type"]);
    let data = sorted(object, data);
    capped(object, Secret { data }.encode())
}

fn sorted(object: &Object<'_>, data: BTreeMap<String, Vec<u8>>) -> Data {
    // Each of two maps may have as many; a node accepts no more of both together.
    if data.len() > DATA_KEYS_MAX {
        object.refuse("data", format!("has more than {DATA_KEYS_MAX} keys in all"));
    }
    data.into_iter().collect()
}

fn capped(object: &Object<'_>, payload: Vec<u8>) -> Vec<u8> {
    if payload.len() > CONFIG_BYTES_MAX {
        object.refuse(
            "data",
            format!("has more than {CONFIG_BYTES_MAX} bytes with its keys"),
        );
    }
    payload
}

fn plain(field: Option<Field<'_>>, data: &mut BTreeMap<String, Vec<u8>>) {
    each(field, |value| value.text().map(|text| text.into()), data);
}

fn encoded(field: Option<Field<'_>>, data: &mut BTreeMap<String, Vec<u8>>) {
    let read = |value: &Field<'_>| {
        // Kubernetes ignores line breaks, which YAML's block scalars bring.
        let text: String = value.text()?.split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(text).ok();
        if bytes.is_none() {
            value.refuse("must be base64; plain text belongs into stringData of a Secret");
        }
        bytes
    };
    each(field, read, data);
}

fn each(
    field: Option<Field<'_>>,
    read: impl Fn(&Field<'_>) -> Option<Vec<u8>>,
    data: &mut BTreeMap<String, Vec<u8>>,
) {
    let entries = field.and_then(|field| field.entries(DATA_KEYS_MAX));
    for (key, value) in entries.unwrap_or_default() {
        if let Err(reason) = config_key(key) {
            value.refuse(reason);
        }
        if let Some(bytes) = read(&value) {
            data.insert(key.to_owned(), bytes);
        }
    }
}
