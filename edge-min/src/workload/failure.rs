//! Why a container did not start, sorted by whether that counts as a run.

use std::io;

use edge_core::StartFailure;

/// The board could not make the container. Whoever asks again may have better luck.
pub(super) fn not_created(error: io::Error) -> StartFailure {
    StartFailure {
        reason: "CreateContainerError".to_owned(),
        message: error.to_string(),
        counts_as_run: false,
    }
}

pub(super) fn because(what: &str, error: &io::Error) -> StartFailure {
    not_created(io::Error::other([what, ": ", &error.to_string()].concat()))
}

/// The container could not run its program.
pub(super) fn not_run(message: String) -> StartFailure {
    StartFailure {
        reason: "RunContainerError".to_owned(),
        message,
        counts_as_run: true,
    }
}
