//! What the agent serves on the board itself, on unix sockets: the API of workloads, and the read
//! API of the command line.

pub mod http;
pub mod read_api;
pub mod status;
pub mod workload_api;
