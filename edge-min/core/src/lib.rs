//! Every decision of the agent. No clock, no IO, no threads: the shell passes in events
//! ([`Input`]) and performs the outputs ([`Output`]).
//!
//! The contract, on the board, in tests and in a simulator alike:
//!
//! ```text
//! loop {
//!     agent.handle(now, input);                    // exactly one event
//!     while let Some(output) = agent.poll() { .. } // drain
//!     wait until agent.deadline() (then Input::Tick) or the next event
//! }
//! ```
//!
//! The shell answers every `PreparePod`, `Start`, `Remove` and `RemovePod`, and every
//! [`UplinkOutput::Join`], [`UplinkOutput::Connect`] and [`UplinkOutput::Renew`], with exactly one
//! input.
//! It reports the end of a run once, as `Exited`, which may come before the `Started` of that run;
//! `Discovered` comes once, and nothing is prepared or started before it. A `Report` is output only
//! when the payload has changed. Outputs are complete: the shell never looks up here what they
//! name.
//!
//! [`Agent`] is composed of parts that own one noun each: `pods` (with `pod`, `supervisor`,
//! `reconcile` and what a container is started with, [`spec`] and `host_paths`), `config_objects`, `node`,
//! `uplink` (with `urls`, `certificates`, [`renewal`], [`reconnect`]) and [`flash`]; their timers stand in
//! one table, `timer`. [`calls`] says what calls are answered with. [`outbox`], [`sync_scheduler`], [`write_scheduler`], [`images`] and [`time`] are driven by
//! threads of the shell.
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
pub mod calls;
mod certificates;
mod config_objects;
mod event;
pub mod flash;
mod host_paths;
pub mod images;
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
pub mod sync_scheduler;
pub mod time;
mod timer;
mod uplink;
mod urls;
pub mod write_scheduler;

pub use agent::Agent;
pub use certificates::Certificate;
pub use event::Event;
pub use host_paths::HostPaths;
pub use port::{
    AgentConfig, CertificateInput, Discovered, Fault, Input, Output, Signal, UplinkInput,
    UplinkOutput,
};
pub use supervisor::{EXIT_NOT_RUN, StartFailure};
pub use urls::Urls;
