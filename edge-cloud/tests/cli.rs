//! Goal: the real binary works with the real API. Method: the API on its unix socket, the links are
//! a recorder; text and JSON output are checked, with the exit codes.
#![expect(clippy::unwrap_used, reason = "a test")]

mod recorder;

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use edge_cloud::nodes::NodeReports as _;
use edge_cloud::serve::serve;
use edge_proto::object::{ContainerState, ContainerStatus, Phase, Pod, PodStatus};
use recorder::Recorder;
use tokio::net::TcpListener;
use tokio::process::Command;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/toll-gate");

async fn edge_cloud(data: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edge-cloud"))
        .args(words)
        .arg("--data")
        .arg(data)
        .output()
        .await
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn every_command_shows_what_is() {
    let data = tempfile::tempdir().unwrap();
    let links = Arc::new(Recorder::default());
    links.report("gate-1");
    links.join("gate-2");
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = http.local_addr().unwrap();
    let serving = (Arc::clone(&links), data.path().to_owned());
    let server = tokio::spawn(async move {
        let (links, data) = serving;
        serve(links, &data, EXAMPLE.into(), Some(http)).await
    });
    let mut changes = links.subscribe();
    let desired = loop {
        drop(changes.take());
        match links.desired("gate-1") {
            Some(desired) if desired.len() == 4 => break desired,
            _ => changes.changed().await,
        }
    };
    let pod = desired
        .values()
        .find_map(|payload| {
            Pod::decode(payload)
                .ok()
                .filter(|pod| pod.name == "plate-reader")
        })
        .unwrap();
    links.report_pod(
        "gate-1",
        PodStatus {
            uid: pod.uid,
            namespace: "default".into(),
            name: pod.name,
            phase: Phase::Running,
            containers: vec![ContainerStatus {
                name: "reader".into(),
                state: ContainerState::Running { pid: 4711 },
                restarts: 2,
                last_exit_code: Some(1),
                last_oom: false,
            }],
            ..PodStatus::default()
        },
    );

    let data = data.path();
    let nodes = text(&edge_cloud(data, &["nodes"]).await);
    assert!(nodes.starts_with("NAME    LINK       IN SYNC"), "{nodes}");
    assert!(nodes.contains("gate-1  connected"), "{nodes}");
    assert!(nodes.contains("gate-2  offline"), "{nodes}");

    let pods = edge_cloud(data, &["pods", "--json"]).await;
    let pods: serde_json::Value = serde_json::from_slice(&pods.stdout).unwrap();
    assert_eq!(pods[0]["name"], "plate-reader");
    assert_eq!(pods[0]["phase"], "Running");
    assert_eq!(pods[0]["containers"][0]["pid"], 4711);
    assert_eq!(pods[1]["phase"], "Unreported");

    let token = edge_cloud(data, &["token", "create", "--uses", "3", "--ttl", "2h"]).await;
    assert_eq!(text(&token), "token-3-7200\n");
    assert!(text(&edge_cloud(data, &["events"]).await).contains("Joined  with token 1"));
    assert_eq!(edge_cloud(data, &["problems"]).await.status.code(), Some(0));

    let logs = edge_cloud(data, &["logs", "gate-1/plate-reader", "--tail", "9"]).await;
    assert_eq!(text(&logs), "plate-reader/9\n");
    let gone = edge_cloud(data, &["logs", "gate-1/default/gone", "-c", "x"]).await;
    assert_eq!(gone.status.code(), Some(4));
    assert_eq!(gone.stderr, b"edge-cloud: no such pod\n");
    let offline = edge_cloud(data, &["logs", "gate-2/default/p"]).await;
    assert_eq!(offline.status.code(), Some(4));

    for path in ["nodes", "problems"] {
        let row = ["-s", &format!("http://{address}/v1/{path}")].map(str::to_owned);
        let answer = Command::new("curl").args(row).output().await.unwrap();
        assert!(serde_json::from_slice::<Vec<serde_json::Value>>(&answer.stdout).is_ok());
    }
    let metrics = Command::new("curl")
        .args(["-s", &format!("http://{address}/metrics")])
        .output()
        .await
        .unwrap();
    assert!(text(&metrics).contains("edge_cloud_node_connected{node=\"gate-1\"} 1"));
    let forbidden = Command::new("curl")
        .args([
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-X",
            "DELETE",
        ])
        .arg(format!("http://{address}/v1/nodes/gate-1"))
        .output()
        .await
        .unwrap();
    assert_eq!(text(&forbidden), "404", "the TCP port is read-only");

    for (words, code) in [
        (vec!["token", "list"], 0),
        (vec!["token", "revoke", "0123"], 0),
        (vec!["token", "revoke", "4567"], 4),
        (vec!["node", "approve", "gate-1"], 0),
        (vec!["node", "approve", "gate-9"], 4),
        (vec!["label", "node", "gate-1", "site=a", "line-"], 0),
        (vec!["label", "node", "gate-1", "site"], 2),
        (vec!["label", "node", "gate-9", "site=a"], 4),
        // Nobody is there to say yes.
        (vec!["node", "revoke", "gate-1"], 2),
        (vec!["node", "delete", "gate-2"], 2),
    ] {
        let output = edge_cloud(data, &words).await;
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
    }
    let labelled: serde_json::Value =
        serde_json::from_slice(&edge_cloud(data, &["nodes", "--json"]).await.stdout).unwrap();
    assert_eq!(labelled[0]["labels"]["site"], "a");

    let revoked = text(&edge_cloud(data, &["node", "revoke", "gate-1", "--yes"]).await);
    assert!(revoked.starts_with("node gate-1 revoked\n"), "{revoked}");
    assert!(
        revoked.contains("its board held Secret default/"),
        "{revoked}"
    );
    let deleted = edge_cloud(data, &["node", "delete", "gate-2", "--yes"]).await;
    assert_eq!(deleted.status.code(), Some(0));
    let unknown = edge_cloud(data, &["node", "delete", "gate-2", "--yes"]).await;
    assert_eq!(unknown.status.code(), Some(4));
    assert_eq!(unknown.stderr, b"edge-cloud: there is no node gate-2\n");
    server.abort();
}

#[tokio::test]
async fn without_a_server_the_reason_and_the_code_are_clear() {
    let data = tempfile::tempdir().unwrap();
    let nodes = edge_cloud(data.path(), &["nodes"]).await;
    assert_eq!(nodes.status.code(), Some(3));
    let error = String::from_utf8(nodes.stderr).unwrap();
    assert!(error.contains("is `edge-cloud serve` running"), "{error}");
    let usage = edge_cloud(data.path(), &["logs", "plate-reader"]).await;
    assert_eq!(usage.status.code(), Some(2));
}

/// Backup while it serves, restore when it does not; output and exit codes.
#[tokio::test]
async fn a_backup_is_made_while_serving_and_restored_elsewhere() {
    let (data, manifests, other) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let none = edge_cloud(data.path(), &["backup", "/nonexistent/b"]).await;
    assert_eq!(none.status.code(), Some(4), "there is nothing to back up");
    let folder = manifests.path().to_str().unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_edge-cloud"))
        .args(["serve", "--listen", "127.0.0.1:0", "--manifests", folder])
        .arg("--data")
        .arg(data.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let token = loop {
        let token = edge_cloud(data.path(), &["token", "create"]).await;
        if token.status.success() {
            break text(&token);
        }
        assert_eq!(server.try_wait().unwrap(), None);
    };
    let file = other.path().join("backup");
    let file = file.to_str().unwrap();
    let made = edge_cloud(data.path(), &["backup", file]).await;
    assert_eq!(made.status.code(), Some(0));
    assert!(text(&made).contains("key of the CA"));
    let running = edge_cloud(data.path(), &["restore", file, "--force"]).await;
    assert_eq!(running.status.code(), Some(4));
    let error = String::from_utf8(running.stderr).unwrap();
    assert!(error.contains("stop it first"), "{error}");
    server.kill().await.unwrap();

    let full = edge_cloud(data.path(), &["restore", file]).await;
    assert_eq!(full.status.code(), Some(4));
    let fresh = other.path().join("data");
    let restored = edge_cloud(&fresh, &["restore", file]).await;
    let id = token.split('.').nth(1).unwrap();
    assert!(text(&restored).contains(&format!("tokens that are void now: {id}\n")));
    assert!(text(&restored).contains("within 30 days"));
    let ca = |data: &Path| std::fs::read(data.join("ca/ca.der")).unwrap();
    assert_eq!(ca(&fresh), ca(data.path()));
    let again = edge_cloud(
        &fresh,
        &["restore", file, "--force", "--grace", "0", "--json"],
    )
    .await;
    let again: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(again["grace_until_unix_s"], 0);

    // An interrupted restore: serve refuses a folder that may be incomplete.
    std::fs::write(fresh.join("restoring"), "").unwrap();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--manifests", folder];
    let refused = edge_cloud(&fresh, &serve).await;
    assert_eq!(refused.status.code(), Some(5));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("a restore was cut off there"), "{error}");
}

#[tokio::test]
async fn check_needs_no_server() {
    let data = tempfile::tempdir().unwrap();
    let good = edge_cloud(data.path(), &["check", EXAMPLE]).await;
    assert_eq!(text(&good), "4 objects accepted, 0 problems\n");
    assert_eq!(good.status.code(), Some(0));
    let wrong = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: []}\n";
    std::fs::write(data.path().join("p.yaml"), wrong).unwrap();
    let folder = data.path().to_str().unwrap();
    let bad = edge_cloud(data.path(), &["check", folder]).await;
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad).contains("p.yaml: document 1: Pod default/p: spec.containers: must have"));
}
