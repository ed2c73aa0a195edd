//! An OCI image layout, a directory or a `.tar` of one that is read in place: the fields of index,
//! manifests and configs that the agent needs, and blobs that are checked against their digests.
//!
//! Never holds more than one document ([`JSON_BYTES_MAX`]) or one read of a blob in memory; a tar
//! is searched again for each name, so there is no table of its entries.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use edge_proto::sorted::SortedMap;
use ring::digest::{Context, SHA256};
use serde::Deserialize;
use tar::{Archive, EntryType};

use crate::image::error::ImageError;
use crate::image::tar_entries::TarEntries;
use crate::worker::Stop;

/// Bytes of an index, manifest or config. Decoded, they may take ten times as much memory.
const JSON_BYTES_MAX: u64 = 256 * 1024;
/// Entries of a layout's tar.
const TAR_ENTRIES_MAX: usize = 10_000;
/// Bytes of one read of a blob.
const READ_BYTES: usize = 64 * 1024;
/// Layers of an image: overlay's option string must stay below a page.
const LAYERS_MAX: usize = 32;

/// What Docker takes for the registry of a name without one.
const DOCKER_HUB: [&str; 2] = ["docker.io/", "index.docker.io/"];

/// Type, digest and size of a blob.
#[derive(Debug, Deserialize)]
pub struct Descriptor {
    #[serde(default, rename = "mediaType")]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: SortedMap<String, String>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
}

/// A list of images: of a layout, or of one image for several architectures.
#[derive(Debug, Deserialize)]
pub struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// Blobs of an image.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    /// Its config document.
    pub config: Descriptor,
    /// Its layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// Default process of an image.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Config {
    /// `ENTRYPOINT`; replaced by the Pod's `command`.
    pub entrypoint: Option<Vec<String>>,
    /// Default arguments.
    pub cmd: Option<Vec<String>>,
    /// `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// Working directory.
    pub working_dir: String,
    /// `USER[:GROUP]`.
    pub user: String,
}

/// The document that contains a [`Config`].
#[derive(Debug, Deserialize)]
pub struct ConfigFile {
    /// The only part that the agent reads.
    #[serde(default)]
    pub config: Config,
}

/// Compression of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// An uncompressed tar.
    Plain,
    /// A tar compressed with gzip.
    Gzip,
}

impl Descriptor {
    /// The digest in hex; safe as a path component, of fixed length.
    ///
    /// # Errors
    /// The digest is not a SHA-256.
    pub fn hex(&self) -> Result<&str, String> {
        let plain = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        self.digest
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(plain))
            .ok_or_else(|| ["digest ", &clipped(&self.digest), " is not a sha256"].concat())
    }

    /// Compression of this layer.
    ///
    /// # Errors
    /// The media type is not supported.
    pub fn packing(&self) -> Result<Packing, String> {
        let kind = self.media_type.as_str();
        if kind.ends_with("tar+gzip") || kind.ends_with("tar.gzip") {
            Ok(Packing::Gzip)
        } else if kind.ends_with(".tar") {
            Ok(Packing::Plain)
        } else {
            let fix = if kind.ends_with("zstd") {
                ": use gzip"
            } else {
                ""
            };
            Err([
                "layers of type `",
                &clipped(kind),
                "` are not supported",
                fix,
            ]
            .concat())
        }
    }

    fn is_index(&self) -> bool {
        let kind = self.media_type.as_str();
        kind.contains("image.index") || kind.contains("manifest.list")
    }

    /// Rank of this image for the board: 0 is best, `None` is unusable. An image without a platform
    /// is assumed to fit.
    fn fits(&self, arch: &str) -> Option<u8> {
        let Some(platform) = &self.platform else {
            return Some(9);
        };
        if !matches!(platform.os.as_str(), "" | "linux") {
            return None;
        }
        let (wanted, variants): (&str, &[&str]) = match arch {
            "x86_64" => ("amd64", &["", "v1"]),
            "aarch64" => ("arm64", &["v8", ""]),
            // The boards are ARMv7 with hard float.
            "arm" => ("arm", &["v7", "", "v6", "v5"]),
            other => (other, &[""]),
        };
        let position = variants.iter().position(|one| *one == platform.variant)?;
        (platform.architecture == wanted).then(|| u8::try_from(position).unwrap_or(8))
    }

    fn is_named(&self, reference: &str) -> bool {
        if let Some((_, digest)) = reference.split_once('@') {
            return self.digest == digest;
        }
        let wanted = full_name(reference);
        [
            "org.opencontainers.image.ref.name",
            "io.containerd.image.name",
        ]
        .iter()
        .filter_map(|name| self.annotations.get(*name))
        .any(|name| name == reference || full_name(name) == wanted)
    }
}

/// A name as Docker and Kubernetes complete it: registry, folder and tag.
fn full_name(name: &str) -> String {
    let hub = DOCKER_HUB.iter().find_map(|host| name.strip_prefix(host));
    let tagged = name
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'));
    let tag = if tagged { "" } else { ":latest" };
    let (prefix, name) = match (hub.unwrap_or(name).split_once('/'), hub) {
        (None, _) => ("docker.io/library/", hub.unwrap_or(name)),
        (Some(_), Some(hub)) => ("docker.io/", hub),
        (Some((host, _)), None) if host.contains(['.', ':']) || host == "localhost" => ("", name),
        (Some(_), None) => ("docker.io/", name),
    };
    [prefix, name, tag].concat()
}

/// Untrusted text, truncated for a message.
fn clipped(text: &str) -> String {
    text.chars()
        .filter(|one| !one.is_control())
        .take(100)
        .collect()
}

/// A layout in the preload folder.
pub struct Layout {
    path: PathBuf,
    is_tar: bool,
}

impl Layout {
    /// The layout at this path; `None` if it does not look like one.
    #[must_use]
    pub fn at(path: PathBuf) -> Option<Self> {
        let is_tar = path.extension().is_some_and(|kind| kind == "tar") && path.is_file();
        (is_tar || path.join("oci-layout").is_file()).then_some(Self { path, is_tar })
    }

    /// Its index of images.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn index(&self) -> Result<Index, ImageError> {
        let bytes = self.document("index.json", None)?;
        self.parse("index.json", &bytes)
    }

    /// The image of this name in its index, for this board (`arch` as Rust names it).
    ///
    /// # Errors
    /// The image is invalid, or there for other architectures only.
    pub fn find(
        &self,
        index: &Index,
        reference: &str,
        arch: &str,
    ) -> Result<Option<Manifest>, ImageError> {
        let named: Vec<&Descriptor> = index
            .manifests
            .iter()
            .filter(|one| one.is_named(reference))
            .collect();
        if named.is_empty() {
            return Ok(None);
        }
        let Some(best) = best(&named, arch) else {
            return Err(self.no_platform(reference, arch));
        };
        if !best.is_index() {
            return self.manifest(best).map(Some);
        }
        let index: Index = self.verified(best)?;
        let all: Vec<&Descriptor> = index.manifests.iter().collect();
        match best_of_many(&all, arch) {
            Some(ours) if !ours.is_index() => self.manifest(ours).map(Some),
            _ => Err(self.no_platform(reference, arch)),
        }
    }

    fn no_platform(&self, reference: &str, arch: &str) -> ImageError {
        self.wrong(&["image ", &clipped(reference), " is not there for ", arch].concat())
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Manifest, ImageError> {
        let manifest: Manifest = self.verified(descriptor)?;
        if manifest.layers.len() > LAYERS_MAX {
            return Err(self.wrong("an image of more than 32 layers"));
        }
        Ok(manifest)
    }

    /// A document that has the digest and size of its descriptor.
    ///
    /// # Errors
    /// It is missing, altered, too large or not such a document.
    pub fn verified<T: for<'a> Deserialize<'a>>(
        &self,
        descriptor: &Descriptor,
    ) -> Result<T, ImageError> {
        let name = self.blob_name(descriptor)?;
        let bytes = self.document(&name, Some(descriptor))?;
        self.parse(&name, &bytes)
    }

    /// A layer's digest in hex, and how it is packed.
    ///
    /// # Errors
    /// It cannot be unpacked.
    pub fn layer_of<'d>(&self, layer: &'d Descriptor) -> Result<(&'d str, Packing), ImageError> {
        let both = layer.hex().and_then(|hex| Ok((hex, layer.packing()?)));
        both.map_err(|reason| self.wrong(&reason))
    }

    /// A layer, after a pass that checked its digest and size: no byte of an altered layer is
    /// interpreted.
    ///
    /// # Errors
    /// It is missing or altered, or the job must end.
    pub fn layer(
        &self,
        descriptor: &Descriptor,
        stop: &Stop,
    ) -> Result<impl Read + use<>, ImageError> {
        let name = self.blob_name(descriptor)?;
        let (mut file, start, length) = self.open(&name)?;
        let mut context = Context::new(&SHA256);
        let mut left = length;
        let mut buffer = vec![0; READ_BYTES];
        while left > 0 {
            stop.check().map_err(|error| self.io(error))?;
            let count = file.read(&mut buffer).map_err(|error| self.io(error))?;
            let count = count.min(usize::try_from(left).unwrap_or(usize::MAX));
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            context.update(bytes);
            left -= bytes.len() as u64;
        }
        self.check(descriptor, length, context)?;
        file.seek(SeekFrom::Start(start))
            .map_err(|error| self.io(error))?;
        Ok(file.take(length))
    }

    /// An error that names this layout.
    #[must_use]
    pub fn wrong(&self, reason: &str) -> ImageError {
        ImageError::Invalid([&self.path.to_string_lossy(), ": ", reason].concat())
    }

    fn io(&self, error: io::Error) -> ImageError {
        ImageError::Io(self.path.clone(), error)
    }

    fn blob_name(&self, descriptor: &Descriptor) -> Result<String, ImageError> {
        let hex = descriptor.hex().map_err(|reason| self.wrong(&reason))?;
        Ok(["blobs/sha256/", hex].concat())
    }

    fn document(&self, name: &str, is: Option<&Descriptor>) -> Result<Vec<u8>, ImageError> {
        let (file, _, length) = self.open(name)?;
        if length > JSON_BYTES_MAX {
            return Err(self.wrong(&[name, ": over 256 KiB"].concat()));
        }
        let mut bytes = Vec::new();
        file.take(length)
            .read_to_end(&mut bytes)
            .map_err(|error| self.io(error))?;
        if let Some(descriptor) = is {
            let mut context = Context::new(&SHA256);
            context.update(&bytes);
            self.check(descriptor, bytes.len() as u64, context)?;
        }
        Ok(bytes)
    }

    fn parse<T: for<'a> Deserialize<'a>>(&self, name: &str, bytes: &[u8]) -> Result<T, ImageError> {
        serde_json::from_slice(bytes)
            .map_err(|error| self.wrong(&[name, ": ", &error.to_string()].concat()))
    }

    fn check(
        &self,
        descriptor: &Descriptor,
        length: u64,
        context: Context,
    ) -> Result<(), ImageError> {
        if length != descriptor.size {
            let (have, want) = (length.to_string(), descriptor.size.to_string());
            let digest = clipped(&descriptor.digest);
            let text = [&digest, ": has ", &have, " bytes, and should have ", &want];
            return Err(self.wrong(&text.concat()));
        }
        let digest = context.finish();
        let hex: String = digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if descriptor.hex() == Ok(&hex) {
            Ok(())
        } else {
            let digest = clipped(&descriptor.digest);
            Err(self.wrong(&[&digest, ": the bytes do not have this digest"].concat()))
        }
    }

    /// A file of the layout: opened at its start, and its length.
    fn open(&self, name: &str) -> Result<(File, u64, u64), ImageError> {
        let path = match self.is_tar {
            true => self.path.clone(),
            false => self.path.join(name),
        };
        // Opening a pipe must not wait for a writer.
        let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let mut file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(nonblock)
            .open(&path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => self.wrong(&[name, " is missing"].concat()),
                _ => self.io(error),
            })?;
        let metadata = file.metadata().map_err(|error| self.io(error))?;
        if !metadata.is_file() {
            return Err(self.wrong(&[name, " is not a file"].concat()));
        }
        if !self.is_tar {
            return Ok((file, 0, metadata.len()));
        }
        let (start, length) = member(&file, name).map_err(|reason| self.wrong(&reason))?;
        if start
            .checked_add(length)
            .is_none_or(|end| end > metadata.len())
        {
            return Err(self.wrong(&[name, " is cut off"].concat()));
        }
        file.seek(SeekFrom::Start(start))
            .map_err(|error| self.io(error))?;
        Ok((file, start, length))
    }
}

/// Position of a file in a tar, and its length.
fn member(tar: &File, name: &str) -> Result<(u64, u64), String> {
    let mut magic = [0; 2];
    let begins = std::os::unix::fs::FileExt::read_at(tar, &mut magic, 0);
    if begins.is_ok_and(|count| count == 2) && magic == [0x1f, 0x8b] {
        return Err("is compressed: layers are already, so unpack it with gzip -d".to_owned());
    }
    let mut archive = Archive::new(tar);
    let entries = archive
        .entries_with_seek()
        .map_err(|error| error.to_string())?;
    let mut found = None;
    for entry in TarEntries::new(entries, TAR_ENTRIES_MAX) {
        let entry = entry?;
        let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
        if path != name.as_bytes() {
            continue;
        }
        if entry.kind != EntryType::Regular {
            return Err([name, " is not a file"].concat());
        }
        if found.replace((entry.position, entry.size)).is_some() {
            return Err([name, " is there twice"].concat());
        }
    }
    found.ok_or_else(|| [name, " is missing: is it a tar of an OCI layout?"].concat())
}

/// The one for this board, or one without a platform.
fn best<'d>(all: &[&'d Descriptor], arch: &str) -> Option<&'d Descriptor> {
    let fitting = all.iter().filter_map(|one| Some((one.fits(arch)?, *one)));
    let best = fitting.min_by_key(|(rank, _)| *rank);
    best.map(|(_, one)| one)
}

/// The same in an index, where each has a platform.
fn best_of_many<'d>(all: &[&'d Descriptor], arch: &str) -> Option<&'d Descriptor> {
    let saying: Vec<&Descriptor> = all
        .iter()
        .filter(|one| one.platform.is_some())
        .copied()
        .collect();
    best(&saying, arch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_that_of_docker_hub() {
        let nginx = "docker.io/library/nginx:1.27";
        for short in [
            "nginx:1.27",
            "docker.io/nginx:1.27",
            "index.docker.io/nginx:1.27",
            "index.docker.io/library/nginx:1.27",
            nginx,
        ] {
            assert_eq!(full_name(short), nginx);
        }
        assert_eq!(full_name("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full_name("toll/app"), "docker.io/toll/app:latest");
        assert_eq!(full_name("docker.io/toll/app"), "docker.io/toll/app:latest");
        for whole in ["example.com/a:1", "localhost/a:1", "host:5000/a/b:1"] {
            assert_eq!(full_name(whole), whole);
        }
        assert_eq!(full_name("host:5000/a"), "host:5000/a:latest");
    }
}
