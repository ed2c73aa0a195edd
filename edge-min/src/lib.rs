//! The agent's shell: everything that touches the board. Decisions are `edge-core`'s and
//! `edge-proto`'s; here sockets are opened, processes forked, file systems mounted, files written.

pub mod csr;
pub mod identity;
pub mod join;
pub mod link;
pub mod tls;
