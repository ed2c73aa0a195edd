//! Encoded objects: pinned for every field and variant. Also: reading objects of a later version, truncated
//! objects and false lengths.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use std::format;

use super::*;
use crate::fields::tests::{NEW_FIELD, newer};
use crate::fields::{Fault, FieldError, FieldList, FieldPath, Skip, decode, encode};
use crate::hash::Hash16;
use crate::key::{Key, Uid};
use crate::limits::{
    ARGV_MAX, CONDITIONS_MAX, CONTAINERS_MAX, DATA_KEYS_MAX, ENV_MAX, FILES_MAX, LABELS_MAX,
    REFUSED_LISTED_MAX, VOLUMES_MAX,
};
use crate::wire::Wire as _;

/// One object of a kind, and a function that decodes it and encodes it again.
struct Sample {
    name: &'static str,
    object: alloc::boxed::Box<dyn FieldList>,
    again: fn(&[u8]) -> Result<Vec<u8>, FieldError>,
}

fn sample<T: FieldList + Default + 'static>(name: &'static str, object: T) -> Sample {
    Sample {
        name,
        object: alloc::boxed::Box::new(object),
        again: |bytes| decode::<T>(bytes).map(|object| encode(&object)),
    }
}

fn container() -> Container {
    let name = || String::from("x");
    Container {
        name: "main".into(),
        image: "i".into(),
        command: vec!["/bin/toll".into()],
        args: vec!["-v".into(), String::new()],
        working_dir: Some("/".into()),
        env: vec![
            EnvVar {
                name: "A".into(),
                value: EnvValue::Literal("1".into()),
            },
            EnvVar {
                name: "EMPTY".into(),
                value: EnvValue::default(),
            },
            EnvVar {
                name: "B".into(),
                value: EnvValue::ConfigMap {
                    name: name(),
                    key: "k".into(),
                    optional: false,
                },
            },
            EnvVar {
                name: "C".into(),
                value: EnvValue::Secret {
                    name: name(),
                    key: "k".into(),
                    optional: true,
                },
            },
        ],
        env_from: vec![EnvFrom {
            secret: true,
            name: name(),
            prefix: "P_".into(),
            optional: true,
        }],
        mounts: vec![VolumeMount {
            volume: "v".into(),
            path: "/v".into(),
            sub_path: "s".into(),
            read_only: true,
        }],
        resources: Resources {
            cpu_millis: Some(500),
            memory_bytes: Some(1 << 26),
            pids: Some(64),
        },
        user: Some(0),
        group: Some(1000),
        read_only_root: true,
        add_capabilities: 1 << 12,
        drop_capabilities: CAPABILITIES_ALL,
        privileged: true,
    }
}

fn pod() -> Pod {
    let files = || vec![("k".into(), "f".into()), ("l".into(), "d/g".into())];
    let volume = |name: &str, source| Volume {
        name: name.into(),
        source,
    };
    Pod {
        uid: Uid([7; 16]),
        namespace: "default".into(),
        name: "toll".into(),
        labels: vec![("app".into(), "toll".into())],
        runtime: RuntimeClass::Process,
        restart_policy: RestartPolicy::OnFailure,
        grace_s: Some(5),
        host_network: true,
        terminating: true,
        containers: vec![
            container(),
            Container {
                name: "b".into(),
                ..Container::default()
            },
        ],
        volumes: vec![
            volume("e", VolumeSource::default()),
            volume(
                "m",
                VolumeSource::EmptyDir {
                    memory: true,
                    size_bytes: 4096,
                },
            ),
            volume(
                "h",
                VolumeSource::HostPath {
                    path: "/dev".into(),
                    create: true,
                },
            ),
            volume(
                "c",
                VolumeSource::ConfigMap {
                    name: "c".into(),
                    items: files(),
                    mode: 0o400,
                    optional: true,
                },
            ),
            volume(
                "s",
                VolumeSource::Secret {
                    name: "s".into(),
                    items: files(),
                    mode: 0,
                    optional: false,
                },
            ),
        ],
    }
}

fn pod_status() -> PodStatus {
    let container = |name: &str, state| ContainerStatus {
        name: name.into(),
        state,
        restarts: 3,
        last_exit_code: Some(-1),
        last_oom: true,
    };
    PodStatus {
        uid: Uid([7; 16]),
        namespace: "default".into(),
        name: "toll".into(),
        phase: Phase::Running,
        reason: "r".into(),
        message: "m".into(),
        containers: vec![
            container(
                "w",
                ContainerState::Waiting {
                    reason: "CrashLoopBackOff".into(),
                    message: "m".into(),
                },
            ),
            container("r", ContainerState::Running { pid: 300 }),
            container(
                "t",
                ContainerState::Terminated {
                    exit_code: Some(137),
                    reason: "OOMKilled".into(),
                },
            ),
        ],
        observed: Hash16([9; 16]),
    }
}

fn node_status() -> NodeStatus {
    NodeStatus {
        agent: "edge-min/1".into(),
        arch: "arm".into(),
        kernel: "6.1".into(),
        board: "b".into(),
        cpus: 4,
        memory_bytes: 1 << 30,
        pods_max: 50,
        boot_id: "id".into(),
        conditions: vec![Condition {
            name: "DiskPressure".into(),
            holds: true,
            message: "m".into(),
        }],
        refused: vec![Refused {
            key: Key::pod(Uid([7; 16])),
            hash: Hash16([9; 16]),
            reason: "r".into(),
        }],
        refused_count: 1,
        labels: vec![("site".into(), "a".into())],
    }
}

fn samples() -> Vec<Sample> {
    let data = || vec![("k".into(), vec![1, 2]), ("l".into(), Vec::new())];
    vec![
        sample("Pod", pod()),
        sample("ConfigMap", ConfigMap { data: data() }),
        sample("Secret", Secret { data: data() }),
        sample(
            "NodePolicy",
            NodePolicy {
                keepalive_s: Some(60),
                reconnect_spread_s: Some(30),
                bandwidth_up: Some(200_000),
                bandwidth_down: Some(900_000),
                blob_share_percent: Some(10),
                limits: vec![LaneLimit {
                    lane: 5,
                    up: 1,
                    down: 500_000,
                }],
            },
        ),
        sample("NodeStatus", node_status()),
        sample("PodStatus", pod_status()),
    ]
}

/// Hex, with a line for each field of the object.
fn lines(sample: &Sample) -> String {
    let bytes = encode(&*sample.object);
    let mut lines = format!("{}\n", sample.name);
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let field = rest;
        crate::wire::take_count(&mut rest).unwrap();
        let count = crate::wire::take_count(&mut rest).unwrap();
        crate::wire::take_slice(count, &mut rest).unwrap();
        let field = &field[..field.len() - rest.len()];
        let hex: String = field.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push_str(&hex);
        lines.push('\n');
    }
    lines
}

/// Goal: the encoding of what is stored and sent in a fleet does not change unnoticed. Method: an
/// object of each kind with every field and variant.
#[test]
fn every_object_keeps_its_bytes() {
    let ours: String = samples().iter().map(lines).collect();
    let golden = include_str!("../../tests/golden_objects.txt");
    assert_eq!(ours, golden, "\nthe wire changed; ours is:\n{ours}");
    for sample in samples() {
        let bytes = encode(&*sample.object);
        assert_eq!((sample.again)(&bytes), Ok(bytes), "{}", sample.name);
    }
    // An object of defaults only has no bytes.
    assert_eq!(encode(&NodeStatus::default()), []);
    assert_eq!(encode(&EnvValue::default()), []);
}

/// Goal: every list of fields can grow. Method: the encoder puts a field that does not exist yet at the
/// end of each list that it writes, one after the other, at every depth. If the reader may skip it, the
/// object stays as it was; if the reader must understand it, the object is refused by the field's path. The
/// test checks that the paths cover all levels.
#[test]
fn a_newer_field_at_every_level_is_skipped_or_refused_by_number() {
    let mut seen = BTreeSet::new();
    for sample in samples() {
        let object = &*sample.object;
        let bytes = encode(object);
        let mut place = 0;
        while let Some(with) = newer(object, place, Skip::Allowed) {
            assert!(with.len() > bytes.len());
            assert_eq!((sample.again)(&with).as_ref(), Ok(&bytes), "{place}");
            let with = newer(object, place, Skip::Refused).unwrap();
            let error = (sample.again)(&with).unwrap_err();
            assert_eq!(error.fault, Fault::Unknown);
            let path = error.path.to_string();
            let level = path.strip_suffix(&NEW_FIELD.to_string()).unwrap();
            seen.insert(format!("{} {level}", sample.name));
            place += 1;
        }
        assert!(place > 0);
    }
    let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
    let levels = [
        "ConfigMap ",
        "NodePolicy ",
        "NodePolicy 6.",
        "NodeStatus ",
        "NodeStatus 10.",
        "NodeStatus 9.",
        "Pod ",
        "Pod 10.",
        "Pod 10.6.",
        "Pod 10.6.2.",
        "Pod 10.7.",
        "Pod 10.8.",
        "Pod 10.9.",
        "Pod 11.",
        "Pod 11.2.",
        "Pod 11.2.3.",
        "PodStatus ",
        "PodStatus 7.",
        "PodStatus 7.2.",
        "Secret ",
    ];
    assert_eq!(seen, levels);
}

#[test]
fn an_unknown_variant_is_refused_as_not_supported() {
    fn check<T: FieldList + Default>() {
        let bytes = [3, 1, 100];
        let refused = FieldError::new(Fault::Unknown, 1);
        assert_eq!(decode::<T>(&bytes).err(), Some(refused));
    }
    check::<EnvValue>();
    check::<VolumeSource>();
    check::<ContainerState>();
}

#[test]
fn an_error_names_the_path() {
    let error = |path: &[u16], fault| {
        let mut numbers = [0; 4];
        numbers[..path.len()].copy_from_slice(path);
        let path = FieldPath::from(numbers);
        FieldError { path, fault }.to_string()
    };
    assert_eq!(
        error(&[10, 6, 90], Fault::Unknown),
        "field 10.6.90: not supported by this agent, upgrade it"
    );
    assert_eq!(error(&[], Fault::Truncated), "truncated");
    // A container without a name.
    let mut pod = pod();
    pod.containers[1].name.clear();
    let error = Pod::decode(&pod.encode()).unwrap_err();
    assert_eq!(error.to_string(), "field 10.1: missing");
}

/// Goal: no bytes make a reader panic. Method: every truncation, and every byte with each
/// bit inverted and at its extremes: tags, lengths and counts at each level are among them. A cut between
/// two fields may leave an object.
#[test]
fn truncated_objects_and_false_lengths_are_refused_or_read() {
    for sample in samples() {
        let bytes = encode(&*sample.object);
        for end in 0..bytes.len() {
            if let Ok(again) = (sample.again)(&bytes[..end]) {
                assert_eq!(again, bytes[..end], "{}, {end} bytes", sample.name);
            }
        }
        let mut bent = bytes.clone();
        for place in 0..bytes.len() {
            let bits = (0..8).map(|bit| bytes[place] ^ (1 << bit));
            for value in bits.chain([0, 1, 2, 0x7f, 0x80, 0xff]) {
                bent[place] = value;
                if let Ok(again) = (sample.again)(&bent) {
                    assert_eq!((sample.again)(&again).as_ref(), Ok(&again));
                }
            }
            bent[place] = bytes[place];
        }
    }
}

/// Goal: every object has exactly one encoding. Method: each number of the smallest nested object with one
/// byte more than it needs, and a value, a list or a list of lists with one byte too many.
#[test]
fn a_second_encoding_is_refused() {
    let status = |bytes: &[u8]| decode::<NodeStatus>(bytes).map_err(|error| error.fault);
    // Field 9, 6 bytes: one condition of 4 bytes, whose name, field 1, is a string of one byte.
    let bytes = [18, 6, 1, 4, 3, 2, 1, b'a'];
    assert!(status(&bytes).is_ok());
    for wrong in [
        [18 | 0x80, 0, 6, 1, 4, 3, 2, 1, b'a'],
        [18, 6 | 0x80, 0, 1, 4, 3, 2, 1, b'a'],
        [18, 7, 1, 5, 3 | 0x80, 0, 2, 1, b'a'],
        [18, 7, 1, 5, 3, 2 | 0x80, 0, 1, b'a'],
    ] {
        assert_eq!(status(&wrong), Err(Fault::Truncated), "{wrong:?}");
    }
    for wrong in [
        [18, 7, 1 | 0x80, 0, 4, 3, 2, 1, b'a'],
        [18, 7, 1, 4 | 0x80, 0, 3, 2, 1, b'a'],
        // A count or a length that is too small by one.
        [18, 7, 1, 4, 3, 2, 1, b'a', 0],
        [18, 7, 0, 4, 3, 2, 1, b'a', 0],
        // The value: a string of one byte, and one more byte.
        [18, 7, 1, 5, 3, 3, 1, b'a', 0],
        [18, 7, 1, 5, 3, 3, 1 | 0x80, 0, b'a'],
    ] {
        assert_eq!(status(&wrong), Err(Fault::Value), "{wrong:?}");
    }
    // Explicit defaults: a string, a number, a list of lists, and an unknown field.
    for wrong in [&[2, 1, 0][..], &[10, 1, 0], &[18, 1, 0], &[0x90, 3, 1, 0]] {
        assert_eq!(status(wrong), Err(Fault::Value), "{wrong:?}");
    }
    // A list without fields, an option, an identity of zeros.
    let container = |bytes: &[u8]| decode::<ContainerStatus>(bytes).map_err(|error| error.fault);
    assert_eq!(container(&[3, 2, 1, b'a', 4, 0]), Err(Fault::Value));
    assert_eq!(container(&[3, 2, 1, b'a', 8, 1, 0]), Err(Fault::Value));
    let pod = |bytes: &[u8]| decode::<PodStatus>(bytes).map_err(|error| error.fault);
    let zeros = [&[3, 16][..], &[0; 16]].concat();
    assert_eq!(pod(&zeros), Err(Fault::Value));
    // Out of order, doubled, and the number 0.
    let order = Err(Fault::Order);
    assert_eq!(status(&[10, 1, 2, 4, 1, 0]), order);
    assert_eq!(status(&[10, 1, 2, 10, 1, 2]), order);
    assert_eq!(status(&[0, 1, 0]), order);
    // A field number over the largest.
    let tag = (u32::from(u16::MAX) + 1).to_wire();
    assert_eq!(status(&[&tag[..], &[0]].concat()), Err(Fault::Truncated));
}

#[test]
fn lists_over_their_caps_are_refused() {
    fn fault(pod: &Pod) -> Option<(String, Fault)> {
        let error = Pod::decode(&pod.encode()).err()?;
        Some((error.path.to_string(), error.fault))
    }
    let mut many = pod();
    many.containers = vec![container(); CONTAINERS_MAX];
    many.volumes = vec![pod().volumes[0].clone(); VOLUMES_MAX];
    many.containers[0].env = vec![EnvVar::default(); ENV_MAX - 1];
    many.containers[0].mounts = vec![VolumeMount::default(); VOLUMES_MAX];
    many.labels = vec![(String::new(), String::new()); LABELS_MAX];
    assert_eq!(fault(&many), None);
    let limit = |path: &str| Some((path.to_string(), Fault::Limit));
    let over = |change: fn(&mut Pod)| {
        let mut pod = many.clone();
        change(&mut pod);
        fault(&pod)
    };
    assert_eq!(over(|pod| pod.containers.push(container())), limit("10"));
    assert_eq!(over(|pod| pod.volumes.push(Volume::default())), limit("11"));
    let label = |pod: &mut Pod| pod.labels.push((String::new(), String::new()));
    assert_eq!(over(label), limit("4"));
    let env = |pod: &mut Pod| pod.containers[0].env.push(EnvVar::default());
    assert_eq!(over(env), limit("10.6"));
    let mount = |pod: &mut Pod| pod.containers[0].mounts.push(VolumeMount::default());
    assert_eq!(over(mount), limit("10.8"));
    let words = |pod: &mut Pod| pod.containers[0].args = vec![String::new(); ARGV_MAX];
    assert_eq!(over(words), limit("10.3"));
    for secret in [false, true] {
        let items = |count| {
            let (name, items) = (String::new(), vec![Default::default(); count]);
            let (mode, optional) = (0, false);
            let mut pod = many.clone();
            pod.volumes[0].source = match secret {
                false => VolumeSource::ConfigMap {
                    name,
                    items,
                    mode,
                    optional,
                },
                true => VolumeSource::Secret {
                    name,
                    items,
                    mode,
                    optional,
                },
            };
            fault(&pod)
        };
        assert_eq!(items(FILES_MAX), None);
        assert_eq!(items(FILES_MAX + 1), limit("11.2.3"));
    }
}

#[test]
fn a_status_and_data_over_their_caps_are_refused() {
    let status = |change: fn(&mut NodeStatus)| {
        let mut status = NodeStatus {
            conditions: vec![Condition::default(); CONDITIONS_MAX],
            refused: vec![Refused::default(); REFUSED_LISTED_MAX],
            labels: vec![Default::default(); LABELS_MAX],
            ..NodeStatus::default()
        };
        change(&mut status);
        NodeStatus::decode(&status.encode()).map(drop)
    };
    let limit = |number| Err(FieldError::new(Fault::Limit, number));
    assert_eq!(status(|_| ()), Ok(()));
    assert_eq!(
        status(|status| status.conditions.push(Condition::default())),
        limit(9)
    );
    assert_eq!(
        status(|status| status.refused.push(Refused::default())),
        limit(10)
    );
    assert_eq!(
        status(|status| status.labels.push(Default::default())),
        limit(12)
    );
    for (count, result) in [(DATA_KEYS_MAX, Ok(())), (DATA_KEYS_MAX + 1, limit(1))] {
        let data: Data = vec![Default::default(); count];
        let bytes = ConfigMap { data: data.clone() }.encode();
        assert_eq!(ConfigMap::decode(&bytes).map(drop), result);
        let bytes = Secret { data }.encode();
        assert_eq!(Secret::decode(&bytes).map(drop), result);
    }
}
