//! Objects of the replicated sets: our own compact types, never Kubernetes' types.
//!
//! Every type that can grow is a field list ([`crate::fields`]), at every depth; a table beside the
//! types has the number of each member. Numbers are wire constants: append, never reuse. Pairs, as
//! labels and data are, do not grow.

mod capability;
mod config;
mod pod;
mod status;
#[cfg(test)]
mod tests;

pub use capability::{
    CAPABILITIES_ALL, CAPABILITIES_DEFAULT, CAPABILITY_NAMES, capability, granted,
};
pub use config::{ConfigMap, Data, LaneLimit, NodePolicy, Secret};
pub use pod::{
    Container, EnvFrom, EnvValue, EnvVar, Pod, Resources, RestartPolicy, RuntimeClass, Volume,
    VolumeMount, VolumeSource,
};
pub use status::{
    Condition, ContainerState, ContainerStatus, NodeStatus, Phase, PodStatus, Refused, clip,
};
