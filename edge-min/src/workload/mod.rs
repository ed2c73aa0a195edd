//! Pods on the board: containers by runc and plain processes, from the start to the exit code, with
//! their cgroups, volumes and logs.

pub mod cgroup;
mod deadline;
pub mod exec;
mod failure;
pub mod launch;
pub mod logs;
mod oci;
mod place;
pub mod reaper;
pub mod runtime;
pub mod spec;
pub mod volume;
