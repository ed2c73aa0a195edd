//! The agent's log: one line per state change to stderr, `LEVEL event key=value`, from a fixed
//! buffer. Never panics, never blocks on anything but stderr itself.

use std::io::Write as _;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Bytes of one line; longer ones are truncated.
const LINE_BYTES_MAX: usize = 512;

struct Stderr;

/// Installs the logger; `debug` and `trace` are compiled out of release builds.
pub fn init() {
    // A second call (tests) keeps the first logger.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // rumqttc and rustls log their own retries; only our lines are about state.
        metadata.target().starts_with("edge_")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warn",
            _ => "info",
        };
        let mut line = heapless::Vec::<u8, LINE_BYTES_MAX>::new();
        // The buffer is fixed: it refuses further bytes when it is full.
        let cut = writeln!(Cut(&mut line), "{level} {}", record.args()).is_err();
        if cut && let Some(last) = line.last_mut() {
            *last = b'\n';
        }
        // If stderr is closed, the line is lost.
        drop(std::io::stderr().write_all(&line));
    }

    fn flush(&self) {}
}

struct Cut<'a>(&'a mut heapless::Vec<u8, LINE_BYTES_MAX>);

impl std::io::Write for Cut<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let free = self.0.capacity() - self.0.len();
        let part = bytes.get(..bytes.len().min(free)).unwrap_or_default();
        match self.0.extend_from_slice(part) {
            Ok(()) => Ok(part.len()),
            Err(_) => Ok(0),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
