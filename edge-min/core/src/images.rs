//! Which unpacked layers are removed, and how much space an unpacking may use.

use alloc::string::String;
use alloc::vec::Vec;

use crate::limits::{LAYERS_UNUSED_MAX, MEDIUM_FREE_BYTES_MIN, MEDIUM_FREE_PERCENT_MIN};

/// An unpacked layer on the medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the layer: the name of its directory.
    pub digest: String,
    /// Time of its unpacking, seconds and nanoseconds; only the order matters.
    pub unpacked_at: (i64, i64),
    /// A desired pod uses it.
    pub used: bool,
}

/// Space on the medium, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that are not used.
    pub free: u64,
    /// Size of the file system.
    pub total: u64,
}

impl Space {
    /// Bytes that an unpacking may write.
    #[must_use]
    pub const fn for_unpacking(self) -> u64 {
        self.free.saturating_sub(MEDIUM_FREE_BYTES_MIN)
    }

    const fn is_short(self) -> bool {
        self.free < MEDIUM_FREE_BYTES_MIN || self.free < self.total / 100 * MEDIUM_FREE_PERCENT_MIN
    }
}

/// Which unused layers are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The oldest, until there is enough space and at most [`LAYERS_UNUSED_MAX`] are left.
    Space,
    /// All: an unpacking had not enough space.
    All,
}

impl Need {
    /// A layer is unpacked in at most these attempts, each after so much was removed.
    pub const ATTEMPTS: [Self; 2] = [Self::Space, Self::All];

    /// Whether the attempt is made when so many layers were removed for it: without more space it would
    /// end as the one before.
    #[must_use]
    pub const fn is_worth_an_attempt(self, removed: usize) -> bool {
        match self {
            Self::Space => true,
            Self::All => removed > 0,
        }
    }
}

/// Layers to remove, one after the other.
#[derive(Debug)]
pub struct Removal {
    /// The oldest last.
    unused: Vec<Layer>,
    need: Need,
}

impl Removal {
    /// Keeps those of `layers` that no desired pod uses.
    #[must_use]
    pub fn new(mut layers: Vec<Layer>, need: Need) -> Self {
        layers.retain(|layer| !layer.used);
        layers.sort_unstable_by(|a, b| (b.unpacked_at, &b.digest).cmp(&(a.unpacked_at, &a.digest)));
        Self {
            unused: layers,
            need,
        }
    }

    /// Whether no layer is left to remove.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.unused.is_empty()
    }

    /// The next layer to remove, given the present space. A layer that a container has mounted
    /// stays, and counts as if it were removed.
    pub fn next(&mut self, space: Space) -> Option<Layer> {
        let many = self.unused.len() > LAYERS_UNUSED_MAX;
        let needed = self.need == Need::All || many || space.is_short();
        self.unused.pop_if(|_| needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString as _;
    use proptest::prelude::*;

    const ENOUGH: Space = Space {
        free: 1 << 30,
        total: 2 << 30,
    };

    fn layers(count: usize) -> Vec<Layer> {
        let layer = |index: usize| Layer {
            digest: index.to_string(),
            // The lower the number, the newer.
            unpacked_at: (-i64::try_from(index).unwrap(), 0),
            used: index.is_multiple_of(5),
        };
        (0..count).map(layer).collect()
    }

    #[test]
    fn with_space_only_the_oldest_beyond_the_cap_go() {
        let mut layers = layers(LAYERS_UNUSED_MAX + 2);
        layers.iter_mut().for_each(|layer| layer.used = false);
        let mut removal = Removal::new(layers, Need::Space);
        for index in [LAYERS_UNUSED_MAX + 1, LAYERS_UNUSED_MAX] {
            let layer = removal.next(ENOUGH).unwrap();
            assert_eq!(layer.digest, index.to_string());
        }
        assert_eq!(removal.next(ENOUGH), None);
        assert!(!removal.is_empty());
    }

    #[test]
    fn without_space_unused_ones_go_until_there_is_space() {
        let mut removal = Removal::new(layers(10), Need::Space);
        let by_share = Space {
            free: ENOUGH.total / 100 * MEDIUM_FREE_PERCENT_MIN - 1,
            ..ENOUGH
        };
        let by_bytes = Space {
            free: MEDIUM_FREE_BYTES_MIN - 1,
            total: MEDIUM_FREE_BYTES_MIN,
        };
        assert_eq!(by_bytes.for_unpacking(), 0);
        assert_eq!(removal.next(by_share).unwrap().digest, "9");
        assert_eq!(removal.next(by_bytes).unwrap().digest, "8");
        assert_eq!(removal.next(ENOUGH), None);
        assert_eq!(ENOUGH.for_unpacking() + MEDIUM_FREE_BYTES_MIN, ENOUGH.free);
    }

    #[test]
    fn an_unpacking_is_tried_again_only_in_more_space() {
        let attempts = |removed| {
            let attempts = Need::ATTEMPTS.into_iter();
            attempts
                .filter(|need| need.is_worth_an_attempt(removed))
                .count()
        };
        assert_eq!((attempts(0), attempts(1)), (1, 2));
    }

    proptest! {
        /// Whatever the space, no layer of a desired pod is removed; on demand all others are.
        #[test]
        fn a_layer_in_use_never_goes(count in 0_usize..200, frees in prop::collection::vec(any::<u64>(), 200)) {
            for need in [Need::Space, Need::All] {
                let mut removal = Removal::new(layers(count), need);
                let mut gone = 0;
                for free in &frees {
                    if let Some(layer) = removal.next(Space { free: *free, total: u64::MAX }) {
                        prop_assert!(!layer.used);
                        gone += 1;
                    }
                }
                prop_assert!(need == Need::Space || gone == count - count.div_ceil(5));
                prop_assert!(removal.unused.len() <= LAYERS_UNUSED_MAX || need == Need::Space);
            }
        }
    }
}
