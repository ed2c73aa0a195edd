//! Container images: where they come from, how they are verified and unpacked, and when they are
//! removed.

pub mod error;
pub mod images;
pub mod layout;
pub(crate) mod root;
mod tar_entries;
pub mod unpack;
