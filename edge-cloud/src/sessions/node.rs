//! One node: its session, its present connection, and its reports.

use std::collections::BTreeMap;
use std::sync::Arc;

use edge_proto::call::CODE_OK;
use edge_proto::frame::Frame;
use edge_proto::key::{Key, Kind};
use edge_proto::lanes::Limits;
use edge_proto::object::{NodePolicy, NodeStatus, PodStatus};
use edge_proto::rate_limiter::Reservation;
use edge_proto::session::{
    BlobInput, BlobOutput, CallInput, CallOutput, CallResult, Cloud, CloudInput, CloudOutput,
    LinkOutput, Payload, StateInput, StateOutput,
};
use tokio::sync::mpsc;

use super::call::{CallEvent, broken};
use super::replacement::Replacements;
use crate::clock::unix_s;
use crate::identity::registry::Enrolment;
use crate::nodes::{CallError, NodeView};
use crate::placement::Desired;

/// See [`Problems`].
const PROBLEM_MS: u64 = 60_000;

/// A node's connection as its session sees it.
pub(super) struct Connection {
    /// Distinguishes it from earlier connections of the node.
    pub(super) id: u64,
    pub(super) carrier: Box<dyn Carrier>,
    /// When the last frame was received through it, behind a broker.
    pub(super) received_at: u64,
    /// Probes sent since then, behind a broker.
    pub(super) probes: u32,
}

/// Sends frames to one node; implemented by the transport. Dropping it closes the node's connection.
///
/// It may drop a frame as the network may: the session repeats unanswered ones.
pub trait Carrier: Send {
    /// Takes a frame. Never waits.
    fn send(&mut self, now: u64, frame: Vec<u8>);

    /// Sets the rates from now on.
    fn set_limits(&mut self, now: u64, limits: &Limits);

    /// The deadline has passed: sends the frames that may be sent now.
    fn tick(&mut self, now: u64);

    /// When [`Self::tick`] is to be called, if frames wait here for their rate.
    fn deadline(&self) -> Option<u64>;
}

pub(super) struct NodeSession {
    /// Its name, shared with [`super::deadlines`].
    pub(super) name: Arc<str>,
    pub(super) session: Cloud,
    /// Number of the session for its records, see [`crate::records::Records::attach`].
    pub(super) stream: u64,
    /// The ledger of its records is known; no session opens before.
    pub(super) has_ledger: bool,
    pub(super) connection: Option<Connection>,
    /// Limits of the node's policy for frames to it.
    pub(super) limits: Limits,
    /// `None` until the controller has set it. Nothing of the desired set is sent before: an
    /// empty set would stop every pod of a node whose state we have lost.
    pub(super) desired: Option<Desired>,
    pub(super) reported: BTreeMap<Key, Vec<u8>>,
    pub(super) live: bool,
    /// When it may open a session.
    pub(super) reservation: Reservation,
    pub(super) in_sync: bool,
    /// The complete reported set was received since our start.
    pub(super) has_report: bool,
    /// Boot ids that the node has reported, newest first.
    pub(super) boots: [String; 2],
    pub(super) changed_unix_s: u64,
    pub(super) replacements: Replacements,
    pub(super) calls: BTreeMap<u32, mpsc::Sender<CallEvent>>,
    pub(super) problems: Problems,
    /// Position of its timers in [`super::State::deadlines`].
    pub(super) scheduled: Option<u64>,
    /// Position in [`super::State::silences`].
    pub(super) listened: Option<u64>,
    /// Position in [`super::State::renewals`].
    pub(super) renewal_due: Option<u64>,
    /// Position in [`super::State::proofs`].
    pub(super) proof_due: Option<u64>,
}

/// Invalid frames of a node. One event in [`PROBLEM_MS`]: a node that sends
/// nothing else must not fill the log, nor displace the events of all others.
#[derive(Default)]
pub(super) struct Problems {
    /// Time of the last event.
    reported: Option<u64>,
    /// Problems since then.
    unreported: u64,
}

impl Problems {
    /// Counts one more; returns the text of an event, if one is due.
    fn add(&mut self, now: u64, problem: &str) -> Option<String> {
        if self.reported.is_some_and(|at| now < at + PROBLEM_MS) {
            self.unreported += 1;
            return None;
        }
        self.reported = Some(now);
        Some(match std::mem::take(&mut self.unreported) {
            0 => problem.to_owned(),
            count => format!("{problem}, and {count} others since the last event"),
        })
    }
}

impl NodeSession {
    /// A node without a connection and without a set.
    pub(super) fn new(name: Arc<str>, session: Cloud, (stream, has_ledger): (u64, bool)) -> Self {
        Self {
            name,
            session,
            stream,
            has_ledger,
            connection: None,
            limits: Limits::NONE,
            desired: None,
            reported: BTreeMap::new(),
            live: false,
            reservation: Reservation::default(),
            in_sync: false,
            has_report: false,
            boots: Default::default(),
            changed_unix_s: 0,
            replacements: Replacements::default(),
            calls: BTreeMap::new(),
            problems: Problems::default(),
            scheduled: None,
            listened: None,
            renewal_due: None,
            proof_due: None,
        }
    }

    /// When to act without an input.
    pub(super) fn deadline(&self) -> Option<u64> {
        let carrier = self.connection.as_ref();
        let carrier = carrier.and_then(|one| one.carrier.deadline());
        self.session.deadline().into_iter().chain(carrier).min()
    }

    /// Applies the policy in the node's set from now on.
    pub(super) fn limit(&mut self, now: u64) {
        let policies = self.desired.iter().flatten();
        let mut policies = policies.filter(|(key, _)| key.kind() == Kind::NodePolicy);
        let limits = match policies.next() {
            Some((_, payload)) => NodePolicy::decode(payload)
                .unwrap_or_default()
                .limits_down(),
            None => Limits::NONE,
        };
        if self.limits != limits {
            if let Some(connection) = &mut self.connection {
                connection.carrier.set_limits(now, &limits);
            }
            self.limits = limits;
        }
    }

    /// Sends a frame to the node that is not of its session.
    pub(super) fn send(&mut self, now: u64, frame: &Frame) {
        if let Some(connection) = &mut self.connection {
            connection.carrier.send(now, frame.encode());
        }
    }

    /// Performs the session's outputs; true when the node's view has changed.
    pub(super) fn perform(
        &mut self,
        now: u64,
        output: CloudOutput,
        events: &mut Vec<(&'static str, String)>,
    ) -> bool {
        match output {
            CloudOutput::Link(LinkOutput::Send(frame)) => {
                let held = self.desired.is_none() && carries_desired(&frame);
                if let Some(connection) = self.connection.as_mut().filter(|_| !held) {
                    connection.carrier.send(now, frame);
                }
                false
            }
            CloudOutput::State(StateOutput::Apply {
                ticket, changes, ..
            }) => {
                self.apply(now, ticket, changes, events);
                true
            }
            CloudOutput::Link(LinkOutput::Live { .. }) => {
                self.reservation = Reservation::default();
                // A session may follow another without a break.
                if !self.live {
                    self.live = true;
                    self.changed_unix_s = unix_s();
                    events.push(("Connected", "session live".to_owned()));
                }
                true
            }
            CloudOutput::Link(LinkOutput::Down) => {
                self.down();
                events.push(("Disconnected", "session over".to_owned()));
                true
            }
            CloudOutput::State(StateOutput::InSync { desired, reported }) => {
                self.in_sync = desired && reported;
                self.has_report |= reported;
                true
            }
            CloudOutput::Call(CallOutput::Data { id, bytes, .. }) => {
                self.call_data(now, id, bytes);
                false
            }
            CloudOutput::CallResult(result) => {
                self.call_result(result);
                false
            }
            CloudOutput::Call(CallOutput::Cancelled { id }) => {
                self.end_call(id, "the node is not connected, or its answer broke off");
                false
            }
            // A node may fetch objects of its set; other transfers are not supported.
            CloudOutput::Blob(BlobOutput::Wanted { sha256, .. }) => {
                let bytes = 0;
                self.session.handle(now, BlobInput::Have { sha256, bytes });
                false
            }
            CloudOutput::BlobRead { sha256, offset, .. } => {
                let nothing = CloudInput::BlobData {
                    sha256,
                    offset,
                    bytes: Vec::new(),
                };
                self.session.handle(now, nothing);
                false
            }
            CloudOutput::Link(LinkOutput::PeerProblem(problem)) => {
                let due = self.problems.add(now, &problem.to_string());
                events.extend(due.map(|text| ("PeerProblem", text)));
                false
            }
            CloudOutput::State(StateOutput::PutRefused { key, reason }) => {
                events.push(("ObjectRefused", format!("{key}: {reason}")));
                false
            }
            _ => false,
        }
    }

    /// Applies changes of the reported set.
    fn apply(
        &mut self,
        now: u64,
        ticket: u32,
        changes: Vec<(Key, Option<Payload>)>,
        events: &mut Vec<(&'static str, String)>,
    ) {
        for (key, payload) in changes {
            match payload {
                Some(Payload::Inline(bytes)) => {
                    if key == Key::node_status() && self.saw_boot(now, &bytes) {
                        let text = "two boards use this identity, and end each other's link: \
                                    delete the node and join each by a name of its own";
                        events.push(("Cloned", text.to_owned()));
                    }
                    self.reported.insert(key, bytes);
                }
                // No valid status is that large; it is not kept.
                _ => drop(self.reported.remove(&key)),
            }
        }
        let refused = Vec::new();
        self.session
            .handle(now, StateInput::Applied { ticket, refused });
    }

    /// The session has ended, and its calls with it.
    fn down(&mut self) {
        self.live = false;
        self.in_sync = false;
        self.changed_unix_s = unix_s();
        self.end_calls("the link to the node broke");
    }

    /// Ends all calls without a result: their session has ended.
    pub(super) fn end_calls(&mut self, why: &str) {
        for id in self.calls.keys().copied().collect::<Vec<_>>() {
            self.end_call(id, why);
        }
    }

    /// Ends a call without a result.
    fn end_call(&mut self, id: u32, why: &str) {
        if let Some(reader) = self.calls.remove(&id) {
            let _gone = reader.try_send(broken(why));
        }
    }

    /// Ends a call with a result.
    fn call_result(&mut self, CallResult { id, code, reason }: CallResult) {
        if let Some(reader) = self.calls.remove(&id) {
            let result = match code {
                CODE_OK => CallEvent::End,
                code => CallEvent::Failed(CallError::Node { code, reason }),
            };
            // A reader with a full channel has not received everything, and finds no end.
            let _gone = reader.try_send(result);
        }
    }

    /// Passes on data of a call.
    fn call_data(&mut self, now: u64, id: u32, bytes: Vec<u8>) {
        let Some(reader) = self.calls.get(&id) else {
            return;
        };
        // The reader does not read while a node sends single bytes: its call ends.
        if reader.try_send(CallEvent::Bytes(bytes.into())).is_err() {
            self.calls.remove(&id);
            self.session.handle(now, CallInput::Cancel { id });
        }
    }

    /// A boot id that is reported again after another one means a second board, because a reboot creates a
    /// new one. Behind a broker nothing else distinguishes two boards from one that reconnects.
    pub(super) fn saw_boot(&mut self, now: u64, status: &[u8]) -> bool {
        let boot = NodeStatus::decode(status).map_or_else(|_| String::new(), |new| new.boot_id);
        let [newest, other] = &mut self.boots;
        if boot.is_empty() || boot == *newest {
            return false;
        }
        let back = boot == *other;
        *other = std::mem::replace(newest, boot);
        back && self.replacements.prove(now)
    }

    pub(super) fn view(&self, enrolment: &Enrolment, now: u64) -> NodeView {
        let pods = self
            .reported
            .iter()
            .filter(|(key, _)| key.kind() == Kind::PodStatus)
            .filter_map(|(_, bytes)| PodStatus::decode(bytes).ok());
        let status = self.reported.get(&Key::node_status());
        let status = status.and_then(|bytes| NodeStatus::decode(bytes).ok());
        let own = status.as_ref().map_or(&[][..], |status| &status.labels);
        NodeView {
            awaits_approval: enrolment.grants.awaits_approval,
            labels: enrolment.grants.labels(own),
            name: self.name.as_ref().to_owned(),
            connected: self.live,
            in_sync: self.live && self.in_sync,
            has_report: self.has_report,
            awaits_set: self.desired.is_none(),
            desired_root: self.session.desired_root().to_string(),
            reported_root: self.session.reported().root().to_string(),
            revoked: enrolment.revoked,
            cloned: self.replacements.cloned(now),
            certificate_not_after: enrolment.known_not_after().unwrap_or(0),
            changed_unix_s: self.changed_unix_s,
            status,
            pods: pods.collect(),
        }
    }
}

/// Whether a frame of ours would change the node's desired set.
fn carries_desired(frame: &[u8]) -> bool {
    matches!(
        Frame::decode(frame),
        Ok(Frame::Change {
            set: edge_proto::frame::Set::Desired,
            ..
        })
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_sends_nonsense_makes_one_event_a_minute() {
        let mut problems = Problems::default();
        assert_eq!(problems.add(5, "a").as_deref(), Some("a"));
        for now in 5..1_000 {
            assert_eq!(problems.add(now, "b"), None);
        }
        let text = problems.add(5 + PROBLEM_MS, "c");
        assert_eq!(
            text.as_deref(),
            Some("c, and 995 others since the last event")
        );
        let text = problems.add(5 + 2 * PROBLEM_MS, "d");
        assert_eq!(text.as_deref(), Some("d"));
    }
}
