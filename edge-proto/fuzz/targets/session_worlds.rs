//! Scripted simulations: both ends with their stores, outbox and sink, over a network that loses,
//! duplicates and reorders, with changes, disconnects, restarts, stale replicas and restored backups.
//! The script makes each decision; when it ends, the faults end, and everything must have arrived.
//! The simulations are those of the tests, which run them from seeds.
#![no_main]

#[path = "../../tests/link/network.rs"]
mod network;
#[allow(dead_code, unused_imports, reason = "its tests use more of it")]
#[path = "../../tests/link/streams.rs"]
mod streams;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/link/support.rs"]
mod support;

use libfuzzer_sys::fuzz_target;
use support::Rng;

fuzz_target!(|script: &[u8]| {
    match script.split_first() {
        Some((0..128, script)) => network::survives(Rng::of_script(script), 0),
        Some((_, script)) => streams::survives(Rng::of_script(script), 0),
        None => {}
    }
});
