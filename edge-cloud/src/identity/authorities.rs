//! The CAs of one edge-cloud: one, and two while they are rolled over. A rollover goes forward only,
//! in steps that are durable one by one:
//!
//! 1. *offered*: there is a second CA. Nodes that join get both. Only behind an external broker
//!    this step lasts, until the broker accepts clients of the new one.
//! 2. *signing*: the new CA signs everything, edge-cloud's own certificate included. It comes with
//!    a cross certificate, the new CA's key signed by the old one, so that a node that has only the
//!    old CA accepts it, too.
//! 3. *retired*: the old CA is neither accepted nor sent to nodes, and its key is deleted.
//!
//! Before the first rollover the CA is stored by [`Ca::open`]. From then on all of them are in one file,
//! so that each step is one replaced file.

use std::io;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge_proto::enrol::CAS_MAX;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::ca::{CA_DER, CA_KEY, Ca, CaError, file};
use super::registry::NODES;
use crate::durable::replace;

/// File with the CAs in the data folder, since the first rollover.
pub const AUTHORITIES: &str = "ca/authorities.json";
/// Retired CAs that are stored; the oldest ones are dropped.
pub const RETIRED_CAS_MAX: usize = 64;

/// A CA that is not accepted any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredCa {
    /// Hex SHA-256 of its certificate.
    pub sha256: String,
    /// When it was retired, seconds since 1970.
    pub unix_s: u64,
}

/// One CA as it is stored.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    /// PKCS#8, base64.
    key: String,
    /// DER, base64.
    certificate: String,
    /// When it was made, seconds since 1970; 0 is not known.
    #[serde(default)]
    made_unix_s: u64,
}

/// Content of the file.
#[derive(Clone, Serialize, Deserialize)]
struct State {
    /// One, or the old and the new one.
    cas: Vec<Stored>,
    /// The newest one signs.
    signs: bool,
    /// Steps of rollovers so far: of two files with a CA in common, the one with more steps is newer.
    steps: u64,
    #[serde(default)]
    retired: Vec<RetiredCa>,
}

/// Step of a rollover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is one CA.
    Single,
    /// The new CA signs nothing yet.
    Offered,
    /// The new CA signs.
    Signing,
}

impl Phase {
    /// The name in the API, one word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Offered => "offered",
            Self::Signing => "signing",
        }
    }
}

/// All accepted CAs, and the state of their rollover.
pub struct Authorities {
    state: State,
    old: Option<Arc<Ca>>,
    newest: Arc<Ca>,
    /// The newest one's key, signed by the old one.
    cross: Option<CertificateDer<'static>>,
}

impl From<Ca> for Authorities {
    /// A CA that was never rolled over.
    fn from(ca: Ca) -> Self {
        let state = State {
            cas: vec![store(&ca, 0)],
            signs: true,
            steps: 0,
            retired: Vec::new(),
        };
        Self {
            state,
            old: None,
            newest: Arc::new(ca),
            cross: None,
        }
    }
}

impl Authorities {
    /// Reads the CAs in `data`, or creates the first one if there never was one.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn open(data: &Path) -> Result<Self, CaError> {
        let path = data.join(AUTHORITIES);
        match std::fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes).map_err(damaged(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::first(data),
            Err(error) => Err(file(&format!("cannot read {}", path.display()))(error)),
        }
    }

    /// The CA before the first rollover. It is older than the registry: if the registry exists, a missing
    /// CA was lost, and a new one would cut every node off.
    fn first(data: &Path) -> Result<Self, CaError> {
        let is_there = |name: &str| {
            let path = data.join(name);
            path.try_exists()
                .map_err(file(&format!("cannot read {}", path.display())))
        };
        let (key, der, nodes) = (is_there(CA_KEY)?, is_there(CA_DER)?, is_there(NODES)?);
        let missing = match (key, der) {
            (false, false) if nodes => Some(AUTHORITIES),
            (false, true) => Some(CA_KEY),
            (true, false) if nodes => Some(CA_DER),
            _ => None,
        };
        if let Some(name) = missing {
            let mut path = data.join(name).display().to_string();
            if name == AUTHORITIES {
                path.push_str(" (before the first rollover: ca.key and ca.der)");
            }
            return Err(CaError::Missing(path));
        }
        let opened = Ca::open(data).map(Self::from);
        opened.map_err(damaged(&data.join(CA_KEY).with_extension("{key,der}")))
    }

    /// Removes a copy of the first CA that an interrupted rollover left behind:
    /// it is the key of a CA that may be retired.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn clear_remains(data: &Path) -> io::Result<()> {
        if data.join(AUTHORITIES).try_exists()? {
            remove(&data.join(CA_KEY))?;
            remove(&data.join(CA_DER))?;
        }
        Ok(())
    }

    /// Those of `data`, if they can be read; creates none.
    #[must_use]
    pub fn peek(data: &Path) -> Option<Self> {
        let read = |name| std::fs::read(data.join(name)).ok();
        match read(AUTHORITIES) {
            Some(bytes) => Self::parse(&bytes).ok(),
            None => Ca::check(&read(CA_KEY)?, &read(CA_DER)?)
                .ok()
                .map(Self::from),
        }
    }

    /// Reads the bytes of [`AUTHORITIES`].
    ///
    /// # Errors
    /// They are not what this module writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, CaError> {
        let state: State = serde_json::from_slice(bytes).map_err(|_| CaError::Pair)?;
        Self::of(state)
    }

    fn of(state: State) -> Result<Self, CaError> {
        let load = |stored: &Stored| {
            let key = STANDARD.decode(&stored.key).map_err(|_| CaError::Pair)?;
            let der = STANDARD.decode(&stored.certificate);
            Ca::check(&key, &der.map_err(|_| CaError::Pair)?).map(Arc::new)
        };
        let (old, newest) = match state.cas.as_slice() {
            [one] => (None, load(one)?),
            [old, new] => (Some(load(old)?), load(new)?),
            _ => return Err(CaError::Pair),
        };
        let cross = old.as_ref().map(|old| old.cross(&newest)).transpose()?;
        Ok(Self {
            state,
            old,
            newest,
            cross,
        })
    }

    /// Writes them into `data`, in the form that [`Self::open`] reads, and removes all other
    /// forms.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, data: &Path) -> io::Result<()> {
        std::fs::create_dir_all(data.join("ca"))?;
        if self.state.steps == 0 {
            let (key, der) = (self.newest.key(), self.newest.der());
            replace(&data.join(CA_KEY), key)?;
            replace(&data.join(CA_DER), der)?;
            return remove(&data.join(AUTHORITIES));
        }
        replace(&data.join(AUTHORITIES), &serde_json::to_vec(&self.state)?)?;
        // A copy of a key that may be retired later.
        remove(&data.join(CA_KEY))?;
        remove(&data.join(CA_DER))
    }

    /// Begins a rollover: a new CA beside the present one. `signs`: it signs at once.
    ///
    /// # Errors
    /// See [`CaError`]; there are two already.
    pub fn rotate(&self, unix_s: u64, signs: bool) -> Result<Self, CaError> {
        if self.old.is_some() {
            return Err(CaError::Rollover);
        }
        let mut state = self.state.clone();
        state.cas.push(store(&Ca::another()?, unix_s));
        const { assert!(CAS_MAX == 2) };
        state.signs = signs;
        state.steps += 1;
        Self::of(state)
    }

    /// The new CA signs from now on.
    ///
    /// # Errors
    /// See [`CaError`]; it does already.
    pub fn sign(&self) -> Result<Self, CaError> {
        if self.phase() != Phase::Offered {
            return Err(CaError::Rollover);
        }
        let mut state = self.state.clone();
        state.signs = true;
        state.steps += 1;
        Self::of(state)
    }

    /// Ends a rollover: the old CA is not accepted any more.
    ///
    /// # Errors
    /// See [`CaError`]; there is no old one, or the new one does not sign yet.
    pub fn retire(&self, unix_s: u64) -> Result<Self, CaError> {
        let (Some(old), Phase::Signing) = (&self.old, self.phase()) else {
            return Err(CaError::Rollover);
        };
        let mut state = self.state.clone();
        state.cas.remove(0);
        let sha256 = old.sha256();
        state.retired.push(RetiredCa { sha256, unix_s });
        let over = state.retired.len().saturating_sub(RETIRED_CAS_MAX);
        state.retired.drain(..over);
        state.steps += 1;
        Self::of(state)
    }

    /// Present step of a rollover.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match (&self.old, self.state.signs) {
            (None, _) => Phase::Single,
            (Some(_), false) => Phase::Offered,
            (Some(_), true) => Phase::Signing,
        }
    }

    /// The CA that signs now.
    #[must_use]
    pub fn signer(&self) -> &Ca {
        match &self.old {
            Some(old) if !self.state.signs => old,
            _ => &self.newest,
        }
    }

    /// The newest CA, whether it signs already or not.
    #[must_use]
    pub fn newest(&self) -> &Ca {
        &self.newest
    }

    /// The other accepted CA, during a rollover.
    #[must_use]
    pub fn other(&self) -> Option<&Ca> {
        let old = self.old.as_deref()?;
        Some(if self.state.signs { old } else { &self.newest })
    }

    /// All accepted ones, the signing one first.
    pub fn all(&self) -> impl Iterator<Item = &Ca> {
        std::iter::once(self.signer()).chain(self.other())
    }

    /// Their certificates.
    #[must_use]
    pub fn ders(&self) -> Vec<CertificateDer<'static>> {
        self.all().map(|ca| ca.der().clone()).collect()
    }

    /// Certificate that a server sends after its certificate of [`Self::newest`], so that nodes with
    /// only the old CA accept it.
    #[must_use]
    pub const fn cross(&self) -> Option<&CertificateDer<'static>> {
        self.cross.as_ref()
    }

    /// The same after a certificate of [`Self::signer`].
    #[must_use]
    pub fn signer_cross(&self) -> Option<&CertificateDer<'static>> {
        self.cross.as_ref().filter(|_| self.state.signs)
    }

    /// Hex SHA-256 of the signing one, and of the other one or empty: what a node gets now.
    #[must_use]
    pub fn given(&self) -> (String, String) {
        let other = self.other().map(Ca::sha256);
        (self.signer().sha256(), other.unwrap_or_default())
    }

    /// Whether there ever was a second CA.
    #[must_use]
    pub const fn ever_rotated(&self) -> bool {
        self.state.steps > 0
    }

    /// Those that were retired, oldest first.
    #[must_use]
    pub fn retired(&self) -> &[RetiredCa] {
        &self.state.retired
    }

    /// When each accepted one was made, the one that signs first; 0 is not known.
    pub(crate) fn made(&self) -> impl Iterator<Item = u64> {
        let made: Vec<u64> = self.state.cas.iter().map(|ca| ca.made_unix_s).collect();
        let signs = self.state.signs;
        (0..made.len()).map(move |at| {
            let at = if signs { made.len() - 1 - at } else { at };
            made.get(at).copied().unwrap_or(0)
        })
    }

    /// Whether both belong to one edge-cloud: they have or had a CA in common.
    #[must_use]
    pub fn is_related(&self, other: &Self) -> bool {
        let all = |one: &Self| -> Vec<String> {
            let retired = one.state.retired.iter().map(|ca| ca.sha256.clone());
            one.all().map(Ca::sha256).chain(retired).collect()
        };
        let others = all(other);
        all(self).iter().any(|sha256| others.contains(sha256))
    }

    /// Whether its rollovers are at a later step.
    #[must_use]
    pub const fn is_further(&self, other: &Self) -> bool {
        self.state.steps > other.state.steps
    }
}

fn store(ca: &Ca, made_unix_s: u64) -> Stored {
    Stored {
        key: STANDARD.encode(ca.key()),
        certificate: STANDARD.encode(ca.der()),
        made_unix_s,
    }
}

/// Adds the file to an error in its content.
fn damaged(path: &Path) -> impl FnOnce(CaError) -> CaError {
    let path = path.display().to_string();
    |error| match error {
        CaError::Certificate(_) | CaError::Pair => CaError::Damaged {
            path,
            why: error.to_string(),
        },
        other => other,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a rollover only goes forward, and each step is kept across a restart.
    #[test]
    fn each_step_of_a_rollover_is_found_again() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path();
        let first = Authorities::open(path).unwrap();
        assert_eq!(
            (first.phase(), first.ever_rotated()),
            (Phase::Single, false)
        );
        assert!(first.retire(1).is_err() && first.sign().is_err());
        let a = first.signer().sha256();

        let offered = first.rotate(5, false).unwrap();
        offered.write(path).unwrap();
        assert!(!path.join(CA_KEY).exists());
        let offered = Authorities::open(path).unwrap();
        assert_eq!(offered.phase(), Phase::Offered);
        assert_eq!(offered.signer().sha256(), a);
        assert!(offered.rotate(6, true).is_err() && offered.retire(6).is_err());
        let b = offered.newest().sha256();
        assert_eq!(offered.given(), (a.clone(), b.clone()));
        assert!(offered.signer_cross().is_none() && offered.cross().is_some());
        assert_eq!(offered.made().collect::<Vec<_>>(), [0, 5]);

        offered.sign().unwrap().write(path).unwrap();
        let signing = Authorities::open(path).unwrap();
        assert_eq!(signing.given(), (b.clone(), a.clone()));
        assert_eq!(signing.made().collect::<Vec<_>>(), [5, 0]);
        assert!(signing.is_further(&offered) && signing.is_related(&first));

        signing.retire(9).unwrap().write(path).unwrap();
        let last = Authorities::open(path).unwrap();
        assert_eq!(last.phase(), Phase::Single);
        assert_eq!(last.given(), (b, String::new()));
        assert_eq!(last.retired()[0].sha256, a);
        let text = std::fs::read_to_string(path.join(AUTHORITIES)).unwrap();
        assert!(!text.contains(&STANDARD.encode(first.signer().key())));
        assert!(last.is_related(&first) && last.is_further(&first));
        let other = tempfile::tempdir().unwrap();
        assert!(!last.is_related(&Authorities::open(other.path()).unwrap()));
    }

    /// Goal: a lost or damaged CA is an error that names its file, and never replaced by a new one that
    /// no node accepts.
    #[test]
    fn a_lost_ca_is_told_and_never_made_anew() {
        let text = |data: &Path| match Authorities::open(data) {
            Ok(cas) => cas.signer().sha256(),
            Err(error) => error.to_string(),
        };
        let fresh = || {
            let data = tempfile::tempdir().unwrap();
            let first = text(data.path());
            std::fs::write(data.path().join(NODES), "{}").unwrap();
            (data, first)
        };
        for name in [CA_KEY, CA_DER] {
            let (data, _) = fresh();
            let path = data.path().join(name);
            std::fs::write(&path, "").unwrap();
            assert!(text(data.path()).contains("ca.{key,der} is damaged"));
            std::fs::remove_file(&path).unwrap();
            assert!(text(data.path()).starts_with(&format!("{} is missing", path.display())));
            assert!(!path.exists());
        }
        let (data, _) = fresh();
        let rolled = Authorities::open(data.path()).unwrap();
        rolled.rotate(5, true).unwrap().write(data.path()).unwrap();
        let path = data.path().join(AUTHORITIES);
        std::fs::write(&path, "{").unwrap();
        assert!(text(data.path()).starts_with(&format!("{} is damaged", path.display())));
        std::fs::remove_file(&path).unwrap();
        assert!(text(data.path()).starts_with(&format!("{} (before", path.display())));
        // A power cut in the first start.
        let (data, _) = fresh();
        std::fs::remove_file(data.path().join(NODES)).unwrap();
        std::fs::remove_file(data.path().join(CA_DER)).unwrap();
        assert_eq!(text(data.path()).len(), 64);
    }

    /// Goal: the old key does not survive a rollover that was interrupted after its step.
    #[test]
    fn the_copy_of_the_first_ca_goes_once_it_does_not_count() {
        let data = tempfile::tempdir().unwrap();
        let first = Authorities::open(data.path()).unwrap();
        Authorities::clear_remains(data.path()).unwrap();
        assert!(data.path().join(CA_KEY).exists());
        let next = first.rotate(5, true).unwrap();
        next.write(data.path()).unwrap();
        for name in [CA_KEY, CA_DER] {
            std::fs::write(data.path().join(name), "x").unwrap();
        }
        Authorities::clear_remains(data.path()).unwrap();
        assert!(!data.path().join(CA_KEY).exists() && !data.path().join(CA_DER).exists());
        assert_eq!(
            Authorities::open(data.path()).unwrap().given(),
            next.given()
        );
    }
}
