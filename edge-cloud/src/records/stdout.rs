//! Records as lines on standard output, for trials and for a supervisor that takes them from
//! there. At least once: a pipe has what was written, and nobody says what became of it.

use std::io::{self, Write as _};

use super::ledger::Plan;
use super::line;

/// Writes a plan. Blocks for as long as nobody reads.
///
/// # Errors
/// Those of standard output.
pub(super) fn write(node: &str, plan: &Plan) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(&line::all(node, plan))?;
    out.flush()
}
