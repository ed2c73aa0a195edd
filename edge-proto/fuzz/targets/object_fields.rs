//! Any bytes as the payload of each kind, and as each list of fields inside them: what decodes must
//! encode again to the same bytes.
#![no_main]

use edge_proto::fields::Reader;
use edge_proto::object::{
    Condition, ConfigMap, Container, ContainerStatus, EnvFrom, EnvVar, LaneLimit, NodePolicy,
    NodeStatus, Pod, PodStatus, Refused, Resources, Secret, Volume, VolumeMount,
};
use libfuzzer_sys::fuzz_target;

macro_rules! check {
    ($bytes:expr, $($object:ty),* $(,)?) => {
        $(if let Ok(object) = <$object>::decode($bytes) {
            assert!(<$object>::decode(&object.encode()) == Ok(object));
        })*
    };
}

fuzz_target!(|bytes: &[u8]| {
    let _ = Reader::new(bytes).count();
    check!(
        bytes,
        Condition,
        ConfigMap,
        Container,
        ContainerStatus,
        EnvFrom,
        EnvVar,
        LaneLimit,
        NodePolicy,
        NodeStatus,
        Pod,
        PodStatus,
        Refused,
        Resources,
        Secret,
        Volume,
        VolumeMount,
    );
});
