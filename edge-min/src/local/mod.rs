//! Interfaces for people and programs on the board: the API of workloads and the
//! read API on unix sockets, and the commands that check a board or reset it.

pub mod check;
pub mod http;
pub mod read_api;
pub mod reset;
pub mod status;
pub mod workload_api;
