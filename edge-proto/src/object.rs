//! Objects of the replicated sets: our own compact types, never Kubernetes' types.
//!
//! Every struct that can grow is a field list ([`crate::fields`]); the number stands beside each
//! field in `encode`. Numbers are wire constants: append, never reuse.

mod capability;
mod config;
mod pod;
mod status;

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
