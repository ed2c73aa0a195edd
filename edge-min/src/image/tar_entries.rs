//! The entries of a tar as plain data. The tar crate's usual iterator buffers long names and PAX
//! records of any size that they claim; this one takes its raw headers and reads the extensions
//! itself, with a cap. Memory is bounded by [`EXTENSION_BYTES_MAX`] and entries by the caller.

use std::io::Read;

use tar::{Entries, Entry, EntryType, PaxExtensions};

/// Bytes of one long name or PAX record: the longest path many times over.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;

/// One entry, with the extensions before it applied.
pub(super) struct TarEntry<'a, R: Read> {
    /// Path, as written.
    pub path: Vec<u8>,
    /// Target of a link, as written.
    pub link: Vec<u8>,
    /// File, directory, link or another type.
    pub kind: EntryType,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Length of the content.
    pub size: u64,
    /// Offset of the content in the tar.
    pub position: u64,
    /// Reader of the content, at its start.
    pub content: Entry<'a, R>,
}

/// Iterates over at most `left` headers.
pub(super) struct TarEntries<'a, R: Read> {
    entries: Entries<'a, R>,
    left: usize,
}

#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

impl<'a, R: Read> TarEntries<'a, R> {
    pub(super) fn new(entries: Entries<'a, R>, headers_max: usize) -> Self {
        Self {
            entries: entries.raw(true),
            left: headers_max,
        }
    }

    fn read(&mut self) -> Result<Option<TarEntry<'a, R>>, String> {
        let mut extensions = Extensions::default();
        loop {
            let mut entry = match self.entries.next() {
                Some(entry) => entry.map_err(|error| ["tar: ", &error.to_string()].concat())?,
                None if extensions.is_empty() => return Ok(None),
                None => return Err("tar: an extension of nothing".to_owned()),
            };
            self.left = self
                .left
                .checked_sub(1)
                .ok_or_else(|| "tar: too many entries".to_owned())?;
            let slot = match entry.header().entry_type() {
                EntryType::GNULongName => &mut extensions.name,
                EntryType::GNULongLink => &mut extensions.link,
                EntryType::XHeader => &mut extensions.pax,
                // Of the whole archive; not relevant to a file of a layer.
                EntryType::XGlobalHeader => {
                    extension(&mut entry)?;
                    continue;
                }
                _ => return with_extensions(entry, extensions).map(Some),
            };
            if slot.replace(extension(&mut entry)?).is_some() {
                return Err("tar: two extensions of one kind for one entry".to_owned());
            }
        }
    }
}

impl<'a, R: Read> Iterator for TarEntries<'a, R> {
    type Item = Result<TarEntry<'a, R>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

impl Extensions {
    const fn is_empty(&self) -> bool {
        self.name.is_none() && self.link.is_none() && self.pax.is_none()
    }
}

fn extension(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, String> {
    let size = entry.size();
    if size > EXTENSION_BYTES_MAX {
        return Err("tar: an extension over 64 KiB".to_owned());
    }
    let mut bytes = Vec::new();
    entry
        .read_to_end(&mut bytes)
        .map_err(|error| ["tar: ", &error.to_string()].concat())?;
    if bytes.len() as u64 == size {
        Ok(bytes)
    } else {
        Err("tar: an extension is cut off".to_owned())
    }
}

fn with_extensions<'a, R: Read>(
    entry: Entry<'a, R>,
    extensions: Extensions,
) -> Result<TarEntry<'a, R>, String> {
    let wrong = |error: std::io::Error| ["tar: ", &error.to_string()].concat();
    let header = entry.header();
    let mut whole = TarEntry {
        path: header.path_bytes().into_owned(),
        link: header
            .link_name_bytes()
            .map(std::borrow::Cow::into_owned)
            .unwrap_or_default(),
        kind: header.entry_type(),
        mode: header.mode().map_err(wrong)? & 0o7777,
        uid: header.uid().map_err(wrong)?,
        gid: header.gid().map_err(wrong)?,
        mtime: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0),
        size: entry.size(),
        position: entry.raw_file_position(),
        content: entry,
    };
    let unpadded = |mut name: Vec<u8>| {
        while name.pop_if(|last| *last == 0).is_some() {}
        name
    };
    if let Some(name) = extensions.name {
        whole.path = unpadded(name);
    }
    if let Some(link) = extensions.link {
        whole.link = unpadded(link);
    }
    for pair in PaxExtensions::new(&extensions.pax.unwrap_or_default()) {
        let pair = pair.map_err(wrong)?;
        let text = || std::str::from_utf8(pair.value_bytes()).unwrap_or_default();
        let number = || {
            text()
                .parse::<u64>()
                .map_err(|_| "tar: a PAX record is not a number".to_owned())
        };
        match pair.key_bytes() {
            b"path" => whole.path = pair.value_bytes().to_owned(),
            b"linkpath" => whole.link = pair.value_bytes().to_owned(),
            b"uid" => whole.uid = number()?,
            b"gid" => whole.gid = number()?,
            // May have a fraction, which no file system here keeps in an image.
            b"mtime" => {
                let seconds = text().split('.').next().unwrap_or_default();
                whole.mtime = seconds.parse().unwrap_or(0);
            }
            // Readers that use different sizes see different files: a known attack.
            b"size" if number()? != whole.size => {
                return Err("tar: header and PAX record disagree about a size".to_owned());
            }
            key if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
            // Extended attributes too: runc's no_new_privs removes the rights that they would grant.
            _ => {}
        }
    }
    if whole.kind == EntryType::GNUSparse {
        return Err(sparse());
    }
    Ok(whole)
}

fn sparse() -> String {
    "tar: sparse files are not supported".to_owned()
}
