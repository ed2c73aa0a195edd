//! Power cuts and failing writes, call by call. A workload runs the real code of the agent in a
//! process of its own under `strace`, and prints what it would acknowledge.
//!
//! - [`record`] turns that into a list of operations, and [`replay`] cuts the power after each of
//!   them: what was not synced is lost, torn or kept. Everything acknowledged before must exist.
//! - The same workloads run with one system call after the other failing, once with a full and once
//!   with a broken medium: nothing is acknowledged that does not exist, and they complete.
//!
//! A new workload is a function in [`workload`] and a check of the files that it leaves.
#![cfg(test)]

mod record;
mod replay;
mod workload;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use record::{Op, record, traced};
use replay::{Disk, Loss, every_cut, throw};
use workload::{DIR, NAME, Workload};

fn long() -> bool {
    std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty())
}

/// The process: one of [`workload::ALL`] in this folder, if it is started for that.
#[test]
fn workload_process() {
    if let (Ok(name), Ok(dir)) = (std::env::var(NAME), std::env::var(DIR)) {
        (workload::named(&name).run)(Path::new(&dir));
    }
}

/// The command of that process.
fn command() -> Vec<String> {
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap().to_owned();
    [
        &program,
        "workload_process",
        "--exact",
        "--nocapture",
        "--test-threads=1",
    ]
    .map(String::from)
    .into()
}

/// Runs a workload in this folder.
fn recorded_in(dir: &Path, workload: &Workload) -> Vec<Op> {
    let command = command();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let folder = dir.to_str().unwrap();
    record(dir, &command, &[(NAME, workload.name), (DIR, folder)])
}

fn recorded(workload: &Workload) -> Vec<Op> {
    let dir = tempfile::tempdir().unwrap();
    let ops = recorded_in(dir.path(), workload);
    let end = ops.iter().rfind(|op| matches!(op, Op::Printed(_)));
    assert_eq!(end, Some(&Op::Printed("end".into())));
    ops
}

/// Goal: the recording is complete. Method: with nothing lost, the replayed folder is the one
/// that the process left, byte by byte.
#[test]
fn a_replay_without_loss_is_the_folder_itself() {
    for workload in &workload::ALL {
        let (real, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ops = recorded_in(real.path(), workload);
        let mut disk = Disk::default();
        ops.iter().for_each(|op| disk.apply(op));
        disk.cut(copy.path(), Loss::None);
        assert_eq!(tree(copy.path()), tree(real.path()), "{}", workload.name);
        assert!(ops.len() > 30, "{}: {} calls", workload.name, ops.len());
    }
}

/// All files below a folder with their bytes.
fn tree(top: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(top).unwrap().to_owned();
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort_unstable();
    found
}

/// Goal: the model detects a missing sync. Method: a file is written as the agent writes it, with one
/// of its syncs omitted, and a cut is found that loses it; with both there is none.
#[test]
fn a_missing_sync_is_found() {
    let whole = [
        Op::Create("file.tmp".into()),
        Op::Write("file.tmp".into(), 0, vec![7; 9000]),
        Op::Sync("file.tmp".into()),
        Op::Rename("file.tmp".into(), "file".into()),
        Op::Sync("".into()),
    ];
    let lost = |ops: &[&Op]| {
        let mut disk = Disk::default();
        ops.iter().for_each(|op| disk.apply(op));
        let random = (0..20).map(Loss::Random);
        let mut losses = [Loss::None, Loss::All, Loss::Bytes, Loss::Names]
            .into_iter()
            .chain(random);
        losses.any(|loss| {
            let dir = tempfile::tempdir().unwrap();
            disk.cut(dir.path(), loss);
            fs::read(dir.path().join("file")).ok() != Some(vec![7; 9000])
        })
    };
    for left_out in 0..whole.len() {
        let ops: Vec<&Op> = whole
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != left_out)
            .map(|(_, op)| op)
            .collect();
        if matches!(whole[left_out], Op::Sync(_)) {
            assert!(lost(&ops), "{left_out} left out, and nothing is lost");
        }
    }
    assert!(!lost(&whole.iter().collect::<Vec<_>>()));
}

/// Goal: whenever the power is cut, all that was acknowledged exists, nothing else does, and the
/// agent continues. Method: every workload is cut after each of its system calls.
#[test]
fn nothing_acknowledged_is_lost_to_a_power_cut() {
    let seeds = if long() { 40 } else { 2 };
    for workload in &workload::ALL {
        let ops = recorded(workload);
        let cuts = every_cut(&ops, seeds, |dir, printed| (workload.check)(dir, printed));
        println!("{}: {} calls, {cuts} cuts", workload.name, ops.len());
    }
}

/// Goal: after a power cut the cache returns nothing wrong, and is repaired
/// by the next write. Method: cuts while its process writes; the store's files are removed.
#[test]
fn a_cut_cache_gives_back_only_what_was_accepted() {
    let ops = recorded(&workload::ALL[0]);
    let in_cache = |op: &Op| matches!(op, Op::Write(path, ..) | Op::Sync(path) | Op::Create(path) if path.starts_with("cache"));
    let (mut disk, mut seed, mut cuts) = (Disk::default(), 3, 0);
    for (at, op) in ops.iter().enumerate() {
        disk.apply(op);
        if in_cache(op) && (long() || throw(&mut seed, 6) == 0) {
            let dir = tempfile::tempdir().unwrap();
            disk.cut(dir.path(), Loss::Random(at as u64));
            workload::check_cache(dir.path())
                .unwrap_or_else(|error| panic!("cut after call {at}: {error}"));
            cuts += 1;
        }
    }
    assert!(cuts > 3, "{cuts} cuts");
}

/// A process with one of its calls failing.
struct Failing {
    child: Child,
    dir: tempfile::TempDir,
    log: tempfile::TempDir,
    what: String,
}

impl Failing {
    /// The `nth` of these calls to one of these files fails in each thread of the process, which
    /// starts in an empty folder.
    fn start(
        workload: &Workload,
        calls: &str,
        error: &str,
        nth: &str,
        files: &BTreeSet<PathBuf>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir, workload, calls, error, nth, files)
    }

    fn start_in(
        dir: tempfile::TempDir,
        workload: &Workload,
        calls: &str,
        error: &str,
        nth: &str,
        files: &BTreeSet<PathBuf>,
    ) -> Self {
        let log = tempfile::tempdir().unwrap();
        let inject = format!("inject={calls}:error={error}:when={nth}");
        let trace = format!("trace={calls}");
        let mut options = vec!["-e", &trace, "-e", &inject, "-e", "signal=none"];
        let paths: Vec<String> = files
            .iter()
            .map(|file| {
                dir.path()
                    .join(file)
                    .to_str()
                    .unwrap()
                    .trim_end_matches('/')
                    .to_owned()
            })
            .collect();
        for path in &paths {
            options.extend(["-P", path]);
        }
        let command = command();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let child = traced(&options, &log.path().join("log"), &command)
            .env(NAME, workload.name)
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("strace is missing: scripts/setup");
        Self {
            child,
            what: format!("{}: {error} at {calls} {nth}", workload.name),
            dir,
            log,
        }
    }

    /// Its output, and whether a call failed at all.
    fn end(self, workload: &Workload) -> (Vec<String>, bool) {
        let output = self.child.wait_with_output().unwrap();
        let log = fs::read_to_string(self.log.path().join("log")).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let what = &self.what;
        assert!(output.status.success(), "{what}: {text}\n{log}");
        let printed: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix('@'))
            .collect();
        assert_eq!(printed.last(), Some(&"end"), "{what}: {text}\n{log}");
        if let Err(reason) = (workload.check)(self.dir.path(), &printed) {
            panic!("{what}: {reason}\n{text}\n{log}");
        }
        let printed = printed.into_iter().map(str::to_owned).collect();
        (printed, log.contains("(INJECTED)"))
    }
}

/// Goal: no failing call loses acknowledged data, or stops the agent. Method: each call that
/// writes to a workload's folder fails once, one after the other, until there is none left; then
/// the medium is checked.
#[test]
fn a_full_or_broken_medium_costs_nothing_that_was_acknowledged() {
    const CALLS: [&str; 8] = [
        "write,pwrite64",
        "fsync,fdatasync",
        "rename,renameat,renameat2",
        "openat",
        "ftruncate",
        "mkdir,mkdirat",
        "unlink,unlinkat,rmdir",
        "sync_file_range",
    ];
    /// Processes at the same time: most of their time they wait.
    const AT_ONCE: usize = 4;
    let mut seed = 7;
    // Not the outbox, whose thread waits for seconds after each failure: below.
    for workload in workload::ALL.iter().filter(|one| one.name != "outbox") {
        let files = touched(workload);
        for (calls, error) in CALLS
            .iter()
            .flat_map(|calls| [(calls, "ENOSPC"), (calls, "EIO")])
        {
            let (mut nth, mut failed) = (1, 0);
            'all: loop {
                let mut running = Vec::new();
                for _ in 0..AT_ONCE {
                    running.push(Failing::start(
                        workload,
                        calls,
                        error,
                        &nth.to_string(),
                        &files,
                    ));
                    nth += if long() { 1 } else { 1 + throw(&mut seed, 20) };
                }
                let mut more = true;
                for one in running {
                    more &= one.end(workload).1;
                    failed += usize::from(more);
                }
                if !more {
                    break 'all;
                }
            }
            println!("{}: {error} at {calls}: {failed} runs", workload.name);
            assert!(failed > 0 || calls.starts_with("ftruncate") || calls.starts_with("sync_file"));
        }
    }
}

/// Files and folders that a workload changes.
fn touched(workload: &Workload) -> BTreeSet<PathBuf> {
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    for op in recorded(workload) {
        match op {
            Op::Create(one) | Op::MakeDir(one) | Op::Remove(one) | Op::Sync(one) => {
                files.insert(one);
            }
            Op::Rename(one, other) | Op::Exchange(one, other) => files.extend([one, other]),
            Op::Write(..) | Op::Truncate(..) | Op::Printed(_) => {}
        }
    }
    files
}

/// Goal: no failing call loses an acknowledged record, stores one twice, makes the counters
/// inconsistent, leaves a file behind or needs an operator. Method: each call of the outbox's
/// thread fails once, and some several times in a row; the writer repeats refused records.
#[test]
fn a_full_or_broken_medium_costs_the_outbox_nothing_that_was_acknowledged() {
    /// Processes at the same time: they wait five seconds after a failure.
    const AT_ONCE: usize = 12;
    const CALLS: [(&str, usize); 6] = [
        ("write,pwrite64", 60),
        ("fsync,fdatasync", 70),
        ("openat", 16),
        ("rename,renameat,renameat2", 1),
        ("mkdir,mkdirat", 1),
        ("unlink,unlinkat", 1),
    ];
    let outbox = workload::named("outbox");
    let files = touched(outbox);
    let mut seed = 11;
    let mut runs = Vec::new();
    for (calls, count) in CALLS {
        let mut nth = 1;
        while nth <= count {
            // The first ones create the outbox.
            for error in ["ENOSPC", "EIO"] {
                if long() || count < 3 || throw(&mut seed, 2) == 0 {
                    runs.push((calls, error, nth.to_string(), count < 3));
                }
            }
            nth += if long() { 1 } else { 1 + throw(&mut seed, 16) };
        }
    }
    runs.push(("write,pwrite64", "ENOSPC", "9..11".to_owned(), true));
    runs.push(("fsync,fdatasync", "EIO", "12..14".to_owned(), true));
    let mut failed = 0;
    for wave in runs.chunks(AT_ONCE) {
        let start = |(calls, error, nth, _): &(&str, &str, String, bool)| {
            Failing::start(outbox, calls, error, nth, &files)
        };
        let running: Vec<Failing> = wave.iter().map(start).collect();
        for (one, run) in running.into_iter().zip(wave) {
            let (_, injected) = one.end(outbox);
            assert!(injected || !run.3, "{run:?}: no such call");
            failed += usize::from(injected);
        }
    }
    println!("outbox: {failed} of {} runs had a failing call", runs.len());
    assert!(failed * 3 > runs.len() * 2, "{failed} of {}", runs.len());
}

/// Goal: an outbox that is unreadable for a moment is the same afterwards, without an operator: a
/// new incarnation would send delivered records again. Method: one call that opens or reads one of
/// its files fails, one after the other, at its start.
#[test]
fn an_outbox_that_cannot_be_read_for_a_moment_is_no_new_one() {
    let master = tempfile::tempdir().unwrap();
    recorded_in(master.path(), workload::named("outbox"));
    let files: BTreeSet<PathBuf> = tree(master.path())
        .into_iter()
        .map(|(name, _)| name)
        .chain([PathBuf::from("outbox")])
        .collect();
    let reopen = &workload::REOPEN_OUTBOX;
    let start = |calls, nth: &str| {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in tree(master.path()) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        Failing::start_in(dir, reopen, calls, "EIO", nth, &files)
    };
    let (wanted, _) = start("openat", "1000").end(reopen);
    let mut running = Vec::new();
    for (calls, count) in [("openat", 4), ("read", 5), ("getdents64", 1)] {
        for nth in 1..=count {
            running.push((calls, nth, start(calls, &nth.to_string())));
        }
    }
    for (calls, nth, one) in running {
        let (printed, failed) = one.end(reopen);
        assert!(failed, "{calls} {nth}: no such call");
        assert_eq!(printed, wanted, "{calls} {nth}");
    }
}

/// Goal: the agent's own thread reports that it cannot write, acknowledges nothing meanwhile, and all
/// of it in order afterwards. Method: three consecutive writes fail; it retries every five seconds.
#[test]
fn the_store_thread_tells_of_a_full_medium_and_recovers() {
    let files = ["desired.tmp"].into_iter().map(PathBuf::from).collect();
    let failing = Failing::start(&workload::THREAD, "write", "ENOSPC", "2..4", &files);
    let (printed, failed) = failing.end(&workload::THREAD);
    assert!(failed);
    let printed: Vec<&str> = printed
        .iter()
        .map(|line| line.split(" (").next().unwrap())
        .collect();
    let wanted = [
        "applied 1",
        "trouble No space left on device",
        "well again",
        "applied 7",
        "applied 13",
        "end",
    ];
    // The answer and the report of success may come in any order.
    let mut sorted = (printed.clone(), wanted.to_vec());
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    assert_eq!(sorted.0, sorted.1, "{printed:?}");
    assert_eq!(printed[..2], wanted[..2]);
}

/// Goal: an unreadable medium does not stop the agent from starting, changes nothing, and missing
/// data is reported. Method: one call that reads a file of a complete store fails, one after the
/// other, when the store is opened.
#[test]
fn a_file_that_cannot_be_read_is_told_and_stops_nothing() {
    let (master, mut damaged) = (tempfile::tempdir().unwrap(), 0);
    workload::fill(master.path());
    let left = tree(master.path());
    for calls in ["openat", "read,pread64", "statx,newfstatat"] {
        for nth in 1.. {
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in &left {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            let files = left.iter().map(|(name, _)| name.clone());
            let files = files.filter(|name| !name.starts_with("cache")).collect();
            let reopen = &workload::REOPEN;
            let failing = Failing::start_in(dir, reopen, calls, "EIO", &nth.to_string(), &files);
            let (printed, failed) = failing.end(reopen);
            if !failed {
                break;
            }
            // Data that a damaged file lacks may have come from the cache.
            let told = printed[0].contains("damage told");
            let whole = printed[0].starts_with("whole true damage none");
            assert!(told || whole, "{calls} {nth}: {printed:?}");
            damaged += usize::from(told);
        }
    }
    assert!(damaged > 5, "{damaged}");
}
