//! Every decision of the agent. No clock, no IO, no threads: the shell passes in what happened
//! ([`Input`]) and does what comes out ([`Output`]).
//!
//! The contract, on the board, in tests and in a simulator alike:
//!
//! ```text
//! loop {
//!     agent.handle(now, input);                    // exactly one thing happened
//!     while let Some(output) = agent.poll() { .. } // drain
//!     wait until agent.deadline() (then Input::Tick) or the next event
//! }
//! ```
//!
//! The shell answers every `PreparePod`, `Start`, `Remove` and `RemovePod` with exactly one input.
//! It reports the end of a run once, as `Exited`, which may come before the `Started` of that run;
//! `Discovered` comes once, and nothing is prepared or started before it. A `Report` comes out only
//! when the payload changed.
#![no_std]
#![forbid(unsafe_code)]
#![warn(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::alloc_instead_of_core
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod agent;
pub mod backoff;
mod config_objects;
mod event;
pub mod flash;
pub mod limits;
mod node;
pub mod outbox;
mod pod;
mod pods;
mod port;
mod reconcile;
pub mod reconnect;
pub mod renewal;
pub mod spec;
mod supervisor;
pub mod time;
mod timer;
pub mod write_scheduler;

pub use agent::Agent;
pub use event::Event;
pub use port::{AgentConfig, Discovered, Input, Output, Signal};
pub use supervisor::{EXIT_NOT_RUN, StartFailure};
