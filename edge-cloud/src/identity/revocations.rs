//! The list of refused certificates for an external broker, which cannot read the
//! registry. It is written again when certificates are refused: at once after a command, and
//! at a limited rate when nodes replace theirs.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Identity;
use super::authorities::Authorities;
use super::ca::{Ca, CaError};
use crate::clock::unix_s;
use crate::durable::replace_with_mode;

/// Minimum time between two writes of the list when nodes replace their certificates: thousands do so
/// together.
const LIST_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before a failed write of the list is repeated.
const LIST_RETRY: Duration = Duration::from_secs(60);

impl Identity {
    /// Writes the list, if a broker needs one.
    pub(super) fn write_list(&self) -> io::Result<()> {
        let Some(path) = self.broker.as_ref().and_then(|broker| broker.crl.as_ref()) else {
            return Ok(());
        };
        // Of two concurrent writers, the later one has the newer list.
        let _listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        write_crl(path, &self.authorities(), self.registry.retired())
    }

    /// Like [`Self::write_list`]. A failure is an event, and the write is repeated: `false` then. It waits
    /// for the medium, so no caller may hold a lock that a link needs.
    pub(crate) fn keep_list(&self) -> bool {
        let Err(error) = self.write_list() else {
            return true;
        };
        self.events.add("", "CrlNotWritten", &error.to_string());
        self.registry.refused().notify_one();
        false
    }

    /// Writes the list whenever certificates were refused, for ever, on a thread that may wait for the
    /// medium.
    pub async fn keep_listed(self: &Arc<Self>) {
        loop {
            self.registry.refused().notified().await;
            let identity = Arc::clone(self);
            let kept = tokio::task::spawn_blocking(move || identity.keep_list()).await;
            let pause = match kept {
                Ok(true) => LIST_INTERVAL,
                _ => {
                    self.registry.refused().notify_one();
                    LIST_RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// Replaces the lists of refused certificates, one of each CA: OpenSSL uses the list of the CA that
/// has signed a certificate. The CA of a serial number is not stored, so each list contains all.
///
/// # Errors
/// Those of the file system and of the CA.
pub fn write_crl(path: &Path, cas: &Authorities, retired: Vec<(String, u64)>) -> io::Result<()> {
    let list = |ca: &Ca| ca.crl(retired.iter().cloned(), unix_s());
    let lists: Result<String, CaError> = cas.all().map(list).collect();
    let lists = lists.map_err(io::Error::other)?;
    replace_with_mode(path, lists.as_bytes(), 0o644)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
