//! The node's identity on disk: `STATE/identity/{node.key,node.crt,ca.crt,cloud.url,node.name}`, DER except
//! for the last two; `ca2.crt` while the cloud has two CAs; and `broker`, in the wire's encoding, if there
//! is one. Key and certificate change together: a new identity is written completely in `identity.new` and
//! then renamed. A renewal keeps the old one in `identity.old` until the new one has passed its trial. The
//! new key is in `identity.new` from the first request on.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use edge_core::Urls;
use edge_core::flash::Subsystem;
use edge_proto::enrol::Broker;
use edge_proto::wire::Wire as _;

use crate::paths;
use crate::storage::medium::{self, Durability, sync_dir};

/// Bytes of one identity file; larger is refused before reading.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// Result of a join or renewal, as it is stored.
pub struct Identity {
    /// Node name, as the cloud accepted it.
    pub node: String,
    /// PKCS#8 private key. Never logged.
    pub key: Vec<u8>,
    /// Certificate of the node, DER.
    pub certificate: Vec<u8>,
    /// CAs of the cloud, one or two; trusted unless the broker has its own.
    pub cas: Vec<Vec<u8>>,
    /// URL of the cloud that was joined; empty in an identity that is older than this field.
    pub cloud: String,
    /// The external broker, if the link goes to one.
    pub broker: Option<Broker>,
}

/// Result of a renewal: the new identity, stored, and the cloud's time.
pub struct Renewed {
    /// Stored in place of the old one.
    pub identity: Identity,
    /// The cloud's time, seconds since 1970.
    pub unix_s: u64,
}

impl Identity {
    /// The URLs that the node knows; which one is used for what, the core says.
    #[must_use]
    pub fn urls<'a>(&'a self, config: Option<&'a str>) -> Urls<'a> {
        Urls {
            config,
            joined: &self.cloud,
            broker: self.broker.as_ref().map(|broker| broker.url.as_str()),
        }
    }

    /// CAs, DER, against which the other end of the link is checked.
    #[must_use]
    pub fn anchors(&self) -> &[Vec<u8>] {
        match &self.broker {
            Some(broker) if !broker.anchors.is_empty() => &broker.anchors,
            _ => &self.cas,
        }
    }

    /// Loads the identity; `None` when the board has not joined.
    ///
    /// # Errors
    /// A file that is unreadable or over 16 KiB.
    pub fn load(state: &Path) -> io::Result<Option<Self>> {
        // A power cut between the last two steps of a change leaves only the new one, which is complete
        // if it contains its name.
        let dirs = [
            paths::identity(state),
            paths::identity_new(state),
            paths::identity_old(state),
        ];
        match dirs.iter().find(|dir| is_whole(dir)) {
            Some(dir) => Self::read(dir).map(Some),
            None => Ok(None),
        }
    }

    /// The identity before the last renewal, until the new one has passed its trial.
    #[must_use]
    pub fn load_old(state: &Path) -> Option<Self> {
        let dir = paths::identity_old(state);
        is_whole(&dir).then(|| Self::read(&dir).ok())?
    }

    fn read(dir: &Path) -> io::Result<Self> {
        let text = |name: &str| {
            let text = String::from_utf8(read(&dir.join(name))?);
            text.map(|text| text.trim().to_owned())
                .map_err(|_| io::Error::other("an identity file is not text: join again"))
        };
        let cloud = match text(paths::CLOUD_URL) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        let broker = match read(&dir.join(paths::BROKER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            bytes => {
                let broken = || io::Error::other("identity/broker is damaged: join again");
                Some(Broker::from_wire(&bytes?).ok_or_else(broken)?)
            }
        };
        let mut cas = vec![read(&dir.join(paths::CA))?];
        match read(&dir.join(paths::CA_SECOND)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            second => cas.push(second?),
        }
        Ok(Self {
            node: text(paths::NODE_NAME)?,
            cloud,
            key: read(&dir.join(paths::NODE_KEY))?,
            certificate: read(&dir.join(paths::NODE_CERTIFICATE))?,
            cas,
            broker,
        })
    }

    /// Stores the identity of a join; durable when it returns.
    ///
    /// # Errors
    /// Those of the file system. The old identity, if any, is then still there.
    pub fn save(&self, state: &Path) -> io::Result<()> {
        self.replace(state, &mut || Ok(()))?;
        delete_old(state)
    }

    /// Stores the identity of a renewal, and keeps the old one; durable when it returns.
    ///
    /// # Errors
    /// Those of the file system. The old identity is then still there.
    pub fn save_renewed(&self, state: &Path) -> io::Result<()> {
        self.replace(state, &mut || Ok(()))
    }

    /// Calls `step` before each change of the medium. A power cut there leaves the old or the
    /// new identity, complete.
    fn replace(&self, state: &Path, step: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        settle(state)?;
        let new = paths::identity_new(state);
        step()?;
        // Incomplete while it is written.
        remove_file(&new.join(paths::NODE_NAME))?;
        step()?;
        keep_key(state, &self.key)?;
        let [ca, rest @ ..] = self.cas.as_slice() else {
            return Err(io::Error::other("an identity without a CA"));
        };
        let broker = self.broker.as_ref().map(Broker::to_wire);
        // A file that a power cut left from an earlier change would be taken for one of this change.
        for (name, content) in [
            (paths::NODE_CERTIFICATE, Some(self.certificate.as_slice())),
            (paths::CA, Some(ca)),
            (paths::CA_SECOND, rest.first().map(Vec::as_slice)),
            (paths::CLOUD_URL, Some(self.cloud.as_bytes())),
            (paths::BROKER, broker.as_deref()),
            // The name last: it marks the identity as complete.
            (paths::NODE_NAME, Some(self.node.as_bytes())),
        ] {
            step()?;
            match content {
                Some(content) => write(&new.join(name), content)?,
                None => remove_file(&new.join(name))?,
            }
        }
        step()?;
        delete_old(state)?;
        step()?;
        if paths::identity(state).exists() {
            fs::rename(paths::identity(state), paths::identity_old(state))?;
        }
        step()?;
        fs::rename(&new, paths::identity(state))?;
        sync_dir(state, Subsystem::Identity)
    }
}

/// Whether an identity is complete.
fn is_whole(dir: &Path) -> bool {
    dir.join(paths::NODE_NAME).exists()
}

/// Completes a change that was interrupted at its end.
fn settle(state: &Path) -> io::Result<()> {
    let dir = paths::identity(state);
    let dirs = [paths::identity_new(state), paths::identity_old(state)];
    if !is_whole(&dir)
        && let Some(whole) = dirs.iter().find(|dir| is_whole(dir))
    {
        remove(&dir)?;
        fs::rename(whole, &dir)?;
        sync_dir(state, Subsystem::Identity)?;
    }
    Ok(())
}

/// The new certificate has passed its trial: deletes the identity before the renewal, if there is one.
///
/// # Errors
/// Those of the file system.
pub fn delete_old(state: &Path) -> io::Result<()> {
    let old = paths::identity_old(state);
    remove_file(&old.join(paths::NODE_NAME))?;
    remove(&old)
}

/// Restores the identity before the last renewal, because the new one is refused. Durable when it
/// returns.
///
/// # Errors
/// Those of the file system.
pub fn restore_old(state: &Path) -> io::Result<()> {
    if is_whole(&paths::identity_old(state)) {
        // After this the old one is the first complete one, wherever the rest is interrupted.
        remove_file(&paths::identity_new(state).join(paths::NODE_NAME))?;
        remove_file(&paths::identity(state).join(paths::NODE_NAME))?;
        settle(state)?;
    }
    Ok(())
}

/// The key of a join without an answer, if there was one.
///
/// # Errors
/// Those of the file system.
pub fn pending_key(state: &Path) -> io::Result<Option<Vec<u8>>> {
    match read(&paths::identity_new(state).join(paths::NODE_KEY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Stores the key of a join; durable when it returns. Returns the folder of the new identity.
///
/// # Errors
/// Those of the file system.
pub fn keep_key(state: &Path, key: &[u8]) -> io::Result<PathBuf> {
    settle(state)?;
    let new = paths::identity_new(state);
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&new)?;
    write(&new.join(paths::NODE_KEY), key)?;
    sync_dir(state, Subsystem::Identity)?;
    Ok(new)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed?,
    }
    path.parent()
        .map_or(Ok(()), |dir| sync_dir(dir, Subsystem::Identity))
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("identity file over 16 KiB: join again"));
    }
    fs::read(path)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    medium::write(path, bytes, Durability::Must(Subsystem::Identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the joined cloud is known after a restart, and an identity without that file can be loaded.
    #[test]
    fn an_identity_remembers_the_cloud_that_it_joined() {
        let state = tempfile::tempdir().unwrap();
        assert!(Identity::load(state.path()).unwrap().is_none());
        let identity = Identity {
            node: "gate-7".into(),
            key: vec![1],
            certificate: vec![2],
            cas: vec![vec![3]],
            cloud: "mqtts://cloud:1".into(),
            broker: None,
        };
        identity.save(state.path()).unwrap();
        let cloud = || Identity::load(state.path()).unwrap().unwrap().cloud;
        assert_eq!(cloud(), "mqtts://cloud:1");
        fs::rename(
            paths::identity(state.path()),
            paths::identity_new(state.path()),
        )
        .unwrap();
        assert_eq!(cloud(), "mqtts://cloud:1", "cut off before the rename");
        fs::remove_file(paths::identity_new(state.path()).join("cloud.url")).unwrap();
        assert_eq!(cloud(), "");
    }

    /// A node's `number`th identity: key and certificate belong together.
    fn identity(number: u8, cas: usize) -> Identity {
        Identity {
            node: "gate-7".into(),
            key: vec![number, 1],
            certificate: vec![number, 2],
            cas: vec![vec![number, 3]; cas],
            cloud: "mqtts://cloud:1".into(),
            broker: None,
        }
    }

    fn number(state: &Path) -> u8 {
        let found = Identity::load(state).unwrap().unwrap();
        let number = found.key[0];
        assert_eq!(found.certificate, [number, 2]);
        assert!(found.cas.iter().all(|ca| *ca == [number, 3]));
        assert_eq!(found.cas.len(), usize::from(number));
        number
    }

    /// Goal: key and certificate change together, wherever the power is cut; and the next change
    /// works from there. Method: the change ends before each of its steps.
    #[test]
    fn a_renewal_that_is_cut_off_anywhere_leaves_the_old_or_the_new_identity() {
        let mut steps = 0;
        for cut in 0.. {
            let state = tempfile::tempdir().unwrap();
            let state = state.path();
            identity(2, 2).save(state).unwrap();
            keep_key(state, &[1, 1]).unwrap();
            let mut left = cut;
            let whole = identity(1, 1).replace(state, &mut || match left {
                0 => Err(io::Error::other("power cut")),
                _ => {
                    left -= 1;
                    Ok(())
                }
            });
            steps = cut;
            if whole.is_ok() {
                assert_eq!(number(state), 1);
                assert_eq!(Identity::load_old(state).unwrap().key, [2, 1]);
                break;
            }
            // Only between the last two renames is the new one loaded already.
            let is_new = !paths::identity(state).exists();
            assert_eq!(number(state), if is_new { 1 } else { 2 }, "cut {cut}");
            // The same key is available for the same request, unless it is in use already.
            if !is_new {
                assert_eq!(pending_key(state).unwrap(), Some(vec![1, 1]), "cut {cut}");
            }
            keep_key(state, &[1, 1]).unwrap();
            assert_eq!(number(state), if is_new { 1 } else { 2 }, "cut {cut}");
            identity(1, 1).save_renewed(state).unwrap();
            assert_eq!(number(state), 1, "cut {cut}");
        }
        assert!(steps >= 10, "{steps}");
    }

    #[test]
    fn a_new_identity_that_is_refused_gives_way_to_the_old_one() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path();
        identity(2, 2).save(state).unwrap();
        assert!(Identity::load_old(state).is_none());
        identity(1, 1).save_renewed(state).unwrap();
        restore_old(state).unwrap();
        assert_eq!(number(state), 2);
        assert!(Identity::load_old(state).is_none());
        restore_old(state).unwrap();
        assert_eq!(number(state), 2);
        identity(1, 1).save_renewed(state).unwrap();
        delete_old(state).unwrap();
        restore_old(state).unwrap();
        assert_eq!(number(state), 1);
        assert_eq!(pending_key(state).unwrap(), None);
    }

    /// Goal: the link goes to the broker that the join named, and trusts that broker's CA only.
    #[test]
    fn an_identity_remembers_the_broker_until_the_next_join() {
        let state = tempfile::tempdir().unwrap();
        let mut identity = Identity {
            node: "gate-7".into(),
            key: vec![1],
            certificate: vec![2],
            cas: vec![vec![3]],
            cloud: "https://cloud:1".into(),
            broker: Some(Broker {
                url: "mqtts://broker:1".into(),
                anchors: vec![vec![4], vec![5]],
            }),
        };
        identity.save(state.path()).unwrap();
        let loaded = Identity::load(state.path()).unwrap().unwrap();
        assert_eq!(loaded.broker, identity.broker);
        assert_eq!(loaded.anchors(), [vec![4], vec![5]]);
        assert_eq!(loaded.urls(None).link(), "mqtts://broker:1");
        identity.broker = None;
        // An earlier join was interrupted just before its end; this one has another key, or the same.
        fs::rename(
            paths::identity(state.path()),
            paths::identity_new(state.path()),
        )
        .unwrap();
        assert_eq!(pending_key(state.path()).unwrap(), Some(vec![1]));
        identity.save(state.path()).unwrap();
        let loaded = Identity::load(state.path()).unwrap().unwrap();
        assert_eq!(loaded.broker, None);
        assert_eq!(pending_key(state.path()).unwrap(), None);
        assert_eq!(identity.anchors(), [vec![3]]);
        assert_eq!(identity.urls(None).link(), "https://cloud:1");
    }
}
