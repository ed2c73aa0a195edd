//! Links that record their inputs; the test determines the reports of nodes.
#![allow(dead_code, reason = "each test uses a part")]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use edge_cloud::changes::{ChangeFeed, ChangeNotices};
use edge_cloud::nodes::{
    CaAdmin, CaRetired, CaView, CallError, Calls, DesiredSets, Event, EventLog, Grants,
    LabelChange, NodeAdmin, NodeReports, NodeView, RecordReports, TokenRow, TokenSpec,
};
use edge_cloud::placement::Desired;
use edge_cloud::records::View;
use edge_proto::call::{CODE_FAILED, LogsRequest};
use edge_proto::object::{NodeStatus, PodStatus};
use tokio::sync::mpsc;

/// Nodes and their desired sets.
#[derive(Default)]
pub(crate) struct Recorder {
    views: Mutex<BTreeMap<String, NodeView>>,
    desired: Mutex<BTreeMap<String, Desired>>,
    changes: ChangeFeed,
}

impl Recorder {
    /// A node that has joined and not reported.
    pub(crate) fn join(&self, name: &str) {
        self.change(name, |_| {});
    }

    /// A node that is connected and has no pods.
    pub(crate) fn report(&self, name: &str) {
        self.change(name, |view| {
            view.connected = true;
            view.has_report = true;
            view.status = Some(NodeStatus {
                arch: "x86_64".into(),
                agent: "0.1.0".into(),
                ..NodeStatus::default()
            });
        });
    }

    /// A node of which only its own status has arrived so far.
    pub(crate) fn report_half(&self, name: &str) {
        self.change(name, |view| {
            view.connected = true;
            view.status = Some(NodeStatus::default());
        });
    }

    /// Whether its complete report was received.
    pub(crate) fn is_heard(&self, name: &str) -> bool {
        self.views.lock().unwrap()[name].has_report
    }

    /// The node reports a pod.
    pub(crate) fn report_pod(&self, name: &str, pod: PodStatus) {
        self.change(name, |view| view.pods.push(pod.clone()));
    }

    /// The node was deleted and has joined, unchanged: a view without it is never visible.
    pub(crate) fn rejoin(&self, name: &str) {
        self.desired.lock().unwrap().remove(name);
        self.change(name, |view| view.awaits_set = true);
    }

    /// Changes what is seen of a node.
    pub(crate) fn change(&self, name: &str, change: impl Fn(&mut NodeView)) {
        let mut views = self.views.lock().unwrap();
        let view = views.entry(name.to_owned()).or_default();
        view.name = name.to_owned();
        change(view);
        self.changes.changed(name);
    }

    /// The last desired set of the node.
    pub(crate) fn desired(&self, node: &str) -> Option<Desired> {
        self.desired.lock().unwrap().get(node).cloned()
    }
}

impl NodeReports for Recorder {
    fn subscribe(&self) -> ChangeNotices {
        self.changes.subscribe()
    }

    fn view(&self, node: &str) -> Option<NodeView> {
        self.views.lock().unwrap().get(node).cloned()
    }

    fn views(&self) -> Vec<NodeView> {
        self.views.lock().unwrap().values().cloned().collect()
    }
}

impl DesiredSets for Recorder {
    fn set_desired(&self, node: &str, desired: &Desired) {
        let mut all = self.desired.lock().unwrap();
        all.insert(node.to_owned(), desired.clone());
        drop(all);
        if let Some(view) = self.views.lock().unwrap().get_mut(node) {
            view.awaits_set = false;
        }
        self.changes.changed(node);
    }
}

impl Calls for Recorder {
    /// The node's log is the request itself.
    fn call(&self, _: &str, _: u16, args: Vec<u8>) -> mpsc::Receiver<Result<Bytes, CallError>> {
        let (send, receive) = mpsc::channel(4);
        let request = LogsRequest::decode(&args).unwrap();
        let parts = match request.pod.as_str() {
            "gone" => vec![Err(CallError::Node {
                code: CODE_FAILED,
                reason: "no such pod".to_owned(),
            })],
            pod => vec![
                Ok(Bytes::new()),
                Ok(Bytes::from(format!("{pod}/{}\n", request.tail_bytes))),
            ],
        };
        for part in parts {
            send.try_send(part).unwrap();
        }
        receive
    }
}

impl NodeAdmin for Recorder {
    async fn delete(&self, node: &str) -> Result<bool, String> {
        let removed = self.views.lock().unwrap().remove(node).is_some();
        self.changes.changed(node);
        Ok(removed)
    }

    async fn revoke(&self, node: &str) -> Result<bool, String> {
        let mut views = self.views.lock().unwrap();
        Ok(views
            .get_mut(node)
            .map(|view| view.revoked = true)
            .is_some())
    }

    async fn approve(&self, node: &str) -> Result<bool, String> {
        let mut views = self.views.lock().unwrap();
        let view = views.get_mut(node);
        Ok(view.map(|view| view.awaits_approval = false).is_some())
    }

    async fn label(&self, node: &str, change: LabelChange) -> Result<bool, String> {
        let mut views = self.views.lock().unwrap();
        let Some(view) = views.get_mut(node) else {
            return Ok(false);
        };
        view.labels.retain(|key, _| !change.remove.contains(key));
        view.labels.extend(change.set);
        drop(views);
        self.changes.changed(node);
        Ok(true)
    }

    async fn create_token(&self, spec: TokenSpec) -> Result<String, String> {
        Ok(format!("token-{}-{}", spec.uses, spec.ttl_s))
    }

    fn tokens(&self) -> Vec<TokenRow> {
        vec![TokenRow {
            id: "0123".into(),
            uses_left: 2,
            expires_unix_s: 0,
            grants: Grants::default(),
        }]
    }

    async fn revoke_token(&self, id: &str) -> Result<bool, String> {
        Ok(id == "0123")
    }
}

impl CaAdmin for Recorder {
    fn cas(&self) -> CaView {
        CaView::default()
    }

    async fn rotate_ca(&self) -> Result<CaView, String> {
        Err("there is no CA here".to_owned())
    }

    async fn retire_ca(&self, _: Option<usize>) -> Result<CaRetired, String> {
        Err("there is no CA here".to_owned())
    }
}

impl RecordReports for Recorder {
    fn records(&self) -> View {
        View::default()
    }
}

impl EventLog for Recorder {
    fn events(&self) -> Vec<Event> {
        vec![Event {
            unix_s: 1_700_000_000,
            node: "gate-1".into(),
            reason: "Joined".into(),
            message: "with token 1".into(),
        }]
    }
}
