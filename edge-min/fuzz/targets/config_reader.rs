//! Text as the agent's config: no text may panic, and what is accepted is TOML.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use edge_min::board::{config, toml_reader};
use edge_min_fuzz::scratch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let file = FILE.get_or_init(|| scratch("config").join("edge-min.toml"));
    fs::write(file, data).unwrap();
    if let Err(error) = config::load(file) {
        assert!(!error.to_string().is_empty());
    }
    if let Ok(text) = std::str::from_utf8(data)
        && toml_reader::parse(text).is_ok()
    {
        assert!(text.parse::<toml::Table>().is_ok(), "accepted, and not TOML");
    }
});
