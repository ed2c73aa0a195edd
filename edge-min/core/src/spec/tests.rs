use super::*;
use alloc::format;
use edge_proto::object::{CAPABILITIES_DEFAULT, ConfigMap, EnvFrom, EnvVar, Secret, VolumeMount};

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(own).collect()
}

fn data(files: &[(&str, &str)]) -> Data {
    let own = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
    files.iter().map(own).collect()
}

/// `settings` with `level` and a binary `raw`, and the Secret `key`.
fn objects() -> ConfigObjects {
    let mut objects = ConfigObjects::default();
    let mut settings = data(&[("level", "debug")]);
    settings.push(("raw".to_owned(), vec![0xff]));
    let settings = ConfigMap { data: settings };
    let key = Secret {
        data: data(&[("token", "s3cret")]),
    };
    objects
        .put("toll", "settings", false, Some(&settings.encode()))
        .unwrap();
    objects
        .put("toll", "key", true, Some(&key.encode()))
        .unwrap();
    objects
}

fn pod(container: Container) -> Pod {
    Pod {
        uid: Uid([1; 16]),
        namespace: "toll".to_owned(),
        name: "gate".to_owned(),
        runtime: RuntimeClass::Runc,
        containers: vec![container],
        ..Pod::default()
    }
}

fn container() -> Container {
    Container {
        name: "main".to_owned(),
        image: "app:1".to_owned(),
        ..Container::default()
    }
}

fn resolve(pod: &Pod) -> Result<ContainerSpec, StartFailure> {
    let in_use = ["app:1".to_owned()];
    let host_paths = Arc::new(HostPaths::new(vec!["/srv".to_owned()]));
    let board = (&in_use[..], &host_paths);
    ContainerSpec::resolve(pod, &pod.containers[0], 3, &objects(), board)
}

fn message(result: Result<ContainerSpec, StartFailure>) -> String {
    let failure = result.unwrap_err();
    assert_eq!(failure.reason, "CreateContainerConfigError");
    assert!(!failure.counts_as_run);
    failure.message
}

#[test]
fn a_command_replaces_the_images_entrypoint_and_arguments_and_args_only_the_latter() {
    let image = ImageConfig {
        entrypoint: owned(&["/entry"]),
        cmd: owned(&["a", "b"]),
        ..ImageConfig::default()
    };
    let argv = |command: &[&str], args: &[&str], image: Option<&ImageConfig>| {
        let spec = resolve(&pod(Container {
            command: owned(command),
            args: owned(args),
            ..container()
        }));
        let process = spec.unwrap().process(image.cloned());
        process.map(|process| process.argv)
    };
    let image = Some(&image);
    assert_eq!(argv(&[], &[], image).unwrap(), ["/entry", "a", "b"]);
    assert_eq!(argv(&[], &["x"], image).unwrap(), ["/entry", "x"]);
    assert_eq!(argv(&["/own"], &[], image).unwrap(), ["/own"]);
    assert_eq!(argv(&["/own"], &["x"], image).unwrap(), ["/own", "x"]);
    assert_eq!(argv(&["/own"], &["x"], None).unwrap(), ["/own", "x"]);
    let failure = argv(&[], &[], None).unwrap_err();
    assert_eq!(
        failure.message,
        "neither the Pod nor its image names a command"
    );
}

#[test]
fn the_pods_environment_goes_over_the_images_and_each_name_is_there_once() {
    let literal = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: EnvValue::Literal(value.to_owned()),
    };
    let from = EnvFrom {
        secret: true,
        name: "key".to_owned(),
        prefix: "KEY_".to_owned(),
        optional: false,
    };
    let level = EnvVar {
        name: "LEVEL".to_owned(),
        value: EnvValue::ConfigMap {
            name: "settings".to_owned(),
            key: "level".to_owned(),
            optional: false,
        },
    };
    let spec = resolve(&pod(Container {
        env_from: vec![from],
        env: vec![literal("A", "1"), level, literal("A", "2")],
        ..container()
    }));
    let image = ImageConfig {
        cmd: owned(&["/app"]),
        env: pairs(&[("A", "image"), ("B", "image"), ("PATH", "/image")]),
        ..ImageConfig::default()
    };
    let spec = spec.unwrap();
    let env = spec.process(Some(image)).unwrap().env;
    let wanted = [
        ("A", "2"),
        ("B", "image"),
        ("KEY_token", "s3cret"),
        ("LEVEL", "debug"),
        ("PATH", "/image"),
    ];
    assert_eq!(env, pairs(&wanted));
    assert!(!format!("{spec:?}").contains("s3cret"));
}

#[test]
fn without_an_image_there_is_a_search_path_the_root_directory_and_no_user() {
    let mut pod = pod(Container {
        command: owned(&["/bin/app"]),
        ..container()
    });
    pod.runtime = RuntimeClass::Process;
    let spec = resolve(&pod).unwrap();
    assert_eq!(spec.image, None);
    let process = spec.process(None).unwrap();
    assert_eq!(process.env, pairs(&[("PATH", PATH_DEFAULT)]));
    assert_eq!((process.cwd.as_str(), process.user), ("/", None));
}

#[test]
fn directory_and_user_are_the_pods_before_the_images() {
    let image = ImageConfig {
        cmd: owned(&["/app"]),
        working_dir: "/image".to_owned(),
        user: "7:8".to_owned(),
        ..ImageConfig::default()
    };
    let spec = resolve(&pod(container())).unwrap();
    let process = spec.process(Some(image.clone())).unwrap();
    assert_eq!((process.cwd.as_str(), process.user), ("/image", Some(7)));
    let spec = resolve(&pod(Container {
        working_dir: Some("/own".to_owned()),
        user: Some(0),
        ..container()
    }));
    let process = spec.unwrap().process(Some(image)).unwrap();
    assert_eq!((process.cwd.as_str(), process.user), ("/own", Some(0)));
}

/// Goal: an image whose user is a name runs when the Pod sets a number, and is otherwise refused with the
/// fix in the message. Method: each form of an image's user, with and without the Pod's.
#[test]
fn a_user_that_only_the_image_names_must_be_a_number_or_root() {
    let user = |image: &str, of_pod: Option<u32>| {
        let image = ImageConfig {
            cmd: owned(&["/app"]),
            user: image.to_owned(),
            ..ImageConfig::default()
        };
        let spec = resolve(&pod(Container {
            user: of_pod,
            ..container()
        }));
        let process = spec.unwrap().process(Some(image));
        process.map(|process| process.user)
    };
    for root in ["", "root", "root:wheel", ":7"] {
        assert_eq!(user(root, None), Ok(None), "{root}");
    }
    assert_eq!(user("7", None), Ok(Some(7)));
    assert_eq!(user("toll", Some(9)), Ok(Some(9)));
    for name in ["toll", "toll:toll", "-1", "4294967296"] {
        let failure = user(name, None).unwrap_err();
        assert_eq!(failure.reason, "CreateContainerConfigError");
        assert!(failure.message.contains("runAsUser"), "{}", failure.message);
    }
}

#[test]
fn what_the_environment_names_and_is_not_there_fails_the_start_unless_it_is_optional() {
    let with = |name: &str, key: &str, secret: bool, optional: bool| {
        let (name, key) = (name.to_owned(), key.to_owned());
        let value = match secret {
            true => EnvValue::Secret {
                name,
                key,
                optional,
            },
            false => EnvValue::ConfigMap {
                name,
                key,
                optional,
            },
        };
        resolve(&pod(Container {
            env: vec![EnvVar {
                name: "X".to_owned(),
                value,
            }],
            ..container()
        }))
    };
    let gone = message(with("settings", "gone", false, false));
    assert_eq!(gone, "key gone of settings not found");
    // A ConfigMap is no Secret.
    assert!(message(with("settings", "level", true, false)).ends_with("not found"));
    assert_eq!(with("gone", "level", true, true).unwrap().env, []);
    let raw = message(with("settings", "raw", false, false));
    assert_eq!(raw, "raw is not text and cannot be an environment variable");
}

/// Goal: a path of the board is mounted only if the board allows it, and directories for a part of a
/// volume get the mode of their volume. Method: each kind of volume.
#[test]
fn a_host_path_is_allowed_or_refused_and_new_directories_have_a_mode() {
    let with = |source| {
        let mut pod = pod(Container {
            mounts: vec![VolumeMount {
                volume: "v".to_owned(),
                path: "/v".to_owned(),
                sub_path: "a/b".to_owned(),
                read_only: false,
            }],
            ..container()
        });
        let name = "v".to_owned();
        pod.volumes = vec![edge_proto::object::Volume { name, source }];
        resolve(&pod)
    };
    let host = |path: &str| VolumeSource::HostPath {
        path: path.to_owned(),
        create: true,
    };
    let scratch = VolumeSource::EmptyDir {
        memory: false,
        size_bytes: 0,
    };
    let mode = |source| with(source).unwrap().mounts[0].new_dir_mode;
    assert_eq!(mode(host("/srv/data")), Some(0o755));
    assert_eq!(mode(scratch), Some(0o777));
    for path in ["/etc", "/srv/../etc", "/srvx"] {
        let refused = message(with(host(path)));
        let list = " is not in the board's host-paths list";
        assert_eq!(refused, ["hostPath ", path, list].concat());
    }
}

#[test]
fn mounts_carry_their_content_and_files_are_read_only() {
    let mount = |volume: &str, path: &str| VolumeMount {
        volume: volume.to_owned(),
        path: path.to_owned(),
        sub_path: String::new(),
        read_only: false,
    };
    let mut pod = pod(Container {
        mounts: vec![
            mount("key", "/key"),
            mount("scratch", "/tmp"),
            mount("key", "/again"),
        ],
        ..container()
    });
    let volume = |name: &str, source| edge_proto::object::Volume {
        name: name.to_owned(),
        source,
    };
    let key = VolumeSource::Secret {
        name: "key".to_owned(),
        items: pairs(&[("token", "a/token")]),
        mode: 0,
        optional: false,
    };
    let scratch = VolumeSource::EmptyDir {
        memory: true,
        size_bytes: 9,
    };
    let missing = VolumeSource::ConfigMap {
        name: "gone".to_owned(),
        items: vec![],
        mode: 0o400,
        optional: false,
    };
    // The last is not mounted, so it does not matter that it is missing.
    pod.volumes = vec![
        volume("key", key),
        volume("scratch", scratch),
        volume("gone", missing),
    ];
    let spec = resolve(&pod).unwrap();
    let [first, second, third] = spec.mounts.as_slice() else {
        panic!("{:?}", spec.mounts);
    };
    let files = Content::Files {
        files: data(&[("a/token", "s3cret")]),
        mode: FILE_MODE_DEFAULT,
        secret: true,
    };
    assert_eq!((&first.volume.content, first.read_only), (&files, true));
    assert_eq!(first.new_dir_mode, None);
    assert!(Arc::ptr_eq(&first.volume, &third.volume));
    assert_eq!((second.target.as_str(), second.read_only), ("/tmp", false));
    // An update keeps volumes that cannot be resolved.
    let volumes = file_volumes(&objects(), &pod);
    assert_eq!(volumes.len(), 1);
    pod.containers[0].mounts.push(mount("gone", "/gone"));
    assert_eq!(message(resolve(&pod)), "gone not found");
    pod.containers[0].mounts[3].volume = "nowhere".to_owned();
    assert_eq!(message(resolve(&pod)), "no volume nowhere");
}

#[test]
fn keys_and_paths_cannot_leave_the_volume() {
    for bad in [
        "../x",
        "/x",
        "a/../../x",
        "..data",
        "",
        "a/./../b",
        ".",
        "./x",
        "a/..",
    ] {
        assert!(!is_inside(bad), "{bad}");
        assert!(select(&data(&[(bad, "")]), &[]).is_err(), "{bad}");
    }
    assert!(is_inside("a/b.txt") && is_inside("a..b/c") && is_inside(".hidden"));
    let items = pairs(&[("missing", "x")]);
    assert!(select(&data(&[("a", "")]), &items).is_err());
}

#[test]
fn capabilities_are_added_for_the_user_when_they_are_named() {
    let with = |add, drop| {
        rights(&Container {
            add_capabilities: add,
            drop_capabilities: drop,
            ..container()
        })
    };
    let plain = with(0, 0);
    assert_eq!((plain.granted, plain.for_users), (CAPABILITIES_DEFAULT, 0));
    let named = with(1 << 12, CAPABILITIES_ALL);
    assert_eq!((named.granted, named.for_users), (1 << 12, 1 << 12));
    let all = with(CAPABILITIES_ALL, 0);
    assert_eq!((all.granted, all.for_users), (CAPABILITIES_ALL, 0));
    assert!(![plain, named, all].iter().any(|one| one.privileged));
}

#[test]
fn privileged_is_refused_for_an_image_and_all_for_a_process() {
    let mut pod = pod(Container {
        privileged: true,
        ..container()
    });
    assert_eq!(message(resolve(&pod)), "privileged is for processes only");
    pod.runtime = RuntimeClass::Process;
    let rights = resolve(&pod).unwrap().rights;
    assert_eq!(
        (rights.granted, rights.privileged),
        (CAPABILITIES_ALL, true)
    );
}

#[test]
fn a_log_is_a_sixteenth_of_the_smallest_memory_limit_within_its_bounds() {
    let with = |limits: &[u64]| {
        let limit = |memory_bytes: &u64| Container {
            resources: Resources {
                memory_bytes: Some(*memory_bytes),
                ..Resources::default()
            },
            ..container()
        };
        let containers = limits.iter().map(limit).collect();
        log_bytes(Some(&Pod {
            containers,
            ..Pod::default()
        }))
    };
    assert_eq!(with(&[]), LOG_BYTES_MAX);
    assert_eq!(log_bytes(None), LOG_BYTES_MAX);
    assert_eq!(with(&[1 << 30, 1 << 20]), 1 << 16);
    assert_eq!(with(&[1 << 30]), LOG_BYTES_MAX);
    assert_eq!(with(&[1]), LOG_BYTES_MIN);
}

#[test]
fn the_space_of_the_logs_holds_each_twice() {
    let with = |count: usize, memory_bytes| {
        let one = Container {
            resources: Resources {
                memory_bytes,
                ..Resources::default()
            },
            ..container()
        };
        logs_bytes(Some(&Pod {
            containers: alloc::vec![one; count],
            ..Pod::default()
        }))
    };
    assert_eq!(logs_bytes(None), LOGS_BYTES_MIN);
    assert_eq!(with(1, Some(1)), LOGS_BYTES_MIN, "not under the minimum");
    assert_eq!(with(3, Some(1)), 6 * LOG_BYTES_MIN);
    assert_eq!(with(2, None), 4 * LOG_BYTES_MAX);
}

#[test]
fn an_empty_dir_in_memory_has_a_size_although_the_pod_names_none() {
    let size = |memory, size_bytes| {
        let source = VolumeSource::EmptyDir { memory, size_bytes };
        let objects = ConfigObjects::default();
        content(&objects, &Pod::default(), &source, &Arc::default())
    };
    let of = |memory, size_bytes| Ok(Content::Empty { memory, size_bytes });
    assert_eq!(size(true, 0), of(true, MEMORY_VOLUME_BYTES_DEFAULT));
    assert_eq!(size(true, 9), of(true, 9));
    assert_eq!(size(false, 0), of(false, 0));
}

#[test]
fn images_in_use_are_those_of_image_pods_each_once() {
    let mut process = pod(container());
    process.runtime = RuntimeClass::Process;
    process.containers[0].image = "unused:1".to_owned();
    let pods = [pod(container()), pod(container()), process];
    assert_eq!(images(pods.iter()), ["app:1"]);
}
