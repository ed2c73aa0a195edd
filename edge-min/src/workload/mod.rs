//! Pods on the board: containers by runc and plain processes, from the start to the exit code, with
//! their cgroups, volumes and logs.

pub mod cgroup;
pub mod exec;
pub mod launch;
pub mod logs;
mod oci;
pub mod reaper;
pub mod runtime;
pub mod spec;
pub mod volume;
