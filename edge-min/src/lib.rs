//! The agent's shell: everything that touches the board. Decisions are `edge-core`'s and
//! `edge-proto`'s; here sockets are opened, processes forked, file systems mounted, files written.

pub mod api;
pub mod board;
pub mod certificate;
pub mod cgroup;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod csr;
pub mod driver;
pub mod exec;
pub mod identity;
pub mod image;
pub mod join;
pub mod launch;
pub mod link;
pub mod local;
pub mod lock;
pub mod logger;
pub mod logs;
pub mod medium;
pub mod name;
pub mod outbox;
pub mod reaper;
pub mod renew;
pub mod reset;
mod resolve;
pub mod runtime;
pub mod seal;
pub mod status;
pub mod store;
pub mod sys;
pub mod tls;
pub mod tree;
pub mod wear;
pub mod workers;
