//! Encryption of Secrets at rest: AES-256-GCM under the board's key file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use edge_core::flash::Subsystem;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::paths;
use crate::storage::medium::{self, Durability};

/// Bytes of the board key.
const KEY_BYTES: usize = 32;
/// First byte of sealed data: the version of its format. Nonce, ciphertext and tag follow.
const VERSION: u8 = 1;

/// Seals and opens payloads.
pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
    /// File and bytes of a key that could not be stored yet.
    unstored: Option<(PathBuf, Vec<u8>)>,
}

impl Sealer {
    /// Loads the board key, or generates it at the first start.
    ///
    /// # Errors
    /// There are no random bytes. A key of the wrong size is renamed and one that cannot be read
    /// is overwritten: this loses the Secrets, which the cloud sends again. If a new one cannot be
    /// stored, this is not an error, see [`Self::keep`].
    pub fn open(state: &Path) -> io::Result<Self> {
        let path = paths::board_key(state);
        let random = SystemRandom::new();
        let mut new = true;
        let bytes = match fs::read(&path) {
            Ok(bytes) if bytes.len() == KEY_BYTES => {
                new = false;
                bytes
            }
            Ok(_) => {
                // All that it sealed is lost with it; the rest of the set is not, so the agent starts.
                log::error!("board_key_damaged kept_as=board.key.bad");
                if let Err(error) = fs::rename(&path, paths::board_key_bad(state)) {
                    log::warn!("board_key_not_kept error={error}");
                }
                new_key(&random)?
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    log::error!("board_key_unreadable error={error}");
                }
                new_key(&random)?
            }
        };
        let key = UnboundKey::new(&AES_256_GCM, &bytes)
            .map_err(|_| io::Error::other("board.key is not 32 bytes"))?;
        let mut sealer = Self {
            key: LessSafeKey::new(key),
            random,
            unstored: new.then_some((path, bytes)),
        };
        if let Err(error) = sealer.keep() {
            log::error!("board_key_not_stored error={error}");
        }
        Ok(sealer)
    }

    /// Stores a new key, if that has failed so far. Call it before anything is accepted:
    /// Secrets sealed by an unstored key are lost when the agent ends.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep(&mut self) -> io::Result<()> {
        if let Some((path, bytes)) = &self.unstored {
            medium::write(path, bytes, Durability::Must(Subsystem::Identity))?;
            self.unstored = None;
        }
        Ok(())
    }

    /// Version, nonce, ciphertext and tag; can be opened only for the same `key` of an object. `None` when
    /// the system's random source fails.
    #[must_use]
    pub fn seal(&self, key: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut text = plain.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(unique, bound_to(key), &mut text)
            .ok()?;
        Some([[VERSION].as_slice(), &nonce, &text].concat())
    }

    /// The plain bytes; `None` when they were altered, or sealed for another object, by another
    /// board or in another version.
    #[must_use]
    pub fn open_sealed(&self, key: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let sealed = sealed.strip_prefix(&[VERSION])?;
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        let length = self
            .key
            .open_in_place(nonce, bound_to(key), &mut text)
            .ok()?
            .len();
        text.truncate(length);
        Some(text)
    }
}

fn new_key(random: &SystemRandom) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; KEY_BYTES];
    let filled = random.fill(&mut bytes);
    filled.map_err(|_| io::Error::other("no random bytes"))?;
    Ok(bytes)
}

/// Additional data that the tag authenticates.
fn bound_to(key: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([[VERSION].as_slice(), key].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_on_this_board_and_for_its_object_only() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sealed = Sealer::open(here.path())
            .unwrap()
            .seal(b"key", b"secret")
            .unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        let again = Sealer::open(here.path()).unwrap();
        assert_eq!(
            again.open_sealed(b"key", &sealed).as_deref(),
            Some(b"secret".as_slice())
        );
        assert_eq!(
            Sealer::open(there.path())
                .unwrap()
                .open_sealed(b"key", &sealed),
            None
        );
        assert_eq!(again.open_sealed(b"other", &sealed), None);
        assert_eq!(sealed[0], VERSION);
        for index in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[index] ^= 1;
            assert_eq!(again.open_sealed(b"key", &altered), None);
        }
    }
}
