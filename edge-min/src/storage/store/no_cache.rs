//! Replaces the state cache in an agent that is built without the feature `state-cache`: it is
//! empty, and nothing is written to it.

use std::path::Path;
use std::process::ExitCode;

/// Version of the cached set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Generation of the snapshot that it copies.
    pub generation: u64,
    /// Epoch stored with that generation.
    pub epoch: u64,
}

/// A set read back; there is never one.
pub struct Loaded {
    /// Version of the set.
    pub meta: Meta,
    /// No entry is missing.
    pub complete: bool,
    /// Keys and records.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// No cache.
pub struct Cache;

impl Cache {
    /// None in any folder.
    #[must_use]
    pub const fn new(_state: &Path, _program: &Path) -> Self {
        Self
    }

    /// It holds no generation.
    #[must_use]
    pub const fn generation(&self) -> Option<u64> {
        None
    }

    /// Nothing to recover from.
    #[must_use]
    pub const fn load(&self) -> Option<Loaded> {
        None
    }

    /// Keeps nothing, and writes no byte.
    ///
    /// # Errors
    /// None.
    pub fn store(
        &self,
        _meta: Meta,
        _entries: impl Fn() -> Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<u64, String> {
        Ok(0)
    }
}

/// `edge-min state-cache` is an error in this agent, which never calls it.
#[must_use]
pub const fn main() -> ExitCode {
    ExitCode::FAILURE
}
