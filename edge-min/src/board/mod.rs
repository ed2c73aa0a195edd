//! The board itself: its board file, the node's config, its name and its clock, and the check of
//! what it lacks.

pub mod board_file;
pub mod check;
pub mod clock;
pub mod config;
pub mod name;
