//! Transport of frames: the embedded hub, which terminates TLS and MQTT itself, or the one connection to
//! an external broker. [`crate::sessions`] handles the content of frames, and [`crate::identity`]
//! identifies nodes.
//!
//! | file | duty |
//! |---|---|
//! | `hub` | the one port: admission, TLS, then an enrolment or one node's MQTT connection |
//! | `tls` | the port's certificate and the accepted CAs, created again when the CAs change |
//! | `admission_queue` | which of the waiting connections is admitted next |
//! | `broker` | edge-cloud as a client of an external broker, and the files for the broker's operator |
//!
//! Started by [`crate::serve`] only. Passes frames to [`crate::sessions`], which pass theirs
//! to a [`Carrier`](crate::sessions::Carrier) of this folder; passes enrolments to [`crate::identity`]; adds
//! events.
//!
//! The port, the queue of connections, the places of those without a certificate and the queue of each socket
//! have a lock each. A carrier's is taken while the sessions' is held; nothing else is called under any of
//! them except the events, and the authorities under the port's.

pub mod admission_queue;
pub mod broker;
pub mod hub;
pub mod tls;
