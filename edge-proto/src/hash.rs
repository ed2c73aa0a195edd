//! Hashes: SHA-256 of payload bytes, and its first 16 bytes as the id of content in a set.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// First 16 bytes of a SHA-256. Collisions need 2^64 work, and only the cloud can choose payloads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Hash16(pub [u8; 16]);

impl Hash16 {
    /// Hashes `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        sha256(bytes).short()
    }
}

/// A whole SHA-256: the address of a large object, an image blob or a bundle.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hash32(pub [u8; 32]);

impl Hash32 {
    /// Truncates to the first 16 bytes.
    #[must_use]
    pub fn short(&self) -> Hash16 {
        let mut short = [0; 16];
        for (to, from) in short.iter_mut().zip(self.0) {
            *to = from;
        }
        Hash16(short)
    }
}

crate::wire::wire_struct! {
    Hash16 { 0 }
    Hash32 { 0 }
}

/// Hashes `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Hash32 {
    Hash32(Sha256::digest(bytes).into())
}

macro_rules! hex {
    ($type:ty) => {
        /// Lower-case hex.
        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl core::fmt::Debug for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }
    };
}
pub(crate) use hex;
hex!(Hash16);
hex!(Hash32);
