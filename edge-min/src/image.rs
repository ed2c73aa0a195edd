//! Images from an OCI layout (a directory) in the preload folder: every byte checked against its
//! digest, layers unpacked once into `STATE/layers/<digest>` and never half.

mod unpack;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde::Deserialize;

/// Bytes of an index, manifest or config.
const JSON_BYTES_MAX: u64 = 1024 * 1024;
/// Layers of an image: overlay's option string must stay below a page.
const LAYERS_MAX: usize = 32;

/// What a container needs of an image.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Working directory; empty is `/`.
    pub working_dir: String,
    /// Numeric user, if the image names one.
    pub user: Option<u32>,
}

/// Why there is no image.
#[derive(Debug)]
pub enum ImageError {
    /// Not in the preload folder.
    Missing(String),
    /// It is there, and wrong.
    Invalid(String),
    /// The file system.
    Io(PathBuf, io::Error),
}

impl ImageError {
    /// Kubernetes' reason.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => "ErrImageNeverPull",
            Self::Invalid(_) => "ImageInspectError",
            Self::Io(..) => "CreateContainerError",
        }
    }
}

impl core::fmt::Display for ImageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Missing(text) | Self::Invalid(text) => f.write_str(text),
            Self::Io(path, error) => write!(f, "{}: {error}", path.to_string_lossy()),
        }
    }
}

impl core::error::Error for ImageError {}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(default, rename = "mediaType")]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: String,
    user: String,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    config: Config,
}

/// The images of a board.
pub struct Images {
    preload: PathBuf,
    layers: PathBuf,
}

impl Images {
    /// Images from `preload`, unpacked below `state`. Clears what a power cut left half.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(state: &Path, preload: &Path) -> io::Result<Self> {
        let layers = state.join("layers");
        fs::create_dir_all(&layers)?;
        for entry in fs::read_dir(&layers)?.flatten() {
            if entry.file_name().to_string_lossy().ends_with(".tmp") {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self {
            preload: preload.to_owned(),
            layers,
        })
    }

    /// The image under this reference, unpacked.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing half-unpacked stays.
    pub fn ensure(&self, reference: &str) -> Result<Image, ImageError> {
        for entry in fs::read_dir(&self.preload).into_iter().flatten().flatten() {
            let layout = entry.path();
            if !layout.join("oci-layout").is_file() {
                continue;
            }
            let index: Index = parse(&layout.join("index.json"))?;
            let named = index
                .manifests
                .iter()
                .find(|descriptor| matches(descriptor, reference));
            if let Some(descriptor) = named {
                return self.unpack(&layout, descriptor, 0);
            }
        }
        Err(ImageError::Missing(
            [
                "image ",
                reference,
                " is not in the preload folder: put an OCI layout that names it into ",
                &self.preload.to_string_lossy(),
            ]
            .concat(),
        ))
    }

    fn unpack(
        &self,
        layout: &Path,
        descriptor: &Descriptor,
        depth: u8,
    ) -> Result<Image, ImageError> {
        if descriptor.media_type.contains("index") || descriptor.media_type.contains("list") {
            let index: Index = verified_json(layout, descriptor)?;
            let arch = match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            };
            let fits = |one: &&Descriptor| {
                one.platform
                    .as_ref()
                    .is_some_and(|platform| platform.architecture == arch)
            };
            let ours = index.manifests.iter().find(fits).filter(|_| depth == 0);
            let ours = ours.ok_or_else(|| {
                ImageError::Invalid(["the image has no platform ", arch].concat())
            })?;
            return self.unpack(layout, ours, depth + 1);
        }
        let manifest: Manifest = verified_json(layout, descriptor)?;
        let file: ConfigFile = verified_json(layout, &manifest.config)?;
        if manifest.layers.len() > LAYERS_MAX {
            return Err(ImageError::Invalid(
                "the image has more than 32 layers".to_owned(),
            ));
        }
        let layers = manifest
            .layers
            .iter()
            .map(|layer| self.layer(layout, layer));
        let layers = layers.collect::<Result<_, _>>()?;
        let config = file.config;
        let env = config.env.unwrap_or_default();
        let user = config.user.split(':').next().unwrap_or("");
        let user = match (user, user.parse()) {
            ("" | "root", _) => None,
            (_, Ok(number)) => Some(number),
            (name, Err(_)) => {
                let text = [
                    "the image's user ",
                    name,
                    " is not a number: set securityContext.runAsUser",
                ];
                return Err(ImageError::Invalid(text.concat()));
            }
        };
        Ok(Image {
            layers,
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: env
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            working_dir: config.working_dir,
            user,
        })
    }

    fn layer(&self, layout: &Path, descriptor: &Descriptor) -> Result<PathBuf, ImageError> {
        let hex = digest_hex(&descriptor.digest)?;
        let target = self.layers.join(hex);
        if target.is_dir() {
            return Ok(target);
        }
        let blob = blob_path(layout, descriptor)?;
        // Verified in a pass of its own: nothing of an altered layer is ever interpreted.
        verify(&blob, descriptor)?;
        let temporary = self.layers.join([hex, ".tmp"].concat());
        let failed = |error| ImageError::Io(blob.clone(), error);
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(failed)?;
        }
        fs::create_dir_all(&temporary).map_err(failed)?;
        let file = fs::File::open(&blob).map_err(failed)?;
        let gzip = descriptor.media_type.ends_with("gzip");
        let unpacked = match (gzip, descriptor.media_type.contains("zstd")) {
            (_, true) => Err("zstd layers are not supported: use gzip".to_owned()),
            (true, _) => unpack::unpack(flate2::read::GzDecoder::new(file), &temporary),
            (false, _) => unpack::unpack(file, &temporary),
        };
        if let Err(reason) = unpacked {
            fs::remove_dir_all(&temporary).map_err(failed)?;
            return Err(ImageError::Invalid(
                [&descriptor.digest, ": ", &reason].concat(),
            ));
        }
        let dir = fs::File::open(&self.layers).map_err(failed)?;
        rustix::fs::syncfs(&dir).map_err(|error| failed(error.into()))?;
        fs::rename(&temporary, &target).map_err(failed)?;
        dir.sync_all().map_err(failed)?;
        Ok(target)
    }
}

fn matches(descriptor: &Descriptor, reference: &str) -> bool {
    if let Some((_, digest)) = reference.split_once('@') {
        return descriptor.digest == digest;
    }
    let name = descriptor
        .annotations
        .get("org.opencontainers.image.ref.name")
        .or_else(|| descriptor.annotations.get("io.containerd.image.name"));
    let tagged = |text: &str| match text
        .rsplit_once('/')
        .map_or(text, |(_, last)| last)
        .contains(':')
    {
        true => text.to_owned(),
        false => [text, ":latest"].concat(),
    };
    name.is_some_and(|name| name == reference || tagged(name) == tagged(reference))
}

fn digest_hex(digest: &str) -> Result<&str, ImageError> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .ok_or_else(|| ImageError::Invalid(["digest ", digest, " is not a sha256"].concat()))
}

fn blob_path(layout: &Path, descriptor: &Descriptor) -> Result<PathBuf, ImageError> {
    Ok(layout
        .join("blobs/sha256")
        .join(digest_hex(&descriptor.digest)?))
}

fn verify(path: &Path, descriptor: &Descriptor) -> Result<(), ImageError> {
    let failed = |error| ImageError::Io(path.to_owned(), error);
    let mut file = fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() != descriptor.size {
        return Err(ImageError::Invalid(
            [&descriptor.digest, ": wrong size"].concat(),
        ));
    }
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            break;
        }
        context.update(buffer.get(..count).unwrap_or_default());
    }
    let digest = context.finish();
    let hex: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if hex == digest_hex(&descriptor.digest)? {
        Ok(())
    } else {
        Err(ImageError::Invalid(
            [&descriptor.digest, ": the bytes do not have this digest"].concat(),
        ))
    }
}

fn verified_json<T: for<'a> Deserialize<'a>>(
    layout: &Path,
    descriptor: &Descriptor,
) -> Result<T, ImageError> {
    let path = blob_path(layout, descriptor)?;
    if descriptor.size > JSON_BYTES_MAX {
        return Err(ImageError::Invalid(
            [&descriptor.digest, ": over 1 MiB"].concat(),
        ));
    }
    verify(&path, descriptor)?;
    parse(&path)
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, ImageError> {
    let failed = |error| ImageError::Io(path.to_owned(), error);
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(JSON_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > JSON_BYTES_MAX {
        return Err(ImageError::Invalid(
            [&path.to_string_lossy(), ": over 1 MiB"].concat(),
        ));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        ImageError::Invalid([&path.to_string_lossy(), ": ", &error.to_string()].concat())
    })
}
