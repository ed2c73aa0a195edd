//! Cgroups of workloads: `edge-min/<pod uid>/<container>/<spec hash>`, in v2 where the board has
//! it with controllers, else in each v1 hierarchy. The path identifies a running container: a child
//! enters it before exec, and a new agent finds it again.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use edge_proto::object::Resources;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::paths;
use crate::sys::if_there;

/// Controllers that resource limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Hierarchies of v1 that are used. `pids` first: discovery walks the first root. The freezer is needed
/// in v1 to kill processes that fork faster than they are killed.
const V1_CONTROLLERS: [&str; 4] = ["pids", "memory", "cpu", "freezer"];
/// Time for killed processes to end. One that takes longer is blocked in the kernel, mostly on a
/// medium that does not answer.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// Processes signalled for one read of the cgroup, and descriptors held meanwhile.
const KILL_CHUNK: usize = 32;
/// Attempts to remove an empty cgroup, which is busy for a moment after its last process.
const REMOVE_ATTEMPTS_MAX: u32 = 50;
/// Pause between two of them, and before a killed process without a descriptor is searched
/// again.
const PAUSE: Duration = Duration::from_millis(2);
/// Period of the CPU quota, microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Read while cgroups are created, by us and by runc: the top one is not removed meanwhile.
static STARTING: RwLock<()> = RwLock::new(());

/// The cgroup hierarchies of this board.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// One root in v2; in v1 one for each controller that is mounted.
    roots: Vec<PathBuf>,
    v2: bool,
    top: String,
}

/// Hold it while a container starts, until its processes are in its cgroup.
pub fn starting() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

impl Cgroups {
    /// Reads what is mounted; `top` is the first component of every workload cgroup, and the
    /// agent itself is never below it.
    ///
    /// # Errors
    /// `/proc/mounts` is unreadable or names no hierarchy with `pids`.
    pub fn detect(top: &str) -> io::Result<Self> {
        let v2 = Path::new(paths::CGROUP);
        let controllers = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_whitespace().any(|name| name == "pids") {
            return Ok(Self {
                roots: vec![v2.to_owned()],
                v2: true,
                top: top.to_owned(),
            });
        }
        let roots = v1_roots(&fs::read_to_string("/proc/mounts")?);
        if roots.is_empty() {
            return Err(io::Error::other("no cgroup hierarchy with pids is mounted"));
        }
        Ok(Self {
            roots,
            v2: false,
            top: top.to_owned(),
        })
    }

    /// One hierarchy of v2, which may be a folder of a test.
    #[cfg(test)]
    pub(crate) fn at(root: &Path, top: &str) -> Self {
        Self {
            roots: vec![root.to_owned()],
            v2: true,
            top: top.to_owned(),
        }
    }

    /// Path of a container's cgroups below the hierarchies' roots, whatever its spec.
    #[must_use]
    pub fn path(&self, pod: &str, container: &str) -> PathBuf {
        Path::new(&self.top).join(pod).join(container)
    }

    /// Creates the cgroup with its limits; an existing one gets the new limits.
    ///
    /// # Errors
    /// Those of the kernel, with the file.
    pub fn create(&self, path: &Path, limits: &Resources) -> io::Result<()> {
        let mut refused = None;
        for root in &self.roots {
            if self.v2 {
                refused = delegate(root, path)?;
            }
            let dir = root.join(path);
            fs::create_dir_all(&dir).map_err(|error| named(&dir, &error))?;
        }
        let set = |file: &str, value: Option<String>| self.set(path, file, value, refused.as_ref());
        let cpu_us = limits
            .cpu_millis
            .map(|millis| u64::from(millis) * CPU_PERIOD_US / 1000);
        if self.v2 {
            let cpu = cpu_us.map(|us| [&us.to_string(), " ", &CPU_PERIOD_US.to_string()].concat());
            set("cpu.max", cpu)?;
            set(
                "memory.max",
                limits.memory_bytes.map(|bytes| bytes.to_string()),
            )?;
            // As in Kubernetes: all processes of a container are killed together. Not available before
            // Linux 4.19.
            for root in &self.roots {
                drop(fs::write(root.join(path).join("memory.oom.group"), "1"));
            }
        } else {
            set("cpu.cfs_quota_us", cpu_us.map(|us| us.to_string()))?;
            set(
                "memory.limit_in_bytes",
                limits.memory_bytes.map(|bytes| bytes.to_string()),
            )?;
        }
        set("pids.max", limits.pids.map(|count| count.to_string()))
    }

    fn set(
        &self,
        path: &Path,
        file: &str,
        value: Option<String>,
        refused: Option<&String>,
    ) -> io::Result<()> {
        let Some(value) = value else { return Ok(()) };
        for root in &self.roots {
            let file = root.join(path).join(file);
            if file.exists() {
                return fs::write(&file, &value).map_err(|error| named(&file, &error));
            }
        }
        let why = refused.map_or("the kernel has no such controller", String::as_str);
        Err(io::Error::other([file, ": ", why].concat()))
    }

    /// The files to which a process writes its pid to enter the cgroup.
    #[must_use]
    pub fn procs_files(&self, path: &Path) -> Vec<PathBuf> {
        self.roots
            .iter()
            .map(|root| root.join(path).join("cgroup.procs"))
            .collect()
    }

    /// Existing cgroups of workloads: (pod uid, container, spec hash), from their paths.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn list(&self) -> io::Result<Vec<(String, String, String)>> {
        let mut found = Vec::new();
        let Some(root) = self.roots.first() else {
            return Ok(found);
        };
        for pod in children(&root.join(&self.top))? {
            for container in children(&root.join(&self.top).join(&pod))? {
                for hash in children(&root.join(&self.top).join(&pod).join(&container))? {
                    found.push((pod.clone(), container.clone(), hash));
                }
            }
        }
        Ok(found)
    }

    /// Kills every process in the cgroup and below, and waits until they have ended.
    ///
    /// # Errors
    /// The processes that are still there after [`KILL_TIMEOUT`], or that nobody can list.
    pub fn kill(&self, path: &Path) -> io::Result<()> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        loop {
            // The usual case when a container has ended by itself: its restart waits for this.
            let left = self.pids(path)?;
            if left.is_empty() {
                return Ok(());
            }
            let ending = self.send_kill(path);
            let timeout = deadline.saturating_duration_since(Instant::now());
            if timeout.is_zero() {
                let left: Vec<String> = left.iter().take(4).map(i32::to_string).collect();
                let text = ["not ended after SIGKILL: process ", &left.join(", ")].concat();
                return Err(io::Error::other(text));
            }
            if ending.is_empty() {
                std::thread::sleep(PAUSE);
            }
            wait_for_ends(&ending, deadline);
        }
    }

    /// Sends SIGKILL to every process in the cgroup and below. Returns descriptors of some that
    /// have not ended yet. What cannot be listed now is met by the next round.
    pub fn send_kill(&self, path: &Path) -> Vec<OwnedFd> {
        // The kernel's own function also kills children that are forked meanwhile (Linux 5.14).
        let at_once = self.v2
            && self
                .roots
                .iter()
                .all(|root| fs::write(root.join(path).join("cgroup.kill"), "1").is_ok());
        if !at_once {
            self.freeze(path, true);
        }
        let mut ending = Vec::new();
        for chunk in self.pids(path).unwrap_or_default().chunks(KILL_CHUNK) {
            let open = |pid: &i32| {
                let fd = pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?;
                Some((*pid, fd))
            };
            let opened: Vec<(i32, OwnedFd)> = chunk.iter().filter_map(open).collect();
            if !at_once {
                // A number that is still listed now belonged to a member when it was opened, or
                // that one has ended and the descriptor signals no process.
                let members = self.pids(path).unwrap_or_default();
                for (_, fd) in opened.iter().filter(|(pid, _)| members.contains(pid)) {
                    pidfd_send_signal(fd, Signal::KILL).ok();
                }
            }
            ending = opened.into_iter().map(|(_, fd)| fd).collect();
        }
        if !at_once {
            // A frozen process of v1 ends only when it is thawed.
            self.freeze(path, false);
        }
        ending
    }

    /// Stops or resumes all below `path`, where the kernel supports it. Does not wait: processes that are not
    /// stopped yet are handled in the next round.
    fn freeze(&self, path: &Path, frozen: bool) {
        let (file, value) = match (self.v2, frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        for root in &self.roots {
            let file = root.join(path).join(file);
            if file.exists() {
                // Removed in between: nothing is left to stop.
                drop(fs::write(file, value));
            }
        }
    }

    /// Processes in the cgroup and below.
    ///
    /// # Errors
    /// They cannot be listed: none is not the same as unknown.
    pub fn pids(&self, path: &Path) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        for root in &self.roots {
            collect_pids(&root.join(path), &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Whether the kernel's OOM killer has killed a process of the cgroup.
    #[must_use]
    pub fn oom_killed(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| {
            ["memory.events", "memory.oom_control"]
                .into_iter()
                .any(|file| {
                    let text = fs::read_to_string(root.join(path).join(file)).unwrap_or_default();
                    text.lines().any(|line| {
                        line.strip_prefix("oom_kill ")
                            .is_some_and(|count| count.trim() != "0")
                    })
                })
        })
    }

    /// Removes the cgroup and its empty parents up to the top. Its processes must have
    /// ended.
    ///
    /// # Errors
    /// The cgroup that could not be removed, and why.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        for root in &self.roots {
            remove_tree(&root.join(path))?;
            remove_parents(root, path);
        }
        Ok(())
    }
}

/// The mount points of the hierarchies that are used, from the text of `/proc/mounts`.
fn v1_roots(mounts: &str) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = Vec::new();
    for wanted in V1_CONTROLLERS {
        for line in mounts.lines() {
            let mut words = line.split(' ').skip(1);
            let (Some(at), Some("cgroup"), Some(options)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let has = options.split(',').any(|option| option == wanted);
            if has && !roots.iter().any(|root| root == Path::new(at)) {
                roots.push(PathBuf::from(at));
            }
        }
    }
    roots
}

/// Enables the controllers for every cgroup on the path down to `path`. A cgroup with processes of
/// its own cannot pass controllers to its children, unless it is the root of all: this is why
/// workloads are never below the agent. Returns why a controller that the kernel has could not be
/// enabled; a limit that needs it reports this.
fn delegate(root: &Path, path: &Path) -> io::Result<Option<String>> {
    let mut refused = None;
    let mut at = root.to_owned();
    for component in path.components() {
        let file = at.join("cgroup.subtree_control");
        for controller in to_enable(
            &fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default(),
            &fs::read_to_string(&file).unwrap_or_default(),
        ) {
            if let Err(error) = fs::write(&file, ["+", controller].concat()) {
                let mut why = named(&file, &error).to_string();
                if error.raw_os_error() == Some(nix::libc::EBUSY) {
                    why += "; processes in this cgroup are in the way: start the agent in another";
                }
                refused = refused.or(Some(why));
            }
        }
        at.push(component);
        match fs::create_dir(&at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(named(&at, &error));
            }
            _ => {}
        }
    }
    Ok(refused)
}

/// Controllers that limits need, the kernel offers and that are not enabled yet.
fn to_enable<'a>(offered: &'a str, enabled: &'a str) -> impl Iterator<Item = &'static str> + 'a {
    let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    CONTROLLERS
        .into_iter()
        .filter(move |name| has(offered, name) && !has(enabled, name))
}

fn wait_for_ends(ending: &[OwnedFd], deadline: Instant) {
    for fd in ending {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        // Interrupted or not, the caller checks again.
        poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout).ok();
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        [&path.to_string_lossy(), ": ", &error.to_string()].concat(),
    )
}

fn children(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in if_there(fs::read_dir(dir))?.into_iter().flatten() {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

fn collect_pids(dir: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let text = match fs::read_to_string(dir.join("cgroup.procs")) {
        // A threaded cgroup of v2: its processes stand in the one above.
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => None,
        text => if_there(text)?,
    };
    let text = text.unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(dir)? {
        collect_pids(&dir.join(child), pids)?;
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir)? {
        remove_tree(&dir.join(child))?;
    }
    let mut attempts = 0;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if attempts >= REMOVE_ATTEMPTS_MAX => return Err(named(dir, &error)),
            Err(_) => {
                attempts += 1;
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Removes the pod's cgroup above `path` and the top one, if they are empty.
fn remove_parents(root: &Path, path: &Path) {
    let mut parents = path.ancestors().skip(1);
    if let Some(pod) = parents.next() {
        // Not empty: another container of the pod uses it.
        drop(fs::remove_dir(root.join(pod)));
    }
    // A cgroup is about to be created in it.
    let Ok(_alone) = STARTING.try_write() else {
        return;
    };
    if let Some(top) = parents.next() {
        drop(fs::remove_dir(root.join(top)));
    }
}

/// Removes the empty cgroups at `path` and above, in every hierarchy of the board: runc
/// creates them in all, and removes only the lowest.
pub fn sweep(path: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        if let (Some(root), Some("cgroup" | "cgroup2")) = (words.next(), words.next()) {
            // A busy cgroup is reported when the agent's own hierarchies are removed.
            drop(remove_tree(&Path::new(root).join(path)));
            remove_parents(Path::new(root), path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs ro,nosuid 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0
cgroup /sys/fs/cgroup/all cgroup rw,memory,freezer 0 0
cgroup /sys/fs/cgroup/devices cgroup rw,devices 0 0
";

    #[test]
    fn hierarchies_of_v1_are_found_once_each_with_pids_first() {
        let roots = v1_roots(HYBRID);
        let names: Vec<_> = roots.iter().filter_map(|root| root.to_str()).collect();
        assert_eq!(
            names,
            [
                "/sys/fs/cgroup/pids",
                "/sys/fs/cgroup/all",
                "/sys/fs/cgroup/cpu,cpuacct"
            ]
        );
        assert!(v1_roots("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").is_empty());
    }

    #[test]
    fn only_controllers_that_are_offered_and_off_are_enabled() {
        let enable = |offered, enabled| to_enable(offered, enabled).collect::<Vec<_>>();
        assert_eq!(
            enable("cpuset cpu io memory pids\n", "cpu\n"),
            ["memory", "pids"]
        );
        assert!(enable("cpuset io", "").is_empty(), "cpuset is no cpu");
        assert!(enable("cpu memory pids", "memory pids cpu").is_empty());
    }

    /// Goal: a container's cgroup and its parents get their controllers and limits. Method: a tree
    /// of plain files, for the values only; their effect in the kernel is tested on a board.
    #[test]
    fn limits_are_written_in_the_words_of_v2() {
        let dir = tempfile::tempdir().unwrap();
        let path = Path::new("edge-min/pod/main/hash");
        let mut at = dir.path().to_owned();
        for component in path.components() {
            fs::write(at.join("cgroup.controllers"), "cpu memory pids").unwrap();
            at.push(component);
            fs::create_dir(&at).unwrap();
        }
        for file in ["cpu.max", "memory.max", "pids.max"] {
            fs::write(at.join(file), "max").unwrap();
        }
        let cgroups = Cgroups::at(dir.path(), "edge-min");
        let limits = Resources {
            cpu_millis: Some(1500),
            memory_bytes: Some(64 << 20),
            pids: Some(32),
        };
        cgroups.create(path, &limits).unwrap();
        let read = |file: &str| fs::read_to_string(at.join(file)).unwrap();
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("memory.max"), "67108864");
        assert_eq!(read("pids.max"), "32");
        assert_eq!(read("memory.oom.group"), "1");
        let top = dir.path().join("cgroup.subtree_control");
        assert_eq!(
            fs::read_to_string(top).unwrap(),
            "+pids",
            "the last of three"
        );
        fs::remove_file(at.join("pids.max")).unwrap();
        let error = cgroups.create(path, &limits).unwrap_err().to_string();
        assert!(error.contains("pids.max: the kernel has no"), "{error}");
    }
}
