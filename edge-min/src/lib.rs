//! The agent's shell: all access to the board. Decisions are in `edge-core` and
//! `edge-proto`; here sockets are opened, processes forked, file systems mounted, files written.

pub mod board;
pub mod cli;
pub mod driver;
pub mod image;
pub mod link;
pub mod local;
pub mod logger;
pub mod mounts;
pub mod paths;
pub mod storage;
pub mod sys;
pub mod worker;
pub mod workload;
