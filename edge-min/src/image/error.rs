//! Why a container gets no image, sorted by who has to act.

use std::io;
use std::path::PathBuf;

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
