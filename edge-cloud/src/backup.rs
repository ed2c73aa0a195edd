//! Backup and restore of the data folder. A backup is one file: a line with format, version and
//! SHA-256 of the rest, then JSON with every file of [`FILES`] in base64. It holds the key of the CA
//! and all Secrets, so it is for its owner only.
//!
//! Changes after the backup are lost, and a restore must not have dangerous consequences:
//! a used token stays used, no workload is affected, and nodes that joined later are readmitted. What it
//! cannot know it reports: a node that was revoked later must be revoked again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::api::SOCKET;
use crate::durable::replace;
use crate::hex::hex;
use crate::identity::authorities::{AUTHORITIES, Authorities};
use crate::identity::ca::{CA_DER, CA_KEY, Ca};
use crate::identity::registry::{Enrolment, Grace, NODES, State};
use crate::identity::token::{TOKENS, Tokens};
use crate::journal;
use crate::placement::KEY_BYTES;
use crate::pod_key::{self, POD_KEY};
use crate::records;
use crate::records::cursors::{self, Cursors};
use crate::records::ledger::Ledger;
use crate::saved::{self, ACCEPTED, PLACEMENT};

/// First word of a backup.
const FORMAT: &str = "edge-cloud-backup";
/// Version of the format.
const VERSION: &str = "1";
/// Bytes of a backup; a larger file is refused before it is read.
pub const BACKUP_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// File that serve holds locked.
pub const LOCK: &str = "lock";
/// File that exists in the data folder during a restore. An interrupted restore must be
/// repeated: serve does not start before.
pub const RESTORING: &str = "restoring";
/// A restored epoch is this far ahead of the clock. The epoch rises with each start, so a server that was
/// restarted often may be ahead of the clock, too: nodes refuse an epoch lower than the highest one
/// accepted.
pub const EPOCH_LEAD_S: u64 = 24 * 3600;

/// Progress of the sink of records, by node; in the data folder it is a folder. Omitted for sinks
/// that store it themselves, like files: those are not older after a restore.
const CURSORS: &str = "cursors.json";
/// Files of a backup, in this order: each file is replaced as a whole, and any event between two of them is
/// harmless. With [`AUTHORITIES`] present, the two files of the first CA are ignored. A join between nodes
/// and tokens leaves a used token and an unknown node, which the grace of a restore readmits.
pub const FILES: [&str; 8] = [
    AUTHORITIES,
    CA_KEY,
    CA_DER,
    NODES,
    TOKENS,
    ACCEPTED,
    POD_KEY,
    PLACEMENT,
];

/// Why a backup or a restore failed. Nothing has changed then, unless stated otherwise.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// No CA: this is not the folder of an edge-cloud.
    #[error("{}: holds no edge-cloud: there is no CA in it", .0.display())]
    NoData(PathBuf),
    /// A restore was interrupted.
    #[error("{}: a restore was cut off there: repeat it with --force", .0.display())]
    Unfinished(PathBuf),
    /// Not a backup, or of another version.
    #[error("not a backup, or of a version that this edge-cloud does not read")]
    Format,
    /// The checksum is wrong.
    #[error("the backup is damaged: its SHA-256 is wrong")]
    Checksum,
    /// Valid checksum, but not written by edge-cloud.
    #[error("{0} in the backup is damaged: {1}")]
    Content(&'static str, String),
    /// Over [`BACKUP_BYTES_MAX`].
    #[error("the backup is larger than {BACKUP_BYTES_MAX} bytes")]
    Large,
    /// The clock of this machine is wrong.
    #[error("the clock of this machine is before the time of the backup: set it first")]
    Clock,
    /// The data folder is in use.
    #[error("{}: an edge-cloud serves from this folder: stop it first", .0.display())]
    Running(PathBuf),
    /// The data folder is not empty.
    #[error("{}: the folder is not empty: --force replaces what is there", .0.display())]
    NotEmpty(PathBuf),
    /// Error of the file system.
    #[error("{what}: {source}")]
    File {
        /// What was attempted.
        what: String,
        /// Error of the system.
        source: io::Error,
    },
}

fn at(what: impl ToString) -> impl FnOnce(io::Error) -> BackupError {
    let what = what.to_string();
    |source| BackupError::File { what, source }
}

/// Contents of a backup.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Time of its start, seconds since 1970.
    pub unix_s: u64,
    /// Version of the edge-cloud that made it.
    pub edge_cloud: String,
    /// Path below the data folder, and base64.
    files: BTreeMap<String, String>,
}

impl Backup {
    /// Reads the data folder, whether it is served from or not.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn of(data: &Path, unix_s: u64) -> Result<Self, BackupError> {
        if data.join(RESTORING).exists() {
            return Err(BackupError::Unfinished(data.to_owned()));
        }
        let mut files = BTreeMap::new();
        for name in FILES {
            let path = data.join(name);
            match std::fs::read(&path) {
                Ok(bytes) => drop(files.insert(name.to_owned(), STANDARD.encode(bytes))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(at(path.display())(error)),
            }
        }
        let pair = files.contains_key(CA_KEY) && files.contains_key(CA_DER);
        if !pair && !files.contains_key(AUTHORITIES) {
            return Err(BackupError::NoData(data.to_owned()));
        }
        let failed = |error| at(data.join(cursors::CURSORS).display())(error);
        let ledgers = cursors::all(data).map_err(failed)?;
        let ledgers = serde_json::to_vec(&ledgers).map_err(|error| failed(error.into()))?;
        files.insert(CURSORS.to_owned(), STANDARD.encode(ledgers));
        Ok(Self {
            unix_s,
            edge_cloud: env!("CARGO_PKG_VERSION").to_owned(),
            files,
        })
    }

    /// Writes it to `path`, mode 0600, whole or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> Result<(), BackupError> {
        let failed = |error| at(path.display())(error);
        let body = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let mut bytes =
            format!("{FORMAT} {VERSION} {}\n", hex(&Sha256::digest(&body))).into_bytes();
        bytes.extend(body);
        replace(path, &bytes).map_err(failed)
    }

    /// Reads `path`, and checks version and checksum.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let failed = |error| at(path.display())(error);
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(BACKUP_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > BACKUP_BYTES_MAX {
            return Err(BackupError::Large);
        }
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, BackupError> {
        let end = bytes.iter().take(256).position(|byte| *byte == b'\n');
        let (head, body) = bytes.split_at(end.ok_or(BackupError::Format)?);
        let body = body.get(1..).unwrap_or_default();
        let head = std::str::from_utf8(head).map_err(|_| BackupError::Format)?;
        let sum = head
            .strip_prefix(FORMAT)
            .and_then(|rest| rest.strip_prefix(' '))
            .and_then(|rest| rest.strip_prefix(VERSION))
            .and_then(|rest| rest.strip_prefix(' '))
            .ok_or(BackupError::Format)?;
        if sum != hex(&Sha256::digest(body)) {
            return Err(BackupError::Checksum);
        }
        serde_json::from_slice(body).map_err(|_| BackupError::Format)
    }

    fn file(&self, name: &'static str) -> Result<Option<Vec<u8>>, BackupError> {
        let decode = |text| STANDARD.decode(text);
        let bytes = self.files.get(name).map(decode).transpose();
        bytes.map_err(|error| BackupError::Content(name, error.to_string()))
    }
}

/// Options of a restore.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Replaces what is in the data folder.
    pub force: bool,
    /// Unused tokens of the backup stay valid.
    pub keep_tokens: bool,
    /// How long nodes that joined after the backup may come back, seconds.
    pub grace_s: u64,
}

/// Result of a restore.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// When the backup was made, seconds since 1970.
    pub made_unix_s: u64,
    /// Nodes of the registry.
    pub nodes: usize,
    /// Nodes that the folder had and the backup had not.
    pub nodes_kept: Vec<String>,
    /// Nodes that are revoked.
    pub revoked: Vec<String>,
    /// Ids of tokens that had uses left and are invalid from now on.
    pub tokens_void: Vec<String>,
    /// Number of tokens with uses left.
    pub tokens_valid: usize,
    /// Until when unknown nodes are readmitted, seconds since 1970; 0 is not at all.
    pub grace_until_unix_s: u64,
    /// The folder's CAs were kept: their rollover was at a later step than in the backup.
    #[serde(default)]
    pub cas_kept: bool,
    /// The folder had every node that joined after the backup.
    pub all_known: bool,
    /// Backup of the replaced content of the folder.
    pub replaced: Option<PathBuf>,
}

/// The parsed files.
struct Contents {
    cas: Authorities,
    state: State,
    tokens: Tokens,
    accepted: Vec<u8>,
    pod_key: [u8; KEY_BYTES],
    placement: Vec<u8>,
    cursors: BTreeMap<String, Ledger>,
}

impl Contents {
    fn of(backup: &Backup) -> Result<Self, BackupError> {
        let must = |name| {
            let missing = || BackupError::Content(name, "missing".to_owned());
            backup.file(name)?.ok_or_else(missing)
        };
        let cas = match backup.file(AUTHORITIES)? {
            Some(bytes) => Authorities::parse(&bytes).map_err(wrong(AUTHORITIES))?,
            None => {
                let ca = Ca::check(&must(CA_KEY)?, &must(CA_DER)?);
                ca.map_err(wrong(CA_KEY))?.into()
            }
        };
        let state = State::parse(&must(NODES)?).map_err(wrong(NODES))?;
        let tokens = backup.file(TOKENS)?.unwrap_or_else(|| b"{}".to_vec());
        let tokens = serde_json::from_slice(&tokens).map_err(wrong(TOKENS))?;
        let accepted = backup.file(ACCEPTED)?.unwrap_or_else(|| b"[]".to_vec());
        saved::check(&accepted).map_err(wrong(ACCEPTED))?;
        let empty = || br#"{"nodes":{},"pods":[]}"#.to_vec();
        let pod_key = match backup.file(PLACEMENT)? {
            Some(_) => Some(must(POD_KEY)?),
            None => backup.file(POD_KEY)?,
        };
        let pod_key = match pod_key {
            Some(key) => pod_key::parse(&key),
            // Nothing was placed yet.
            None => pod_key::make(),
        };
        let pod_key = pod_key.map_err(wrong(POD_KEY))?;
        let placement = backup.file(PLACEMENT)?.unwrap_or_else(empty);
        let placement = saved::restored(&placement).map_err(wrong(PLACEMENT))?;
        let cursors = backup.file(CURSORS)?.unwrap_or_else(|| b"{}".to_vec());
        let cursors = serde_json::from_slice(&cursors).map_err(wrong(CURSORS))?;
        Ok(Self {
            cursors,
            cas,
            state,
            tokens,
            accepted,
            pod_key,
            placement,
        })
    }

    /// Interrupted anywhere, it leaves a folder from which [`Live`] reads nothing wrong: tokens are
    /// written before the nodes, because the file of nodes shows how new the folder is.
    fn write(&self, data: &Path) -> io::Result<()> {
        self.begin(data)?;
        replace(&data.join(TOKENS), &serde_json::to_vec(&self.tokens)?)?;
        replace(&data.join(NODES), &journal::whole(&self.state)?)?;
        let cursors = Cursors::open(data)?;
        for (node, ledger) in &self.cursors {
            // The folder's ledgers are of the same sink, and newer or equal.
            let mut newest = ledger.clone();
            newest.merge(&cursors.load(node).unwrap_or_default().streams);
            cursors.save(node, &newest)?;
        }
        replace(&data.join(ACCEPTED), &self.accepted)?;
        replace(&data.join(POD_KEY), &self.pod_key)?;
        replace(&data.join(PLACEMENT), &self.placement)?;
        std::fs::remove_file(data.join(RESTORING))?;
        File::open(data)?.sync_all()
    }

    /// Marks the folder and writes the CAs. Nodes and tokens of another edge-cloud are removed before.
    fn begin(&self, data: &Path) -> io::Result<()> {
        replace(&data.join(RESTORING), b"")?;
        if !self.is_of_ca(data) {
            remove(&data.join(NODES))?;
            remove(&data.join(TOKENS))?;
            cursors::clear(data)?;
            File::open(data)?.sync_all()?;
        }
        self.cas.write(data)
    }

    /// Whether the folder belongs to the same edge-cloud: it has or had a CA in common.
    fn is_of_ca(&self, data: &Path) -> bool {
        Authorities::peek(data).is_some_and(|live| live.is_related(&self.cas))
    }

    /// A rollover only goes forward: if the folder is at a later step, its CAs stay. Otherwise a retired CA
    /// would be restored, and a new one would be lost, with all nodes that have its certificates.
    fn keep_further_cas(&mut self, data: &Path) -> bool {
        match Authorities::peek(data) {
            Some(live) if live.is_related(&self.cas) && live.is_further(&self.cas) => {
                self.cas = live;
                true
            }
            _ => false,
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn wrong<E: std::fmt::Display>(name: &'static str) -> impl FnOnce(E) -> BackupError {
    move |error| BackupError::Content(name, error.to_string())
}

/// Writes a backup into the data folder. A power cut leaves a folder that serve refuses, and the
/// restore can be repeated.
///
/// # Errors
/// See [`BackupError`].
pub fn restore(
    backup: &Backup,
    data: &Path,
    options: Options,
    unix_s: u64,
) -> Result<Report, BackupError> {
    let mut contents = Contents::of(backup)?;
    if unix_s < backup.unix_s {
        return Err(BackupError::Clock);
    }
    let failed = |error| at(data.display())(error);
    std::fs::create_dir_all(data).map_err(failed)?;
    let lock = File::create(data.join(LOCK)).map_err(failed)?;
    lock.try_lock()
        .map_err(|_| BackupError::Running(data.to_owned()))?;
    if !options.force && !is_empty(data).map_err(failed)? {
        return Err(BackupError::NotEmpty(data.to_owned()));
    }

    let mut report = Report {
        made_unix_s: backup.unix_s,
        ..Report::default()
    };
    match Backup::of(data, unix_s) {
        Ok(before) => {
            let path = data.join(format!("replaced-{unix_s}.backup"));
            before.write(&path)?;
            report.replaced = Some(path);
        }
        // A backup of a partly restored folder is useless; its readable files are used nevertheless.
        Err(BackupError::NoData(_) | BackupError::Unfinished(_)) => {}
        Err(error) => return Err(error),
    }
    let live = Live::of(data, &contents);
    report.cas_kept = contents.keep_further_cas(data);
    tokens(
        &mut contents.tokens,
        live.as_ref(),
        options,
        unix_s,
        &mut report,
    );
    registry(
        &mut contents.state,
        live.as_ref(),
        options,
        unix_s,
        &mut report,
    );

    contents.write(data).map_err(failed)?;
    Ok(report)
}

/// Whether the folder has only remains of a stopped or a failed run.
fn is_empty(data: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(data)? {
        let entry = entry?;
        let name = entry.file_name();
        let harmless = name == LOCK
            || name == SOCKET
            // They may have been copied from the lost machine.
            || name == records::RECORDS
            || (name == "ca" && std::fs::read_dir(entry.path())?.next().is_none());
        if !harmless {
            return Ok(false);
        }
    }
    Ok(true)
}

/// State of the folder before the restore, if it has the same CA.
struct Live {
    state: State,
    tokens: Tokens,
    /// It is newer than the backup: it contains all changes since.
    newer: bool,
}

impl Live {
    /// `None` also when a file is damaged: then the changes since the backup are unknown.
    fn of(data: &Path, contents: &Contents) -> Option<Self> {
        if !contents.is_of_ca(data) {
            return None;
        }
        let read = |name| std::fs::read(data.join(name)).ok();
        let state = State::parse(&read(NODES)?).ok()?;
        let tokens = read(TOKENS).unwrap_or_else(|| b"{}".to_vec());
        Some(Self {
            tokens: serde_json::from_slice(&tokens).ok()?,
            // Each start of an edge-cloud takes a higher one.
            newer: state.epoch >= contents.state.epoch,
            state,
        })
    }
}

/// A used token stays used. Only the folder contains which ones were used; without it every
/// token of the backup becomes invalid unless the operator keeps them.
fn tokens(
    tokens: &mut Tokens,
    live: Option<&Live>,
    options: Options,
    unix_s: u64,
    report: &mut Report,
) {
    let mut kept = Tokens::new();
    for (id, token) in std::mem::take(tokens) {
        let usable = token.uses_left > 0 && token.expires_unix_s > unix_s;
        let known = live.is_some_and(|live| live.newer && live.tokens.contains_key(&id));
        if usable && !known && !options.keep_tokens {
            report.tokens_void.push(id);
        } else if usable {
            kept.insert(id, token);
        }
    }
    for (id, token) in live.iter().flat_map(|live| &live.tokens) {
        match kept.get_mut(id) {
            Some(kept) => kept.uses_left = kept.uses_left.min(token.uses_left),
            None if live.is_some_and(|live| live.newer) => {
                drop(kept.insert(id.clone(), token.clone()))
            }
            None => {}
        }
    }
    let valid = kept
        .values()
        .filter(|token| token.uses_left > 0 && token.expires_unix_s > unix_s);
    report.tokens_valid = valid.count();
    *tokens = kept;
}

/// The nodes of both; of two certificates the newer one counts, and a revoked node stays revoked.
fn registry(
    state: &mut State,
    live: Option<&Live>,
    options: Options,
    unix_s: u64,
    report: &mut Report,
) {
    let made = report.made_unix_s;
    if let Some(live) = live {
        for (name, enrolment) in &live.state.nodes {
            let Some(old) = state.nodes.get_mut(name) else {
                report.nodes_kept.push(name.clone());
                state.nodes.insert(name.clone(), enrolment.clone());
                continue;
            };
            merge(old, enrolment);
        }
        for (name, deleted) in &live.state.deleted {
            let at = state.deleted.entry(name.clone()).or_default();
            *at = (*at).max(*deleted);
        }
        for retired in &live.state.retired {
            if state.retired.iter().all(|old| !old.is_same(retired)) {
                state.retired.push(retired.clone());
            }
        }
        state.epoch = state.epoch.max(live.state.epoch);
    }
    state.epoch = state.epoch.max(unix_s).saturating_add(EPOCH_LEAD_S);
    state.grace = match live.filter(|live| live.newer) {
        // Nodes that joined after the backup are known; an open grace continues.
        Some(live) => live.state.grace_at(unix_s),
        // A grace that was open when the backup was made continues: its nodes may still be offline.
        None => {
            let open = state.grace_at(made);
            Some(Grace {
                issued_from_unix_s: open.map_or(made, |grace| grace.issued_from_unix_s.min(made)),
                until_unix_s: unix_s,
            })
        }
    };
    report.all_known = state.grace.is_none();
    let until_unix_s = unix_s.saturating_add(options.grace_s);
    state.grace = state.grace.filter(|_| options.grace_s > 0);
    match &mut state.grace {
        Some(grace) => grace.until_unix_s = until_unix_s,
        None => state.deleted.clear(),
    }
    let revoked = state
        .nodes
        .iter()
        .filter(|(_, enrolment)| enrolment.revoked);
    report.revoked = revoked.map(|(name, _)| name.clone()).collect();
    report.nodes = state.nodes.len();
    report.grace_until_unix_s = state.grace.map_or(0, |grace| grace.until_unix_s);
}

fn merge(old: &mut Enrolment, live: &Enrolment) {
    if old.serial == live.serial {
        old.revoked |= live.revoked;
        old.take_pending(live);
    } else if old.joined_unix_s <= live.joined_unix_s {
        *old = live.clone();
    }
}

#[cfg(test)]
mod tests;
