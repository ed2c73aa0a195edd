//! The cloud end of edge-min: reads manifests, places pods, and serves the nodes' links.
//!
//! Embedded on one machine; desired state comes from a folder and status goes to an API, both
//! behind small traits.

pub mod api;
pub mod backup;
pub mod changes;
pub mod cli;
pub mod client;
mod clock;
pub mod controller;
mod durable;
pub mod events;
pub mod fleet;
mod hex;
pub mod identity;
pub mod journal;
pub mod manifest;
pub mod metrics;
pub mod nodes;
pub mod objects;
pub mod placement;
pub mod pod_key;
pub mod records;
pub mod saved;
pub mod serve;
pub mod sessions;
pub mod shards;
pub mod source;
pub mod transport;
