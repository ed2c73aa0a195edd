//! Records as lines on standard output, for trials and for a supervisor that reads them from
//! there. At least once: records count as delivered when they are written to the pipe.

use std::io::{self, Write as _};

use super::ledger::Plan;
use super::line;

/// Writes a plan. Blocks while the pipe is full.
///
/// # Errors
/// Those of standard output.
pub(super) fn write(node: &str, plan: &Plan) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(&line::all(node, plan))?;
    out.flush()
}
