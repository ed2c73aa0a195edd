//! The receiving half of one replicated set.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::congestion_window::CongestionWindow;
use super::opening::Repeat;
use super::output::Outputs;
use super::piece::{Fetch, Want};
use super::sender::send;
use super::{LinkOutput, Payload, Problem, StateOutput};
use crate::Millis;
use crate::frame::{Frame, Item, SessionId, Set};
use crate::hash::{Hash16, Hash32};
use crate::key::Key;
use crate::limits::{FRAME_BYTES_MAX, INLINE_BYTES_MAX, INVENTORY_PAGE_MAX, SET_OBJECTS_MAX};
use crate::set::{Member, Reason, ReplicaSet, root};
use crate::sorted::{SortedMap, SortedSet};

/// Bytes of an inventory frame around its entries.
const INVENTORY_HEADER_BYTES: usize = 64;

type Changes = Vec<(Key, Option<Payload>)>;

#[derive(Debug)]
enum Pending {
    /// Large objects of the change are still missing.
    Fetching {
        result: Hash16,
        changes: Changes,
        fetch: Fetch,
    },
    /// The caller is making the changes durable.
    Applying {
        ticket: u32,
        members: Vec<(Key, Option<Member>)>,
        epoch: u64,
    },
}

#[derive(Debug)]
pub(super) struct Receiver {
    set: Set,
    replica: ReplicaSet,
    pending: Option<Pending>,
    ticket: u32,
    /// The highest `order` of this session.
    order: u64,
    /// Root at which the peer has nothing more to send, if known.
    wanted: Option<Hash16>,
    in_sync: bool,
    /// When to repeat `Have`, while our root is not the peer's target and nothing is received. The peer may
    /// assume another root of ours, because an apply of a former session has ended since, and one `Have` is
    /// easily lost.
    repeat: Repeat,
}

impl Receiver {
    pub(super) const fn new(set: Set) -> Self {
        Self {
            set,
            replica: ReplicaSet::new(),
            pending: None,
            ticket: 0,
            order: 0,
            wanted: None,
            in_sync: false,
            repeat: Repeat::new(),
        }
    }

    pub(super) const fn replica(&self) -> &ReplicaSet {
        &self.replica
    }

    /// Adds a member from the caller's store.
    pub(super) fn restore(&mut self, key: Key, member: Member) -> bool {
        self.replica.change(key, Some(member))
    }

    pub(super) const fn is_in_sync(&self) -> bool {
        self.in_sync
    }

    fn settle(&mut self, root: Hash16) {
        self.in_sync = self.wanted == Some(root);
    }

    pub(super) fn deadline(&self) -> Option<Millis> {
        match &self.pending {
            Some(Pending::Fetching { fetch, .. }) => fetch.deadline(),
            Some(Pending::Applying { .. }) => None,
            None => self.repeat.at,
        }
    }

    /// A session opens; the peer's target root is `wanted`.
    pub(super) fn open(&mut self, wanted: Hash16) {
        self.close();
        self.order = 0;
        self.wanted = Some(wanted);
        self.settle(self.replica.root());
    }

    /// The session has ended. An apply of the caller continues nevertheless.
    pub(super) fn close(&mut self) {
        if matches!(self.pending, Some(Pending::Fetching { .. })) {
            self.pending = None;
        }
        self.wanted = None;
        self.in_sync = false;
        self.repeat.reset();
    }

    pub(super) fn tick<O: Outputs>(
        &mut self,
        now: Millis,
        session: SessionId,
        window: &mut CongestionWindow,
        out: &mut VecDeque<O>,
    ) {
        if let Some(Pending::Fetching { fetch, .. }) = &mut self.pending {
            fetch.tick(now, window);
        }
        if self.repeat.is_due(now) {
            self.send_have(session, out);
        }
    }

    /// Requests pieces, and outputs the next one to the caller.
    pub(super) fn pump<O: Outputs>(
        &mut self,
        now: Millis,
        session: SessionId,
        window: &mut CongestionWindow,
        out: &mut VecDeque<O>,
    ) {
        if let Some(Pending::Fetching { fetch, .. }) = &mut self.pending {
            fetch.pump(now, session, window, out);
        }
        if self.pending.is_some() || self.in_sync || self.wanted.is_none() {
            self.repeat.reset();
        } else if self.repeat.at.is_none() {
            self.repeat.arm(now);
        }
    }

    pub(super) fn send_have<O: Outputs>(&self, session: SessionId, out: &mut VecDeque<O>) {
        let frame = Frame::Have {
            session,
            set: self.set,
            root: self.replica.root(),
            order: self.order,
        };
        send(out, &frame);
    }

    /// Handles changes, or a question, of the peer.
    pub(super) fn handle_change<O: Outputs>(
        &mut self,
        session: SessionId,
        (base, result, order): (Hash16, Hash16, u64),
        items: Vec<Item>,
        epoch: u64,
        window: &mut CongestionWindow,
        out: &mut VecDeque<O>,
    ) {
        // Duplicated or overtaken: the peer has sent later changes. It may still apply, when the set has
        // returned to the root that it starts from.
        if order < self.order {
            return;
        }
        self.order = order;
        self.repeat.reset();
        self.wanted = (order & 1 == 0).then_some(result);
        let root = self.replica.root();
        self.settle(root);
        match &self.pending {
            // Its `Have` follows.
            Some(Pending::Applying { .. }) => return,
            Some(Pending::Fetching {
                result: pending, ..
            }) if *pending == result && !items.is_empty() => return,
            _ => {}
        }
        if root == result {
            self.send_have(session, out);
            return;
        }
        let (changes, members, wants) = sort_items(items);
        if root != base || self.root_after(&members) != Some(result) {
            if root == base && !members.is_empty() && self.is_over_cap(&members) {
                out.push_back(LinkOutput::PeerProblem(Problem::Change).into());
            }
            self.send_inventory(session, root, out);
            return;
        }
        if let Some(Pending::Fetching { fetch, .. }) = &mut self.pending {
            fetch.drop_current(window);
        }
        if wants.is_empty() {
            self.apply(changes, epoch, out);
        } else {
            let mut fetch = Fetch::new(wants);
            fetch.begin(window, out);
            self.pending = Some(Pending::Fetching {
                result,
                changes,
                fetch,
            });
        }
    }

    fn is_over_cap(&self, members: &[(Key, Option<Member>)]) -> bool {
        self.root_after(members).is_none()
    }

    /// Root after changing `members`; `None` if the set would exceed its cap or a key is repeated.
    fn root_after(&self, members: &[(Key, Option<Member>)]) -> Option<Hash16> {
        let mut view: SortedMap<&Key, Hash16> = self.replica.iter().collect();
        let mut changed = SortedSet::new();
        for (key, member) in members {
            match member {
                Some(member) => view.insert(key, member.hash),
                None => view.remove(key),
            };
            if !changed.insert(key) {
                return None;
            }
        }
        (view.len() <= SET_OBJECTS_MAX).then(|| root(view.into_iter()))
    }

    /// Outputs changes to the caller; empty ones only carry the epoch.
    pub(super) fn apply<O: Outputs>(
        &mut self,
        changes: Changes,
        epoch: u64,
        out: &mut VecDeque<O>,
    ) {
        self.ticket = self.ticket.wrapping_add(1);
        let members = changes
            .iter()
            .map(|(key, payload)| (key.clone(), payload.as_ref().map(member)));
        self.pending = Some(Pending::Applying {
            ticket: self.ticket,
            members: members.collect(),
            epoch,
        });
        let apply = StateOutput::Apply {
            ticket: self.ticket,
            changes,
            epoch,
        };
        out.push_back(apply.into());
    }

    /// Whether large objects of a change are missing.
    pub(super) const fn is_fetching(&self) -> bool {
        matches!(self.pending, Some(Pending::Fetching { .. }))
    }

    /// Whether no change is being fetched or applied.
    pub(super) const fn is_idle(&self) -> bool {
        self.pending.is_none()
    }

    /// The changes of `ticket` are durable. Returns the epoch stored with them, unless another
    /// ticket is awaited.
    pub(super) fn handle_applied(
        &mut self,
        ticket: u32,
        refused: Vec<(Key, Reason)>,
    ) -> Option<u64> {
        match self.pending.take() {
            Some(Pending::Applying {
                ticket: awaited,
                members,
                epoch,
            }) if awaited == ticket => {
                for (key, member) in members {
                    // Within the cap: checked before the changes were output.
                    self.replica.change(key, member);
                }
                for (key, reason) in refused {
                    self.replica.refuse(&key, reason);
                }
                self.settle(self.replica.root());
                Some(epoch)
            }
            other => {
                self.pending = other;
                None
            }
        }
    }

    pub(super) fn handle_blob_have<O: Outputs>(
        &mut self,
        now: Millis,
        have: (Hash32, u32),
        epoch: u64,
        window: &mut CongestionWindow,
        out: &mut VecDeque<O>,
    ) {
        let Some(Pending::Fetching { fetch, changes, .. }) = &mut self.pending else {
            return;
        };
        if fetch.handle_have(now, have, window, out) {
            let changes = core::mem::take(changes);
            self.apply(changes, epoch, out);
        }
    }

    /// Handles a received piece. Returns whether it was requested here.
    pub(super) fn handle_piece(
        &mut self,
        now: Millis,
        place: (Hash32, u32),
        bytes: &mut Vec<u8>,
        window: &mut CongestionWindow,
    ) -> bool {
        match &mut self.pending {
            Some(Pending::Fetching { fetch, .. }) => fetch.handle_piece(now, place, bytes, window),
            _ => false,
        }
    }

    fn send_inventory<O: Outputs>(&self, session: SessionId, root: Hash16, out: &mut VecDeque<O>) {
        let mut entries = self.replica.iter().peekable();
        let mut page = 0;
        loop {
            let mut bytes_left = FRAME_BYTES_MAX - INVENTORY_HEADER_BYTES;
            let mut on_page = Vec::new();
            while let Some((key, hash)) = entries.peek() {
                let bytes = key.to_bytes().len() + hash.0.len();
                if bytes > bytes_left || on_page.len() >= INVENTORY_PAGE_MAX {
                    break;
                }
                bytes_left -= bytes;
                on_page.push(((*key).clone(), *hash));
                entries.next();
            }
            let last = entries.peek().is_none();
            let frame = Frame::Inventory {
                session,
                set: self.set,
                root,
                page,
                last,
                order: self.order,
                entries: on_page,
            };
            send(out, &frame);
            if last {
                return;
            }
            page += 1;
        }
    }
}

/// Changes for the caller, members for the replica, and large objects to fetch.
type Sorted = (Changes, Vec<(Key, Option<Member>)>, VecDeque<Want>);

fn sort_items(items: Vec<Item>) -> Sorted {
    let mut wants = VecDeque::new();
    let changes: Changes = items
        .into_iter()
        .map(|item| match item {
            Item::Delete { key } => (key, None),
            Item::Put { key, bytes } => {
                let payload = if bytes.len() <= INLINE_BYTES_MAX.min(key.kind().bytes_max()) {
                    Payload::Inline(bytes)
                } else {
                    too_large(Hash16::of(&bytes))
                };
                (key, Some(payload))
            }
            Item::Large { key, sha256, len } => {
                let payload = if len as usize <= key.kind().bytes_max() {
                    wants.push_back(Want { sha256, len });
                    Payload::Large { sha256, len }
                } else {
                    too_large(sha256.short())
                };
                (key, Some(payload))
            }
        })
        .collect();
    let members = changes
        .iter()
        .map(|(key, payload)| (key.clone(), payload.as_ref().map(member)));
    let members = members.collect();
    (changes, members, wants)
}

const fn too_large(hash: Hash16) -> Payload {
    Payload::Refused {
        hash,
        reason: Reason::TooLarge,
    }
}

fn member(payload: &Payload) -> Member {
    let (hash, refused) = match payload {
        Payload::Inline(bytes) => (Hash16::of(bytes), None),
        Payload::Large { sha256, .. } => (sha256.short(), None),
        Payload::Refused { hash, reason } => (*hash, Some(*reason)),
    };
    Member { hash, refused }
}
