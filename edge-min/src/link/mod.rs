//! The uplink to the cloud: the one connection, its TLS, and the identity that it needs, from the
//! join to each renewal.

pub mod certificate;
pub mod connection;
pub mod csr;
pub mod identity;
pub mod join;
pub mod renew;
pub mod tls;
