//! Why a container gets no image, by the party that must act.

use std::io;
use std::path::PathBuf;

/// Why there is no image.
#[derive(Debug)]
pub enum ImageError {
    /// Not in the preload folder: the operator must add it.
    Missing(String),
    /// It is in the preload folder, and invalid.
    Invalid(String),
    /// Error of the file system at this path.
    Io(PathBuf, io::Error),
}

impl ImageError {
    /// The reason that Kubernetes uses.
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
