//! Tests of images as a whole: generated layouts, as directories and as tars.

use super::*;
use edge_core::limits::{LAYERS_UNUSED_MAX, MEDIUM_FREE_BYTES_MIN};
use flate2::write::GzEncoder;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Environment variable of [`child_unpacks`].
const CHILD: &str = "EDGE_MIN_TEST_UNPACK_IN";

/// Files of a layout.
#[derive(Clone, Default)]
struct Made {
    files: Vec<(String, Vec<u8>)>,
}

impl Made {
    /// Adds a blob; returns its descriptor without the closing brace.
    fn blob(&mut self, kind: &str, bytes: &[u8]) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        self.files
            .push((format!("blobs/sha256/{hex}"), bytes.to_vec()));
        let size = bytes.len();
        format!("{{\"mediaType\":\"{kind}\",\"digest\":\"sha256:{hex}\",\"size\":{size}")
    }

    /// Adds an image; returns its descriptor without the closing brace.
    fn image(&mut self, layers: &[Vec<u8>], config: &str) -> String {
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.as_bytes(),
        );
        let layers: Vec<String> = layers
            .iter()
            .map(|one| self.blob(LAYER, one) + "}")
            .collect();
        let manifest = format!(
            "{{\"config\":{config}}},\"layers\":[{}]}}",
            layers.join(",")
        );
        self.blob(MANIFEST, manifest.as_bytes())
    }

    fn index(&mut self, descriptors: &[String]) {
        let index = format!(
            "{{\"schemaVersion\":2,\"manifests\":[{}]}}",
            descriptors.join(",")
        );
        self.files.push(("index.json".into(), index.into_bytes()));
        let version = b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec();
        self.files.push(("oci-layout".into(), version));
    }

    fn into_dir(self, dir: &Path) {
        for (name, bytes) in self.files {
            fs::create_dir_all(dir.join(&name).parent().unwrap()).unwrap();
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    fn into_tar(self, file: &Path) {
        let mut builder = tar::Builder::new(fs::File::create(file).unwrap());
        for (name, bytes) in self.files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(bytes.len() as u64);
            builder
                .append_data(&mut header, format!("./{name}"), bytes.as_slice())
                .unwrap();
        }
        builder.finish().unwrap();
    }
}

fn named(descriptor: &str, name: &str) -> String {
    let annotations = format!("{{\"org.opencontainers.image.ref.name\":\"{name}\"}}");
    format!("{descriptor},\"annotations\":{annotations}}}")
}

/// A layer with these files.
fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

/// One image named `a:1` with one file.
fn simple() -> Made {
    let mut made = Made::default();
    let config = "{\"config\":{\"Cmd\":[\"/f\"],\"User\":\"7:8\",\"Env\":[\"A=b\"]}}";
    let image = made.image(&[layer(&[("f", b"hello")])], config);
    made.index(&[named(&image, "a:1")]);
    made
}

struct Board {
    dir: tempfile::TempDir,
    /// A medium of its own, unmounted with the board at the end of the test.
    medium: Option<PathBuf>,
}

impl Drop for Board {
    fn drop(&mut self) {
        if let Some(medium) = &self.medium
            && let Err(error) = nix::mount::umount(medium)
        {
            eprintln!("{}: {error}", medium.display());
        }
    }
}

impl Board {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("preload")).unwrap();
        Self { dir, medium: None }
    }

    /// Puts the state on a medium of `bytes`, independent of the host's medium.
    fn on_medium(bytes: u64) -> Self {
        let mut board = Self::new();
        let state = board.dir.path().join("state");
        fs::create_dir(&state).unwrap();
        crate::workload::volume::tmpfs(&state, bytes).unwrap();
        board.medium = Some(state);
        board
    }

    fn preload(&self, name: &str) -> PathBuf {
        self.dir.path().join("preload").join(name)
    }

    fn images(&self) -> Images {
        Images::new(&self.dir.path().join("state"), &self.preload("")).unwrap()
    }

    fn layers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("state/layers")).unwrap();
        entries
            .map(|one| one.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn find(layout: &Layout, reference: &str, arch: &str) -> Result<Option<Manifest>, ImageError> {
    layout.find(&layout.index()?, reference, arch)
}

fn ensure(images: &Images, reference: &str, in_use: &[String]) -> Result<Image, ImageError> {
    let stop = Stop::after(Duration::from_secs(3600));
    let image = images.ensure(reference, in_use, &stop)?;
    Ok(image.expect("all of it is unpacked"))
}

/// Goal: only images to unpack wait for the one thread that unpacks: an image that is missing
/// or damaged is answered at once. Method: the quick check of each kind.
#[test]
fn an_image_that_cannot_be_unpacked_is_known_without_unpacking() {
    let board = Board::new();
    simple().into_dir(&board.preload("x"));
    let images = board.images();
    assert!(images.ready("a:1").unwrap().is_none());
    let missing = images.ready("a:2").unwrap_err();
    assert_eq!(missing.reason(), "ErrImageNeverPull");
    ensure(&images, "a:1", &[]).unwrap();
    assert_eq!(images.ready("a:1").unwrap().unwrap().layers.len(), 1);
    let mut made = Made::default();
    let config = made.blob("", b"{}");
    let layer = made.blob("application/vnd.oci.image.layer.v1.tar+zstd", b"bytes");
    let manifest = format!("{{\"config\":{config}}},\"layers\":[{layer}}}]}}");
    let image = made.blob(MANIFEST, manifest.as_bytes());
    made.index(&[named(&image, "a:3")]);
    made.into_dir(&board.preload("y"));
    let wrong = images.ready("a:3").unwrap_err();
    assert_eq!(wrong.reason(), "ImageInspectError");
    // What cannot be read says nothing about an image that it may not have, and is told all the same.
    fs::write(board.preload("z.tar"), "no tar").unwrap();
    let missing = images.ready("a:2").unwrap_err();
    assert_eq!(missing.reason(), "ErrImageNeverPull");
    let text = missing.to_string();
    assert!(
        text.contains("image a:2 is not in the preload folder"),
        "{text}"
    );
    assert!(text.contains("/z.tar: "), "{text}");
    assert!(images.ready("a:1").unwrap().is_some(), "it hides no other");
    assert_eq!(
        images.ready("a:3").unwrap_err().reason(),
        "ImageInspectError"
    );
}

/// Goal: an unpacking ends at its job's deadline or when its pod leaves, and leaves nothing behind. Method: a
/// job without any time, before and while a layer is read.
#[test]
fn an_unpacking_stops_with_its_job() {
    let board = Board::new();
    simple().into_dir(&board.preload("x"));
    let images = board.images();
    ensure(&images, "a:1", &[]).unwrap();
    let mut made = Made::default();
    let image = made.image(&[layer(&[("g", b"other")])], "{}");
    made.index(&[named(&image, "a:2")]);
    made.into_dir(&board.preload("y"));
    let stop = Stop::after(Duration::ZERO);
    // In use: on a full disk of the host an unused layer would be removed for space.
    let in_use = ["a:1".to_owned()];
    let error = images.ensure("a:2", &in_use, &stop).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("not done within"), "{error}");
    assert_eq!(board.layers().len(), 1);
    let blob = Stopping {
        blob: [0; 1024].as_slice(),
        stop: &stop,
    };
    let target = board.dir.path().join("target");
    let result = images.unpack(blob, Packing::Plain, (&target, &[])).unwrap();
    let error = result.unwrap_err();
    assert!(error.contains("not done within"), "{error}");
}

#[test]
fn a_directory_and_a_tar_give_the_same_image() {
    for is_tar in [false, true] {
        let board = Board::new();
        if is_tar {
            simple().into_tar(&board.preload("x.tar"));
        } else {
            simple().into_dir(&board.preload("x"));
        }
        let images = board.images();
        let image = ensure(&images, "a:1", &[]).unwrap();
        assert_eq!(
            (image.config.cmd, image.config.user),
            (vec!["/f".into()], "7:8".to_owned())
        );
        assert_eq!(image.config.env, [("A".into(), "b".into())]);
        let file = image.layers[0].join("f");
        assert_eq!(fs::read_to_string(&file).unwrap(), "hello");
        let before = fs::metadata(&file).unwrap().ino();
        // Another agent, later: nothing is unpacked again.
        ensure(&board.images(), "docker.io/library/a:1", &[]).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().ino(), before);
        assert_eq!(board.layers().len(), 1);
        assert_eq!(
            fs::metadata(board.dir.path().join("state/layers"))
                .unwrap()
                .mode()
                & 0o777,
            0o700
        );
        let missing = ensure(&images, "a:2", &[]).unwrap_err();
        assert_eq!(missing.reason(), "ErrImageNeverPull");
    }
}

/// Goal: every error in a layout is refused, with file and reason in the message, and leaves
/// nothing behind. Method: one damage at a time, as directory and as tar.
#[test]
fn each_damage_is_named() {
    let find = |made: &Made, what: &str| {
        let position = made.files.iter().position(|(_, bytes)| {
            let text = String::from_utf8_lossy(bytes);
            match what {
                "config" => text.contains("Cmd"),
                "manifest" => text.contains("layers"),
                "index" => text.contains("schemaVersion"),
                _ => bytes.starts_with(&[0x1f, 0x8b]),
            }
        });
        position.unwrap()
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>), &'a str);
    let damages: [Damage<'_>; 12] = [
        ("layer", &|bytes| bytes[30] ^= 1, "do not have this digest"),
        ("config", &|bytes| bytes[30] ^= 1, "do not have this digest"),
        (
            "manifest",
            &|bytes| bytes[30] ^= 1,
            "do not have this digest",
        ),
        (
            "layer",
            &|bytes| bytes.truncate(bytes.len() - 1),
            "should have",
        ),
        ("manifest", &|bytes| bytes.push(b' '), "should have"),
        (
            "index",
            &|bytes| bytes.truncate(bytes.len() - 1),
            "index.json: EOF",
        ),
        (
            "index",
            &|bytes| bytes.resize(300_000, b' '),
            "over 256 KiB",
        ),
        (
            "index",
            &|bytes| replace(bytes, "sha256:", "sha512:"),
            "is not a sha256",
        ),
        (
            "index",
            &|bytes| replace(bytes, "\"sha256:", "\"sha256:../../"),
            "is not a sha256",
        ),
        (
            "index",
            &|bytes| replace(bytes, "\"size\":", "\"size\":-"),
            "index.json: ",
        ),
        (
            "index",
            &|bytes| replace(bytes, "\"manifests\":[", "\"manifests\":[7,"),
            "invalid type",
        ),
        (
            "index",
            &|bytes| replace(bytes, "\"size\":", "\"size\":9"),
            "should have",
        ),
    ];
    for (what, damage, reason) in damages {
        for is_tar in [false, true] {
            let mut made = simple();
            let index = find(&made, what);
            damage(&mut made.files[index].1);
            let board = Board::new();
            if is_tar {
                made.into_tar(&board.preload("broken.tar"));
            } else {
                made.into_dir(&board.preload("broken"));
            }
            let error = ensure(&board.images(), "a:1", &[]).unwrap_err();
            let text = error.to_string();
            // Which images it has is not known if that cannot be read.
            let unread = text.contains("one that cannot be read: ");
            let kinds = ["ImageInspectError", "ErrImageNeverPull"];
            assert_eq!(error.reason(), kinds[usize::from(unread)], "{text}");
            assert!(text.contains("/preload/broken"), "{what}: {text}");
            assert!(text.contains(reason), "{what}: {text}");
            assert!(board.layers().is_empty());
            // It does not hide an image of another layout.
            simple().into_dir(&board.preload("whole"));
            ensure(&board.images(), "a:1", &[]).unwrap();
        }
    }
}

fn replace(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(text.contains(from));
    *bytes = text.replacen(from, to, 1).into_bytes();
}

#[test]
fn tars_that_are_no_layout_are_named() {
    let refused = |change: &dyn Fn(&Path)| {
        let board = Board::new();
        simple().into_tar(&board.preload("x.tar"));
        change(&board.preload("x.tar"));
        let error = ensure(&board.images(), "a:1", &[]).unwrap_err().to_string();
        assert!(error.contains("/preload/x.tar: "), "{error}");
        error
    };
    let compressed = refused(&|path| {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&fs::read(path).unwrap()).unwrap();
        fs::write(path, encoder.finish().unwrap()).unwrap();
    });
    assert!(compressed.contains("gzip -d"), "{compressed}");
    let twice = refused(&|path| {
        let mut made = simple();
        made.files.push(("index.json".into(), b"{}".to_vec()));
        made.into_tar(path);
    });
    assert!(twice.contains("index.json is there twice"), "{twice}");
    let other = refused(&|path| fs::write(path, [0; 1024]).unwrap());
    assert!(other.contains("is it a tar of an OCI layout?"), "{other}");
    let foreign = refused(&|path| fs::write(path, [7; 1024]).unwrap());
    assert!(foreign.contains("tar: "), "{foreign}");
    let cut = refused(&|path| {
        let bytes = fs::read(path).unwrap();
        // In the middle of the index, the last file but one.
        fs::write(path, &bytes[..bytes.len() - 1024 - 1024 - 400]).unwrap();
    });
    assert!(cut.contains("index.json"), "{cut}");
}

#[test]
fn a_pipe_in_a_layout_is_refused_and_not_waited_for() {
    let board = Board::new();
    simple().into_dir(&board.preload("x"));
    let index = board.preload("x/index.json");
    fs::remove_file(&index).unwrap();
    let mode = rustix::fs::Mode::from(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &index, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let error = ensure(&board.images(), "a:1", &[]).unwrap_err().to_string();
    assert!(error.contains("index.json is not a file"), "{error}");
}

#[test]
fn bounds_and_kinds_of_layers_are_kept() {
    let refused = |made: Made| {
        let board = Board::new();
        made.into_dir(&board.preload("x"));
        let error = ensure(&board.images(), "a:1", &[]).unwrap_err().to_string();
        assert!(board.layers().is_empty(), "{error}");
        error
    };
    let mut many = Made::default();
    let image = many.image(&vec![layer(&[]); 33], "{}");
    many.index(&[named(&image, "a:1")]);
    assert!(refused(many).contains("more than 32 layers"));
    for (kind, reason) in [
        ("application/vnd.oci.image.layer.v1.tar+zstd", "use gzip"),
        (
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "not supported",
        ),
        ("", "not supported"),
    ] {
        let mut made = Made::default();
        let config = made.blob("", b"{}");
        let layer = made.blob(kind, b"bytes");
        let manifest = format!("{{\"config\":{config}}},\"layers\":[{layer}}}]}}");
        let image = made.blob(MANIFEST, manifest.as_bytes());
        made.index(&[named(&image, "a:1")]);
        assert!(refused(made).contains(reason), "{kind}");
    }
    let mut evil = Made::default();
    let image = evil.image(
        &[layer(&[("f", b"x")]), b"these bytes are no gzip".to_vec()],
        "{}",
    );
    evil.index(&[named(&image, "a:1")]);
    let board = Board::new();
    evil.into_dir(&board.preload("x"));
    let error = ensure(&board.images(), "a:1", &[]).unwrap_err().to_string();
    assert!(error.contains("invalid gzip header"), "{error}");
    assert_eq!(
        board.layers().len(),
        1,
        "the good layer stays for a better image"
    );
}

#[test]
fn an_image_for_many_boards_gives_the_one_for_this_board() {
    let platforms = [
        ("unknown", "unknown", ""),
        ("windows", "amd64", ""),
        ("linux", "amd64", "v3"),
        ("linux", "arm", "v6"),
        ("linux", "arm", "v7"),
        ("linux", "arm64", "v8"),
        ("linux", "amd64", ""),
    ];
    let mut made = Made::default();
    let mut all = Vec::new();
    for (os, arch, variant) in platforms {
        let config = format!("{{\"config\":{{\"Cmd\":[\"{os}/{arch}/{variant}\"]}}}}");
        let image = made.image(&[], &config);
        all.push(format!(
            "{image},\"platform\":{{\"os\":\"{os}\",\"architecture\":\"{arch}\",\"variant\":\"{variant}\"}}}}"
        ));
    }
    let list = format!("{{\"manifests\":[{}]}}", all.join(","));
    let index = made.blob(INDEX, list.as_bytes());
    let few = format!("{{\"manifests\":[{}]}}", all[1]);
    let few = made.blob(INDEX, few.as_bytes());
    // A layout must not contain an index of indexes.
    let nested =
        format!("{{\"manifests\":[{index},\"platform\":{{\"architecture\":\"amd64\"}}}}]}}");
    let nested = made.blob(INDEX, nested.as_bytes());
    let index = [
        named(&index, "a:1"),
        named(&few, "few"),
        named(&nested, "nested"),
    ];
    made.index(&index);
    let board = Board::new();
    made.into_tar(&board.preload("x.tar"));
    let layout = || Layout::at(board.preload("x.tar")).unwrap();
    let command = |arch: &str| {
        let manifest = find(&layout(), "a:1", arch).unwrap().unwrap();
        let file: ConfigFile = layout().verified(&manifest.config).unwrap();
        file.config.cmd.unwrap().remove(0)
    };
    assert_eq!(command("x86_64"), "linux/amd64/");
    assert_eq!(command("aarch64"), "linux/arm64/v8");
    assert_eq!(command("arm"), "linux/arm/v7");
    for (name, arch) in [("a:1", "riscv64"), ("few", "x86_64"), ("nested", "x86_64")] {
        let error = find(&layout(), name, arch).unwrap_err().to_string();
        assert!(
            error.contains(&format!("is not there for {arch}")),
            "{error}"
        );
    }
}

/// Goal: layers are removed only when nothing can need them. Method: more unused layers than are kept,
/// one desired, one mounted without a pod.
#[test]
#[ignore = "needs root: mounts an overlay"]
fn unused_layers_go_and_those_of_pods_and_containers_stay() {
    let board = Board::on_medium(256 << 20);
    let mut made = Made::default();
    let desired = made.image(&[layer(&[("f", b"desired")])], "{}");
    let running = made.image(&[layer(&[("f", b"running")])], "{}");
    made.index(&[named(&desired, "desired"), named(&running, "running")]);
    made.into_dir(&board.preload("x"));
    let images = board.images();
    let desired = ensure(&images, "desired", &[]).unwrap().layers.remove(0);
    let running = ensure(&images, "running", &[]).unwrap().layers.remove(0);
    let in_use = ["desired".to_owned()];
    for number in 0..LAYERS_UNUSED_MAX + 8 {
        // Names after every digest: folders made in the same tick are removed in the order of names.
        let name = format!("z{number:063x}");
        fs::create_dir_all(board.dir.path().join("state/layers").join(name).join("sub")).unwrap();
    }
    let root = board.dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let lower = format!("lowerdir={}:{}", running.display(), desired.display());
    let flags = nix::mount::MsFlags::MS_RDONLY;
    nix::mount::mount(
        Some("overlay"),
        &root,
        Some("overlay"),
        flags,
        Some(lower.as_str()),
    )
    .unwrap();
    let first = images.collect_unused(&in_use);
    let all = images.collect(&images.layers_of(&in_use), Need::All);
    let kept = (desired.exists(), running.exists());
    let text = fs::read_to_string(root.join("f"));
    nix::mount::umount(&root).unwrap();
    // The oldest beyond the cap; the mounted one counts and stays.
    assert_eq!(
        first.unwrap(),
        8,
        "nine too many, and one of them is mounted"
    );
    assert_eq!(all.unwrap(), LAYERS_UNUSED_MAX);
    assert_eq!(kept, (true, true));
    assert_eq!(text.unwrap(), "running");
    assert_eq!(
        images
            .collect(&images.layers_of(&in_use), Need::All)
            .unwrap(),
        1
    );
    assert!(desired.exists() && !running.exists());
}

/// Goal: a full medium loses only unused layers. Method: a medium of 40 MiB, of which
/// 32 always stay free.
#[test]
#[ignore = "needs root: mounts a tmpfs"]
fn a_full_medium_makes_room_and_keeps_its_reserve() {
    let board = Board::on_medium(40 << 20);
    let mut made = Made::default();
    let names = ["a", "b", "c"];
    let sizes = [3, 4, 12];
    let mut index = Vec::new();
    for (name, mib) in names.iter().zip(sizes) {
        let bytes = vec![name.as_bytes()[0]; mib << 20];
        index.push(named(&made.image(&[layer(&[("f", &bytes)])], "{}"), name));
    }
    made.index(&index);
    made.into_dir(&board.preload("x"));
    let images = board.images();
    let pods = |names: &[&str]| -> Vec<String> { names.iter().map(|n| (*n).into()).collect() };
    ensure(&images, "a", &pods(&["a"])).unwrap();
    // A pod needs both: there is no space, and nothing is removed.
    let full = ensure(&images, "b", &pods(&["a", "b"])).unwrap();
    assert_eq!((full.layers.len(), board.layers().len()), (1, 2));
    let error = ensure(&images, "c", &pods(&["a", "b", "c"])).unwrap_err();
    assert!(error.to_string().contains("bytes unpacked"), "{error}");
    assert_eq!(board.layers().len(), 2);
    // No pod needs `a` and `b`: `a` is removed, and `b` stays for the container that starts from it.
    ensure(&images, "c", &pods(&["c"])).unwrap_err();
    assert_eq!(board.layers().len(), 1);
    drop(full);
    // Now `b` is removed too, and it is not enough.
    ensure(&images, "c", &pods(&["c"])).unwrap_err();
    assert!(board.layers().is_empty());
    ensure(&images, "b", &pods(&["b"])).unwrap();
    ensure(&images, "a", &pods(&["a"])).unwrap();
    assert!(images.space().unwrap().free >= MEDIUM_FREE_BYTES_MIN);
}

/// Child process of the next test; does nothing without the variable: unpacks, then waits for its end.
#[test]
fn child_unpacks() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    let images = Images::new(&dir.join("state"), &dir.join("preload")).unwrap();
    ensure(&images, "a:1", &[]).unwrap();
}

/// Path, content and mode of everything below `dir`.
fn list(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mut content = String::new();
            if metadata.is_dir() {
                dirs.push(path.clone());
            } else {
                content = fs::read_to_string(&path).unwrap();
            }
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            lines.push(format!("{name} {:o} {content}", metadata.mode()));
        }
    }
    lines.sort();
    lines
}

/// Calls that change what is on the medium, and those that open it.
const CALLS: &str = "openat,mkdir,mkdirat,write,fsync,fdatasync,rename,renameat,renameat2,\
                     fchmod,fchmodat,fchown,fchownat,utimensat";

/// Runs [`child_unpacks`] under strace, which kills it at a call with this name, the nth of those. Returns
/// whether it was killed, and the names of the calls that its unpacking thread made.
fn unpacks_until(board: &Board, killed_at: Option<(&str, usize)>) -> (bool, Vec<String>) {
    let log = board.dir.path().join("strace");
    // Test names begin after the name of the crate.
    let (_, child) = concat!(module_path!(), "::child_unpacks")
        .split_once("::")
        .unwrap();
    let mut command = Command::new("strace");
    command.args(["-ff", "-qq", "-e", &format!("trace={CALLS}"), "-o"]);
    command.arg(&log);
    if let Some((call, nth)) = killed_at {
        command.args(["-e", &format!("inject={call}:signal=KILL:when={nth}")]);
    }
    let status = command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", child, "--test-threads=1"])
        .env(CHILD, board.dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("strace is missing: scripts/setup");
    assert!(
        status.success() || status.signal() == Some(9),
        "the child failed by itself"
    );
    // A file for each thread; the one that unpacks makes most calls.
    let mut calls = Vec::new();
    for entry in fs::read_dir(board.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|stem| stem == "strace") {
            let log = fs::read_to_string(&path).unwrap();
            let names = log.lines().filter_map(|line| line.split_once('('));
            let names: Vec<String> = names.map(|(name, _)| name.to_owned()).collect();
            if names.len() > calls.len() {
                calls = names;
            }
            fs::remove_file(path).unwrap();
        }
    }
    (!status.success(), calls)
}

/// Goal: at whatever point the agent is killed, a layer is complete or absent, and the next
/// agent removes the remains. Method: a child process unpacks; SIGKILL at calls spread from the
/// first to the last.
#[test]
fn killed_at_any_point_a_layer_is_whole_or_not_there() {
    let long = std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty());
    let kills: usize = if long { 400 } else { 40 };
    let board = Board::new();
    let text = "x".repeat(5000);
    let names: Vec<String> = (0..400).map(|n| format!("d{}/f{n}", n % 7)).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), text.as_bytes()))
        .collect();
    let mut made = Made::default();
    let image = made.image(&[layer(&files)], "{}");
    made.index(&[named(&image, "a:1")]);
    made.into_tar(&board.preload("x.tar"));
    let whole = list(&ensure(&board.images(), "a:1", &[]).unwrap().layers[0]);
    assert!(whole.len() > 400);
    let state = board.dir.path().join("state");
    fs::remove_dir_all(&state).unwrap();
    let (killed, calls) = unpacks_until(&board, None);
    assert!(!killed && calls.len() > 400, "{} calls", calls.len());
    let (mut half, mut complete) = (0, 0);
    for kill in 0..=kills {
        fs::remove_dir_all(&state).ok();
        // The last one is not killed.
        let at = calls.len() * kill / kills;
        let nth = |call: &String| calls[..=at].iter().filter(|one| *one == call).count();
        let call = calls.get(at).map(|call| (call.as_str(), nth(call)));
        let (killed, _) = unpacks_until(&board, call);
        assert_eq!(killed, call.is_some(), "kill {kill} at {call:?}");
        let layers = state.join("layers");
        for entry in fs::read_dir(&layers).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "tmp") {
                half += 1;
            } else {
                assert_eq!(list(&path), whole, "kill {kill}");
                complete += 1;
            }
        }
        board.images().clear_remains();
        assert!(
            board
                .layers()
                .iter()
                .all(|name| !name.ends_with(paths::TEMPORARY))
        );
    }
    assert!(half > 0, "no kill hit the unpacking");
    assert!(complete > 0, "no unpacking was finished");
}
