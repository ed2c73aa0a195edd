//! While a large image is unpacked, nothing else waits for it.
#![cfg(test)]

use std::fs;
use std::process::Command;

use memtests::large_image::{self, LAYERS};
use memtests::{Gate, Setup};
use serde_json::{Value, json};

fn pod(name: &str, image: Option<&str>) -> String {
    let mut container = json!({"name": "main", "command": ["/bin/sh", "-c", "exec sleep 100000"]});
    if let Some(image) = image {
        container["image"] = image.into();
    }
    let class = image.map_or("process", |_| "runc");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "runtimeClassName": class, "hostNetwork": true, "terminationGracePeriodSeconds": 1,
        "containers": [container]}})
    .to_string()
}

fn container(gate: &Gate, name: &str) -> Option<Value> {
    let status = gate.status().ok()?;
    let pods = status["pods"].as_array()?;
    let pod = pods.iter().find(|pod| pod["name"] == name)?;
    Some(pod["containers"][0].clone())
}

/// Complete layers, and those that are being unpacked.
fn layers(gate: &Gate) -> (usize, usize) {
    large_image::layers(&gate.state_dir()).unwrap()
}

/// Goal: while a large image is unpacked, the first crash of another pod is handled, a missing image
/// is reported, and the unpacking ends when its pod leaves. Method: an image that takes far longer than all
/// of that together, and a check of it after each.
#[test]
#[ignore = "needs root"]
fn nothing_waits_for_an_image_and_it_ends_with_its_pod() {
    let gate = Gate::set_up(Setup {
        manifests: pod("small", None),
        ..Setup::default()
    })
    .unwrap();
    gate.until_converged(1).unwrap();
    large_image::make(&gate.state_dir().join("preload/large")).unwrap();
    gate.manifest("large.yaml", &pod("large", Some(large_image::NAME)))
        .unwrap();
    gate.until("the image is unpacked", |gate| layers(gate).1 == 1)
        .unwrap();
    let unpacks = |after: &str| {
        assert!(layers(&gate).0 < LAYERS, "all was unpacked before {after}");
        let large = container(&gate, "large").unwrap();
        assert_eq!(large["state"], "waiting", "{large}");
    };

    let before = container(&gate, "small").unwrap();
    let pid = before["pid"].to_string();
    let killed = Command::new("kill").args(["-9", &pid]).status();
    assert!(killed.unwrap().success());
    gate.until("the small pod runs again", |gate| {
        container(gate, "small").is_some_and(|now| {
            now["state"] == "running" && now["restarts"] == 1 && now["pid"] != before["pid"]
        })
    })
    .unwrap();
    unpacks("the crash was answered");

    gate.manifest("missing.yaml", &pod("missing", Some("example.com/no:1")))
        .unwrap();
    gate.until("the missing image is named", |gate| {
        container(gate, "missing").is_some_and(|now| now["reason"] == "ErrImageNeverPull")
    })
    .unwrap();
    unpacks("the missing image was named");

    gate.agent_text(&["logs", "small"]).unwrap();
    fs::remove_file(gate.dir().join("manifests/missing.yaml")).unwrap();
    gate.until("another pod is gone", |gate| {
        gate.status().is_ok() && container(gate, "missing").is_none()
    })
    .unwrap();
    unpacks("another pod was removed");

    fs::remove_file(gate.dir().join("manifests/large.yaml")).unwrap();
    gate.until("the large pod is gone", |gate| {
        gate.status().is_ok() && container(gate, "large").is_none()
    })
    .unwrap();
    let (whole, half) = layers(&gate);
    assert!(whole < LAYERS, "all was unpacked for a pod that is gone");
    assert_eq!(half, 0);
}
