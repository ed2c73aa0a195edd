//! Measuring from outside: memory, wakeups, CPU and writes of processes from `/proc`, and bytes of
//! the link from a proxy or from the kernel's packet counters. Nothing here uses the agent's own figures.

mod board;
pub mod line;
mod link;
pub mod scenario;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

pub use board::{Board, Budget, Latency, boards};
pub use link::{PacketCounter, Proxy};

/// One promise with its measured value and its bar.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What is promised.
    pub promise: String,
    /// What was measured.
    pub value: f64,
    /// Of value and bar.
    pub unit: &'static str,
    /// The upper or lower bound; `None` for a figure that is only recorded.
    pub bar: Option<f64>,
    /// More is better.
    pub at_least: bool,
}

impl Figure {
    /// A figure that may be as high as its bar.
    #[must_use]
    pub fn new(promise: impl Into<String>, value: f64, unit: &'static str, bar: f64) -> Self {
        Self {
            bar: Some(bar),
            ..Self::recorded(promise, value, unit)
        }
    }

    /// A figure that must be as high as its bar.
    #[must_use]
    pub fn at_least(promise: impl Into<String>, value: f64, unit: &'static str, bar: f64) -> Self {
        Self {
            at_least: true,
            ..Self::new(promise, value, unit, bar)
        }
    }

    /// A figure that explains another one and has no bar of its own.
    #[must_use]
    pub fn recorded(promise: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            promise: promise.into(),
            value,
            unit,
            bar: None,
            at_least: false,
        }
    }

    /// The promise is kept. A value that is not a number does not keep it.
    #[must_use]
    pub fn ok(&self) -> bool {
        let kept = |bar: f64| match self.at_least {
            true => self.value >= bar,
            false => self.value <= bar,
        };
        self.bar.is_none_or(kept)
    }

    /// As one line of `scripts/bench --json`.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "promise": self.promise,
            "value": self.value,
            "unit": self.unit,
            "bar": self.bar,
            "ok": self.ok(),
        })
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = if self.at_least { ">= " } else { "" };
        let bar = self.bar.map(|bar| least.to_owned() + &short(bar));
        let bar = bar.unwrap_or_else(|| "-".to_owned());
        let word = match (self.bar, self.ok()) {
            (None, _) => "",
            (_, true) => "ok",
            (_, false) => "MISSED",
        };
        let line = format!(
            "{:<62} {:>12} {:>12}  {:<12} {word}",
            self.promise,
            short(self.value),
            bar,
            self.unit,
        );
        f.write_str(line.trim_end())
    }
}

/// An integer when it is large, with one decimal when it is not.
fn short(value: f64) -> String {
    if value.fract() == 0.0 || value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// Fails with every promise that is missed.
///
/// # Errors
/// The figures, one a line.
pub fn all_kept(figures: &[Figure]) -> Result<()> {
    let missed: Vec<String> = figures
        .iter()
        .filter(|figure| !figure.ok())
        .map(Figure::to_string)
        .collect();
    if missed.is_empty() {
        return Ok(());
    }
    bail!("missed:\n{}", missed.join("\n"))
}

/// The middle of the values.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle.wrapping_sub(1)), values.get(middle)) {
        (Some(below), Some(above)) if values.len().is_multiple_of(2) => (below + above) / 2.0,
        (_, Some(value)) => *value,
        _ => f64::NAN,
    }
}

/// Memory of processes, KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Proportional set size.
    pub pss_kib: u64,
    /// Of it, what no file backs.
    pub anon_kib: u64,
}

/// Memory of these processes together.
///
/// # Errors
/// One of them has ended.
pub fn memory(pids: &[u32]) -> Result<Memory> {
    let mut sum = Memory::default();
    for pid in pids {
        let text = proc_text(*pid, "smaps_rollup")?;
        sum.pss_kib += number_after(&text, "Pss:")?;
        sum.anon_kib += number_after(&text, "Anonymous:")?;
    }
    Ok(sum)
}

/// The node stack in `dir`: processes that run the agent's program (as agent, launcher or
/// command), and those of runc that were started for this gate.
///
/// # Errors
/// `/proc` cannot be read.
pub fn stack(program: &Path, dir: &Path) -> Result<Vec<u32>> {
    let program = fs::canonicalize(program)?;
    // A path below it: another folder's name may begin with this one's.
    let ours = format!("{}/", dir.display());
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that ends meanwhile is not part of it.
        let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else {
            continue;
        };
        let command = proc_text(pid, "cmdline").unwrap_or_default();
        let runc = exe.file_name().is_some_and(|name| name == "runc");
        if command.contains(&ours) && (exe == program || runc) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Counters of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Threads that it has now.
    pub threads: u64,
    /// Times that a thread released the CPU to wait: each is followed by a wakeup.
    pub waits: u64,
    /// Time on a CPU.
    pub cpu: Duration,
    /// Bytes that it caused to be written to storage.
    pub write_bytes: u64,
}

/// Counters of the present threads of the process.
///
/// # Errors
/// It has ended.
pub fn activity(pid: u32) -> Result<Activity> {
    let mut sum = Activity {
        write_bytes: number_after(&proc_text(pid, "io")?, "\nwrite_bytes:")?,
        ..Activity::default()
    };
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = entry?.path();
        let read = |file| fs::read_to_string(task.join(file));
        // A thread that ends meanwhile does not count: its files are gone (ENOENT), or an open one
        // has no process any more (ESRCH).
        let (Ok(status), Ok(times)) = (read("status"), read("schedstat")) else {
            continue;
        };
        let on_cpu = times.split(' ').next().context("an empty schedstat")?;
        sum.threads += 1;
        sum.waits += number_after(&status, "\nvoluntary_ctxt_switches:")?;
        sum.cpu += Duration::from_nanos(on_cpu.parse()?);
    }
    Ok(sum)
}

fn proc_text(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).context(path)
}

/// The number behind the first `name`.
fn number_after(text: &str, name: &str) -> Result<u64> {
    let (_, rest) = text
        .split_once(name)
        .with_context(|| format!("no {name}"))?;
    let word = rest.split_whitespace().next();
    Ok(word.context("nothing behind it")?.parse()?)
}

/// Every file below a folder with the attributes that a write would change: length, time of change, and
/// inode. Other file systems mounted below it are excluded.
pub type Files = BTreeMap<PathBuf, (u64, SystemTime, u64)>;

/// The [`Files`] of a folder.
///
/// # Errors
/// One cannot be read.
pub fn files(dir: &Path) -> Result<Files> {
    use std::os::unix::fs::MetadataExt as _;
    let device = fs::metadata(dir)?.dev();
    let mut found = Files::new();
    let mut folders = BTreeSet::from([dir.to_path_buf()]);
    while let Some(folder) = folders.pop_first() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.dev() != device {
                continue;
            }
            if metadata.is_dir() {
                folders.insert(entry.path());
            }
            let state = (metadata.len(), metadata.modified()?, metadata.ino());
            found.insert(entry.path(), state);
        }
    }
    Ok(found)
}

/// The JSON that an HTTP server on a unix socket answers to a GET.
///
/// # Errors
/// It does not answer, or with an error.
pub fn get(socket: &Path, target: &str) -> Result<Value> {
    Ok(serde_json::from_str(&get_text(socket, target)?)?)
}

/// The text of its answer, which may end with the connection.
///
/// # Errors
/// It does not answer, or with an error.
pub fn get_text(socket: &Path, target: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    let request = format!("GET {target} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let first = head.lines().next();
    if !first.is_some_and(|line| line.contains(" 200 ")) {
        bail!("{target}: {head} {body}");
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_figure_over_its_bar_is_missed_and_so_is_one_that_was_not_measured() {
        assert!(Figure::new("a", 2.0, "KiB", 2.0).ok());
        assert!(!Figure::new("a", 2.5, "KiB", 2.0).ok());
        assert!(!Figure::new("a", f64::NAN, "KiB", 2.0).ok());
        assert!(Figure::at_least("a", 2.0, "records/s", 2.0).ok());
        assert!(!Figure::at_least("a", 1.5, "records/s", 2.0).ok());
        assert!(!Figure::at_least("a", f64::NAN, "records/s", 2.0).ok());
        assert!(all_kept(&[Figure::recorded("a", 9.0, "KiB")]).is_ok());
        assert!(all_kept(&[Figure::new("a", 3.0, "KiB", 2.0)]).is_err());
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![5.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn the_activity_of_a_process_is_seen() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut answer = || {
            input.write_all(b"a line\n").unwrap();
            output.read_exact(&mut [0; 7]).unwrap();
        };
        answer();
        let before = activity(child.id()).unwrap();
        // A line that arrives before the request makes it wait for nothing, a thousand never do.
        let after = (0..1000)
            .map(|_| {
                answer();
                activity(child.id()).unwrap()
            })
            .find(|now| now.waits > before.waits && now.cpu > before.cpu);
        let memory = memory(&[child.id()]).unwrap();
        drop(input);
        assert!(child.wait().unwrap().success());
        assert_eq!(before.threads, 1);
        assert!(after.is_some());
        assert!(memory.anon_kib > 0);
    }

    #[test]
    fn threads_that_end_meanwhile_do_not_keep_the_others_from_being_counted() {
        let own = std::process::id();
        for _ in 0..200 {
            let short = std::thread::Builder::new().spawn(|| ()).unwrap();
            assert!(activity(own).unwrap().threads > 0);
            short.join().unwrap();
        }
    }
}
