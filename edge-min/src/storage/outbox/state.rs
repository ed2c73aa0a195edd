//! State besides the segments: one small file of two slots, of which the older is overwritten.

use std::fs;
use std::io;
use std::path::Path;

use edge_core::outbox::{Gap, Saved};
use edge_proto::frame::Incarnation;
use serde::{Deserialize, Serialize};

/// Bytes of one of the two slots of the state file, more than all classes ever need.
pub(super) const SLOT_BYTES: usize = 32 * 1024;
pub(super) const MAGIC: &[u8; 4] = b"EMO1";

#[derive(Serialize, Deserialize)]
pub(super) struct State {
    pub(super) generation: u64,
    pub(super) incarnation: Incarnation,
    pub(super) classes: Vec<StateClass>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StateClass {
    pub(super) class: u8,
    pub(super) base: u64,
    pub(super) start: u64,
    pub(super) held: u64,
    pub(super) next: u64,
    pub(super) delivered: u64,
    pub(super) lost: [u64; 4],
    pub(super) gaps: Vec<(u64, [u64; 4])>,
}

impl StateClass {
    pub(super) fn new(base: u64, saved: Saved) -> Self {
        Self {
            class: saved.class,
            base,
            start: saved.start,
            held: saved.held,
            next: saved.next,
            delivered: saved.delivered,
            lost: saved.lost,
            gaps: saved
                .gaps
                .iter()
                .map(|gap| (gap.first, gap.counts))
                .collect(),
        }
    }

    pub(super) fn saved(&self) -> Saved {
        let gaps = self.gaps.iter();
        Saved {
            class: self.class,
            start: self.start,
            held: self.held,
            next: self.next,
            delivered: self.delivered,
            lost: self.lost,
            gaps: gaps
                .map(|(first, counts)| Gap {
                    first: *first,
                    counts: *counts,
                })
                .collect(),
        }
    }
}

/// The newer of the two valid slots. An unreadable file is an error, because a new
/// incarnation would send delivered records again: only a missing or damaged file is replaced.
pub(super) fn read_state(path: &Path) -> io::Result<Option<State>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let slots = bytes.chunks(SLOT_BYTES).take(2).filter_map(|slot| {
        let slot = slot.strip_prefix(MAGIC)?;
        let (length, rest) = slot.split_first_chunk::<4>()?;
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        let body = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        let whole = crc32fast::hash(body).to_le_bytes() == *crc;
        let state = postcard::from_bytes::<State>(body).ok()?;
        let sound = state.classes.iter().all(|one| one.saved().is_sound());
        (whole && sound).then_some(state)
    });
    Ok(slots.max_by_key(|state| state.generation))
}
