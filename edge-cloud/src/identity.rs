//! Who a node is: the CAs, the tokens by which nodes join, the registry of those that have joined, and
//! the enrolment that gives them certificates.
//!
//! Calls nothing of edge-cloud but itself, [`crate::events`] and [`crate::clock`].

pub mod authorities;
pub mod ca;
pub mod enrol;
pub mod registry;
pub mod token;
