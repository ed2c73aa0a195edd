//! The agent replaces itself, by SIGHUP: it executes the program at its path in the same process. The
//! process keeps its number, its children and its blocked signals; everything else is created
//! again, as after a crash, which the state on the board permits at any moment. What a crash would
//! lose and an execve(2) need not is in [`Handover`], which is passed in a memfd.
//!
//! Not handed over: connections of both sockets and of the link (their clients reconnect), delays
//! before restarts, counters of the flash (they start at 0 with each agent). The lock on the folders is
//! released and taken again by the new agent; an agent that takes it in between adopts the pods.
//!
//! If the program cannot be executed (no such file, another architecture, being written), the old agent
//! continues. It does not notice a program that starts and then fails.

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use async_channel::Receiver;
use edge_core::limits::AGENT_OPEN_FILES;
use edge_core::{Fault, Input};
use edge_proto::key::Uid;
use rustix::fs::{MemfdFlags, memfd_create};

use super::Driver;
use super::workers::RuntimeJob;
use crate::sys;

/// Environment variable with the number of the descriptor.
const VARIABLE: &str = "EDGE_MIN_HANDOVER";
/// First line: format and version. Another version is ignored.
const BEGIN: &str = "edge-min-handover 1";
/// Last line: the text is complete.
const END: &str = "end";
/// Bytes of a handover: a full board with orphans, under 120 bytes for each container. A longer one
/// is ignored.
const HANDOVER_BYTES_MAX: u64 = 512 * 1024;
/// Time for jobs for containers to end, so that no start is interrupted; then the hand-over
/// proceeds. An image that is being unpacked may take longer, and is unpacked again.
const JOBS_TIMEOUT_MS: u64 = 10_000;
/// Interval of checking whether the jobs have ended.
const JOBS_POLL_MS: u64 = 20;

/// State that the next agent in this process gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Handover {
    /// The cloud's time, seconds since 1970, if it is known.
    pub(super) unix_s: Option<u64>,
    /// Containers that ran, each with its first process. The process may end while no agent can wait for it,
    /// and its exit code is then still available. A number is valid in this process only: until
    /// the child is waited for, no other process gets it.
    pub(super) watched: Vec<(Uid, String, u32)>,
}

impl Handover {
    /// The state of the previous agent in the same process; `None` at an ordinary start. Call it
    /// before there are children.
    pub(super) fn take() -> Option<Self> {
        let number = env::var(VARIABLE).ok()?;
        // Opened here, not inherited: closes by itself, and only once.
        let text = File::open(["/proc/self/fd/", &number].concat()).and_then(|file| {
            let mut text = String::new();
            file.take(HANDOVER_BYTES_MAX).read_to_string(&mut text)?;
            Ok(text)
        });
        // The inherited descriptor itself is closed when the next program is executed.
        if let Err(error) = sys::close_on_exec() {
            log::warn!("descriptors_stay_open error={error}");
        }
        let read = text.ok().and_then(|text| Self::parse(&text));
        match &read {
            Some(_) => log::info!("handed_over"),
            None => log::warn!("handover_not_read"),
        }
        read
    }

    /// First process of a container that ran.
    pub(super) fn pid_of(&self, uid: Uid, container: &str) -> Option<u32> {
        let mut all = self.watched.iter();
        all.find(|one| one.0 == uid && one.1 == container)
            .map(|one| one.2)
    }

    fn to_text(&self) -> String {
        let process = std::process::id().to_string();
        let time = self.unix_s.unwrap_or(0).to_string();
        let mut text = [BEGIN, "\n", &process, " ", &time, "\n"].concat();
        for (uid, container, pid) in &self.watched {
            text += &[
                &uid.to_string(),
                " ",
                container,
                " ",
                &pid.to_string(),
                "\n",
            ]
            .concat();
        }
        text + END + "\n"
    }

    /// `None` for another version, another process, or an incomplete text.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.lines();
        if lines.next()? != BEGIN || lines.next_back()? != END {
            return None;
        }
        let (process, time) = lines.next()?.split_once(' ')?;
        if process.parse() != Ok(std::process::id()) {
            return None;
        }
        let unix_s = Some(time.parse().ok()?).filter(|unix_s| *unix_s != 0);
        let watched = lines.map(|line| {
            let mut words = line.split(' ');
            let (uid, container, pid) = (words.next()?, words.next()?, words.next()?);
            Some((Uid::parse(uid)?, container.to_owned(), pid.parse().ok()?))
        });
        let watched = watched.collect::<Option<_>>()?;
        Some(Self { unix_s, watched })
    }

    /// A descriptor with this text, which an executed program inherits.
    fn to_memfd(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create("edge-min-handover", MemfdFlags::empty())?);
        file.write_all(self.to_text().as_bytes())?;
        Ok(file.into())
    }
}

impl Driver {
    /// SIGHUP was received.
    pub(super) fn want_hand_over(&mut self) {
        log::info!("hand_over_wanted");
        self.hand_over_by = self.now().checked_add(JOBS_TIMEOUT_MS);
    }

    /// When to check again whether the jobs have ended.
    pub(super) fn hand_over_deadline(&self) -> Option<u64> {
        self.hand_over_by?;
        self.now().checked_add(JOBS_POLL_MS)
    }

    /// Replaces the agent if that is wanted and no container is being started. `answers` are those of
    /// the jobs. Returns only if the agent is not replaced.
    pub(super) fn hand_over(&mut self, answers: &Receiver<Input>) {
        let Some(by) = self.hand_over_by else {
            return;
        };
        let late = by <= self.now();
        if !may_go(|| self.runtime_jobs.is_idle(), late, answers) {
            return;
        }
        self.hand_over_by = None;
        let time = self.clock.reliable();
        let handover = Handover {
            unix_s: time.confirmed.then_some(time.unix_s),
            watched: self.reaper.watched(),
        };
        let Err(error) = execute(&handover);
        log::warn!("hand_over_failed error={error}");
        self.fault(Fault::HandOverFailed, Some(error.to_string()));
        for job in std::mem::take(&mut self.held_jobs) {
            self.runtime_jobs.push(job);
        }
    }

    /// Passes on a start, or new files of volumes, which must not overtake a start that also writes them.
    /// None begins while the agent is about to replace itself, because a start could be interrupted. The next
    /// agent repeats both.
    pub(super) fn push_start(&mut self, job: RuntimeJob) {
        if self.hand_over_by.is_some() {
            self.held_jobs.push(job);
        } else {
            self.runtime_jobs.push(job);
        }
    }
}

/// Whether the agent may replace itself: no job is in progress, or the time for them is over, and no
/// answer waits to be handled, because it would be lost. The jobs are checked first: a
/// worker sends its answer before its job counts as ended, so an answer that was not there when the
/// jobs had ended does not arrive later.
fn may_go<T>(idle: impl FnOnce() -> bool, late: bool, answers: &Receiver<T>) -> bool {
    (idle() || late) && answers.is_empty()
}

/// Executes the program that this process was started as, with its arguments.
fn execute(handover: &Handover) -> io::Result<core::convert::Infallible> {
    let args: Vec<OsString> = env::args_os().collect();
    // /proc/self/exe names the program that this process runs, not the file that has replaced it.
    let program = match args.first() {
        Some(first) if first.as_bytes().contains(&b'/') => first.clone(),
        _ => env::current_exe()?.into_os_string(),
    };
    let string = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::from);
    let args = args
        .into_iter()
        .map(string)
        .collect::<Result<Vec<_>, _>>()?;
    let others = env::vars_os().filter(|(name, _)| name != VARIABLE);
    let mut variables = others
        .map(|(name, value)| [name, value].join("=".as_ref()))
        .map(string)
        .collect::<Result<Vec<_>, _>>()?;
    // The last step before execve, because a child of another thread would inherit it, too. It is closed
    // again when the call fails.
    let memfd = handover.to_memfd()?;
    let variable = [VARIABLE, "=", &memfd.as_raw_fd().to_string()].concat();
    variables.push(CString::new(variable)?);
    let program = string(program)?;
    sys::restore_open_files()?;
    sys::ignore_for_next_program();
    let failed = nix::unistd::execve(&program, &args, &variables);
    sys::ignore_for_this_process_only();
    sys::raise_open_files(AGENT_OPEN_FILES)?;
    Ok(failed?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handover() -> Handover {
        Handover {
            unix_s: Some(1_800_000_000),
            watched: vec![
                (Uid([1; 16]), "web".to_owned(), 7),
                (Uid([2; 16]), "db".to_owned(), 4_000_000),
            ],
        }
    }

    /// Goal: no answer of a job is lost, however close to the hand-over it arrives. Method: the answer is
    /// sent while the jobs are being checked, in time and late.
    #[test]
    fn nothing_is_replaced_while_an_answer_waits() {
        let (done, answers) = async_channel::bounded(1);
        for late in [false, true] {
            let ends = || done.try_send(()).is_ok();
            assert!(!may_go(ends, late, &answers));
            answers.try_recv().unwrap();
            assert!(may_go(|| true, late, &answers));
            assert_eq!(may_go(|| false, late, &answers), late);
        }
    }

    #[test]
    fn what_is_handed_over_arrives() {
        for one in [handover(), Handover::default()] {
            assert_eq!(Handover::parse(&one.to_text()), Some(one));
        }
        assert_eq!(handover().pid_of(Uid([2; 16]), "db"), Some(4_000_000));
        assert_eq!(handover().pid_of(Uid([2; 16]), "web"), None);
    }

    /// Goal: a damaged text, another version and another process are ignored. Method: the
    /// text truncated at every length, and with each of these changed.
    #[test]
    fn what_is_not_whole_is_ignored() {
        let text = handover().to_text();
        for length in 0..text.len() {
            assert_eq!(Handover::parse(&text[..length]), None, "{length}");
        }
        let process = std::process::id().to_string();
        for (old, new) in [
            (BEGIN, "edge-min-handover 2"),
            (&*process, "0"),
            (" 7\n", " seven\n"),
            (" 7\n", "\n"),
            ("1800000000", "-1"),
        ] {
            let changed = text.replacen(old, new, 1);
            assert_ne!(changed, text);
            assert_eq!(Handover::parse(&changed), None, "{new}");
        }
    }
}
