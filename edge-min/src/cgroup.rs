//! Cgroups of workloads: `edge-min/<pod uid>/<container>/<spec hash>`, in v2 where the board has
//! it with controllers, else in each v1 hierarchy. The path is the truth about what runs: a child
//! enters it before exec, and a new agent finds it again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Controllers that limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Rounds of killing before giving up on a cgroup whose processes fork as fast as they die.
const KILL_ROUNDS_MAX: u32 = 50;
/// Period of the CPU quota, microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// Limits of one container; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// The hierarchies of this board.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// One root in v2; in v1 one for each controller that is mounted.
    roots: Vec<PathBuf>,
    v2: bool,
    top: String,
}

impl Cgroups {
    /// Looks at what is mounted; `top` is the first component of every workload cgroup, and the
    /// agent itself is never below it.
    ///
    /// # Errors
    /// `/proc/mounts` is unreadable or names no hierarchy with `pids`.
    pub fn detect(top: &str) -> io::Result<Self> {
        let v2 = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_whitespace().any(|name| name == "pids") {
            return Ok(Self {
                roots: vec![v2.to_owned()],
                v2: true,
                top: top.to_owned(),
            });
        }
        let mut roots: Vec<PathBuf> = Vec::new();
        // `pids` first: discovery walks the first root.
        for wanted in ["pids", "memory", "cpu"] {
            for line in fs::read_to_string("/proc/mounts")?.lines() {
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
        if roots.is_empty() {
            return Err(io::Error::other("no cgroup hierarchy with pids is mounted"));
        }
        Ok(Self {
            roots,
            v2: false,
            top: top.to_owned(),
        })
    }

    /// Path of a container's cgroups below the hierarchies' roots, whatever its spec.
    #[must_use]
    pub fn path(&self, pod: &str, container: &str) -> PathBuf {
        Path::new(&self.top).join(pod).join(container)
    }

    /// Makes the cgroup with its limits; one that exists gets the limits anew.
    ///
    /// # Errors
    /// Those of the kernel, with the file.
    pub fn create(&self, path: &Path, limits: &Limits) -> io::Result<()> {
        for root in &self.roots {
            if self.v2 {
                delegate(root, path)?;
            }
            fs::create_dir_all(root.join(path))?;
        }
        let cpu_us = limits
            .cpu_millis
            .map(|millis| u64::from(millis) * CPU_PERIOD_US / 1000);
        if self.v2 {
            let cpu = cpu_us.map(|us| [&us.to_string(), " ", &CPU_PERIOD_US.to_string()].concat());
            self.set(path, "cpu.max", cpu)?;
            self.set(
                path,
                "memory.max",
                limits.memory_bytes.map(|bytes| bytes.to_string()),
            )?;
        } else {
            self.set(path, "cpu.cfs_quota_us", cpu_us.map(|us| us.to_string()))?;
            let memory = limits.memory_bytes.map(|bytes| bytes.to_string());
            self.set(path, "memory.limit_in_bytes", memory)?;
        }
        self.set(path, "pids.max", limits.pids.map(|count| count.to_string()))
    }

    fn set(&self, path: &Path, file: &str, value: Option<String>) -> io::Result<()> {
        let Some(value) = value else { return Ok(()) };
        for root in &self.roots {
            let file = root.join(path).join(file);
            if file.exists() {
                return fs::write(&file, &value).map_err(|error| named(&file, &error));
            }
        }
        Err(io::Error::other(
            [file, ": the kernel has no such controller"].concat(),
        ))
    }

    /// The files that a process writes its pid to, to enter the cgroup.
    #[must_use]
    pub fn procs_files(&self, path: &Path) -> Vec<PathBuf> {
        self.roots
            .iter()
            .map(|root| root.join(path).join("cgroup.procs"))
            .collect()
    }

    /// Workload cgroups that exist: (pod uid, container, spec hash), as their path says.
    #[must_use]
    pub fn list(&self) -> Vec<(String, String, String)> {
        let mut found = Vec::new();
        let Some(root) = self.roots.first() else {
            return found;
        };
        for pod in children(&root.join(&self.top)) {
            for container in children(&root.join(&self.top).join(&pod)) {
                for hash in children(&root.join(&self.top).join(&pod).join(&container)) {
                    found.push((pod.clone(), container.clone(), hash));
                }
            }
        }
        found
    }

    /// Kills every process in the cgroup and below.
    pub fn kill(&self, path: &Path) {
        for _ in 0..KILL_ROUNDS_MAX {
            let pids = self.pids(path);
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                // One that ended meanwhile is what we want.
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                )
                .ok();
            }
            std::thread::yield_now();
        }
    }

    /// Processes in the cgroup and below.
    #[must_use]
    pub fn pids(&self, path: &Path) -> Vec<i32> {
        let mut pids = Vec::new();
        for root in &self.roots {
            collect_pids(&root.join(path), &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether the kernel's OOM killer struck in the cgroup.
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

    /// Removes the cgroup and its parents up to the top that are empty then. Processes must be
    /// gone.
    pub fn remove(&self, path: &Path) {
        for root in &self.roots {
            remove_tree(&root.join(path));
            for parent in path.ancestors().skip(1).take(2) {
                // Not empty: another container of the pod is there.
                drop(fs::remove_dir(root.join(parent)));
            }
        }
    }
}

/// Enables the controllers for every cgroup on the way down to `path`.
fn delegate(root: &Path, path: &Path) -> io::Result<()> {
    let mut at = root.to_owned();
    for component in path.components() {
        let file = at.join("cgroup.subtree_control");
        for controller in CONTROLLERS {
            // A controller that is missing shows when its limit is set.
            drop(fs::write(&file, ["+", controller].concat()));
        }
        at.push(component);
        fs::create_dir_all(&at).map_err(|error| named(&at, &error))?;
    }
    Ok(())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        [&path.to_string_lossy(), ": ", &error.to_string()].concat(),
    )
}

fn children(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn collect_pids(dir: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(dir) {
        collect_pids(&dir.join(child), pids);
    }
}

fn remove_tree(dir: &Path) {
    for child in children(dir) {
        remove_tree(&dir.join(child));
    }
    // A zombie may hold it for a moment; the next removal or start takes it along.
    drop(fs::remove_dir(dir));
}
