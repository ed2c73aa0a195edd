//! How frames travel: the embedded hub, which terminates TLS and MQTT itself, or the one connection to
//! an external broker. What a frame means is decided by [`crate::sessions`], and who a node is by
//! [`crate::identity`].
//!
//! | file | duty |
//! |---|---|
//! | `hub` | the one port: admission, TLS, then an enrolment or one node's MQTT connection |
//! | `tls` | what the port shows and whom it lets in, made anew when the CAs change |
//! | `admission_queue` | which of the connections that wait is admitted next |
//! | `broker` | edge-cloud as a client of an external broker, and the files for the broker's operator |
//!
//! Started by [`crate::serve`] and called by nobody else. Hands frames to [`crate::sessions`], which hand theirs
//! to a [`Carrier`](crate::sessions::Carrier) of this folder; hands enrolments to [`crate::identity`]; adds
//! events.
//!
//! The port, the queue of connections, the places of those without a certificate and the queue of each socket
//! have a lock each. A carrier's is taken while the sessions' is held; nothing else is called under any of
//! them but the events, and the authorities under the port's.

pub mod admission_queue;
pub mod broker;
pub mod hub;
pub mod tls;
