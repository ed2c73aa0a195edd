//! Which unpacked layers are removed, and how much room an unpacking may take.

use alloc::string::String;
use alloc::vec::Vec;

use crate::limits::{LAYERS_UNUSED_MAX, MEDIUM_FREE_BYTES_MIN, MEDIUM_FREE_PERCENT_MIN};

/// A layer on the medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its digest, as its directory is named.
    pub digest: String,
    /// When it was unpacked, seconds and nanoseconds; only the order matters.
    pub unpacked_at: (i64, i64),
    /// A desired pod has it.
    pub used: bool,
}

/// Room on the medium, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Free.
    pub free: u64,
    /// All.
    pub total: u64,
}

impl Room {
    /// Bytes that an unpacking may write.
    #[must_use]
    pub const fn for_unpacking(self) -> u64 {
        self.free.saturating_sub(MEDIUM_FREE_BYTES_MIN)
    }

    const fn is_short(self) -> bool {
        self.free < MEDIUM_FREE_BYTES_MIN || self.free < self.total / 100 * MEDIUM_FREE_PERCENT_MIN
    }
}

/// How much is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Until there is room, and not more unused layers than are kept.
    Room,
    /// All that is unused: an unpacking has found no room.
    All,
}

/// The layers that may go, one after the other.
#[derive(Debug)]
pub struct Removal {
    /// The oldest last.
    unused: Vec<Layer>,
    need: Need,
}

impl Removal {
    /// Of these layers, those that no desired pod has.
    #[must_use]
    pub fn new(mut layers: Vec<Layer>, need: Need) -> Self {
        layers.retain(|layer| !layer.used);
        layers.sort_unstable_by(|a, b| (b.unpacked_at, &b.digest).cmp(&(a.unpacked_at, &a.digest)));
        Self {
            unused: layers,
            need,
        }
    }

    /// Whether there is any layer that could go.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.unused.is_empty()
    }

    /// The next layer to remove, with as much room as there is now. One that a container has mounted
    /// stays, and counts as if it went.
    pub fn next(&mut self, room: Room) -> Option<Layer> {
        let many = self.unused.len() > LAYERS_UNUSED_MAX;
        let needed = self.need == Need::All || many || room.is_short();
        self.unused.pop_if(|_| needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString as _;
    use proptest::prelude::*;

    const ENOUGH: Room = Room {
        free: 1 << 30,
        total: 2 << 30,
    };

    fn layers(count: usize) -> Vec<Layer> {
        let layer = |index: usize| Layer {
            digest: index.to_string(),
            // The lower the number the younger.
            unpacked_at: (-i64::try_from(index).unwrap(), 0),
            used: index.is_multiple_of(5),
        };
        (0..count).map(layer).collect()
    }

    #[test]
    fn with_room_only_the_oldest_beyond_the_cap_go() {
        let mut layers = layers(LAYERS_UNUSED_MAX + 2);
        layers.iter_mut().for_each(|layer| layer.used = false);
        let mut removal = Removal::new(layers, Need::Room);
        for index in [LAYERS_UNUSED_MAX + 1, LAYERS_UNUSED_MAX] {
            let layer = removal.next(ENOUGH).unwrap();
            assert_eq!(layer.digest, index.to_string());
        }
        assert_eq!(removal.next(ENOUGH), None);
        assert!(!removal.is_empty());
    }

    #[test]
    fn without_room_unused_ones_go_until_there_is_room() {
        let mut removal = Removal::new(layers(10), Need::Room);
        let by_share = Room {
            free: ENOUGH.total / 100 * MEDIUM_FREE_PERCENT_MIN - 1,
            ..ENOUGH
        };
        let by_bytes = Room {
            free: MEDIUM_FREE_BYTES_MIN - 1,
            total: MEDIUM_FREE_BYTES_MIN,
        };
        assert_eq!(by_bytes.for_unpacking(), 0);
        assert_eq!(removal.next(by_share).unwrap().digest, "9");
        assert_eq!(removal.next(by_bytes).unwrap().digest, "8");
        assert_eq!(removal.next(ENOUGH), None);
        assert_eq!(ENOUGH.for_unpacking() + MEDIUM_FREE_BYTES_MIN, ENOUGH.free);
    }

    proptest! {
        /// Whatever the room, no layer of a desired pod goes; on demand all others do.
        #[test]
        fn a_layer_in_use_never_goes(count in 0_usize..200, frees in prop::collection::vec(any::<u64>(), 200)) {
            for need in [Need::Room, Need::All] {
                let mut removal = Removal::new(layers(count), need);
                let mut gone = 0;
                for free in &frees {
                    if let Some(layer) = removal.next(Room { free: *free, total: u64::MAX }) {
                        prop_assert!(!layer.used);
                        gone += 1;
                    }
                }
                prop_assert!(need == Need::Room || gone == count - count.div_ceil(5));
                prop_assert!(removal.unused.len() <= LAYERS_UNUSED_MAX || need == Need::Room);
            }
        }
    }
}
