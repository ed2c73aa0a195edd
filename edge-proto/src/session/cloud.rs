//! The cloud's end of the link to one node.

use super::call::Calls;
use super::link::{Link, earliest};
use super::opening::{Repeat, Rng};
use super::piece::PIECE_BYTES;
use super::stream::StreamReceiver;
use super::{
    CallResult, CloudInput, CloudOutput, CloudRecordsInput, LinkInput, LinkOutput, Problem,
};
use crate::Millis;
use crate::frame::{Frame, FrameError, Incarnation, Nonce, Refusal, SessionId, Set};
use crate::hash::Hash16;
use crate::key::Key;
use crate::limits::{PIECE_BYTES_MAX, PROBES_MAX, WIRE_VERSION, WIRE_VERSION_MIN};
use crate::set::{Member, ReplicaSet};

/// Parameters of the cloud's end.
#[derive(Clone, Copy, Debug)]
pub struct CloudConfig {
    /// Epoch of the shard's owner: max(last + 1, unix seconds of its start).
    pub epoch: u64,
}

/// A repeat timer with a bounded number of tries.
#[derive(Debug)]
struct Tries {
    left: u8,
    repeat: Repeat,
}

impl Tries {
    const fn new() -> Self {
        Self {
            left: PROBES_MAX,
            repeat: Repeat::new(),
        }
    }

    fn arm(&mut self, now: Millis) {
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            self.repeat.arm(now);
        }
    }
}

/// An answered `Hello`; the node's next frame makes it the session.
#[derive(Debug)]
struct Candidate {
    session: SessionId,
    kinds: u32,
    /// Root in every `Welcome` of this session, the node's target, even if our set has another root since
    /// then.
    target: Hash16,
    desired_root: Hash16,
    reported_root: Hash16,
    tries: Tries,
}

/// The cloud's end of the link to one node: sends the desired set, receives the reported one.
#[derive(Debug)]
pub struct Cloud {
    rng: Rng,
    transport_up: bool,
    clock: Option<(Millis, u64)>,
    probing: Option<Tries>,
    candidate: Option<Candidate>,
    link: Link<CloudOutput>,
    calls: Calls,
    streams: StreamReceiver,
}

impl Cloud {
    /// Both sets are empty. `seed` must be unpredictable and new at every start.
    #[must_use]
    pub fn new(config: CloudConfig, seed: u64) -> Self {
        let mut link = Link::new(Set::Desired, Set::Reported);
        link.epoch = config.epoch;
        Self {
            rng: Rng::new(seed),
            transport_up: false,
            clock: None,
            probing: None,
            candidate: None,
            link,
            calls: Calls::new(true),
            streams: StreamReceiver::default(),
        }
    }

    /// Sets the reported set from the caller's store, so that a restart costs no transfer. Call
    /// before the first `handle`. Returns false if it is over the cap of a set.
    pub fn restore(&mut self, reported: impl IntoIterator<Item = (Key, Hash16)>) -> bool {
        reported.into_iter().all(|(key, hash)| {
            let refused = None;
            self.link.receiver.restore(key, Member { hash, refused })
        })
    }

    /// Sets the high-water mark of a stream from the sink: everything in the stream before `next` is
    /// durable there. Call before the first `handle`, the oldest incarnation first. Returns false
    /// if the stream is invalid, or if there are more than `STREAMS_MAX`.
    pub fn restore_stream(&mut self, incarnation: Incarnation, class: u8, next: u64) -> bool {
        self.streams.restore(incarnation, class, next)
    }

    /// Number of records of a stream that were received again and dropped, since the last call for it; `None`
    /// when no stream has any.
    pub fn take_repeated(&mut self) -> Option<(Incarnation, u8, u64)> {
        self.streams.take_repeated()
    }

    /// This replica has become the owner of the shard: reopens the session under `epoch`.
    pub fn set_epoch(&mut self, now: Millis, epoch: u64) {
        if self.link.epoch != epoch {
            self.link.epoch = epoch;
            self.candidate = None;
            self.end_session();
            self.start_probing(now);
        }
    }

    /// The cloud's replica of the reported set.
    #[must_use]
    pub const fn reported(&self) -> &ReplicaSet {
        self.link.receiver.replica()
    }

    /// Root of the desired set, limited to kinds that the node understands.
    #[must_use]
    pub fn desired_root(&self) -> Hash16 {
        self.link.sender.root()
    }

    /// Whether a session is live.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.link.session.is_some()
    }

    /// Id of the live session.
    #[must_use]
    pub const fn session(&self) -> Option<SessionId> {
        self.link.session
    }

    /// One event happened at `now`; drain `poll` afterwards.
    pub fn handle<'a>(&mut self, now: Millis, input: impl Into<CloudInput<'a>>) {
        self.handle_input(now, input.into());
        self.link.pump(now);
    }

    fn handle_input(&mut self, now: Millis, input: CloudInput<'_>) {
        match input {
            CloudInput::Link(LinkInput::TransportUp) => {
                self.transport_up = true;
                if self.link.session.is_none() {
                    self.start_probing(now);
                }
            }
            CloudInput::NodeConnected => {
                self.transport_up = true;
                if self.link.session.is_none() {
                    let mut tries = Tries::new();
                    tries.arm(now);
                    self.probing = Some(tries);
                }
            }
            CloudInput::Link(LinkInput::TransportDown) => {
                self.transport_up = false;
                self.probing = None;
                self.candidate = None;
                self.end_session();
            }
            CloudInput::Link(LinkInput::Frame(bytes)) => match Frame::decode(bytes) {
                Ok(frame) if self.transport_up => self.handle_frame(now, frame),
                Err(FrameError::PeerHello { n, wire }) if self.transport_up => {
                    self.refuse(n, wire);
                }
                Ok(_) => {}
                Err(error) => self.link.problem(Problem::Frame(error)),
            },
            CloudInput::Link(LinkInput::Tick) => self.tick(now),
            CloudInput::Clock { unix_s } => self.clock = Some((now, unix_s)),
            CloudInput::State(input) => drop(self.link.handle_state(input)),
            CloudInput::Blob(input) => self.link.handle_blob(now, input),
            CloudInput::BlobData {
                sha256,
                offset,
                bytes,
            } => {
                // The node would drop a longer one as invalid.
                if let Some(session) = self.link.session.filter(|_| bytes.len() <= PIECE_BYTES_MAX)
                {
                    self.link.send(&Frame::Piece {
                        session,
                        sha256,
                        offset,
                        bytes,
                    });
                }
            }
            CloudInput::Call(input) => {
                if let Some(session) = self.link.session {
                    self.calls.handle_input(session, input, &mut self.link.out);
                }
            }
            CloudInput::CallOpen(open) => {
                let session = self.link.session;
                self.calls.open(now, session, open, &mut self.link.out);
            }
            CloudInput::Records(CloudRecordsInput::Durable { ticket }) => {
                let session = self.link.session;
                self.streams
                    .handle_durable(session, ticket, &mut self.link.out);
            }
            CloudInput::Records(CloudRecordsInput::Failed { ticket }) => {
                self.streams.handle_failed(ticket);
            }
        }
    }

    /// The next output; `None` until the next `handle`.
    pub fn poll(&mut self) -> Option<CloudOutput> {
        self.link.out.pop_front()
    }

    /// When to call `handle` with `Tick`, if no other input comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        let probing = self.probing.as_ref().and_then(|tries| tries.repeat.at);
        let candidate = self.candidate.as_ref();
        let candidate = candidate.and_then(|candidate| candidate.tries.repeat.at);
        earliest([
            probing,
            candidate,
            self.link.deadline(),
            self.calls.deadline(),
        ])
    }

    fn unix_s(&self, now: Millis) -> u64 {
        self.clock.map_or(0, |(then, unix_s)| {
            unix_s.saturating_add(now.saturating_sub(then) / 1000)
        })
    }

    fn tick(&mut self, now: Millis) {
        let due = |tries: &mut Tries| tries.repeat.is_due(now);
        if self.probing.as_mut().is_some_and(due) {
            self.send_probe(now);
        }
        let candidate = self.candidate.as_mut();
        if candidate.is_some_and(|candidate| due(&mut candidate.tries)) {
            self.send_welcome(now);
        }
        self.link.tick(now);
        if let Some(session) = self.link.session {
            self.calls.tick(now, session, &mut self.link.out);
        }
    }

    /// Starts to probe the node, with all tries.
    fn start_probing(&mut self, now: Millis) {
        if self.transport_up {
            self.probing = Some(Tries::new());
            self.send_probe(now);
        }
    }

    fn send_probe(&mut self, now: Millis) {
        let unix_s = self.unix_s(now);
        if let Some(tries) = &mut self.probing {
            tries.arm(now);
            let epoch = self.link.epoch;
            self.link.send(&Frame::Probe { epoch, unix_s });
        }
    }

    fn send_welcome(&mut self, now: Millis) {
        if let Some(candidate) = &mut self.candidate {
            candidate.tries.arm(now);
            let (session, desired_root) = (candidate.session, candidate.target);
            self.welcome(now, session, desired_root);
        }
    }

    fn welcome(&mut self, now: Millis, session: SessionId, desired_root: Hash16) {
        let welcome = Frame::Welcome {
            session,
            wire: WIRE_VERSION,
            epoch: self.link.epoch,
            desired_root,
            reported_root: self.link.receiver.replica().root(),
            unix_s: self.unix_s(now),
        };
        self.link.send(&welcome);
    }

    fn end_session(&mut self) {
        self.calls.close(&mut self.link.out);
        if self.link.close() {
            self.link.out.push_back(LinkOutput::Down.into());
        }
    }

    fn handle_frame(&mut self, now: Millis, frame: Frame) {
        match frame {
            Frame::Hello { .. } => self.handle_hello(now, frame),
            Frame::Gone { n } => {
                self.candidate.take_if(|candidate| candidate.session.n == n);
                if self.link.session.is_some_and(|live| live.n == n) {
                    self.end_session();
                }
            }
            Frame::Reset { session, epoch } => {
                self.candidate
                    .take_if(|candidate| candidate.session == session);
                if self.link.session != Some(session) {
                    return;
                }
                self.end_session();
                if epoch > self.link.epoch {
                    self.link.problem(Problem::Epoch(epoch));
                } else {
                    self.start_probing(now);
                }
            }
            frame => {
                let Some(session) = frame.session() else {
                    // Frames that only a cloud sends.
                    return;
                };
                self.confirm(now, session);
                if self.link.session == Some(session) {
                    self.handle_session_frame(now, session, frame);
                } else {
                    let epoch = self.link.epoch;
                    self.link.send(&Frame::Reset { session, epoch });
                }
            }
        }
    }

    /// Answers a `Hello` whose wire version is not supported. The `Hello` may be late and outdated, so a
    /// live session stays.
    fn refuse(&mut self, n: Nonce, wire: u8) {
        self.link.send(&Frame::HelloRefused {
            n,
            epoch: self.link.epoch,
            wire_min: WIRE_VERSION_MIN,
            wire_max: WIRE_VERSION,
            reason: Refusal::Version as u8,
        });
        self.link.problem(Problem::Version(wire));
    }

    fn handle_hello(&mut self, now: Millis, frame: Frame) {
        let Frame::Hello {
            n,
            wire,
            kinds,
            epoch,
            desired_root,
            reported_root,
            ..
        } = frame
        else {
            return;
        };
        if wire < WIRE_VERSION_MIN {
            self.refuse(n, wire);
            return;
        }
        if epoch > self.link.epoch {
            // The node would refuse our epoch: another replica owns the shard.
            self.link.problem(Problem::Epoch(epoch));
            return;
        }
        // The node answers a `Probe`, or this `Hello` is a duplicate. Transfers of the session
        // continue; a node that has ended it answers `Reset`.
        if let Some(live) = self.link.session.filter(|live| live.n == n) {
            self.welcome(now, live, self.link.sender.root());
            return;
        }
        // Probing continues until the node confirms: this `Hello` may be outdated.
        let same = self.candidate.as_ref();
        let same = same.filter(|same| same.session.n == n && same.kinds == kinds);
        let (session, target) = match same {
            Some(same) => (same.session, same.target),
            None => {
                let c = self.rng.nonce();
                (SessionId { n, c }, self.link.sender.root_for(kinds))
            }
        };
        self.candidate = Some(Candidate {
            session,
            kinds,
            target,
            desired_root,
            reported_root,
            tries: Tries::new(),
        });
        self.send_welcome(now);
    }

    /// Only the third message of an opening replaces the session: it proves that its sender has read our
    /// `Welcome`, so that an outdated `Hello` cannot end a live session.
    fn confirm(&mut self, now: Millis, session: SessionId) {
        let confirmed = self
            .candidate
            .take_if(|candidate| candidate.session == session);
        if let Some(candidate) = confirmed {
            self.probing = None;
            self.calls.close(&mut self.link.out);
            self.link.open(
                session,
                (candidate.desired_root, Some(candidate.target)),
                candidate.reported_root,
                candidate.kinds,
            );
            let unix_s = self.unix_s(now);
            self.link.out.push_back(LinkOutput::Live { unix_s }.into());
        }
    }

    fn handle_session_frame(&mut self, now: Millis, session: SessionId, frame: Frame) {
        let out = &mut self.link.out;
        match frame {
            Frame::CallData { .. }
            | Frame::CallControl { .. }
            | Frame::CallCredit { .. }
            | Frame::CallCancel { .. } => self.calls.handle_frame(session, frame, out),
            Frame::CallResult {
                id,
                number,
                code,
                reason,
                ..
            } => {
                if self.calls.handle_result_frame(session, (id, number), out) {
                    let result = CallResult { id, code, reason };
                    out.push_back(CloudOutput::CallResult(result));
                }
            }
            Frame::Records {
                incarnation,
                class,
                held,
                first,
                entries,
                ..
            } => self.streams.handle_records(
                session,
                (incarnation, class),
                (held, first),
                entries,
                out,
            ),
            Frame::PieceGet { sha256, offset, .. } => {
                if !self.link.handle_piece_get(now, session, (sha256, offset)) {
                    // Our caller may have it nevertheless.
                    let bytes_max = PIECE_BYTES;
                    let read = CloudOutput::BlobRead {
                        sha256,
                        offset,
                        bytes_max,
                    };
                    self.link.out.push_back(read);
                }
            }
            Frame::Piece {
                sha256,
                offset,
                bytes,
                ..
            } => {
                self.link.handle_piece(now, (sha256, offset), bytes);
            }
            frame => self.link.handle_frame(now, session, frame),
        }
    }
}
