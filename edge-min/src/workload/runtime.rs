//! Pods and containers on the board, by runc or as plain processes. Synchronous: the threads of one
//! pool share it. It decides nothing; `edge-core` decides what to start, signal and remove.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge_core::{Input, StartFailure};
use edge_proto::hash::Hash16;
use edge_proto::key::Uid;

use crate::board::config::Config;
use crate::paths;
use crate::storage::medium::{self, Durability};
use crate::storage::tree;
use crate::sys::if_there;
use crate::worker::Stop;
use crate::workload::cgroup::{self, Cgroups};
use crate::workload::deadline::{kill, wait_within};
use crate::workload::failure::{because, not_created, not_run};
use crate::workload::launch::{self, Plan, hand_over};
use crate::workload::reaper::{Process, StartingPids, identity};
use crate::workload::spec::{Rootfs, Spec};
use crate::workload::{oci, volume};

/// `f_type` of a tmpfs in statfs(2).
const TMPFS_MAGIC: i128 = 0x0102_1994;
/// Bytes of runc's own messages that are copied into a status.
const MESSAGE_BYTES_MAX: u64 = 512;
/// `runc delete`: it uses only runc's own folder and the kernel. One that takes longer hangs,
/// and is retried later.
const RUNC_CLEAR_TIMEOUT: Duration = Duration::from_secs(10);
/// In runc's folder of a container, until `runc start`; runc's own.
const RUNC_NOT_STARTED: &str = "exec.fifo";

/// A container that exists on the board.
#[derive(Debug)]
pub struct Found {
    /// UID of the pod.
    pub uid: Uid,
    /// Name in the pod.
    pub container: String,
    /// Hash of the spec that it was started with.
    pub hash: Hash16,
    /// Its process; `None` when only remains exist.
    pub process: Option<Process>,
}

/// The runtime; clones share nothing but the board.
#[derive(Clone)]
pub struct Runtime {
    run: PathBuf,
    state: PathBuf,
    runc: PathBuf,
    cgroups: Cgroups,
    starting_pids: StartingPids,
    /// Folders of which containers may see parts.
    shown: Vec<String>,
    /// Held while the folder of emptyDirs is mounted or unmounted.
    scratch: Arc<Mutex<()>>,
}

impl Runtime {
    /// A runtime with the config's directories.
    ///
    /// # Errors
    /// No cgroups, or a directory that cannot be made.
    pub fn new(config: &Config) -> io::Result<Self> {
        let (run, state) = (&config.run_dir, &config.state_dir);
        for dir in [paths::pods(run), paths::bundles(run), paths::runc(run)] {
            tree::private(&dir)?;
        }
        // Only containers of runc need it; plain processes run also on a medium that cannot be written.
        if let Err(error) = tree::private(&paths::writable_layers(state)) {
            log::warn!("no_writable_layers error={error}");
        }
        Ok(Self {
            run: run.clone(),
            state: state.clone(),
            runc: config.runc.clone(),
            cgroups: Cgroups::detect(&config.cgroup)?,
            starting_pids: StartingPids::default(),
            shown: [run, state]
                .into_iter()
                .filter_map(|dir| dir.to_str().map(str::to_owned))
                .chain(config.host_paths.iter().cloned())
                .collect(),
            scratch: Arc::default(),
        })
    }

    /// State that the reaper needs of containers that are being started.
    #[must_use]
    pub fn starting_pids(&self) -> StartingPids {
        self.starting_pids.clone()
    }

    /// Creates the pod's directory with a tmpfs of so many bytes for its logs.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prepare_pod(&self, uid: Uid, logs_bytes: u64) -> io::Result<()> {
        let logs = paths::logs(&self.run, uid);
        let (volumes, state) = (
            paths::volumes(&self.run, uid),
            paths::containers(&self.run, uid),
        );
        for dir in [&logs, &volumes, &state] {
            fs::create_dir_all(dir)?;
        }
        volume::tmpfs(&logs, logs_bytes)
    }

    /// Directory of one volume of a pod.
    #[must_use]
    pub fn volume_dir(&self, uid: Uid, name: &str) -> PathBuf {
        paths::volume(&self.run, uid, name)
    }

    /// Directory of an emptyDir. It is on a tmpfs of its own, as large as that of the run directory: a
    /// container that fills it must not prevent others from starting.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn scratch_dir(&self, uid: Uid, name: &str) -> io::Result<PathBuf> {
        let _alone = self.scratch_lock();
        let scratch = paths::scratch(&self.run);
        tree::private(&scratch)?;
        let medium = rustix::fs::statfs(&self.run)?;
        // If the run directory is on flash, so is this directory.
        if i128::from(medium.f_type) == TMPFS_MAGIC {
            let block = u64::try_from(medium.f_bsize).unwrap_or(0);
            volume::tmpfs(&scratch, medium.f_blocks.saturating_mul(block))?;
            tree::private(&scratch)?;
        }
        let pod = paths::scratch_of(&self.run, uid);
        // While it exists, the removal of another pod does not unmount the folder.
        fs::create_dir_all(&pod)?;
        Ok(pod.join(name))
    }

    fn scratch_lock(&self) -> MutexGuard<'_, ()> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what a pod left behind. Its containers must be removed already.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_pod(&self, uid: Uid) -> io::Result<()> {
        let pod = self.pod_dir(uid);
        for entry in fs::read_dir(paths::volumes(&self.run, uid))
            .into_iter()
            .flatten()
            .flatten()
        {
            volume::unmount(&entry.path());
        }
        volume::unmount(&paths::logs(&self.run, uid));
        // Never a mount of the board itself.
        if let Some(mount) = volume::mount_below(&pod)? {
            let text = ["still mounted: ", &mount].concat();
            return Err(io::Error::other(text));
        }
        let scratch = paths::scratch(&self.run);
        tree::remove(&paths::scratch_of(&self.run, uid))?;
        let _alone = self.scratch_lock();
        // It was the last one.
        if fs::read_dir(&scratch).is_ok_and(|mut left| left.next().is_none()) {
            volume::unmount(&scratch);
            fs::remove_dir(&scratch)?;
        }
        tree::remove(&pod)
    }

    /// Pods that have a directory.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn pods(&self) -> io::Result<Vec<Uid>> {
        let mut pods = Vec::new();
        for entry in fs::read_dir(paths::pods(&self.run))? {
            let name = entry?.file_name();
            pods.extend(name.to_str().and_then(Uid::parse));
        }
        Ok(pods)
    }

    /// Starts a container; returns its process.
    ///
    /// # Errors
    /// With the message of runc or of the kernel. A failure counts as a run only if its cause is the container's
    /// own: its program, user, mounts.
    pub fn start(&self, spec: &Spec<'_>, stop: &Stop) -> Result<u32, StartFailure> {
        // It may have waited behind an image while its pod left.
        stop.check().map_err(not_created)?;
        let _starting = cgroup::starting();
        let one = spec.resolved;
        let path = self.cgroup(one.uid, &one.container, one.hash);
        let log = paths::log(&self.run, one.uid, &one.container);
        drop(fs::remove_file(self.end_file(one.uid, &one.container)));
        self.cgroups
            .create(&path, &one.limits)
            .map_err(not_created)?;
        match &spec.rootfs {
            None => self.start_process(spec, &path, log, stop),
            Some(rootfs) => self.start_runc(spec, rootfs, (&path, &log), stop),
        }
    }

    fn start_process(
        &self,
        spec: &Spec<'_>,
        path: &Path,
        log: PathBuf,
        stop: &Stop,
    ) -> Result<u32, StartFailure> {
        let (one, process) = (spec.resolved, &spec.process);
        let plan = Plan {
            agent: std::process::id(),
            argv: process.argv.clone(),
            env: process.env.clone(),
            cwd: PathBuf::from(&process.cwd),
            uid: process.user,
            gid: one.group,
            granted: one.rights.granted,
            for_users: one.rights.for_users,
            privileged: one.rights.privileged,
            procs_files: self.cgroups.procs_files(path),
            binds: spec.binds.clone(),
            shown: self.shown.clone(),
            open_files: launch::open_files(),
            log,
            state: self.state_file(one.uid, &one.container),
        };
        let mut child = Command::new("/proc/self/exe")
            .arg("launch")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(not_created)?;
        let pid = child.id();
        let failure = match hand_over(&mut child, &plan, stop) {
            // The reaper waits for it, so std must not. If this thread exits first, its children change parents.
            Ok(reason) if reason.is_empty() => {
                self.starting_pids.announce(pid);
                return Ok(pid);
            }
            Ok(reason) => not_run(reason),
            Err(error) => because("launch", &error),
        };
        // In most cases it has ended already.
        kill(&mut child).map_err(not_created)?;
        Err(failure)
    }

    fn start_runc(
        &self,
        spec: &Spec<'_>,
        rootfs: &Rootfs,
        (path, log): (&Path, &Path),
        stop: &Stop,
    ) -> Result<u32, StartFailure> {
        let (uid, container) = (spec.resolved.uid, spec.resolved.container.as_str());
        let bundle = self.bundle_dir(uid, container);
        let root = bundle.join(paths::ROOTFS);
        fs::create_dir_all(&root).map_err(not_created)?;
        self.mount_rootfs(&self.rw_dir(uid, container), rootfs, &root)
            .map_err(not_created)?;
        let cgroups_path = Path::new("/").join(path);
        let config = oci::config(spec, &cgroups_path.to_string_lossy());
        let text = config.to_string();
        medium::write(
            &bundle.join(paths::BUNDLE_CONFIG),
            text.as_bytes(),
            Durability::Never,
        )
        .map_err(not_created)?;
        let id = container_id(uid, container);
        let pid_file = bundle.join(paths::PID);
        let stdio = OpenOptions::new()
            .append(true)
            .create(true)
            .open(log)
            .map_err(not_created)?;
        // runc passes its stdio to the container, so its own messages need a file of their own.
        let messages = bundle.join(paths::RUNC_LOG);
        drop(fs::remove_file(&messages));
        let created = Command::new(&self.runc)
            .arg("--root")
            .arg(paths::runc(&self.run))
            .arg("--log")
            .arg(&messages)
            .arg("create")
            .arg("--bundle")
            .arg(&bundle)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&id)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(stdio.try_clone().map_err(not_created)?)
            .stderr(stdio)
            .spawn()
            .and_then(|mut runc| wait_within(&mut runc, stop))
            .map_err(|error| because(&self.runc.to_string_lossy(), &error))?;
        if !created.success() {
            return Err(not_run(runc_message(&messages)));
        }
        let pid = fs::read_to_string(&pid_file).map_err(not_created)?;
        let no_pid = |_| not_created(io::Error::other("runc wrote no pid"));
        let pid = pid.trim().parse().map_err(no_pid)?;
        // A later agent finds it by this, whatever becomes of runc.
        let identity = identity(pid).map_err(not_created)?;
        let state = self.state_file(uid, container);
        medium::write(&state, identity.as_bytes(), Durability::Never).map_err(not_created)?;
        // From here on it may run and end before the driver knows of it.
        self.starting_pids.announce(pid);
        let failure = match self.runc(&["start", &id], stop) {
            Ok(started) if started.status.success() => return Ok(pid),
            Ok(started) => not_run(String::from_utf8_lossy(&started.stderr).trim().to_owned()),
            // The container exists, and its program may have run already.
            Err(error) => not_run(["runc start: ", &error.to_string()].concat()),
        };
        self.starting_pids.remove(pid);
        Err(failure)
    }

    fn mount_rootfs(&self, rw: &Path, rootfs: &Rootfs, target: &Path) -> io::Result<()> {
        if volume::is_mount(target) {
            return Ok(());
        }
        let (upper, work) = (rw.join(paths::UPPER), rw.join(paths::WORK));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        // The kernel expects the topmost layer first.
        let lower: Vec<String> = rootfs
            .layers
            .iter()
            .rev()
            .map(|dir| dir.to_string_lossy().into_owned())
            .collect();
        let options = [
            "lowerdir=",
            &lower.join(":"),
            ",upperdir=",
            &upper.to_string_lossy(),
            ",workdir=",
            &work.to_string_lossy(),
        ]
        .concat();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(
            Some("overlay"),
            target,
            Some("overlay"),
            flags,
            Some(options.as_str()),
        )
        .map_err(|error| io::Error::other(["mount overlay: ", error.desc()].concat()))
    }

    /// Sends SIGKILL to all processes of a container; does not wait for their ends.
    pub fn kill(&self, uid: Uid, container: &str, hash: Hash16) {
        drop(self.cgroups.send_kill(&self.cgroup(uid, container, hash)));
    }

    /// Whether the OOM killer has killed a process of the container.
    #[must_use]
    pub fn oom_killed(&self, uid: Uid, container: &str, hash: Hash16) -> bool {
        self.cgroups.oom_killed(&self.cgroup(uid, container, hash))
    }

    /// Stores how a run ended, for a later agent: in the run folder, so a boot
    /// of the board clears it.
    pub fn note_end(&self, uid: Uid, container: &str, hash: Hash16, code: Option<i32>, oom: bool) {
        let code = code.map_or_else(|| "unknown".to_owned(), |code| code.to_string());
        let note = [
            hash.to_string().as_str(),
            &code,
            if oom { "oom" } else { "" },
        ]
        .join(" ");
        let file = self.end_file(uid, container);
        // If it is lost, a later agent takes the end for unknown or runs the container again.
        if let Err(error) = medium::write(&file, note.as_bytes(), Durability::Never) {
            log::warn!("end_not_noted pod={uid} container={container} error={error}");
        }
    }

    /// Ends that [`Self::note_end`] has stored for the latest runs.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn ends(&self) -> io::Result<Vec<Input>> {
        let mut ends = Vec::new();
        for uid in self.pods()? {
            let files = if_there(fs::read_dir(paths::containers(&self.run, uid)))?;
            for file in files.into_iter().flatten() {
                let file = file?;
                let name = file.file_name().to_string_lossy().into_owned();
                if let Some(container) = name.strip_suffix(paths::END)
                    && let Some(note) = note(&file.path())?
                {
                    ends.extend(end(uid, container, &note));
                }
            }
        }
        Ok(ends)
    }

    /// Removes what a container left behind, whatever its state; the log stays with the pod.
    ///
    /// # Errors
    /// Processes that do not end, or those of runc and the file system. The call can be
    /// repeated for the rest.
    pub fn remove(&self, uid: Uid, container: &str) -> io::Result<()> {
        let base = self.cgroups.path(&uid.to_string(), container);
        self.cgroups.kill(&base)?;
        let id = container_id(uid, container);
        let known = paths::runc_container(&self.run, &id);
        if known.exists() {
            let deleted = self.runc(
                &["delete", "--force", &id],
                &Stop::after(RUNC_CLEAR_TIMEOUT),
            )?;
            if !deleted.status.success() && known.exists() {
                let message = String::from_utf8_lossy(&deleted.stderr);
                return Err(io::Error::other(["runc delete: ", message.trim()].concat()));
            }
        }
        let bundle = self.bundle_dir(uid, container);
        if bundle.exists() {
            cgroup::sweep(&base);
        }
        volume::unmount(&bundle.join(paths::ROOTFS));
        tree::remove(&bundle)?;
        tree::remove(&self.rw_dir(uid, container))?;
        drop(fs::remove_file(self.state_file(uid, container)));
        self.cgroups.remove(&base)
    }

    /// Containers of an earlier agent on the board, running or not.
    ///
    /// # Errors
    /// That cannot be known now: out of descriptors or memory, or a file system fails.
    pub fn discover(&self) -> io::Result<Vec<Found>> {
        let (found, _) = self.look_around()?;
        Ok(found)
    }

    /// Ends containers without a run folder, and starts that the end of an agent interrupted: it is unknown
    /// what they were, or they were no run, and no second one may run beside them.
    ///
    /// # Errors
    /// As [`Self::discover`].
    pub fn clear_strays(&self) -> io::Result<()> {
        let (_, strays) = self.look_around()?;
        for path in strays {
            let cleared = self.cgroups.kill(&path);
            if let Err(error) = cleared.and_then(|()| self.cgroups.remove(&path)) {
                log::warn!("remains cgroup={} error={error}", path.to_string_lossy());
            }
        }
        Ok(())
    }

    /// Containers, and cgroups without one.
    fn look_around(&self) -> io::Result<(Vec<Found>, Vec<PathBuf>)> {
        let (mut found, mut strays) = (Vec::new(), Vec::new());
        for (uid, container, hash) in self.cgroups.list()? {
            let (Some(uid), Some(hash)) = (Uid::parse(&uid), Uid::parse(&hash)) else {
                continue;
            };
            let hash = Hash16(hash.0);
            let process = self.process_of(uid, &container, hash)?;
            let state = if_there(fs::metadata(self.state_file(uid, &container)))?;
            let began = self.bundle_dir(uid, &container).try_exists()?
                || state.is_some_and(|state| state.len() > 0);
            if process.is_none() && !(began && self.pod_dir(uid).try_exists()?) {
                strays.push(self.cgroup(uid, &container, hash));
                continue;
            }
            found.push(Found {
                uid,
                container,
                hash,
                process,
            });
        }
        Ok((found, strays))
    }

    /// The process is held first and looked at then: what was seen is true of what is held. Nobody else
    /// is asked: runc may hang or be away. What cannot be known is an error and not `None`, since a
    /// container that counts as remains is killed.
    fn process_of(&self, uid: Uid, container: &str, hash: Hash16) -> io::Result<Option<Process>> {
        let runc = paths::runc_container(&self.run, &container_id(uid, container));
        if runc.join(RUNC_NOT_STARTED).try_exists()? {
            return Ok(None);
        }
        let noted = note(&self.state_file(uid, container))?.unwrap_or_default();
        let number = noted.split_once(' ').and_then(|(pid, _)| pid.parse().ok());
        let Some(process) = number.map(Process::open).transpose()?.flatten() else {
            return Ok(None);
        };
        let in_cgroup = self.cgroups.pids(&self.cgroup(uid, container, hash))?;
        let is_member = in_cgroup
            .iter()
            .any(|pid| u32::try_from(*pid) == Ok(process.pid()));
        let same = if_there(identity(process.pid()))?.is_some_and(|now| now == noted);
        Ok((same && is_member).then_some(process))
    }

    fn runc(&self, args: &[&str], stop: &Stop) -> io::Result<Output> {
        Command::new(&self.runc)
            .arg("--root")
            .arg(paths::runc(&self.run))
            .args(args)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(|mut runc| {
                // Its output fits into the pipes; if not, it hangs and is killed.
                wait_within(&mut runc, stop)?;
                runc.wait_with_output()
            })
    }

    fn cgroup(&self, uid: Uid, container: &str, hash: Hash16) -> PathBuf {
        self.cgroups
            .path(&uid.to_string(), container)
            .join(hash.to_string())
    }

    fn pod_dir(&self, uid: Uid) -> PathBuf {
        paths::pod(&self.run, uid)
    }

    fn bundle_dir(&self, uid: Uid, container: &str) -> PathBuf {
        paths::bundle(&self.run, &container_id(uid, container))
    }

    fn rw_dir(&self, uid: Uid, container: &str) -> PathBuf {
        paths::writable_layer(&self.state, &container_id(uid, container))
    }

    fn end_file(&self, uid: Uid, container: &str) -> PathBuf {
        paths::container_end(&self.run, uid, container)
    }

    fn state_file(&self, uid: Uid, container: &str) -> PathBuf {
        paths::container(&self.run, uid, container)
    }
}

/// The text of a small file of ours, if it is there.
fn note(path: &Path) -> io::Result<Option<String>> {
    let bytes = if_there(fs::read(path))?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn end(uid: Uid, container: &str, note: &str) -> Option<Input> {
    let mut words = note.split(' ');
    let (hash, code) = (words.next()?, words.next()?);
    Some(Input::Ended {
        uid,
        container: container.to_owned(),
        spec: Hash16(Uid::parse(hash)?.0),
        code: code.parse().ok(),
        oom: words.next()? == "oom",
    })
}

fn container_id(uid: Uid, container: &str) -> String {
    [&uid.to_string(), "-", container].concat()
}

fn runc_message(log: &Path) -> String {
    let mut text = String::new();
    let read =
        File::open(log).and_then(|file| file.take(MESSAGE_BYTES_MAX * 4).read_to_string(&mut text));
    let last = text.lines().rev().find_map(|line| {
        let (_, message) = line.split_once("msg=")?;
        Some(message.trim_matches('"').to_owned())
    });
    match (read, last) {
        (Ok(_), Some(message)) => message,
        _ => "runc create failed and left no message".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use edge_core::spec::{ContainerSpec, Process, Rights};
    use edge_proto::object::Resources;

    use super::*;
    use crate::board::config;

    fn runtime(dir: &Path) -> Runtime {
        let [file, state, run] = ["config", "state", "run"].map(|name| dir.join(name));
        let text = format!(
            "version = 1\ncgroup = \"edge-min-stopped\"\nstate-dir = \"{}\"\nrun-dir = \"{}\"\n",
            state.display(),
            run.display()
        );
        fs::write(&file, text).unwrap();
        Runtime::new(&config::load(&file).unwrap()).unwrap()
    }

    /// Goal: what runs is known whatever becomes of runc, and nothing else counts as running. Method: a
    /// process of the test in a folder in the place of its cgroup, no runc at all, and then one fact
    /// after the other that is not as it was noted.
    #[test]
    fn a_container_is_found_without_runc() {
        let dir = tempfile::tempdir().unwrap();
        let mut runtime = runtime(dir.path());
        runtime.cgroups = Cgroups::at(&dir.path().join("cgroup"), "top");
        runtime.runc = dir.path().join("none");
        let (uid, hash) = (Uid([0xee; 16]), Hash16([7; 16]));
        let mut child = Command::new("sleep").arg("1000000").spawn().unwrap();
        let cgroup = dir
            .path()
            .join("cgroup")
            .join(runtime.cgroup(uid, "main", hash));
        let procs = cgroup.join("cgroup.procs");
        let note = runtime.state_file(uid, "main");
        let id = container_id(uid, "main");
        let runc = paths::runc_container(&runtime.run, &id);
        for dir in [&cgroup, &paths::containers(&runtime.run, uid), &runc] {
            fs::create_dir_all(dir).unwrap();
        }
        let noted = identity(child.id()).unwrap();
        fs::write(&procs, child.id().to_string()).unwrap();
        fs::write(&note, &noted).unwrap();
        let found = || {
            let mut found = runtime.discover().unwrap();
            found.pop().unwrap().process.map(|process| process.pid())
        };
        assert_eq!(found(), Some(child.id()));

        fs::write(runc.join(RUNC_NOT_STARTED), "").unwrap();
        assert_eq!(found(), None, "created and not started");
        fs::remove_file(runc.join(RUNC_NOT_STARTED)).unwrap();
        fs::write(&note, noted.clone() + "0").unwrap();
        assert_eq!(found(), None, "another process has its number");
        fs::write(&note, &noted).unwrap();
        fs::write(&procs, "").unwrap();
        assert_eq!(found(), None, "it is not in its cgroup");
        fs::write(&procs, child.id().to_string()).unwrap();
        assert_eq!(found(), Some(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found(), None, "it has ended");
    }

    /// Goal: what cannot be known is neither gone nor a stray, which would be killed. Method: what is
    /// read about a process that runs is a directory, so that reading fails, one after the other.
    #[test]
    fn what_cannot_be_read_is_an_error_and_nothing_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut runtime = runtime(dir.path());
        runtime.cgroups = Cgroups::at(&dir.path().join("cgroup"), "top");
        let (uid, hash) = (Uid([0xee; 16]), Hash16([7; 16]));
        let cgroup = runtime.cgroup(uid, "main", hash);
        let procs = dir.path().join("cgroup").join(&cgroup).join("cgroup.procs");
        let note = runtime.state_file(uid, "main");
        fs::create_dir_all(procs.parent().unwrap()).unwrap();
        fs::create_dir_all(note.parent().unwrap()).unwrap();
        let mut child = Command::new("sleep").arg("1000000").spawn().unwrap();
        let texts = [
            (&note, identity(child.id()).unwrap()),
            (&procs, child.id().to_string()),
        ];
        for (unreadable, _) in &texts {
            for (path, text) in &texts {
                drop(fs::remove_dir(path));
                match path == unreadable {
                    true => {
                        drop(fs::remove_file(path));
                        fs::create_dir(path).unwrap();
                    }
                    false => fs::write(path, text).unwrap(),
                }
            }
            runtime.discover().unwrap_err();
            runtime.clear_strays().unwrap_err();
        }
        runtime.cgroups.kill(&cgroup).unwrap_err();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Goal: a start that waited until it is not wanted any more creates nothing. Method: a job without
    /// any time left.
    #[test]
    fn a_start_that_is_stopped_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime(dir.path());
        let resolved = ContainerSpec {
            uid: Uid([0xee; 16]),
            container: "main".to_owned(),
            run: 1,
            hash: Hash16::default(),
            hostname: String::new(),
            image: None,
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            user: None,
            group: None,
            rights: Rights::default(),
            mounts: Vec::new(),
            limits: Resources::default(),
            read_only_root: false,
        };
        let process = Process {
            argv: vec!["/bin/true".to_owned()],
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: None,
        };
        let spec = Spec {
            resolved: &resolved,
            process,
            rootfs: None,
            binds: Vec::new(),
        };
        let failure = runtime.start(&spec, &Stop::after(Duration::ZERO));
        let failure = failure.unwrap_err();
        assert!(
            failure.message.contains("not done within"),
            "{}",
            failure.message
        );
        assert!(!failure.counts_as_run);
        assert!(runtime.discover().unwrap().is_empty());
    }
}
