//! Container images: where they come from, how they are verified and unpacked, and when they are
//! removed.

pub mod images;
pub mod layout;
mod records;
pub(crate) mod root;
pub mod unpack;
