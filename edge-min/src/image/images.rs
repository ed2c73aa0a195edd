//! Images from the OCI layouts in the preload folder: every byte checked against its digest,
//! layers unpacked once into `STATE/layers/<digest>` and never half, and removed again when
//! nothing uses them and room is short.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use edge_core::flash::Subsystem;
use edge_core::spec::ImageConfig;
use edge_proto::sorted::SortedSet;

use crate::image::error::ImageError;
use crate::image::layout::{Config, ConfigFile, Descriptor, Layout, Manifest, Packing};
use crate::image::unpack;
use crate::storage::{medium, tree};

/// Layouts of the preload folder that are looked at.
const LAYOUTS_MAX: usize = 256;
/// Layers that no desired pod uses and that are kept all the same: going back to an image that
/// ran a while ago then unpacks nothing.
const UNUSED_MAX: usize = 64;
/// Bytes of the medium that images leave free: the desired set and the logs of a day.
const FREE_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// Part of the medium that unused layers leave free, percent: Kubernetes' own threshold.
const FREE_PERCENT_MIN: u64 = 15;
/// Suffix of a layer that is not whole.
const TEMPORARY: &str = ".tmp";

/// What a container needs of an image.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// What it says about the process.
    pub config: ImageConfig,
}

/// The images of a board.
pub struct Images {
    preload: PathBuf,
    layers: PathBuf,
}

impl Images {
    /// Images from `preload`, unpacked below `state`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(state: &Path, preload: &Path) -> io::Result<Self> {
        let layers = state.join("layers");
        tree::private(&layers)?;
        Ok(Self {
            preload: preload.to_owned(),
            layers,
        })
    }

    /// Clears what a power cut left half. It may take minutes on a slow medium.
    pub fn clear_remains(&self) {
        for entry in fs::read_dir(&self.layers).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(TEMPORARY)
                && let Err(error) = tree::remove(&entry.path())
            {
                // It wastes room, and that is no reason to run no pods.
                log::warn!(
                    "layer_remains path={} error={error}",
                    entry.path().to_string_lossy()
                );
            }
        }
    }

    /// The image under this reference, unpacked. `in_use` are the references of all desired pods:
    /// their layers stay when room must be made.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing half-unpacked stays.
    pub fn ensure(&self, reference: &str, in_use: &[String]) -> Result<Image, ImageError> {
        // A damaged layout hides no image of another.
        let mut problem = None;
        for layout in self.layouts() {
            let found = layout.find(reference, std::env::consts::ARCH);
            match found.and_then(|found| match found {
                Some(manifest) => self.unpacked(&layout, &manifest, in_use).map(Some),
                None => Ok(None),
            }) {
                Ok(Some(image)) => return Ok(image),
                Ok(None) => {}
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        Err(problem.unwrap_or_else(|| {
            ImageError::Missing(
                [
                    "image ",
                    reference,
                    " is not in the preload folder: put an OCI layout that names it into ",
                    &self.preload.to_string_lossy(),
                ]
                .concat(),
            )
        }))
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
    ) -> Result<Image, ImageError> {
        let file: ConfigFile = layout.verified(&manifest.config)?;
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for layer in &manifest.layers {
            layers.push(self.layer(layout, layer, manifest, in_use)?);
        }
        image(file.config, layers).map_err(|reason| layout.wrong(&reason))
    }

    fn layer(
        &self,
        layout: &Layout,
        descriptor: &Descriptor,
        of: &Manifest,
        in_use: &[String],
    ) -> Result<PathBuf, ImageError> {
        let hex = descriptor.hex().map_err(|reason| layout.wrong(&reason))?;
        let target = self.layers.join(hex);
        if target.is_dir() {
            return Ok(target);
        }
        let packing = descriptor
            .packing()
            .map_err(|reason| layout.wrong(&reason))?;
        let mut keep = self.layers_of(in_use);
        keep.extend(hexes(of));
        let failed = |error| ImageError::Io(self.layers.clone(), error);
        self.collect(&keep, false).map_err(failed)?;
        let temporary = self.layers.join([hex, TEMPORARY].concat());
        let mut room_made = false;
        loop {
            let blob = layout.layer(descriptor)?;
            match self.unpack(blob, packing, &temporary).map_err(failed)? {
                Ok(()) => break,
                Err(reason) => {
                    tree::remove(&temporary).map_err(failed)?;
                    // Once more with all the room that there can be.
                    if room_made || self.collect(&keep, true).map_err(failed)? == 0 {
                        return Err(layout.wrong(&["layer ", hex, ": ", &reason].concat()));
                    }
                    room_made = true;
                }
            }
        }
        let dir = fs::File::open(&self.layers).map_err(failed)?;
        rustix::fs::syncfs(&dir).map_err(|error| failed(error.into()))?;
        medium::count(Subsystem::Images, 0, 1);
        fs::rename(&temporary, &target).map_err(failed)?;
        medium::sync(&dir, Subsystem::Images).map_err(failed)?;
        Ok(target)
    }

    fn unpack(
        &self,
        blob: impl io::Read,
        packing: Packing,
        temporary: &Path,
    ) -> io::Result<Result<(), String>> {
        tree::remove(temporary)?;
        fs::create_dir(temporary)?;
        // The root directory of a container, for any user in it.
        fs::set_permissions(temporary, fs::Permissions::from_mode(0o755))?;
        let (free, _) = self.room()?;
        let room = free.saturating_sub(FREE_BYTES_MIN);
        let bytes_max = room.min(unpack::BYTES_MAX);
        Ok(match packing {
            // Some tools write a layer as many members in a row.
            Packing::Gzip => {
                let plain = flate2::read::MultiGzDecoder::new(blob);
                unpack::unpack(plain, temporary, bytes_max)
            }
            Packing::Plain => unpack::unpack(blob, temporary, bytes_max),
        })
    }

    /// Removes layers that no desired pod uses and no container has mounted, oldest first, while
    /// there are too many or room is short; returns how many.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn collect_unused(&self, in_use: &[String]) -> io::Result<usize> {
        self.collect(&self.layers_of(in_use), false)
    }

    fn collect(&self, keep: &SortedSet<String>, all: bool) -> io::Result<usize> {
        let mut unused = Vec::new();
        for entry in fs::read_dir(&self.layers)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !keep.contains(&name) && !name.ends_with(TEMPORARY) {
                let metadata = entry.metadata()?;
                // The rename after unpacking set it.
                unused.push(((metadata.ctime(), metadata.ctime_nsec()), name));
            }
        }
        if unused.is_empty() {
            return Ok(0);
        }
        unused.sort_unstable();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut left = unused.len();
        let mut removed = 0;
        for (_, name) in unused {
            let (free, total) = self.room()?;
            let short = free < FREE_BYTES_MIN || free < total / 100 * FREE_PERCENT_MIN;
            if !(all || short || left > UNUSED_MAX) {
                break;
            }
            left -= 1;
            // A container that runs on, though its pod left the desired set.
            if mounts.contains(&name) {
                continue;
            }
            let gone = self.layers.join([&name, TEMPORARY].concat());
            tree::remove(&gone)?;
            fs::rename(self.layers.join(&name), &gone)?;
            tree::remove(&gone)?;
            removed += 1;
            log::info!("layer_removed digest={name}");
        }
        Ok(removed)
    }

    /// Layers of these images. One that is not in the preload folder any more has none: nothing
    /// could start from them.
    fn layers_of(&self, references: &[String]) -> SortedSet<String> {
        let mut layers = SortedSet::new();
        for layout in self.layouts() {
            for reference in references {
                if let Ok(Some(manifest)) = layout.find(reference, std::env::consts::ARCH) {
                    layers.extend(hexes(&manifest));
                }
            }
        }
        layers
    }

    /// Free and all bytes of the medium.
    fn room(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.layers)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok((bytes(stat.f_bavail), bytes(stat.f_blocks)))
    }
}

fn hexes(manifest: &Manifest) -> SortedSet<String> {
    let hexes = manifest.layers.iter().filter_map(|one| one.hex().ok());
    hexes.map(str::to_owned).collect()
}

fn image(config: Config, layers: Vec<PathBuf>) -> Result<Image, String> {
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
            return Err(text.concat());
        }
    };
    let env = config.env.unwrap_or_default();
    Ok(Image {
        layers,
        config: ImageConfig {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: env
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            working_dir: config.working_dir,
            user,
        },
    })
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
