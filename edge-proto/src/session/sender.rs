//! The sending half of one replicated set.
//!
//! `behind` contains, for each key in which the peer differs, what the peer has. So a change costs one
//! entry however often its key changes, only the newest value is sent, and the peer's
//! root is known at every step without a copy of the peer's set.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::LinkOutput;
use super::opening::Repeat;
use crate::Millis;
use crate::frame::{Frame, Item, SessionId, Set};
use crate::hash::{Hash16, Hash32, sha256};
use crate::key::Key;
use crate::limits::{
    CHANGE_ITEMS_MAX, FRAME_BYTES_MAX, INLINE_BYTES_MAX, NAME_BYTES_MAX, NODE_BYTES_MAX,
    PIECE_BYTES_MAX, SET_OBJECTS_MAX,
};
use crate::set::{Reason, root};
use crate::sorted::SortedMap;

/// Bytes of a change frame around its items: version, tags, session, roots, counts.
const CHANGE_HEADER_BYTES: usize = 64;
/// Bytes of an item around key and payload, the fields of a large one included.
const ITEM_HEADER_BYTES: usize = 48;
/// Minimum time between two preemptions of a large object by small ones.
const PREEMPT_MS: Millis = 2_000;
/// Consecutive batches of small objects that may be sent before a waiting large one.
const PASSED_OVER_MAX: u8 = 16;
/// Pages that an inventory can have, a bit each in [`Pages`].
const PAGES_MAX: u8 = 128;
/// Bytes of the longest entry of an inventory: key with two names, and hash.
const ENTRY_BYTES_MAX: usize = 2 + 2 * (2 + NAME_BYTES_MAX) + 16;
const _: () = assert!(
    (FRAME_BYTES_MAX - CHANGE_HEADER_BYTES) / ENTRY_BYTES_MAX * PAGES_MAX as usize
        >= SET_OBJECTS_MAX
);
const _: () = assert!(
    CHANGE_HEADER_BYTES + ITEM_HEADER_BYTES + ENTRY_BYTES_MAX + INLINE_BYTES_MAX <= FRAME_BYTES_MAX
);

#[derive(Clone, Debug)]
struct Object {
    payload: Arc<[u8]>,
    sha256: Hash32,
}

impl Object {
    fn is_large(&self) -> bool {
        self.payload.len() > INLINE_BYTES_MAX
    }
}

/// Changes that were sent and are not yet acknowledged.
#[derive(Debug)]
struct Flight {
    result: Hash16,
    order: u64,
    items: Vec<(Key, Option<Object>)>,
}

/// Received pages of an inventory, in any order.
#[derive(Debug)]
struct Pages {
    root: Hash16,
    seen: u128,
    last: Option<u8>,
    entries: SortedMap<Key, Hash16>,
}

#[derive(Debug)]
pub(super) struct Sender {
    set: Set,
    kinds: u32,
    objects: SortedMap<Key, Object>,
    payload_bytes: usize,
    peer_root: Option<Hash16>,
    behind: SortedMap<Key, Option<Hash16>>,
    cursor: Option<Key>,
    flight: Option<Flight>,
    /// Twice the number of the last change or question of this session.
    order: u64,
    /// `order` of the last change that was not a question. An answer with a lower one was overtaken by it.
    change_order: u64,
    /// The target root that was last sent to the peer, if it is certain. While the peer's
    /// root is another one, the peer repeats its `Have`.
    target: Option<Hash16>,
    /// The change of a large object that was preempted by small ones. The receiver may have completed it.
    preempted: Option<Flight>,
    preempted_at: Option<Millis>,
    /// Consecutive batches of small objects that were sent before a waiting large one.
    passed_over: u8,
    pages: Option<Pages>,
    repeat: Repeat,
}

impl Sender {
    pub(super) const fn new(set: Set) -> Self {
        Self {
            set,
            kinds: u32::MAX,
            objects: SortedMap::new(),
            payload_bytes: 0,
            peer_root: None,
            behind: SortedMap::new(),
            cursor: None,
            flight: None,
            order: 0,
            change_order: 0,
            target: None,
            preempted: None,
            preempted_at: None,
            passed_over: 0,
            pages: None,
            repeat: Repeat::new(),
        }
    }

    /// Root of the set that the peer is to have.
    pub(super) fn root(&self) -> Hash16 {
        root(self.wanted())
    }

    /// Root for a peer that understands only `kinds`.
    pub(super) fn root_for(&self, kinds: u32) -> Hash16 {
        let understood = |key: &Key| key.kind().bit() & kinds != 0;
        let objects = self.objects.iter().filter(|(key, _)| understood(key));
        root(objects.map(|(key, object)| (key, object.sha256.short())))
    }

    fn wanted(&self) -> impl Iterator<Item = (&Key, Hash16)> {
        self.objects
            .iter()
            .filter(|(key, _)| key.kind().bit() & self.kinds != 0)
            .map(|(key, object)| (key, object.sha256.short()))
    }

    fn wanted_hash(&self, key: &Key) -> Option<Hash16> {
        if key.kind().bit() & self.kinds == 0 {
            return None;
        }
        self.objects.get(key).map(|object| object.sha256.short())
    }

    pub(super) fn is_in_sync(&self) -> bool {
        self.peer_root.is_some() && self.behind.is_empty() && self.flight.is_none()
    }

    pub(super) const fn deadline(&self) -> Option<Millis> {
        self.repeat.at
    }

    pub(super) fn put(&mut self, key: &Key, payload: Arc<[u8]>) -> Result<(), Reason> {
        if !key.is_valid() {
            return Err(Reason::Key);
        }
        if payload.len() > key.kind().bytes_max() {
            return Err(Reason::TooLarge);
        }
        let old = self.objects.get(key).map(|object| object.payload.len());
        let bytes = self.payload_bytes - old.unwrap_or(0) + payload.len();
        if bytes > NODE_BYTES_MAX || (old.is_none() && self.objects.len() >= SET_OBJECTS_MAX) {
            return Err(Reason::Full);
        }
        let sha256 = sha256(&payload);
        self.note_change(key, Some(sha256.short()));
        self.payload_bytes = bytes;
        self.objects.insert(key.clone(), Object { payload, sha256 });
        Ok(())
    }

    pub(super) fn delete(&mut self, key: &Key) {
        self.note_change(key, None);
        if let Some(old) = self.objects.remove(key) {
            self.payload_bytes -= old.payload.len();
        }
    }

    /// Updates `behind` before the change of `key` to `new`.
    fn note_change(&mut self, key: &Key, new: Option<Hash16>) {
        if self.peer_root.is_none() || key.kind().bit() & self.kinds == 0 {
            return;
        }
        let old = self.wanted_hash(key);
        let at_peer = *self.behind.get(key).unwrap_or(&old);
        self.note_peer(key, at_peer, new);
    }

    fn note_peer(&mut self, key: &Key, at_peer: Option<Hash16>, wanted: Option<Hash16>) {
        if at_peer == wanted {
            self.behind.remove(key);
        } else {
            self.behind.insert(key.clone(), at_peer);
        }
    }

    /// A session opens in which the peer holds `peer_root` and was sent the target root `target`.
    pub(super) fn open(&mut self, peer_root: Hash16, target: Option<Hash16>, kinds: u32) {
        self.close();
        self.order = 0;
        self.change_order = 0;
        self.target = target;
        if self.kinds != kinds {
            self.kinds = kinds;
            self.clear_peer();
        }
        if self.peer_root != Some(peer_root) {
            self.clear_peer();
            if self.root() == peer_root {
                self.peer_root = Some(peer_root);
            }
        }
    }

    /// The session has ended. The state of the peer is kept: if it has the same root at the next opening,
    /// no inventory is needed.
    pub(super) fn close(&mut self) {
        self.flight = None;
        self.preempted = None;
        self.pages = None;
        self.repeat.reset();
    }

    fn clear_peer(&mut self) {
        self.peer_root = None;
        self.behind.clear();
        self.flight = None;
        self.preempted = None;
    }

    pub(super) fn tick<O: From<LinkOutput>>(
        &mut self,
        now: Millis,
        session: SessionId,
        out: &mut VecDeque<O>,
    ) {
        if self.repeat.is_due(now) {
            self.pages = None;
            if self.flight.is_some() {
                self.send_flight(now, session, out);
            }
        }
    }

    /// Sends what can be sent; called after every event of a live session.
    pub(super) fn pump<O: From<LinkOutput>>(
        &mut self,
        now: Millis,
        session: SessionId,
        out: &mut VecDeque<O>,
    ) {
        let preempts = self.preempts(now);
        if preempts {
            self.preempted = self.flight.take();
            self.preempted_at = Some(now);
            self.repeat.reset();
        }
        // Our set may have changed back to the peer's root. Then an empty change confirms the root.
        let settled = self.is_in_sync() && self.target == self.peer_root;
        if self.flight.is_some() || self.repeat.at.is_some() || settled {
            return;
        }
        self.order += 2;
        if self.peer_root.is_none() {
            // A change from and to our root without items asks the peer for its root.
            let root = self.root();
            self.target = Some(root);
            let frame = self.change(session, root, root, self.order, Vec::new());
            send(out, &frame);
            self.repeat.arm(now);
        } else {
            let items = self.next_batch(preempts);
            let more = items.len() < self.behind.len();
            let result = self.root_after(&items);
            self.target = (!more).then_some(result);
            self.change_order = self.order;
            self.flight = Some(Flight {
                result,
                order: self.order | u64::from(more),
                items,
            });
            self.send_flight(now, session, out);
        }
    }

    /// Whether a large object is in flight and a small one waits. A small one does not wait for pieces,
    /// but preemption is limited, so that the pieces make progress.
    fn preempts(&self, now: Millis) -> bool {
        let flight_items = self.flight.as_ref().and_then(|flight| flight.items.first());
        let Some((in_flight, Some(object))) = flight_items else {
            return false;
        };
        let is_small = |key: &Key| !self.objects.get(key).is_some_and(Object::is_large);
        object.is_large()
            && self
                .preempted_at
                .is_none_or(|then| now >= then.saturating_add(PREEMPT_MS))
            && self
                .behind
                .keys()
                .any(|key| key != in_flight && is_small(key))
    }

    fn change(
        &self,
        session: SessionId,
        base: Hash16,
        result: Hash16,
        order: u64,
        items: Vec<Item>,
    ) -> Frame {
        Frame::Change {
            session,
            set: self.set,
            base,
            result,
            order,
            items,
        }
    }

    fn send_flight<O: From<LinkOutput>>(
        &mut self,
        now: Millis,
        session: SessionId,
        out: &mut VecDeque<O>,
    ) {
        if let (Some(flight), Some(base)) = (&self.flight, self.peer_root) {
            let items = flight.items.iter().map(item).collect();
            let frame = self.change(session, base, flight.result, flight.order, items);
            send(out, &frame);
            self.repeat.arm(now);
        }
    }

    /// The next changes: deletions first, so that the peer's set never exceeds its cap; then inline
    /// objects, continuing after the last batch; a large object is sent alone.
    fn next_batch(&mut self, preempts: bool) -> Vec<(Key, Option<Object>)> {
        let mut items: Vec<(Key, Option<Object>)> = Vec::new();
        let mut large = None;
        let mut bytes_left = FRAME_BYTES_MAX - CHANGE_HEADER_BYTES;
        let deleted = self
            .behind
            .keys()
            .filter(|key| self.wanted_hash(key).is_none());
        let (after, before): (Vec<_>, Vec<_>) = self
            .behind
            .keys()
            .filter(|key| self.wanted_hash(key).is_some())
            .partition(|key| self.cursor.as_ref().is_none_or(|cursor| *key > cursor));
        for key in deleted.chain(after).chain(before) {
            let object = self
                .wanted_hash(key)
                .and_then(|_| self.objects.get(key))
                .cloned();
            if object.as_ref().is_some_and(Object::is_large) {
                large = large.or_else(|| Some((key.clone(), object)));
                continue;
            }
            let payload = object.as_ref().map_or(0, |object| object.payload.len());
            let bytes = key.to_bytes().len() + payload + ITEM_HEADER_BYTES;
            if bytes > bytes_left || items.len() >= CHANGE_ITEMS_MAX {
                break;
            }
            bytes_left -= bytes;
            items.push((key.clone(), object));
        }
        // Deletions free the place that it may need.
        let fits = self.objects.len() + self.behind.len() < SET_OBJECTS_MAX
            || items.iter().all(|(_, object)| object.is_some());
        if self.passed_over >= PASSED_OVER_MAX && fits && large.is_some() {
            items.clear();
        }
        if items.is_empty() {
            self.passed_over = 0;
            items.extend(large);
        } else if preempts {
            // The preempted object is next.
            self.passed_over = PASSED_OVER_MAX;
        } else if large.is_some() {
            self.passed_over = self.passed_over.saturating_add(1);
        }
        self.cursor = items.last().map(|(key, _)| key.clone());
        items
    }

    /// The peer's root after it has applied `items`.
    fn root_after(&self, items: &[(Key, Option<Object>)]) -> Hash16 {
        let wanted = self.wanted().map(|(key, hash)| (key, Some(hash)));
        let mut view: SortedMap<&Key, Option<Hash16>> = wanted.collect();
        view.extend(self.behind.iter().map(|(key, at_peer)| (key, *at_peer)));
        let hash = |object: &Option<Object>| object.as_ref().map(|object| object.sha256.short());
        view.extend(items.iter().map(|(key, object)| (key, hash(object))));
        root(
            view.into_iter()
                .filter_map(|(key, hash)| Some((key, hash?))),
        )
    }

    /// The peer's set is durable at `have`; `order` is the highest that it has received.
    pub(super) fn handle_have(&mut self, have: Hash16, order: u64) {
        let is_done = |flight: &Option<Flight>| {
            let flight = flight.as_ref();
            flight.is_some_and(|flight| flight.result == have && flight.order <= order)
        };
        let done = if is_done(&self.flight) {
            self.flight.take()
        } else if is_done(&self.preempted) {
            // It was completed before the small ones, which started from another root and are next.
            self.flight = None;
            self.passed_over = 0;
            self.preempted.take()
        } else {
            None
        };
        if let Some(flight) = done {
            self.preempted = None;
            self.peer_root = Some(have);
            self.repeat.reset();
            for (key, object) in flight.items {
                let at_peer = object.map(|object| object.sha256.short());
                let wanted = self.wanted_hash(&key);
                self.note_peer(&key, at_peer, wanted);
            }
        } else if order >= self.change_order && self.peer_root != Some(have) {
            let asks = self.peer_root.is_none();
            // Whether the peer has received all that was sent.
            let received_all = order >= self.order;
            if self.root() == have {
                self.clear_peer();
                self.peer_root = Some(have);
                self.target = self.target.filter(|_| received_all);
                self.pages = None;
                self.repeat.reset();
            } else if !asks || received_all {
                // It was busy with an apply when it received the question, or has another root now.
                self.clear_peer();
                self.repeat.at = None;
            }
        }
    }

    /// Handles one page of the peer's inventory.
    pub(super) fn handle_inventory(
        &mut self,
        now: Millis,
        (root, order): (Hash16, u64),
        (page, last): (u8, bool),
        entries: Vec<(Key, Hash16)>,
    ) {
        let known = self.peer_root == Some(root);
        let is_idle = known && (self.flight.is_some() || self.behind.is_empty());
        if page >= PAGES_MAX || order < self.change_order || is_idle {
            return;
        }
        let mut pages = match self.pages.take() {
            Some(pages) if pages.root == root => pages,
            _ => Pages {
                root,
                seen: 0,
                last: None,
                entries: SortedMap::new(),
            },
        };
        pages.seen |= 1 << page;
        if last {
            pages.last = Some(page);
        }
        pages.entries.extend(entries);
        if pages.entries.len() > SET_OBJECTS_MAX {
            return;
        }
        let all = |last: u8| u128::MAX >> (PAGES_MAX - 1 - last);
        if pages.last.is_some_and(|last| pages.seen == all(last)) {
            self.compare(now, root, pages.entries);
        } else {
            self.pages = Some(pages);
        }
    }

    fn compare(&mut self, now: Millis, claimed: Hash16, entries: SortedMap<Key, Hash16>) {
        self.clear_peer();
        self.peer_root = Some(claimed);
        let honest = root(entries.iter().map(|(key, hash)| (key, *hash))) == claimed;
        let own: Vec<Key> = self.wanted().map(|(key, _)| key.clone()).collect();
        for key in own {
            // An inventory that does not match its own root is useless: resend everything.
            let at_peer = if honest {
                entries.get(&key).copied()
            } else {
                None
            };
            let wanted = self.wanted_hash(&key);
            self.note_peer(&key, at_peer, wanted);
        }
        let surplus: Vec<_> = entries
            .into_iter()
            .filter(|(key, _)| self.wanted_hash(key).is_none())
            .map(|(key, hash)| (key, Some(hash)))
            .collect();
        self.behind.extend(surplus);
        self.repeat.at = None;
        if !honest {
            self.repeat.arm(now);
        }
    }

    /// The peer requests bytes of a large object: of the set, or of the changes in flight. Returns
    /// whether the object is one of these.
    pub(super) fn handle_piece_get<O: From<LinkOutput>>(
        &self,
        session: SessionId,
        sha256: Hash32,
        offset: u32,
        out: &mut VecDeque<O>,
    ) -> bool {
        let flight_items = self.flight.iter().flat_map(|flight| &flight.items);
        let object = flight_items
            .filter_map(|(_, object)| object.as_ref())
            .chain(self.objects.values())
            .find(|object| object.is_large() && object.sha256 == sha256);
        if let Some(object) = object {
            // Empty at the end and beyond.
            let rest = object.payload.get(offset as usize..).unwrap_or_default();
            let bytes = rest.iter().take(PIECE_BYTES_MAX).copied().collect();
            let frame = Frame::Piece {
                session,
                sha256,
                offset,
                bytes,
            };
            send(out, &frame);
        }
        object.is_some()
    }

    /// The peer requested a piece of the change in flight: it makes progress, so the repeat is postponed.
    pub(super) fn postpone(&mut self, now: Millis) {
        if self.flight.is_some() {
            self.repeat.reset();
            self.repeat.arm(now);
        }
    }
}

fn item((key, object): &(Key, Option<Object>)) -> Item {
    let key = key.clone();
    match object {
        None => Item::Delete { key },
        Some(object) if object.is_large() => Item::Large {
            key,
            sha256: object.sha256,
            // Payloads are at most `CONFIG_BYTES_MAX`.
            len: u32::try_from(object.payload.len()).unwrap_or(u32::MAX),
        },
        Some(object) => Item::Put {
            key,
            bytes: object.payload.to_vec(),
        },
    }
}

pub(super) fn send<O: From<LinkOutput>>(out: &mut VecDeque<O>, frame: &Frame) {
    out.push_back(LinkOutput::Send(frame.encode()).into());
}
