//! The manifest reader of edge-cloud alone; `manifest.rs` and its folder are links.
pub mod manifest;
