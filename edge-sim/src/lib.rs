//! A deterministic simulator of a fleet: the real agent core ([`edge_core::Agent`]), the real
//! reconnect rule and the real sessions of both ends, over models of what lies between them (lines,
//! an MQTT broker, stores, a container runtime, wall clocks), in virtual time.
//!
//! One process, one seed, one queue of events: the same seed gives the same run to the last byte.
//! Nothing here decides for a node or the cloud; the models only lose, delay and break
//! things, and the invariants in `check` are verified. `docs/simulation.md` describes its use.
//!
//! [`swarm`] is the opposite: real time, real sockets and TLS, against a real edge-cloud.

mod board;
mod broker;
mod calls;
mod certs;
mod check;
mod cloud;
mod controller;
mod event;
mod faults;
mod line;
mod outbox;
mod queue;
mod report;
pub mod rng;
pub mod scenario;
pub mod seeds;
mod shell;
mod store;
pub mod svg;
pub mod swarm;
mod uplink;
mod world;

pub use check::Violation;
pub use report::{Outcome, Second, Series, Stats};
pub use world::World;
