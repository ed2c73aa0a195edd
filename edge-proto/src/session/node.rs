//! The node's end of the link.

use alloc::string::String;
use alloc::vec::Vec;

use super::call::Calls;
use super::link::{Link, earliest};
use super::opening::{Repeat, Rng};
use super::stream::StreamSender;
use super::{
    CallOpen, CallOutput, FetchInput, LinkInput, LinkOutput, NodeInput, NodeOutput,
    NodeRecordsInput, Problem,
};
use crate::Millis;
use crate::frame::{Frame, Nonce, SessionId, Set};
use crate::hash::Hash16;
use crate::key::Key;
use crate::limits::{
    AGENT_BYTES_MAX, REFUSED_RETRY_MS, RETRY_AFTER_MS_MAX, WIRE_VERSION, WIRE_VERSION_MIN,
};
use crate::set::{Member, Reason, ReplicaSet};

/// Parameters of the node's end, which it sends when it opens a session.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Mask of the kinds that the agent understands, see `Kind::bit`.
    pub kinds: u32,
    /// Name and version of the agent, for display; truncated to `AGENT_BYTES_MAX`.
    pub agent: String,
}

/// The node's end: sends the reported set, receives the desired one.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    rng: Rng,
    n: Nonce,
    /// Root of our set in the `Hello`s of this nonce, the cloud's target; inner `None` if they differed.
    target: Option<Option<Hash16>>,
    transport_up: bool,
    opening: Option<Repeat>,
    /// Time until which the owner of this epoch delays our `Hello`.
    wait: Option<(Millis, u64)>,
    /// Epoch that the caller has stored durably.
    stored_epoch: u64,
    /// Epoch under which the live session was opened.
    session_epoch: u64,
    /// The session before the live one. It is never opened again: the cloud's end of it has continued.
    ended: Option<SessionId>,
    link: Link<NodeOutput>,
    calls: Calls,
    streams: StreamSender,
}

impl Node {
    /// Both sets are empty. `seed` must be unpredictable and new at every start.
    #[must_use]
    pub fn new(mut config: NodeConfig, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        super::cut(&mut config.agent, AGENT_BYTES_MAX);
        Self {
            config,
            n: rng.nonce(),
            rng,
            target: None,
            transport_up: false,
            opening: None,
            wait: None,
            stored_epoch: 0,
            session_epoch: 0,
            ended: None,
            link: Link::new(Set::Reported, Set::Desired),
            calls: Calls::new(false),
            streams: StreamSender::default(),
        }
    }

    /// Sets the desired set from the caller's store, with the reasons of stubs, and the epoch
    /// stored with it. Call before the first `handle`. Returns false if the set is over its cap;
    /// the cloud then sends the missing objects again.
    pub fn restore(
        &mut self,
        desired: impl IntoIterator<Item = (Key, Hash16, Option<Reason>)>,
        epoch: u64,
    ) -> bool {
        self.link.epoch = epoch;
        self.stored_epoch = epoch;
        desired
            .into_iter()
            .all(|(key, hash, refused)| self.link.receiver.restore(key, Member { hash, refused }))
    }

    /// The frame to register with the broker as the will, for the next or current connection. It changes
    /// at every `TransportDown`.
    #[must_use]
    pub fn will(&self) -> Vec<u8> {
        Frame::Gone { n: self.n }.encode()
    }

    /// The node's replica of the desired set, stubs included.
    #[must_use]
    pub const fn desired(&self) -> &ReplicaSet {
        self.link.receiver.replica()
    }

    /// Root of the reported set.
    #[must_use]
    pub fn reported_root(&self) -> Hash16 {
        self.link.sender.root()
    }

    /// Highest epoch accepted so far.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.link.epoch
    }

    /// Whether a session is live.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.link.session.is_some()
    }

    /// One event happened at `now`; drain `poll` afterwards.
    pub fn handle<'a>(&mut self, now: Millis, input: impl Into<NodeInput<'a>>) {
        self.handle_input(now, input.into());
    }

    fn handle_input(&mut self, now: Millis, input: NodeInput<'_>) {
        match input {
            NodeInput::Link(input) => self.handle_link(now, input),
            NodeInput::State(input) => {
                if let Some(epoch) = self.link.handle_state(input) {
                    self.stored_epoch = epoch;
                }
            }
            NodeInput::Blob(input) => self.link.handle_blob(now, input),
            NodeInput::Fetch(FetchInput::Start { sha256, len }) => {
                if !self.link.blob_fetch(sha256, len) {
                    let unavailable = NodeOutput::BlobUnavailable { sha256 };
                    self.link.out.push_back(unavailable);
                }
            }
            NodeInput::Fetch(FetchInput::Cancel { sha256 }) => drop(self.link.blob_cancel(sha256)),
            NodeInput::Call(input) => {
                if let Some(session) = self.link.session {
                    self.calls.handle_input(session, input, &mut self.link.out);
                }
            }
            NodeInput::CallResult(result) => {
                if let Some(session) = self.link.session {
                    self.calls
                        .handle_result(session, result, &mut self.link.out);
                }
            }
            NodeInput::Records(NodeRecordsInput::Ready {
                class,
                incarnation,
                held,
                end,
            }) => self.streams.handle_ready(class, incarnation, (held, end)),
            NodeInput::Records(NodeRecordsInput::Read {
                class,
                first,
                entries,
            }) => {
                if let Some(session) = self.link.session {
                    let read = (class, first, entries);
                    self.streams
                        .handle_read(now, session, read, &mut self.link.out);
                }
            }
        }
        if self.stored_epoch < self.link.epoch && self.link.receiver.is_idle() {
            let epoch = self.link.epoch;
            self.link
                .receiver
                .apply(Vec::new(), epoch, &mut self.link.out);
        }
        self.link.pump(now);
        // State is sent before streams.
        if let Some(session) = self.link.session {
            self.streams.pump(now, session, &mut self.link.out);
        }
    }

    fn handle_link(&mut self, now: Millis, input: LinkInput<'_>) {
        match input {
            LinkInput::TransportUp => {
                self.transport_up = true;
                self.open(now);
            }
            LinkInput::TransportDown => {
                self.transport_up = false;
                self.opening = None;
                self.wait = None;
                self.end_session();
                self.n = self.rng.nonce();
                self.target = None;
            }
            LinkInput::Frame(bytes) => match Frame::decode(bytes) {
                Ok(frame) if self.transport_up => self.handle_frame(now, frame),
                Ok(_) => {}
                Err(error) => self.link.problem(Problem::Frame(error)),
            },
            LinkInput::Tick => {
                if self
                    .opening
                    .as_mut()
                    .is_some_and(|repeat| repeat.is_due(now))
                {
                    self.send_hello(now);
                }
                self.link.tick(now);
                if let Some(session) = self.link.session {
                    self.calls.tick(now, session, &mut self.link.out);
                    self.streams.tick(now, session, &mut self.link.out);
                }
            }
        }
    }

    /// The next output; `None` until the next `handle`.
    pub fn poll(&mut self) -> Option<NodeOutput> {
        self.link.out.pop_front()
    }

    /// When to call `handle` with `Tick`, if no other input comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        let opening = self.opening.as_ref().and_then(|repeat| repeat.at);
        earliest([
            opening,
            self.link.deadline(),
            self.calls.deadline(),
            self.streams.deadline(),
        ])
    }

    fn open(&mut self, now: Millis) {
        self.wait = None;
        self.opening = Some(Repeat::new());
        self.send_hello(now);
    }

    fn send_hello(&mut self, now: Millis) {
        let reported_root = self.reported_root();
        let target = self.target.unwrap_or(Some(reported_root));
        self.target = Some(target.filter(|target| *target == reported_root));
        let hello = Frame::Hello {
            n: self.n,
            wire: WIRE_VERSION,
            kinds: self.config.kinds,
            epoch: self.link.epoch,
            desired_root: self.desired().root(),
            reported_root,
            agent: self.config.agent.clone(),
        };
        self.link.send(&hello);
        if let Some(repeat) = &mut self.opening {
            repeat.arm_spread(now, &mut self.rng);
        }
    }

    fn end_session(&mut self) {
        self.calls.close(&mut self.link.out);
        self.streams.close();
        self.ended = self.link.session.or(self.ended);
        if self.link.close() {
            self.link.out.push_back(LinkOutput::Down.into());
        }
    }

    /// Whether a cloud with `epoch` is accepted: it is not lower than any accepted before.
    fn admits(&mut self, epoch: u64) -> bool {
        let admitted = epoch >= self.link.epoch;
        if !admitted {
            self.link.problem(Problem::Epoch(epoch));
        }
        admitted
    }

    fn handle_frame(&mut self, now: Millis, frame: Frame) {
        match frame {
            Frame::Welcome { .. } => self.handle_welcome(frame),
            // A live session stays: the answer to its `Hello` has the same id, if the cloud still has it.
            Frame::Probe { epoch, .. } => {
                let waits = |(at, owner): (Millis, u64)| now < at && epoch <= owner;
                if self.admits(epoch) && !self.wait.is_some_and(waits) {
                    self.open(now);
                }
            }
            Frame::RetryAfter { n, epoch, wait_ms } => {
                if n == self.n
                    && self.admits(epoch)
                    && let Some(repeat) = &mut self.opening
                {
                    let at = now.saturating_add(wait_ms.min(RETRY_AFTER_MS_MAX));
                    repeat.arm_at(at);
                    self.wait = Some((at, epoch));
                }
            }
            Frame::HelloRefused {
                n,
                epoch,
                wire_min,
                wire_max,
                reason,
            } => {
                if n == self.n
                    && self.admits(epoch)
                    && let Some(repeat) = &mut self.opening
                {
                    let spread = self.rng.below(REFUSED_RETRY_MS / 4);
                    let at = now.saturating_add(REFUSED_RETRY_MS + spread);
                    repeat.arm_at(at);
                    self.wait = Some((at, epoch));
                    self.link.problem(Problem::Refused {
                        reason,
                        wire_min,
                        wire_max,
                    });
                }
            }
            Frame::Reset { session, epoch } => {
                if self.link.session == Some(session) && self.admits(epoch) {
                    self.end_session();
                    self.open(now);
                }
            }
            frame => match (frame.session(), self.link.session) {
                (Some(session), Some(live)) if session == live => {
                    self.handle_session_frame(now, session, frame);
                }
                (Some(session), _) => {
                    let epoch = self.link.epoch;
                    self.link.send(&Frame::Reset { session, epoch });
                }
                // Frames that only a node sends.
                (None, _) => {}
            },
        }
    }

    fn handle_session_frame(&mut self, now: Millis, session: SessionId, frame: Frame) {
        let out = &mut self.link.out;
        match frame {
            Frame::CallOpen {
                id,
                method,
                args,
                upto,
                ..
            } => {
                if let Some(bytes) = self.calls.handle_open(now, session, (id, upto), out) {
                    let open = CallOpen { id, method, args };
                    out.push_back(NodeOutput::CallOpen(open));
                    out.push_back(CallOutput::Window { id, bytes }.into());
                }
            }
            Frame::CallData { .. }
            | Frame::CallControl { .. }
            | Frame::CallCredit { .. }
            | Frame::CallCancel { .. } => self.calls.handle_frame(session, frame, out),
            Frame::RecordsAck {
                incarnation,
                class,
                next,
                missing,
                ..
            } => self
                .streams
                .handle_ack(now, (incarnation, class), (next, missing), out),
            Frame::PieceGet { sha256, offset, .. } => {
                if !self.link.handle_piece_get(now, session, (sha256, offset)) {
                    // The object is not in the set, or not any more.
                    self.link.send(&Frame::Piece {
                        session,
                        sha256,
                        offset,
                        bytes: Vec::new(),
                    });
                }
            }
            Frame::Piece {
                sha256,
                offset,
                bytes,
                ..
            } => {
                if self.link.handle_piece(now, (sha256, offset), bytes) {
                    let unavailable = NodeOutput::BlobUnavailable { sha256 };
                    self.link.out.push_back(unavailable);
                }
            }
            frame => self.link.handle_frame(now, session, frame),
        }
    }

    fn handle_welcome(&mut self, frame: Frame) {
        let Frame::Welcome {
            session,
            wire,
            epoch,
            desired_root,
            reported_root,
            unix_s,
        } = frame
        else {
            return;
        };
        if session.n != self.n || !self.admits(epoch) {
            return;
        }
        if !(WIRE_VERSION_MIN..=WIRE_VERSION).contains(&wire) {
            self.link.problem(Problem::Version(wire));
            return;
        }
        if self.link.session == Some(session) {
            // The third message was lost, or a `Probe` requested a `Hello`.
            self.opening = None;
            self.link.receiver.send_have(session, &mut self.link.out);
            return;
        }
        if self.ended == Some(session) {
            let epoch = self.link.epoch;
            self.link.send(&Frame::Reset { session, epoch });
            return;
        }
        if self.opening.is_none() && epoch <= self.session_epoch {
            return;
        }
        self.opening = None;
        self.wait = None;
        self.calls.close(&mut self.link.out);
        self.ended = self.link.session.or(self.ended);
        self.session_epoch = epoch;
        self.link.epoch = epoch;
        let reported = (reported_root, self.target.flatten());
        self.link.open(session, reported, desired_root, u32::MAX);
        self.streams.open(epoch);
        self.link.receiver.send_have(session, &mut self.link.out);
        self.link.out.push_back(LinkOutput::Live { unix_s }.into());
    }
}
