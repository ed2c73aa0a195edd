use edge_proto::object::{EnvValue, RuntimeClass, VolumeSource};
use proptest::prelude::*;

use super::text::{PARSER_STEPS_MAX, parser_steps};
use super::*;

fn read(text: &str) -> Manifests {
    let mut manifests = Manifests::default();
    manifests.add_file("gate.yaml", text);
    manifests
}

fn problems(text: &str) -> Vec<(usize, String, String)> {
    let problems = read(text).problems.into_iter();
    problems
        .map(|problem| (problem.origin.document, problem.path, problem.reason))
        .collect()
}

const GOOD: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: lane}
data: {lane: "3", rate: "2.50"}
binaryData: {logo: aGVsbG8=}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: toll}
data: {a: aGVsbG8=}
stringData: {a: x}
--- # the counter
apiVersion: v1
kind: Pod
metadata:
  name: toll-counter
  annotations: {who: me}
spec:
  runtimeClassName: process
  nodeName: gate-1
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 5
  containers:
  - name: counter
    image: ignored/by:processes
    command: [/bin/sh, -c]
    args: ['echo $(LANE) $$(HOME) $(date)']
    workingDir: /tmp
    env:
    - {name: LANE, value: "7"}
    - name: RATE
      valueFrom: {configMapKeyRef: {name: lane, key: rate, optional: true}}
    envFrom: [{prefix: L_, configMapRef: {name: lane}}]
    resources:
      requests: {cpu: 50m}
      limits: {cpu: 100m, memory: 64Mi, edge-min.io/pids: 16}
    securityContext:
      {runAsUser: 1000, runAsGroup: 1000, runAsNonRoot: true, allowPrivilegeEscalation: false,
       capabilities: {add: [SYS_TIME, NET_ADMIN], drop: [ALL]}}
    volumeMounts:
    - {name: lane, mountPath: /etc/lane, readOnly: true}
    - {name: tmp, mountPath: /scratch, subPath: a/b}
  volumes:
  - name: lane
    configMap: {name: lane, defaultMode: 0400, items: [{key: lane, path: l}]}
  - name: tmp
    emptyDir: {medium: Memory, sizeLimit: 1Mi}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      hostNetwork: true
      nodeSelector: {site: north}
      containers: [{name: web, image: web:1, ports: [{containerPort: 80}], livenessProbe: null}]
---
"#;

#[test]
fn every_kind_is_read() {
    let manifests = read(GOOD);
    assert_eq!(manifests.problems, []);
    let ids: Vec<_> = manifests.objects.keys().map(ToString::to_string).collect();
    assert_eq!(
        ids,
        [
            "Pod default/toll-counter",
            "ConfigMap default/lane",
            "Secret toll/key",
            "Deployment default/web"
        ]
    );
    let mut objects = manifests.objects.into_values();
    let Some((origin, Accepted::Workload(template))) = objects.next() else {
        panic!("the pod comes first");
    };
    assert_eq!(origin.document, 3);
    assert_eq!(template.node.as_deref(), Some("gate-1"));
    let pod = template.pod;
    assert_eq!(pod.runtime, RuntimeClass::Process);
    assert_eq!(pod.grace_s, Some(5));
    let container = &pod.containers[0];
    assert_eq!(container.image, "");
    assert_eq!(container.args, ["echo 7 $(HOME) $(date)"]);
    assert!(matches!(
        container.env[1].value,
        EnvValue::ConfigMap { optional: true, .. }
    ));
    assert_eq!(container.env_from[0].prefix, "L_");
    assert_eq!(container.resources.cpu_millis, Some(100));
    assert_eq!(container.resources.memory_bytes, Some(64 << 20));
    assert_eq!(container.resources.pids, Some(16));
    assert_eq!(container.user, Some(1000));
    assert_eq!(container.add_capabilities, 1 << 25 | 1 << 12);
    assert_eq!(container.drop_capabilities, u64::MAX);
    assert_eq!(container.mounts[1].sub_path, "a/b");
    assert!(matches!(
        &pod.volumes[0].source,
        VolumeSource::ConfigMap { mode: 0o400, items, .. } if items.len() == 1
    ));
    let Some((_, Accepted::Config(payload))) = objects.next() else {
        panic!("the ConfigMap is next");
    };
    let lane = edge_proto::object::ConfigMap::decode(&payload).unwrap();
    assert_eq!(lane.data[0], ("lane".into(), b"3".to_vec()));
    assert_eq!(lane.data[1], ("logo".into(), b"hello".to_vec()));
}

/// A pod with `container` and `spec` lines added, each list item at its own indentation.
fn pod(spec: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  hostNetwork: true\n{spec}\n  \
         containers:\n  - name: c\n    image: i:1\n{container}\n"
    )
}

#[test]
fn each_refusal_names_its_field() {
    let c = "spec.containers[0]";
    for (spec, container, path) in [
        ("", "    livenessProbe: {}", format!("{c}.livenessProbe")),
        ("", "    lifecycle: {preStop: {}}", format!("{c}.lifecycle")),
        ("", "    command: sh", format!("{c}.command")),
        (
            "",
            "    imagePullPolicy: Always",
            format!("{c}.imagePullPolicy"),
        ),
        ("", "    imagee: x", format!("{c}.imagee")),
        ("", "    args: [1]", format!("{c}.args[0]")),
        (
            "",
            "    env: [{name: A, valueFrom: {fieldRef: {}}}]",
            format!("{c}.env[0].valueFrom.fieldRef"),
        ),
        ("", "    env: [{name: A=B}]", format!("{c}.env[0].name")),
        (
            "",
            "    env: [{name: A, value: 1}]",
            format!("{c}.env[0].value"),
        ),
        ("", "    envFrom: [{}]", format!("{c}.envFrom[0]")),
        (
            "",
            "    resources: {limits: {cpu: 1x}}",
            format!("{c}.resources.limits.cpu"),
        ),
        (
            "",
            "    resources: {limits: {gpu: 1}}",
            format!("{c}.resources.limits.gpu"),
        ),
        (
            "",
            "    resources: {limits: {cpu: 1}, requests: {cpu: 2}}",
            format!("{c}.resources.requests.cpu"),
        ),
        (
            "",
            "    securityContext: {privileged: true}",
            format!("{c}.securityContext.privileged"),
        ),
        (
            "",
            "    securityContext: {capabilities: {add: [NET_ADMIN, CAP_SYS_TIME]}}",
            format!("{c}.securityContext.capabilities.add[1]"),
        ),
        (
            "",
            "    securityContext: {runAsNonRoot: true}",
            format!("{c}.securityContext.runAsUser"),
        ),
        (
            "",
            "    ports: [{containerPort: 80, hostPort: 81}]",
            format!("{c}.ports[0].hostPort"),
        ),
        (
            "",
            "    volumeMounts: [{name: v, mountPath: /v}]",
            format!("{c}.volumeMounts[0]"),
        ),
        (
            "",
            "    volumeMounts: [{name: v, mountPath: v}]",
            format!("{c}.volumeMounts[0].mountPath"),
        ),
        ("", "    tty: true", format!("{c}.tty")),
        (
            "  volumes: [{name: v, emptyDir: {}}]",
            "    volumeMounts: [{name: v, mountPath: //.}]",
            format!("{c}.volumeMounts[0].mountPath"),
        ),
        (
            "  volumes: [{name: v, emptyDir: {}}]",
            "    volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /v/}]",
            format!("{c}.volumeMounts[1]"),
        ),
        ("  initContainers: [{}]", "", "spec.initContainers".into()),
        ("  priority: 1", "", "spec.priority".into()),
        (
            "  runtimeClassName: kata",
            "",
            "spec.runtimeClassName".into(),
        ),
        ("  restartPolicy: always", "", "spec.restartPolicy".into()),
        ("  hostPID: true", "", "spec.hostPID".into()),
        ("  dnsPolicy: None", "", "spec.dnsPolicy".into()),
        ("  nodeSelector: {a: 1}", "", "spec.nodeSelector.a".into()),
        (
            "  terminationGracePeriodSeconds: -1",
            "",
            "spec.terminationGracePeriodSeconds".into(),
        ),
        ("  volumes: [{name: v}]", "", "spec.volumes[0]".into()),
        (
            "  volumes: [{name: v, nfs: {}}]",
            "",
            "spec.volumes[0].nfs".into(),
        ),
        (
            "  volumes: [{name: v, hostPath: {path: a}}]",
            "",
            "spec.volumes[0].hostPath.path".into(),
        ),
        (
            "  volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]",
            "",
            "spec.volumes[0].emptyDir.sizeLimit".into(),
        ),
        (
            "  volumes: [{name: v, secret: {secretName: s, defaultMode: 0999}}]",
            "",
            "spec.volumes[0].secret.defaultMode".into(),
        ),
        (
            "  automountServiceAccountToken: true",
            "",
            "spec.automountServiceAccountToken".into(),
        ),
    ] {
        let text = format!("---\n{}---\n{GOOD}", pod(spec, container));
        let manifests = read(&text);
        let found = manifests.problems.iter();
        let found: Vec<_> = found.filter(|p| p.path == path).collect();
        assert_eq!(found.len(), 1, "{path}: {:?}", manifests.problems);
        assert_eq!(found[0].origin.document, 1);
        assert_eq!(found[0].origin.file, "gate.yaml");
        assert_eq!(found[0].object.as_deref(), Some("Pod default/p"));
        assert!(!found[0].reason.is_empty());
        assert_eq!(manifests.objects.len(), 4, "the rest still applies");
    }
}

/// Goal: values without a meaning in Kubernetes have none here; charts contain many. Method: a pod with
/// all of them equals the pod without.
#[test]
fn what_is_empty_is_absent() {
    let spec = "  initContainers: []\n  hostAliases: []\n  affinity: {}\n  dnsConfig: {}\n  \
                priority: 0\n  nodeName: ''\n  hostname: ''\n  dnsPolicy: ''\n  \
                restartPolicy: ''\n  runtimeClassName: ''\n  \
                volumes: [{name: v, emptyDir: {}}]";
    let container = "    imagePullPolicy: ''\n    workingDir: ''\n    lifecycle: {}\n    \
                     volumeDevices: []\n    \
                     volumeMounts: [{name: v, mountPath: /v, subPath: '', subPathExpr: ''}]";
    let plain = pod(
        "  volumes: [{name: v, emptyDir: {}}]",
        "    volumeMounts: [{name: v, mountPath: /v}]",
    );
    let full = pod(spec, container).replace("{name: p}", "{name: p, namespace: ''}");
    let full = read(&full);
    assert_eq!(full.problems, []);
    assert_eq!(full.objects, read(&plain).objects);
}

#[test]
fn a_broken_document_names_the_lines_of_its_file() {
    let reason = &problems("---\na:\n  - b\n---\nb:\n  c: 1\n d: 2\n")
        .pop()
        .unwrap()
        .2;
    assert!(reason.starts_with("line 7: "), "{reason}");
    assert!(
        reason.contains("at line 7 column") && reason.contains("at line 5 column"),
        "{reason}"
    );
}

/// Goal: objects that no node would accept are refused here. Method: two maps that are each within the cap.
#[test]
fn the_keys_of_two_maps_are_counted_together() {
    use edge_proto::limits::DATA_KEYS_MAX;
    let object = |kind: &str, other: &str, more: usize| {
        let map = |name: &str, prefix: &str, keys: usize| {
            let keys: Vec<String> = (0..keys)
                .map(|key| format!("{prefix}{key}: \"\""))
                .collect();
            format!("{name}: {{{}}}\n", keys.join(", "))
        };
        let half = DATA_KEYS_MAX / 2;
        format!(
            "apiVersion: v1\nkind: {kind}\nmetadata: {{name: a}}\n{}{}",
            map("data", "a", half),
            map(other, "b", half + more)
        )
    };
    for (kind, other) in [("ConfigMap", "binaryData"), ("Secret", "stringData")] {
        assert!(problems(&object(kind, other, 0)).is_empty(), "{kind}");
        let (_, path, reason) = problems(&object(kind, other, 1)).remove(0);
        assert_eq!(path, "data");
        assert!(reason.contains("4096 keys in all"), "{reason}");
    }
}

#[test]
fn documents_that_are_no_objects_are_refused() {
    let runc = pod("", "").replace("  hostNetwork: true\n", "");
    assert_eq!(problems(&runc)[0].1, "spec.hostNetwork");
    assert_eq!(problems("[1]")[0].2, "must be a map");
    assert_eq!(
        problems("apiVersion: v1\nkind: Service\nmetadata: {name: a}")[0].1,
        "kind"
    );
    assert_eq!(
        problems("apiVersion: v1\nkind: Pod\nmetadata: {name: A}")[0].1,
        "metadata.name"
    );
    let twice = format!("{GOOD}---\n{}---\n{}", pod("", ""), pod("", ""));
    assert_eq!(problems(&twice)[0].0, 6);
    assert!(problems(&twice)[0].2.contains("document 5"));
    let broken = format!("a: [\n---\n{GOOD}");
    let manifests = read(&broken);
    assert_eq!(manifests.problems.len(), 1, "{:?}", manifests.problems);
    assert!(manifests.problems[0].reason.starts_with("line "));
    assert_eq!(manifests.objects.len(), 4);
}

#[test]
fn a_folder_is_read_in_order_and_within_caps() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("a.yaml", GOOD);
    write(
        "b.json",
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"j"}}"#,
    );
    write(".hidden.yaml", "x: [");
    write("notes.txt", "x: [");
    write(
        "big.yml",
        &"#".repeat(usize::try_from(FILE_BYTES_MAX).unwrap() + 1),
    );
    let manifests = Manifests::read(folder.path());
    assert_eq!(manifests.objects.len(), 5);
    assert_eq!(manifests.problems.len(), 1);
    assert_eq!(manifests.problems[0].origin.file, "big.yml");
    let missing = Manifests::read(&folder.path().join("missing"));
    assert_eq!(missing.problems.len(), 1);
}

proptest! {
    #[test]
    fn the_reader_never_panics(text in "\\PC*") {
        read(&text);
    }

    /// Lines of a valid file, truncated, repeated and in any order.
    #[test]
    fn a_scrambled_file_never_panics(
        picks in proptest::collection::vec((0usize..80, 0usize..60), 0..80),
    ) {
        let lines: Vec<&str> = GOOD.lines().collect();
        let mut text = String::new();
        for (line, cut) in picks {
            let line = lines[line % lines.len()];
            text.extend(line.chars().take(if cut < 40 { 200 } else { cut - 40 }));
            text.push('\n');
        }
        read(&text);
    }
}

/// Goal: no file in the folder blocks the others. Method: a pipe without a writer, a device
/// that never ends, a circle of links, and brackets that cost the parser minutes, beside a valid file.
#[test]
fn what_is_no_file_or_never_ends_hides_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let pipe = std::process::Command::new("mkfifo")
        .arg(place("pipe.yaml"))
        .status();
    assert!(pipe.unwrap().success());
    std::os::unix::fs::symlink("/dev/zero", place("zero.yaml")).unwrap();
    std::os::unix::fs::symlink("circle.yaml", place("circle.yaml")).unwrap();
    std::fs::create_dir(place("folder.yaml")).unwrap();
    std::fs::write(
        place("nested.yaml"),
        "a: ".to_owned() + &"[".repeat(200_000),
    )
    .unwrap();
    std::fs::write(place("sound.yaml"), GOOD).unwrap();
    let manifests = Manifests::read(folder.path());
    let reason = |file: &str| {
        let mut all = manifests.problems.iter();
        let found = all.find(|problem| problem.origin.file == file);
        found.map(|problem| problem.reason.as_str())
    };
    assert_eq!(reason("pipe.yaml"), Some("is not a file"));
    assert_eq!(reason("zero.yaml"), Some("is not a file"));
    assert!(reason("circle.yaml").is_some());
    assert_eq!(
        reason("nested.yaml"),
        Some("line 1: too many nested brackets")
    );
    assert_eq!(manifests.objects.len(), read(GOOD).objects.len());
}

/// Goal: no valid file counts as too deeply nested. Method: the largest ConfigMap of colours, whose brackets
/// never close, and JSON as deep as the parser accepts.
#[test]
fn brackets_of_sound_documents_are_few_enough() {
    let script = "  printf '\\033[31m lane: %s, \\033[0m'\n".repeat(2_000);
    let colours = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata:\n script: |\n{script}"
    );
    assert_eq!(problems(&colours), []);
    let row = format!("{}{}", "[".repeat(50), "]".repeat(50));
    let json = format!("[{}]", vec![row; 40_000].join(", "));
    assert!(json.len() > 4_000_000 && parser_steps(&json) < PARSER_STEPS_MAX);
}

/// Goal: what kubectl reads is read. Method: a byte order mark, at the begin and between files that were
/// put together, line ends of Windows, a directive, and an escape as JSON writes it; each is the plain one.
#[test]
fn text_of_other_tools_is_read_as_the_plain_one() {
    let config = |name: &str, text: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: {text}}}\n"
        )
    };
    let plain = read(&(config("a", "\"😀\"") + "---\n" + &config("b", "x")));
    let (a, b) = (config("a", "😀"), config("b", "x"));
    let json = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
                   "data": {"k": "\ud83d\ude00"}}"#;
    for text in [
        format!("\u{feff}{a}---\n{b}"),
        format!("\u{feff}---\n{a}---\n{b}"),
        format!("{a}\u{feff}---\n\u{feff}{b}"),
        format!("%YAML 1.2\n---\n{a}...\n%YAML 1.2\n--- # next\n{b}"),
        format!("{a}---\n{b}").replace('\n', "\r\n"),
        format!("{json}\n---\n{b}"),
    ] {
        let manifests = read(&text);
        assert_eq!(manifests.problems, [], "{text}");
        let contents = |manifests: Manifests| {
            let objects = manifests.objects.into_iter();
            objects
                .map(|(id, (_, content))| (id, content))
                .collect::<Vec<_>>()
        };
        assert_eq!(contents(manifests), contents(plain.clone()), "{text}");
    }
}

/// Goal: keys are made texts as kubectl does, and one that cannot be is named.
#[test]
fn a_key_that_is_no_text_is_made_one_or_named() {
    let config = |data: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{{data}}}\n")
    };
    let read_keys = |data: &str| {
        let manifests = read(&config(data));
        assert_eq!(manifests.problems, []);
        let Some((_, Accepted::Config(payload))) = manifests.objects.values().next() else {
            panic!("a ConfigMap");
        };
        let keys = edge_proto::object::ConfigMap::decode(payload).unwrap().data;
        keys.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert_eq!(
        read_keys("9000: \"default/reader:8080\", true: a"),
        ["9000", "true"]
    );
    let (_, path, reason) = problems(&config("1.5: x")).remove(0);
    assert_eq!(
        (path.as_str(), reason.contains("1.5")),
        ("data", true),
        "{reason}"
    );
    let (_, _, reason) = problems(&config("1: x, \"1\": y")).remove(0);
    assert!(reason.ends_with("a map has the key 1 twice"), "{reason}");
    let pod = pod("  nodeSelector: {1: a}", "");
    assert_eq!(read(&pod).problems, []);
}

/// Goal: a kind that is not read is told and hides nothing; a slip of the pen in a kind is an error.
#[test]
fn a_kind_of_others_is_a_warning_and_a_slip_is_an_error() {
    let document = |version: &str, kind: &str| {
        format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: toll-counter}}\n")
    };
    let severity = |version: &str, kind: &str| {
        let manifests = read(&(GOOD.to_owned() + &document(version, kind)));
        assert_eq!(manifests.objects.len(), 4, "{kind}");
        let [problem] = manifests.problems.as_slice() else {
            panic!("{kind}: {:?}", manifests.problems);
        };
        let counter = manifests.objects.keys().next().unwrap();
        let is_warning = problem.severity == Severity::Warning;
        assert_eq!(
            manifests.may_have("gate.yaml", counter),
            !is_warning,
            "{kind}"
        );
        is_warning
    };
    assert!(severity("v1", "Service") && severity("v1", "PersistentVolumeClaim"));
    assert!(severity("rbac.authorization.k8s.io/v1", "Role") && severity("acme.io/v1", "Gate"));
    assert!(!severity("v1", "Podd") && !severity("extensions/v1beta1", "Pod"));
    assert!(!severity("v1", "pod"));
    assert!(
        !read("apiVersion: v1\nkind: List\nitems: []\n")
            .problems
            .is_empty()
    );
}

/// Goal: of a document that cannot be parsed it is known what it means if its lines say it, and nothing
/// is concluded from a line that may be cut off.
#[test]
fn a_broken_document_may_mean_what_its_lines_say_and_no_other() {
    let ids: Vec<Id> = read(GOOD).objects.into_keys().collect();
    let may_mean = |text: &str| {
        let manifests = read(text);
        assert!(!manifests.problems.is_empty() && manifests.objects.is_empty());
        let all = ids.iter().filter(|id| manifests.may_have("gate.yaml", id));
        all.map(|id| id.name.as_str()).collect::<Vec<_>>()
    };
    let all = ["toll-counter", "lane", "key", "web"];
    assert_eq!(may_mean("a: ["), all);
    assert_eq!(may_mean("kind: Pod\na: [\n"), ["toll-counter"]);
    let named =
        "kind: ConfigMap\nmetadata:\n  labels: {a: b}\n  name: lane\nspec:\n  name: web\n a: [";
    assert_eq!(may_mean(named), ["lane"]);
    assert_eq!(
        may_mean("metadata: {name: key, namespace: toll}\na: [\n"),
        ["key"]
    );
    assert_eq!(
        may_mean("metadata: {name: key}\na: [\n"),
        Vec::<&str>::new()
    );
    assert_eq!(
        may_mean("kind: Pod\nmetadata: {name: [}\n"),
        ["toll-counter"]
    );
    // Cut off in the name, and in a document that parses so far.
    assert_eq!(
        may_mean("a: [\nkind: Pod\nmetadata:\n  name: toll"),
        ["toll-counter"]
    );
    assert_eq!(
        may_mean("apiVersion: v1\nkind: Pod\nmetadata:\n  name: toll"),
        all
    );
    assert_eq!(may_mean("[1]\n"), all);
    assert_eq!(may_mean("{\"kind\": \"Pod\"}"), ["toll-counter"]);
}
