//! The board itself: its board file, the node's config, its name and its clock.

pub mod board_file;
pub mod clock;
pub mod config;
pub mod name;
mod outbox_settings;
pub mod toml_reader;
