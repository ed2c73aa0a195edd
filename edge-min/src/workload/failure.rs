//! Failures of a start, sorted by whether they count as a run.

use std::io;

use edge_core::StartFailure;

/// The board could not create the container. A later attempt may succeed.
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

/// The program of the container could not be executed.
pub(super) fn not_run(message: String) -> StartFailure {
    StartFailure {
        reason: "RunContainerError".to_owned(),
        message,
        counts_as_run: true,
    }
}
