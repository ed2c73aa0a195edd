//! How frames travel: the embedded hub, which terminates TLS and MQTT itself, or the one connection to
//! an external broker. Who a node is comes from [`crate::identity`], what a frame means is decided by
//! [`crate::sessions`].

pub mod admission_queue;
pub mod broker;
pub mod hub;
pub mod tls;
