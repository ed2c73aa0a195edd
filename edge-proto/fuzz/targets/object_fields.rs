//! Any bytes as the payload of each kind: what decodes must encode and decode to the same.
#![no_main]

use edge_proto::fields::Reader;
use edge_proto::object::{ConfigMap, NodePolicy, NodeStatus, Pod, PodStatus, Secret};
use libfuzzer_sys::fuzz_target;

macro_rules! check {
    ($bytes:expr, $($object:ty),*) => {
        $(if let Ok(object) = <$object>::decode($bytes) {
            assert!(<$object>::decode(&object.encode()) == Ok(object));
        })*
    };
}

fuzz_target!(|bytes: &[u8]| {
    let _ = Reader::new(bytes).count();
    check!(
        bytes, ConfigMap, NodePolicy, NodeStatus, Pod, PodStatus, Secret
    );
});
