//! Join tokens: id, secret (stored hashed), uses left, expiry. The use of a join is durable
//! before the answer is sent, so a used token stays used after any crash.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use edge_proto::enrol;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::ca::{damaged, random};
use crate::durable::replace;
use crate::hex::hex;
use crate::nodes::{Grants, TokenRow, TokenSpec};

/// File with the tokens in the data folder.
pub const TOKENS: &str = "tokens.json";
/// Tokens stored at once; expired ones are dropped.
pub const TOKENS_MAX: usize = 1024;

/// Why a token was not created or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Unknown id or wrong secret; the answer does not say which.
    #[error("the token is not valid")]
    Invalid,
    /// Too late.
    #[error("the token has expired")]
    Expired,
    /// It has no uses left.
    #[error("the token has no uses left")]
    Used,
    /// [`TOKENS_MAX`] tokens are stored.
    #[error("there are {TOKENS_MAX} tokens already")]
    Full,
    /// The system's random source failed.
    #[error("no random numbers")]
    Random,
    /// The file system.
    #[error("cannot store the tokens: {0}")]
    Store(#[from] io::Error),
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    /// Hex SHA-256 of the secret, which has 128 random bits: no salt or stretching is needed.
    secret_sha256: String,
    pub(crate) uses_left: u32,
    pub(crate) expires_unix_s: u64,
    /// Board of the latest use; empty when that has ended, or was not stored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    last_for: String,
    /// Hex SHA-256 of the CA that the token names; empty when that was not stored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    ca_sha256: String,
    /// What its nodes get.
    #[serde(flatten)]
    grants: Grants,
}

impl Token {
    fn check(&self, secret: &str) -> Result<(), TokenError> {
        let given = sha256(secret.as_bytes());
        if same(given.as_bytes(), self.secret_sha256.as_bytes()) {
            Ok(())
        } else {
            Err(TokenError::Invalid)
        }
    }
}

pub(crate) type Tokens = BTreeMap<String, Token>;

/// All tokens, in memory and on disk.
pub struct TokenStore {
    path: PathBuf,
    tokens: Mutex<Tokens>,
    /// See [`Self::lock_joins`].
    joining: Mutex<()>,
}

impl TokenStore {
    /// Reads the tokens in `data`.
    ///
    /// # Errors
    /// Those of the file system; a damaged file is one, too: treating it as empty would be safe, but an
    /// operator should know.
    pub fn open(data: &Path) -> io::Result<Self> {
        let path = data.join(TOKENS);
        let tokens = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| damaged(&path, &error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Tokens::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            path,
            tokens: Mutex::new(tokens),
            joining: Mutex::new(()),
        })
    }

    /// Held from the read of the registry to its change: joins are processed one after the other, because
    /// the token and the node are two files.
    pub(crate) fn lock_joins(&self) -> MutexGuard<'_, ()> {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a token, for `ca` (DER), and returns its text.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn create(&self, ca: &[u8], spec: &TokenSpec, unix_s: u64) -> Result<String, TokenError> {
        let id = hex(&random::<8>().ok_or(TokenError::Random)?);
        let secret = hex(&random::<16>().ok_or(TokenError::Random)?);
        let token = Token {
            secret_sha256: sha256(secret.as_bytes()),
            uses_left: spec.uses,
            expires_unix_s: unix_s.saturating_add(spec.ttl_s),
            last_for: String::new(),
            ca_sha256: sha256(ca),
            grants: spec.grants.clone(),
        };
        let text = enrol::Token {
            id: &id,
            secret: &secret,
            ca_sha256: edge_proto::hash::sha256(ca).0,
        }
        .to_string();
        self.change(|tokens| {
            tokens.retain(|_, token| token.expires_unix_s > unix_s);
            if tokens.len() >= TOKENS_MAX {
                return Err(TokenError::Full);
            }
            tokens.insert(id, token);
            Ok(())
        })?;
        Ok(text)
    }

    /// The tokens that have not expired, by id.
    #[must_use]
    pub fn list(&self, unix_s: u64) -> Vec<TokenRow> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = tokens.iter().filter(|(_, one)| one.expires_unix_s > unix_s);
        let row = |(id, token): (&String, &Token)| TokenRow {
            id: id.clone(),
            uses_left: token.uses_left,
            expires_unix_s: token.expires_unix_s,
            grants: token.grants.clone(),
        };
        tokens.map(row).collect()
    }

    /// Revokes a token. `false` when there is none of this id.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn revoke(&self, id: &str) -> Result<bool, TokenError> {
        let mut found = false;
        self.change(|tokens| {
            found = tokens.remove(id).is_some();
            Ok(())
        })?;
        Ok(found)
    }

    /// Takes one use. It is durable when this returns.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn spend(&self, id: &str, secret: &str, unix_s: u64) -> Result<(), TokenError> {
        self.spend_for(id, secret, unix_s, "", "").map(drop)
    }

    /// Takes one use for the board that requests this name for this key, unless the latest use was for it
    /// as well: edge-cloud ended in the middle of its join, and the board repeats it. Returns what the node
    /// of that board gets.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn spend_for(
        &self,
        id: &str,
        secret: &str,
        unix_s: u64,
        node: &str,
        key_sha256: &str,
    ) -> Result<Grants, TokenError> {
        let mut grants = Grants::default();
        let whom = match node {
            "" => String::new(),
            node => format!("{node} {key_sha256}"),
        };
        self.change(|tokens| {
            let token = tokens.get_mut(id).ok_or(TokenError::Invalid)?;
            token.check(secret)?;
            if token.expires_unix_s <= unix_s {
                return Err(TokenError::Expired);
            }
            if whom.is_empty() || token.last_for != whom {
                token.uses_left = token.uses_left.checked_sub(1).ok_or(TokenError::Used)?;
                token.last_for = whom;
            }
            grants = token.grants.clone();
            Ok(())
        })?;
        Ok(grants)
    }

    /// Deletes the tokens that name this CA: a board with one would not accept the server any more.
    /// Returns how many had uses left.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn void(&self, ca_sha256: &str) -> Result<usize, TokenError> {
        let mut void = 0;
        self.change(|tokens| {
            tokens.retain(|_, token| {
                let gone = token.ca_sha256 == ca_sha256;
                void += usize::from(gone && token.uses_left > 0);
                !gone
            });
            Ok(())
        })?;
        Ok(void)
    }

    /// A node is deleted: its board needs another use to join again.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn clear_last_use(&self, node: &str) -> Result<(), TokenError> {
        let of_node = |token: &Token| {
            let whom = token.last_for.split_once(' ');
            whom.is_some_and(|(name, _)| name == node)
        };
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = tokens.values().any(of_node);
        drop(tokens);
        if !noted {
            return Ok(());
        }
        self.change(|tokens| {
            let noted = tokens.values_mut().filter(|token| of_node(token));
            noted.for_each(|token| token.last_for.clear());
            Ok(())
        })
    }

    /// Returns the use of a failed join.
    pub fn give_back(&self, id: &str) {
        let given = self.change(|tokens| {
            let token = tokens.get_mut(id).ok_or(TokenError::Invalid)?;
            token.uses_left = token.uses_left.saturating_add(1);
            token.last_for.clear();
            Ok(())
        });
        if let Err(error) = given {
            log::warn!("token_use_lost id={id} error={error}");
        }
    }

    /// Whether this is a token, used up or not, expired or not.
    ///
    /// # Errors
    /// [`TokenError::Invalid`].
    pub fn verify(&self, id: &str, secret: &str) -> Result<(), TokenError> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(id).ok_or(TokenError::Invalid)?.check(secret)
    }

    /// Changes memory only after the disk. Used-up tokens stay until they expire.
    fn change(
        &self,
        change: impl FnOnce(&mut Tokens) -> Result<(), TokenError>,
    ) -> Result<(), TokenError> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = tokens.clone();
        change(&mut next)?;
        let bytes = serde_json::to_vec(&next).map_err(io::Error::from)?;
        replace(&self.path, &bytes)?;
        *tokens = next;
        Ok(())
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Compares in a time that only depends on the lengths.
fn same(left: &[u8], right: &[u8]) -> bool {
    let differs = left.iter().zip(right).fold(0, |all, (l, r)| all | (l ^ r));
    left.len() == right.len() && differs == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(token: &str) -> (String, String) {
        let token = enrol::Token::parse(token).unwrap();
        assert_eq!(token.ca_sha256, edge_proto::hash::sha256(b"ca").0);
        (token.id.to_owned(), token.secret.to_owned())
    }

    #[test]
    fn a_used_token_stays_used_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = TokenStore::open(folder.path()).unwrap();
        let (id, secret) = parts(&store.create(b"ca", &TokenSpec::plain(2, 60), 1000).unwrap());
        store.spend(&id, &secret, 1000).unwrap();
        let store = TokenStore::open(folder.path()).unwrap();
        store.spend(&id, &secret, 1059).unwrap();
        let store = TokenStore::open(folder.path()).unwrap();
        let used = store.spend(&id, &secret, 1000);
        assert!(matches!(used, Err(TokenError::Used)));
    }

    #[test]
    fn a_token_expires_and_a_wrong_secret_costs_no_use() {
        let folder = tempfile::tempdir().unwrap();
        let store = TokenStore::open(folder.path()).unwrap();
        let (id, secret) = parts(&store.create(b"ca", &TokenSpec::plain(1, 60), 1000).unwrap());
        let late = store.spend(&id, &secret, 1060);
        assert!(matches!(late, Err(TokenError::Expired)));
        for (id, secret) in [(&*id, "00"), ("00", &*secret), (&*id, "")] {
            let wrong = store.spend(id, secret, 1000);
            assert!(matches!(wrong, Err(TokenError::Invalid)));
        }
        store.spend(&id, &secret, 1000).unwrap();
    }

    /// Goal: a join that was interrupted by a crash costs one use, and gives none away. Method: the board
    /// repeats it after a restart; so do another name, another key, and the board of a deleted node.
    #[test]
    fn a_board_that_asks_again_costs_no_second_use() {
        let folder = tempfile::tempdir().unwrap();
        let store = TokenStore::open(folder.path()).unwrap();
        let (id, secret) = parts(&store.create(b"ca", &TokenSpec::plain(1, 60), 1000).unwrap());
        store.spend_for(&id, &secret, 1000, "a", "key").unwrap();
        let store = TokenStore::open(folder.path()).unwrap();
        store.spend_for(&id, &secret, 1001, "a", "key").unwrap();
        store.clear_last_use("b").unwrap();
        store.spend_for(&id, &secret, 1001, "a", "key").unwrap();
        let spend = |node, key, now| store.spend_for(&id, &secret, now, node, key);
        assert!(matches!(spend("b", "key", 1001), Err(TokenError::Used)));
        assert!(matches!(spend("a", "other", 1001), Err(TokenError::Used)));
        assert!(matches!(spend("", "", 1001), Err(TokenError::Used)));
        assert!(matches!(spend("a", "key", 1060), Err(TokenError::Expired)));
        store.clear_last_use("a").unwrap();
        assert!(matches!(spend("a", "key", 1001), Err(TokenError::Used)));
    }

    /// Goal: what a token grants is kept, listed and gone with it. Method: over a restart.
    #[test]
    fn a_token_is_listed_with_its_grants_until_it_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let store = TokenStore::open(folder.path()).unwrap();
        let grants = Grants {
            labels: [("site".to_owned(), "a".to_owned())].into(),
            label_keys: ["line".to_owned()].into(),
            awaits_approval: true,
        };
        let spec = TokenSpec {
            grants: grants.clone(),
            ..TokenSpec::plain(3, 60)
        };
        let (id, secret) = parts(&store.create(b"ca", &spec, 1000).unwrap());
        let store = TokenStore::open(folder.path()).unwrap();
        let rows = store.list(1059);
        assert_eq!((rows[0].uses_left, &rows[0].grants), (3, &grants));
        assert_eq!((rows.len(), store.list(1060).len()), (1, 0));
        let spent = store.spend_for(&id, &secret, 1000, "a", "key");
        assert_eq!(spent.unwrap(), grants);
        assert!(store.revoke(&id).unwrap() && !store.revoke(&id).unwrap());
        let void = store.spend(&id, &secret, 1000);
        assert!(matches!(void, Err(TokenError::Invalid)));
    }

    #[test]
    fn the_secret_is_not_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let store = TokenStore::open(folder.path()).unwrap();
        let (_, secret) = parts(&store.create(b"ca", &TokenSpec::plain(1, 60), 1000).unwrap());
        let file = std::fs::read_to_string(folder.path().join(TOKENS)).unwrap();
        assert!(!file.contains(&secret));
    }
}
