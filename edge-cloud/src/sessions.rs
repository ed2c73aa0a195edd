//! The links to all nodes: one session for each, whatever carries it just now. That is a socket of
//! [`crate::transport::hub`]'s for each node, or the one connection of [`crate::transport::broker`] for all of them. This
//! decides nothing that `edge-proto`'s session does not.
//!
//! Bound: [`crate::identity::registry::NODES_MAX`] nodes; per node what `edge-proto::limits` allows for the
//! two sets, [`FRAMES_MAX`] frames on the way to the socket and the session's own cap of calls.

mod call;
mod external_broker;
mod node;
mod records;
mod rollover;
pub mod takeover;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use edge_proto::call::{LogsRequest, METHOD_LOGS};
use edge_proto::frame::Frame;
use edge_proto::lanes::Limits;
use edge_proto::rate_limiter::{RateLimiter, Reservation};
use edge_proto::session::{Cloud, CloudConfig, Input};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use self::call::{PIECES_MAX, Piece, relay};
use self::node::{Connection, Frames, NodeSession};
use crate::changes::{ChangeFeed, Changes};
use crate::clock::unix_s;
use crate::identity::authorities::Authorities;
use crate::identity::enrol::{Enrolled, EnrolmentService, Lives};
use crate::identity::registry::{Admission, Registry};
use crate::identity::token::TokenStore;
use crate::nodes::{
    CaAdmin, CaRetired, CaView, Calls, DesiredSets, Event, EventLog, NodeAdmin, NodeReports,
    NodeView, RecordReports,
};
use crate::placement::Desired;
use crate::records::{Records, View};
use crate::sessions::takeover::{Takeovers, Verdict};
use crate::transport::admission_queue::AdmissionQueue;
use crate::transport::broker::Publisher;
use crate::transport::tls::{Peer, Port};

pub use external_broker::ExternalBroker;
pub use rollover::{ASK_AGAIN_MS, ASK_PACE, PROOF_AGAIN_MS, RENEWALS_AT_ONCE, WAITING_SHOWN};

/// Frames on the way to one socket; the session repeats what does not fit.
pub const FRAMES_MAX: usize = 256;
/// Openings a second, TLS handshakes and sessions, unless the operator says otherwise: about a
/// quarter of what one core can do, so that live links stay quick. 5,000 nodes are back in 25 s.
pub const ADMISSIONS_PER_S: u32 = 200;
/// Pause between two events about refused connections, milliseconds.
const CROWDED_MS: u64 = 60_000;
/// A node whose books are still being read asks again after this, milliseconds.
const BOOKS_WAIT_MS: u64 = 500;
/// Events kept for people.
const EVENTS_MAX: usize = 1_000;
/// Why an unknown node was let in.
const READMITTED: &str =
    "it joined after the backup that was restored; revoke it if it must not be here";

struct State {
    nodes: BTreeMap<String, NodeSession>,
    /// Connections that wait for admission, whoever they are from.
    admissions: AdmissionQueue<oneshot::Sender<()>>,
    /// Paces the openings of sessions.
    openings: RateLimiter,
    /// Connections refused since the last event of it, and when the next one is due.
    refused: (u64, u64),
    events: VecDeque<Event>,
    connections: u64,
    calls: u32,
    /// While the connection to an external broker is up.
    broker: Option<Publisher>,
    records: Arc<Records>,
}

/// Why a node gets no link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its certificate is not admitted.
    ForGood,
    /// It may try again: another connection has its place, or the registry cannot be written.
    ForNow,
}

/// All links.
pub struct Links {
    registry: Registry,
    tokens: TokenStore,
    state: Mutex<State>,
    data: PathBuf,
    cas: Mutex<Arc<Authorities>>,
    /// What is to be made anew with the CAs.
    port: OnceLock<Port>,
    lives: Lives,
    behind: Option<ExternalBroker>,
    start: Instant,
    changes: ChangeFeed,
    wake: Notify,
    unasked: Notify,
    /// The CAs have changed.
    rotated: Notify,
    /// Held while the broker's list of refused certificates is written.
    listing: Mutex<()>,
    /// A connection waits for its turn.
    entered: Notify,
}

fn session(epoch: u64, now: u64) -> Cloud {
    let mut seed = [0; 8];
    // Without randomness the nonces repeat after a restart, and an old frame could fit by chance.
    if SystemRandom::new().fill(&mut seed).is_err() {
        seed = unix_s().to_le_bytes();
    }
    let mut session = Cloud::new(CloudConfig { epoch }, u64::from_le_bytes(seed));
    session.handle(now, Input::Clock { unix_s: unix_s() });
    session
}

impl Links {
    /// Links over what `data` holds, without a sink for records; takes the next epoch.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(
        data: &Path,
        cas: impl Into<Authorities>,
        behind: Option<ExternalBroker>,
    ) -> io::Result<Arc<Self>> {
        Self::open_with(data, cas, behind, Records::none(), Lives::default())
    }

    /// The same with a sink, whose [`Records::run`] is the caller's, and other lives of certificates.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open_with(
        data: &Path,
        cas: impl Into<Authorities>,
        behind: Option<ExternalBroker>,
        records: Arc<Records>,
        lives: Lives,
    ) -> io::Result<Arc<Self>> {
        let registry = Registry::open(data, unix_s())?;
        let links = Arc::new(Self {
            state: Mutex::new(State::new(Arc::clone(&records))),
            tokens: TokenStore::open(data)?,
            data: data.to_owned(),
            cas: Mutex::new(Arc::new(cas.into())),
            port: OnceLock::new(),
            lives,
            behind,
            start: Instant::now(),
            changes: ChangeFeed::default(),
            wake: Notify::new(),
            unasked: Notify::new(),
            rotated: Notify::new(),
            listing: Mutex::new(()),
            entered: Notify::new(),
            registry,
        });
        {
            let mut state = links.lock();
            if let Some(grace) = links.registry.grace(unix_s()) {
                let text = format!(
                    "from a backup made at {}: nodes that joined after it are readmitted until {} \
                     (seconds since 1970)",
                    grace.issued_from_unix_s, grace.until_unix_s
                );
                state.event("", "Restored", &text);
            }
            for name in links.registry.nodes().keys() {
                state.add(name, links.registry.epoch(), links.now());
            }
        }
        links.write_crl()?;
        Ok(links)
    }

    /// Admits so many connections and so many sessions a second.
    pub fn set_admissions(&self, per_s: u32) {
        let mut state = self.lock();
        state.admissions = AdmissionQueue::new(per_s);
        state.openings = RateLimiter::new(per_s);
    }

    /// Admission of a new connection from this address: the channel gets a message when the connection
    /// may go on, and closes without one when too many wait.
    pub(crate) fn admission(&self, address: IpAddr) -> oneshot::Receiver<()> {
        let (admitted, receiver) = oneshot::channel();
        let now = self.now();
        let mut state = self.lock();
        state.admissions.enter(now, address, admitted);
        state.admit(now);
        drop(state);
        self.entered.notify_one();
        receiver
    }

    /// Admits the connections that wait, for ever.
    pub(crate) async fn admit(&self) {
        loop {
            let wait = {
                let now = self.now();
                let mut state = self.lock();
                state.admit(now);
                state.admissions.wait_ms(now)
            };
            match wait {
                Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                None => self.entered.notified().await,
            }
        }
    }

    /// Whether a `Hello` has to wait; its node is told how long. One whose session is live here
    /// does not: it only answers a question.
    fn must_wait(&self, state: &mut State, name: &str, frame: &[u8]) -> bool {
        let now = self.now();
        let Some(node) = state.nodes.get_mut(name).filter(|node| !node.live) else {
            return false;
        };
        let Ok(Frame::Hello { n, .. }) = Frame::decode(frame) else {
            return false;
        };
        let wait_ms = match node.booked {
            true => state.openings.ask(now, &mut node.reservation),
            false => {
                state.records.hurry(name);
                BOOKS_WAIT_MS
            }
        };
        if wait_ms == 0 {
            return false;
        }
        let epoch = self.registry.epoch();
        if let Some(connection) = &mut node.connection {
            let retry_after = Frame::RetryAfter { n, epoch, wait_ms };
            connection.frames.send(now, retry_after.encode());
        }
        true
    }

    /// Runs the sessions' timers, for ever.
    pub async fn tick(&self) {
        loop {
            let deadline = {
                let state = self.lock();
                state.nodes.values().filter_map(NodeSession::deadline).min()
            };
            let wait = deadline.map_or(Duration::from_secs(3600), |at| {
                Duration::from_millis(at.saturating_sub(self.now()))
            });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wake.notified() => continue,
            }
            let now = self.now();
            let mut state = self.lock();
            let due: Vec<String> = state
                .nodes
                .iter()
                .filter(|(_, node)| node.deadline().is_some_and(|at| at <= now))
                .map(|(name, _)| name.clone())
                .collect();
            for name in due {
                self.handle(&mut state, &name, Input::Tick);
            }
        }
    }

    /// Serves one enrolment, as HTTP or bare.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn enrol<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        http: bool,
    ) -> io::Result<()> {
        let cas = self.authorities();
        let service = EnrolmentService {
            cas: &cas,
            tokens: &self.tokens,
            registry: &self.registry,
            broker: self.behind.as_ref().map(|behind| &behind.broker),
            lives: self.lives,
        };
        let enrolled = if http {
            service.serve_http(stream).await?
        } else {
            service.serve(stream).await?
        };
        let (name, reason, text) = match enrolled {
            None => return Ok(()),
            Some(Enrolled::Joined(name)) => (name, "Joined", "certificate issued"),
            Some(Enrolled::Renewed(name)) => (name, "Renewed", "next certificate issued"),
        };
        let mut state = self.lock();
        // It may have been deleted again meanwhile.
        if self.registry.find(&name).is_some() {
            state.add(&name, self.registry.epoch(), self.now());
        }
        state.event(&name, reason, text);
        drop(state);
        self.changes.changed(&name);
        Ok(())
    }

    /// A node's connection is open. The frames for it come from the channel; when that ends, the
    /// connection is to be closed.
    ///
    /// # Errors
    /// The connection is to be refused.
    pub fn connect(&self, peer: &Peer) -> Result<(u64, mpsc::Receiver<Vec<u8>>), Refused> {
        let name = peer.node.as_str();
        let mut state = self.lock();
        // Under the lock: a revocation is in the registry before it takes the lock to end the link.
        match self.registry.admit(peer, unix_s()) {
            Ok(Admission::Known) => {}
            Ok(Admission::Readmitted) => {
                state.event(name, "Readmitted", READMITTED);
            }
            Ok(Admission::Refused) => {
                let why = "its certificate is revoked, replaced or not known here";
                state.event(name, "Refused", why);
                return Err(Refused::ForGood);
            }
            Err(error) => {
                state.event(name, "Refused", &error.to_string());
                return Err(Refused::ForNow);
            }
        }
        state.add(name, self.registry.epoch(), self.now());
        if !self.welcomes(&mut state, name) {
            drop(state);
            self.changes.changed(name);
            return Err(Refused::ForNow);
        }
        state.connections += 1;
        let id = state.connections;
        let (frames, receiver) = mpsc::channel(FRAMES_MAX);
        let node = state.nodes.get_mut(name).ok_or(Refused::ForNow)?;
        let connection = Connection {
            id,
            frames: Frames::Socket(frames),
            heard: self.now(),
            asked: 0,
        };
        if node.connection.replace(connection).is_some() {
            self.handle(&mut state, name, Input::TransportDown);
        }
        self.handle(&mut state, name, Input::NodeConnected);
        drop(state);
        self.changes.changed(name);
        Ok((id, receiver))
    }

    /// Whether a new connection of this node may take the place of the live one, if there is one.
    fn welcomes(&self, state: &mut State, name: &str) -> bool {
        let now = self.now();
        let Some(node) = state.nodes.get_mut(name) else {
            return false;
        };
        let Some(connection) = &mut node.connection else {
            node.takeovers.vacant();
            return true;
        };
        match node.takeovers.newcomer(now) {
            Verdict::TakesOver => true,
            Verdict::Refused { ask, proven } => {
                if ask {
                    // A full channel belongs to a connection that does not read: it stays silent.
                    connection.frames.send(now, self.probe_frame());
                }
                if proven {
                    let text = "two boards use this identity, and the one that is connected keeps \
                                the link: delete the node and join each by a name of its own";
                    state.event(name, "Cloned", text);
                }
                false
            }
        }
    }

    /// What the policy of a node allows on the way to it, now and from now on.
    #[must_use]
    pub fn limits(&self, name: &str) -> watch::Receiver<Limits> {
        let state = self.lock();
        let known = state.nodes.get(name).map(|node| node.limits.subscribe());
        known.unwrap_or_else(|| watch::channel(Limits::NONE).1)
    }

    /// A frame from a node's connection.
    pub fn frame(&self, name: &str, id: u64, frame: &[u8]) {
        let mut state = self.lock();
        // A connection that was taken over may still have frames in its buffer.
        let current =
            |node: &&mut NodeSession| node.connection.as_ref().is_some_and(|one| one.id == id);
        if let Some(node) = state.nodes.get_mut(name).filter(current) {
            // Anything else may have been on its way for long, over a link that is broken since.
            if node.takeovers.waits() && matches!(Frame::decode(frame), Ok(Frame::Hello { .. })) {
                node.takeovers.heard();
            }
            if !self.must_wait(&mut state, name, frame) {
                self.handle(&mut state, name, Input::Frame(frame));
            }
        }
    }

    /// A node's connection is closed. A late close of an old one changes nothing.
    pub fn disconnect(&self, name: &str, id: u64) {
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        if node
            .connection
            .as_ref()
            .is_some_and(|connection| connection.id == id)
        {
            node.connection = None;
            self.handle(&mut state, name, Input::TransportDown);
            drop(state);
            self.changes.changed(name);
        }
    }

    /// A node is refused from now on. A socket closes when its `Connection` is dropped; behind a
    /// broker the node is told that its session is over.
    fn end(&self, state: &mut State, name: &str) {
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        let connection = node.connection.take();
        if let (Some(mut connection), Some(session)) = (connection, node.session.session()) {
            let epoch = self.registry.epoch();
            connection
                .frames
                .send(self.now(), Frame::Reset { session, epoch }.encode());
        }
        self.handle(state, name, Input::TransportDown);
    }

    fn probe_frame(&self) -> Vec<u8> {
        let epoch = self.registry.epoch();
        let unix_s = unix_s();
        Frame::Probe { epoch, unix_s }.encode()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// One input to a node's session, and all that follows from it.
    fn handle(&self, state: &mut State, name: &str, input: Input<'_>) {
        let now = self.now();
        let mut visible = false;
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        // Each time: the clock may have been set right since the session was made.
        let clock = Input::Clock { unix_s: unix_s() };
        node.session.handle(now, clock);
        node.session.handle(now, input);
        let mut events = Vec::new();
        while let Some(output) = node.session.poll() {
            let Some(output) = node.take_records(now, name, output, &state.records) else {
                continue;
            };
            visible |= node.perform(now, output, &mut events);
        }
        while let Some((incarnation, class, count)) = node.session.take_repeated() {
            state.records.repeated(name, incarnation, class, count);
        }
        for (reason, text) in events {
            state.event(name, reason, &text);
        }
        self.wake.notify_one();
        if visible {
            self.changes.changed(name);
        }
    }
}

impl State {
    fn new(records: Arc<Records>) -> Self {
        Self {
            nodes: BTreeMap::new(),
            admissions: AdmissionQueue::new(ADMISSIONS_PER_S),
            openings: RateLimiter::new(ADMISSIONS_PER_S),
            refused: (0, 0),
            events: VecDeque::new(),
            connections: 0,
            calls: 0,
            broker: None,
            records,
        }
    }

    fn add(&mut self, name: &str, epoch: u64, now: u64) {
        let records = &self.records;
        let opened = || {
            let mut session = session(epoch, now);
            (records.attach(name, &mut session), session)
        };
        self.nodes.entry(name.to_owned()).or_insert_with(|| {
            let ((stream, booked), session) = opened();
            NodeSession {
                session,
                stream,
                booked,
                connection: None,
                limits: watch::Sender::new(Limits::NONE),
                desired: None,
                reported: BTreeMap::new(),
                live: false,
                reservation: Reservation::default(),
                in_sync: false,
                heard: false,
                boots: Default::default(),
                problems: Default::default(),
                changed_unix_s: 0,
                takeovers: Takeovers::default(),
                renewal_asked: None,
                proof_asked: None,
                calls: BTreeMap::new(),
            }
        });
    }

    /// Admits the connections that are due.
    fn admit(&mut self, now: u64) {
        while let Some(admitted) = self.admissions.next(now) {
            // Its connection may have made room for another.
            admitted.send(()).ok();
        }
        let (count, due) = &mut self.refused;
        *count += self.admissions.take_refused();
        if *count > 0 && now >= *due {
            let text = format!(
                "more connections than the admission allows: {count} closed since the last such \
                 event, their nodes come back after a pause"
            );
            self.refused = (0, now + CROWDED_MS);
            self.event("", "Crowded", &text);
        }
    }

    fn event(&mut self, node: &str, reason: &str, message: &str) {
        log::info!("{} node={node} {message}", reason.to_lowercase());
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(Event {
            unix_s: unix_s(),
            node: node.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
    }
}

impl NodeReports for Arc<Links> {
    fn subscribe(&self) -> Changes {
        self.changes.subscribe()
    }

    fn view(&self, name: &str) -> Option<NodeView> {
        let record = self.registry.find(name)?;
        let now = self.now();
        let state = self.lock();
        let node = state.nodes.get(name)?;
        Some(node.view(name, &record, now))
    }

    fn views(&self) -> Vec<NodeView> {
        let records = self.registry.nodes();
        let now = self.now();
        let state = self.lock();
        let view =
            |(name, node): (&String, &NodeSession)| Some(node.view(name, records.get(name)?, now));
        state.nodes.iter().filter_map(view).collect()
    }
}

impl DesiredSets for Arc<Links> {
    fn set_desired(&self, name: &str, desired: &Desired) {
        let epoch = self.registry.epoch();
        let mut state = self.lock();
        let now = self.now();
        let records = Arc::clone(&state.records);
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        let before = node.desired.replace(desired.clone());
        node.limit(now);
        match before {
            None => {
                // The session so far knew an empty set, and may be about to send it.
                let reported: Vec<_> = node
                    .session
                    .reported()
                    .iter()
                    .map(|(key, hash)| (key.clone(), hash))
                    .collect();
                let was_live = std::mem::take(&mut node.live);
                node.session = session(epoch, now);
                node.session.restore(reported);
                (node.stream, node.booked) = records.attach(name, &mut node.session);
                node.in_sync = false;
                for (key, payload) in desired {
                    let (key, payload) = (key.clone(), Arc::clone(payload));
                    node.session.handle(now, Input::Put { key, payload });
                }
                if node.connection.is_some() || was_live {
                    self.handle(&mut state, name, Input::TransportUp);
                }
                self.unasked.notify_one();
            }
            Some(before) => {
                for key in before.keys().filter(|key| !desired.contains_key(*key)) {
                    self.handle(&mut state, name, Input::Delete { key: key.clone() });
                }
                for (key, payload) in desired {
                    if before.get(key) != Some(payload) {
                        let (key, payload) = (key.clone(), Arc::clone(payload));
                        self.handle(&mut state, name, Input::Put { key, payload });
                    }
                }
            }
        }
        drop(state);
        self.changes.changed(name);
    }
}

impl Calls for Arc<Links> {
    fn call(&self, name: &str, method: u16, body: Vec<u8>) -> mpsc::Receiver<Piece> {
        let follows =
            method == METHOD_LOGS && LogsRequest::decode(&body).is_ok_and(|request| request.follow);
        let (reader, pieces) = mpsc::channel(PIECES_MAX);
        let (answer, receiver) = mpsc::channel(1);
        let mut state = self.lock();
        state.calls += 1;
        let id = state.calls;
        if let Some(node) = state.nodes.get_mut(name) {
            node.calls.insert(id, reader);
            self.handle(&mut state, name, Input::CallStart { id, method, body });
        }
        drop(state);
        tokio::spawn(relay(
            Self::clone(self),
            name.to_owned(),
            id,
            follows,
            pieces,
            answer,
        ));
        receiver
    }
}

impl NodeAdmin for Arc<Links> {
    async fn delete(&self, name: &str) -> Result<bool, String> {
        self.tokens
            .forget(name)
            .map_err(|error| error.to_string())?;
        let found = self
            .registry
            .delete(name, unix_s())
            .map_err(|error| error.to_string())?;
        let mut state = self.lock();
        self.end(&mut state, name);
        let known = state.nodes.remove(name).is_some();
        state.records.detach(name);
        if found {
            state.event(name, "Deleted", refused_from_now_on(known));
        }
        drop(state);
        self.keep_crl();
        self.changes.changed(name);
        Ok(found)
    }

    async fn revoke(&self, name: &str) -> Result<bool, String> {
        let found = self
            .registry
            .revoke(name, unix_s())
            .map_err(|error| error.to_string())?;
        let mut state = self.lock();
        if found {
            let known = state.nodes.contains_key(name);
            state.add(name, self.registry.epoch(), self.now());
            self.end(&mut state, name);
            state.event(name, "Revoked", refused_from_now_on(known));
        }
        drop(state);
        self.keep_crl();
        self.changes.changed(name);
        Ok(found)
    }

    async fn create_token(&self, uses: u32, ttl_s: u64) -> Result<String, String> {
        self.tokens
            .create(self.authorities().signer().der(), uses, ttl_s, unix_s())
            .map_err(|error| error.to_string())
    }
}

impl CaAdmin for Arc<Links> {
    fn cas(&self) -> CaView {
        self.ca_view()
    }

    async fn rotate_ca(&self) -> Result<CaView, String> {
        self.rotate()
    }

    async fn retire_ca(&self, force: Option<usize>) -> Result<CaRetired, String> {
        self.retire(force)
    }
}

impl EventLog for Arc<Links> {
    fn events(&self) -> Vec<Event> {
        self.lock().events.iter().cloned().collect()
    }
}

impl RecordReports for Arc<Links> {
    fn records(&self) -> View {
        let records = Arc::clone(&self.lock().records);
        records.view()
    }
}

const fn refused_from_now_on(known: bool) -> &'static str {
    if known {
        "its certificate is refused from now on"
    } else {
        "not known since the restore: it is refused if it comes"
    }
}
