//! Images from the OCI layouts in the preload folder: every byte checked against its digest,
//! layers unpacked once into `STATE/layers/<digest>` and never partly, and removed again when
//! nothing uses them and space is short.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use edge_core::flash::Subsystem;
use edge_core::images::{Layer, Need, Removal, Space};
use edge_core::spec::ImageConfig;
use edge_proto::sorted::SortedSet;

use crate::image::error::ImageError;
use crate::image::layout::{Config, ConfigFile, Descriptor, Layout, Manifest, Packing};
use crate::image::unpack;
use crate::mounts;
use crate::paths;
use crate::storage::{medium, tree};
use crate::worker::Stop;

/// Layouts of the preload folder that are searched.
const LAYOUTS_MAX: usize = 256;

/// Digests of layers that are about to be mounted: none of them is removed while this lives.
pub type Pin = Arc<SortedSet<String>>;

/// An image; `None` when a layer of it has to be unpacked.
type Found = Result<Option<Image>, ImageError>;

/// What a container needs of an image.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// Prevents their removal until they are mounted.
    pub pin: Pin,
    /// Its configuration of the process.
    pub config: ImageConfig,
}

/// The images of a board. Many threads may call [`Self::ready`]; all other methods are for one
/// thread, which unpacks and removes.
pub struct Images {
    preload: PathBuf,
    layers: PathBuf,
    pins: Mutex<Vec<Weak<SortedSet<String>>>>,
}

impl Images {
    /// Images from `preload`, unpacked below `state`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(state: &Path, preload: &Path) -> io::Result<Self> {
        let layers = paths::layers(state);
        tree::private(&layers)?;
        Ok(Self {
            preload: preload.to_owned(),
            layers,
            pins: Mutex::default(),
        })
    }

    /// Removes partly unpacked layers, for example after a power cut. It may take minutes on a slow medium.
    pub fn clear_remains(&self) {
        for entry in fs::read_dir(&self.layers).into_iter().flatten().flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .ends_with(paths::TEMPORARY)
                && let Err(error) = tree::remove(&entry.path())
            {
                // It wastes space, but pods can still run.
                log::warn!(
                    "layer_remains path={} error={error}",
                    entry.path().to_string_lossy()
                );
            }
        }
    }

    /// Unpacks and returns the image with this reference. `in_use` are the references of all desired pods:
    /// their layers stay when space must be freed.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing partly unpacked stays.
    pub fn ensure(
        &self,
        reference: &str,
        in_use: &[String],
        stop: &Stop,
    ) -> Result<Option<Image>, ImageError> {
        self.find(reference, &|layout, manifest| {
            self.unpacked(layout, manifest, in_use, stop)
        })
    }

    /// The image with this reference; `None` when a layer has to be unpacked, see
    /// [`Self::ensure`]. Quick, even while another thread unpacks.
    ///
    /// # Errors
    /// See [`ImageError`]. A damaged layer is only found when it is unpacked.
    pub fn ready(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        self.find(reference, &|layout, manifest| self.there(layout, manifest))
    }

    /// Applies `get` to the image in the first layout that has it. A damaged layout does not hide an image
    /// of another, and an unreadable one is no error of an image that it may not have.
    fn find(&self, reference: &str, get: &dyn Fn(&Layout, &Manifest) -> Found) -> Found {
        let (mut problem, mut unread) = (None, None);
        for layout in self.layouts() {
            let index = match layout.index() {
                Ok(index) => index,
                Err(error) => {
                    unread = unread.or(Some(error));
                    continue;
                }
            };
            let found = layout.find(&index, reference, std::env::consts::ARCH);
            match found.and_then(|found| found.map(|found| get(&layout, &found)).transpose()) {
                Ok(Some(image)) => return Ok(image),
                Ok(None) => {}
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        Err(problem.unwrap_or_else(|| self.missing(reference, unread)))
    }

    fn missing(&self, reference: &str, unread: Option<ImageError>) -> ImageError {
        let unread = unread.map_or_else(String::new, |error| {
            ["; one that cannot be read: ", &error.to_string()].concat()
        });
        let text = [
            "image ",
            reference,
            " is not in the preload folder: put an OCI layout that names it into ",
            &self.preload.to_string_lossy(),
            &unread,
        ];
        ImageError::Missing(text.concat())
    }

    fn there(&self, layout: &Layout, manifest: &Manifest) -> Result<Option<Image>, ImageError> {
        let file: ConfigFile = layout.verified(&manifest.config)?;
        let pin = self.pin(manifest);
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for layer in &manifest.layers {
            let (hex, _) = layout.layer_of(layer)?;
            let dir = self.layers.join(hex);
            if dir.is_dir() {
                layers.push(dir);
            }
        }
        let whole = layers.len() == manifest.layers.len();
        Ok(whole.then(|| image(file.config, layers, pin)))
    }

    fn pin(&self, manifest: &Manifest) -> Pin {
        let pin = Arc::new(hexes(manifest));
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.retain(|one| one.strong_count() > 0);
        pins.push(Arc::downgrade(&pin));
        pin
    }

    fn layouts(&self) -> impl Iterator<Item = Layout> {
        let entries = fs::read_dir(&self.preload).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.take(LAYOUTS_MAX).map(|one| one.path()).collect();
        paths.sort_unstable();
        paths.into_iter().filter_map(Layout::at)
    }

    fn unpacked(
        &self,
        layout: &Layout,
        manifest: &Manifest,
        in_use: &[String],
        stop: &Stop,
    ) -> Result<Option<Image>, ImageError> {
        let file: ConfigFile = layout.verified(&manifest.config)?;
        let pin = self.pin(manifest);
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for layer in &manifest.layers {
            let layer = self.layer(layout, layer, (manifest, in_use, &layers), stop)?;
            layers.push(layer);
        }
        Ok(Some(image(file.config, layers, pin)))
    }

    fn layer(
        &self,
        layout: &Layout,
        descriptor: &Descriptor,
        (of, in_use, below): (&Manifest, &[String], &[PathBuf]),
        stop: &Stop,
    ) -> Result<PathBuf, ImageError> {
        let (hex, packing) = layout.layer_of(descriptor)?;
        let target = self.layers.join(hex);
        if target.is_dir() {
            return Ok(target);
        }
        let mut keep = self.layers_of(in_use);
        keep.extend(hexes(of));
        let failed = |error| ImageError::Io(self.layers.clone(), error);
        let temporary = paths::layer_temporary(&self.layers, hex);
        let mut reason = String::new();
        for need in Need::ATTEMPTS {
            let removed = self.collect(&keep, need).map_err(failed)?;
            if !need.is_worth_an_attempt(removed) {
                break;
            }
            let blob = Stopping {
                blob: layout.layer(descriptor, stop)?,
                stop,
            };
            let result = self.unpack(blob, packing, (&temporary, below));
            match result.map_err(failed)? {
                Ok(()) => {
                    self.keep(&temporary, &target).map_err(failed)?;
                    return Ok(target);
                }
                Err(wrong) => reason = wrong,
            }
            tree::remove(&temporary).map_err(failed)?;
            stop.check().map_err(failed)?;
        }
        Err(layout.wrong(&["layer ", hex, ": ", &reason].concat()))
    }

    /// Gives a whole layer its name, durably.
    fn keep(&self, temporary: &Path, target: &Path) -> io::Result<()> {
        let dir = fs::File::open(&self.layers)?;
        rustix::fs::syncfs(&dir)?;
        medium::count(Subsystem::Images, 0, 1);
        fs::rename(temporary, target)?;
        medium::sync(&dir, Subsystem::Images)
    }

    fn unpack(
        &self,
        blob: impl io::Read,
        packing: Packing,
        (temporary, below): (&Path, &[PathBuf]),
    ) -> io::Result<Result<(), String>> {
        tree::remove(temporary)?;
        fs::create_dir(temporary)?;
        // The root directory of a container, for any user in it.
        fs::set_permissions(temporary, fs::Permissions::from_mode(0o755))?;
        let bytes_max = self.space()?.for_unpacking().min(unpack::BYTES_MAX);
        Ok(match packing {
            // Some tools write a layer as several gzip members.
            Packing::Gzip => {
                let plain = flate2::read::MultiGzDecoder::new(blob);
                unpack::unpack(plain, (temporary, below), bytes_max)
            }
            Packing::Plain => unpack::unpack(blob, (temporary, below), bytes_max),
        })
    }

    /// Removes layers that no desired pod uses and no container has mounted, as [`Removal`] decides;
    /// returns how many.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn collect_unused(&self, in_use: &[String]) -> io::Result<usize> {
        self.collect(&self.layers_of(in_use), Need::Space)
    }

    fn collect(&self, keep: &SortedSet<String>, need: Need) -> io::Result<usize> {
        let mut layers = Vec::new();
        for entry in fs::read_dir(&self.layers)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(paths::TEMPORARY) {
                let metadata = entry.metadata()?;
                layers.push(Layer {
                    used: keep.contains(&name),
                    digest: name,
                    // The rename after unpacking set it.
                    unpacked_at: (metadata.ctime(), metadata.ctime_nsec()),
                });
            }
        }
        let mut removal = Removal::new(layers, need);
        let mut removed = 0;
        while !removal.is_empty()
            && let Some(Layer { digest: name, .. }) = removal.next(self.space()?)
        {
            let gone = paths::layer_temporary(&self.layers, &name);
            tree::remove(&gone)?;
            if !self.set_for_removal(&name, &gone)? {
                continue;
            }
            tree::remove(&gone)?;
            removed += 1;
            log::info!("layer_removed digest={name}");
        }
        Ok(removed)
    }

    /// Renames a layer that is neither mounted nor about to be; returns `false` otherwise.
    fn set_for_removal(&self, name: &str, gone: &Path) -> io::Result<bool> {
        // A start that pins it after this finds it missing, and unpacks it again.
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let pinned = |pin: &Weak<SortedSet<String>>| {
            pin.upgrade().is_some_and(|layers| layers.contains(name))
        };
        // Mounted also by a container that still runs although its pod left the desired set.
        if pins.iter().any(pinned) || mounts::info()?.contains(name) {
            return Ok(false);
        }
        fs::rename(self.layers.join(name), gone)?;
        Ok(true)
    }

    /// Layers of these images. An image that is not in the preload folder any more has none: no container
    /// can start from it.
    fn layers_of(&self, references: &[String]) -> SortedSet<String> {
        let mut layers = SortedSet::new();
        for layout in self.layouts() {
            let Ok(index) = layout.index() else { continue };
            for reference in references {
                if let Ok(Some(manifest)) = layout.find(&index, reference, std::env::consts::ARCH) {
                    layers.extend(hexes(&manifest));
                }
            }
        }
        layers
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.layers)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space {
            free: bytes(stat.f_bavail),
            total: bytes(stat.f_blocks),
        })
    }
}

/// Reader of a layer that fails when its job must end.
struct Stopping<'s, R> {
    blob: R,
    stop: &'s Stop,
}

impl<R: io::Read> io::Read for Stopping<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        self.blob.read(bytes)
    }
}

fn hexes(manifest: &Manifest) -> SortedSet<String> {
    let hexes = manifest.layers.iter().filter_map(|one| one.hex().ok());
    hexes.map(str::to_owned).collect()
}

fn image(config: Config, layers: Vec<PathBuf>, pin: Pin) -> Image {
    let env = config.env.unwrap_or_default();
    Image {
        layers,
        pin,
        config: ImageConfig {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: env
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            working_dir: config.working_dir,
            user: config.user,
        },
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
