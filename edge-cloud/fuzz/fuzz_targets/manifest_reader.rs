//! Any text as a manifest file: it is read or refused, and what is accepted fits the wire.
#![no_main]

use edge_cloud_fuzz::manifest::{Accepted, Manifests};
use edge_proto::key::Uid;
use edge_proto::limits::{CONFIG_BYTES_MAX, POD_BYTES_MAX};
use edge_proto::object::{NodePolicy, Pod};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut manifests = Manifests::default();
    manifests.add_file("fuzz.yaml", text);
    for (_, object) in manifests.objects.values() {
        match object {
            Accepted::Config(payload) => assert!(payload.len() <= CONFIG_BYTES_MAX),
            Accepted::Policy(policy) => {
                let payload = policy.policy.encode();
                assert!(NodePolicy::decode(&payload).as_ref() == Ok(&policy.policy));
            }
            Accepted::Workload(template) | Accepted::Replicated(template, _) => {
                let pod = Pod {
                    uid: Uid([1; 16]),
                    ..template.pod.clone()
                };
                let payload = pod.encode();
                assert!(payload.len() <= POD_BYTES_MAX);
                assert!(Pod::decode(&payload) == Ok(pod));
            }
        }
    }
});
