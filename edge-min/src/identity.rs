//! The node's identity on disk: `STATE/identity/{node.key,node.crt,ca.crt,cloud.url,node.name}`,
//! DER but for the last two, and `broker`, postcard, if the join named one. Written once by a
//! join, whole or not at all: into `identity.new`, then renamed. The key is there from the join's
//! first try on.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use edge_core::flash::Subsystem;
use edge_proto::enrol::Broker;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::medium::{self, Durability, sync_dir};

/// Bytes of one identity file; larger is refused before reading.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// What a join leaves behind.
pub struct Identity {
    /// Node name, as the cloud accepted it.
    pub node: String,
    /// PKCS#8 private key. Never logged.
    pub key: Vec<u8>,
    /// Certificate.
    pub certificate: Vec<u8>,
    /// The CA of the cloud, the one that is trusted unless the broker has its own.
    pub ca: Vec<u8>,
    /// URL of the cloud that was joined; empty in an identity that is older than this field.
    pub cloud: String,
    /// The external broker, if the link goes to one.
    pub broker: Option<Broker>,
}

/// Directory of the identity below the state directory.
#[must_use]
pub fn dir(state: &Path) -> PathBuf {
    state.join("identity")
}

impl Identity {
    /// Where the link goes: to the broker that the join named, else to the cloud that was joined;
    /// another one in the config moves it.
    #[must_use]
    pub fn link_url<'a>(&'a self, config: Option<&'a str>) -> &'a str {
        let moved = config.filter(|url| *url != self.cloud && !url.starts_with("https://"));
        let broker = self.broker.as_ref().map(|broker| broker.url.as_str());
        moved.or(broker).unwrap_or(&self.cloud)
    }

    /// The CAs, DER, against which the other end of the link is checked.
    #[must_use]
    pub fn anchors(&self) -> &[Vec<u8>] {
        match &self.broker {
            Some(broker) if !broker.anchors.is_empty() => &broker.anchors,
            _ => core::slice::from_ref(&self.ca),
        }
    }

    /// Loads the identity; `None` when the board has not joined.
    ///
    /// # Errors
    /// A file that is unreadable or over 16 KiB.
    pub fn load(state: &Path) -> io::Result<Option<Self>> {
        // A power cut between the last two steps of a join leaves the new one, which is whole once
        // its name is there.
        let dirs = [dir(state), new_dir(state)];
        let Some(dir) = dirs.iter().find(|dir| dir.join("node.name").exists()) else {
            return Ok(None);
        };
        let text = |name: &str| {
            let text = String::from_utf8(read(&dir.join(name))?);
            text.map(|text| text.trim().to_owned())
                .map_err(|_| io::Error::other("an identity file is not text: join again"))
        };
        let cloud = match text("cloud.url") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        let broker = match read(&dir.join("broker")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            bytes => {
                let broken = |_| io::Error::other("identity/broker is damaged: join again");
                Some(postcard::from_bytes(&bytes?).map_err(broken)?)
            }
        };
        Ok(Some(Self {
            node: text("node.name")?,
            cloud,
            key: read(&dir.join("node.key"))?,
            certificate: read(&dir.join("node.crt"))?,
            ca: read(&dir.join("ca.crt"))?,
            broker,
        }))
    }

    /// Stores the identity; durable when it returns.
    ///
    /// # Errors
    /// Those of the file system. The old identity, if any, is then still there.
    pub fn save(&self, state: &Path) -> io::Result<()> {
        let dir = dir(state);
        let new = keep_key(state, &self.key)?;
        write(&new.join("node.crt"), &self.certificate)?;
        write(&new.join("ca.crt"), &self.ca)?;
        write(&new.join("cloud.url"), self.cloud.as_bytes())?;
        match &self.broker {
            Some(broker) => write(&new.join("broker"), &edge_proto::encode(broker))?,
            // One that a power cut has left from an earlier join would move the link.
            None => match fs::remove_file(new.join("broker")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        // The name last: with it, all is there.
        write(&new.join("node.name"), self.node.as_bytes())?;
        if dir.exists() {
            // At no moment is there none.
            renameat_with(CWD, &new, CWD, &dir, RenameFlags::EXCHANGE)?;
            sync_dir(state, Subsystem::Identity)?;
            return remove(&new);
        }
        fs::rename(&new, &dir)?;
        sync_dir(state, Subsystem::Identity)
    }
}

/// The key of a join that was not answered, if there was one.
///
/// # Errors
/// Those of the file system.
pub fn pending_key(state: &Path) -> io::Result<Option<Vec<u8>>> {
    match read(&new_dir(state).join("node.key")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Keeps the key of a join; durable when it returns. Returns the folder of the new identity.
///
/// # Errors
/// Those of the file system.
pub fn keep_key(state: &Path, key: &[u8]) -> io::Result<PathBuf> {
    let new = new_dir(state);
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&new)?;
    write(&new.join("node.key"), key)?;
    sync_dir(state, Subsystem::Identity)?;
    Ok(new)
}

fn new_dir(state: &Path) -> PathBuf {
    state.join("identity.new")
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

    /// Goal: what a join knew is there after a restart, and an identity of before is still one.
    #[test]
    fn an_identity_remembers_the_cloud_that_it_joined() {
        let state = tempfile::tempdir().unwrap();
        assert!(Identity::load(state.path()).unwrap().is_none());
        let identity = Identity {
            node: "gate-7".into(),
            key: vec![1],
            certificate: vec![2],
            ca: vec![3],
            cloud: "mqtts://cloud:1".into(),
            broker: None,
        };
        identity.save(state.path()).unwrap();
        let cloud = || Identity::load(state.path()).unwrap().unwrap().cloud;
        assert_eq!(cloud(), "mqtts://cloud:1");
        fs::rename(dir(state.path()), new_dir(state.path())).unwrap();
        assert_eq!(cloud(), "mqtts://cloud:1", "cut off before the rename");
        fs::remove_file(new_dir(state.path()).join("cloud.url")).unwrap();
        assert_eq!(cloud(), "");
    }

    /// Goal: the link goes to the broker that the join named, and trusts that broker's CA alone.
    #[test]
    fn an_identity_remembers_the_broker_until_the_config_moves_it() {
        let state = tempfile::tempdir().unwrap();
        let mut identity = Identity {
            node: "gate-7".into(),
            key: vec![1],
            certificate: vec![2],
            ca: vec![3],
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
        for same in [None, Some("https://cloud:1"), Some("https://cloud:2")] {
            assert_eq!(loaded.link_url(same), "mqtts://broker:1");
        }
        assert_eq!(loaded.link_url(Some("mqtts://new")), "mqtts://new");
        identity.broker = None;
        // A join of before was cut off just before its end; this one has another key, or the same.
        fs::rename(dir(state.path()), new_dir(state.path())).unwrap();
        assert_eq!(pending_key(state.path()).unwrap(), Some(vec![1]));
        identity.save(state.path()).unwrap();
        let loaded = Identity::load(state.path()).unwrap().unwrap();
        assert_eq!(loaded.broker, None);
        assert_eq!(pending_key(state.path()).unwrap(), None);
        assert_eq!(identity.anchors(), [vec![3]]);
        assert_eq!(identity.link_url(None), "https://cloud:1");
    }
}
