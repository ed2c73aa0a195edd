//! One container: its wanted state, its actual state, and the next step between them.
//!
//! `wanted` is the disposition; [`State`] is the actual state. A state that waits for the shell has no
//! timer, except `Stopping`: the shell always answers. A container that cannot be killed or removed is
//! retried for ever, and its status says so: a second copy beside it would be worse.

use alloc::string::{String, ToString as _};

use edge_proto::Millis;
use edge_proto::hash::Hash16;
use edge_proto::object::{ContainerState, ContainerStatus, RestartPolicy, clip};

use crate::backoff;
use crate::limits::{BACKOFF_RESET_MS, KILL_RETRY_MS};

/// Bytes of a container's reason in a status; a longer one is truncated. 16 containers with reasons of this
/// length and without messages fit the payload of a status.
const REASON_BYTES_MAX: usize = 64;

/// Exit code of a run whose program could not be started, as in containerd.
pub const EXIT_NOT_RUN: i32 = 128;
/// Exit code of a run that SIGKILL ended, which is how the kernel makes room.
const EXIT_KILLED: i32 = 137;

/// Why a start failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// Kubernetes' reason: `ErrImageNeverPull`, `CreateContainerError`...
    pub reason: String,
    /// Human-readable.
    pub message: String,
    /// The container existed and its program could not be executed: to Kubernetes this is a run, which
    /// ended with [`EXIT_NOT_RUN`]. A failure to create the container is not a run.
    pub counts_as_run: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not present, may start at this time.
    Idle { start_at: Millis },
    /// The shell is starting it. `Exited` of a short run may come before its `Started`; its
    /// end is kept until then.
    Starting {
        ended: Option<(Option<i32>, bool)>,
        /// Its pod was not wanted any more, and the shell was informed.
        cancelled: bool,
    },
    /// The process is running.
    Running { pid: u32, since: Millis },
    /// SIGTERM was sent, and this many SIGKILLs; the next SIGKILL follows at this time.
    Stopping {
        pid: u32,
        kill_at: Millis,
        kills: u32,
    },
    /// Ended; the shell removes its remains, then `next` applies. If the last attempt failed, `again_at` is
    /// the time of the next.
    Removing {
        next: Next,
        again_at: Option<Millis>,
    },
    /// Ended for good; `stopped` if the agent ended it, so that it starts again if it is wanted again.
    Ended {
        code: Option<i32>,
        oom: bool,
        stopped: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Start(Millis),
    End {
        code: Option<i32>,
        oom: bool,
        stopped: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Start,
    Cancel,
    Terminate,
    /// Contains the process if an earlier SIGKILL had no effect, once.
    Kill {
        again: Option<u32>,
    },
    Remove,
}

#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    pub(crate) name: String,
    pub(crate) spec: Hash16,
    /// Spec of the running container; differs from `spec` until it is replaced.
    running_spec: Hash16,
    pub(crate) state: State,
    /// Number of the latest run: answers for an earlier one are stale.
    pub(crate) run: u32,
    failures: u32,
    restarts: u32,
    last_exit_code: Option<i32>,
    last_oom: bool,
    failure: Option<StartFailure>,
    /// Why the last attempt to remove its remains failed.
    remains: Option<String>,
    /// Its end was not observed, and the decision to restart needs a spec that is not known yet.
    undecided: bool,
}

impl Supervisor {
    pub(crate) const fn new(name: String, spec: Hash16) -> Self {
        Self {
            name,
            spec,
            running_spec: spec,
            state: State::Idle { start_at: 0 },
            run: 0,
            failures: 0,
            restarts: 0,
            last_exit_code: None,
            last_oom: false,
            failure: None,
            remains: None,
            undecided: false,
        }
    }

    /// The container is running already: an earlier agent started it.
    pub(crate) fn adopt(&mut self, now: Millis, pid: u32, spec: Hash16) {
        self.running_spec = spec;
        self.run = 1;
        self.state = State::Running { pid, since: now };
    }

    /// How the latest run ended, as stored by an earlier agent.
    pub(crate) fn recall(&mut self, code: Option<i32>, oom: bool, policy: RestartPolicy) {
        let oom = ended_by_oom(code, oom);
        (self.last_exit_code, self.last_oom) = (code, oom);
        if !restarts(policy, code) {
            self.run = 1;
            self.state = State::Ended {
                code,
                oom,
                stopped: false,
            };
        }
    }

    /// Remains of a run whose end was not observed: removes them; the unknown code counts as a
    /// failure. Without a policy the decision waits for the pod's spec.
    pub(crate) fn clear_remains(&mut self, now: Millis, policy: Option<RestartPolicy>) {
        self.run = 1;
        let next = if let State::Ended { code, oom, stopped } = self.state {
            // The end was stored, but the remains were not removed.
            Next::End { code, oom, stopped }
        } else if policy.is_some_and(|policy| restarts(policy, None)) {
            self.restarts = 1;
            Next::Start(now)
        } else {
            self.undecided = policy.is_none();
            Next::End {
                code: None,
                oom: false,
                stopped: false,
            }
        };
        self.state = removing(next);
    }

    /// The policy is known now: a run whose end was not observed may have to be repeated.
    pub(crate) fn decide(&mut self, policy: RestartPolicy) {
        if !core::mem::take(&mut self.undecided) {
            return;
        }
        match &mut self.state {
            State::Removing {
                next: next @ Next::End { .. },
                ..
            } if restarts(policy, self.last_exit_code) => *next = Next::Start(0),
            State::Ended { code, .. } if restarts(policy, *code) => {
                self.state = State::Idle { start_at: 0 };
            }
            _ => return,
        }
        self.restarts = self.restarts.saturating_add(1);
    }

    /// The one action to take now, if any. A start is cancelled only together with its pod: the shell cancels
    /// all starts of a pod, and the others may be wanted.
    pub(crate) fn step(
        &mut self,
        now: Millis,
        (wanted, pod_wanted): (bool, bool),
        grace_ms: Millis,
    ) -> Option<Step> {
        match self.state {
            State::Idle { start_at } if wanted && start_at <= now => {
                self.run = self.run.saturating_add(1);
                self.running_spec = self.spec;
                self.state = State::Starting {
                    ended: None,
                    cancelled: false,
                };
                Some(Step::Start)
            }
            State::Starting {
                ref mut cancelled, ..
            } if !pod_wanted && !*cancelled => {
                *cancelled = true;
                Some(Step::Cancel)
            }
            State::Running { pid, .. } if !wanted || self.running_spec != self.spec => {
                self.state = State::Stopping {
                    pid,
                    kill_at: now.saturating_add(grace_ms),
                    kills: 0,
                };
                Some(Step::Terminate)
            }
            State::Stopping {
                pid,
                kill_at,
                kills,
            } if kill_at <= now => {
                self.state = State::Stopping {
                    pid,
                    kill_at: now.saturating_add(KILL_RETRY_MS),
                    kills: kills.saturating_add(1),
                };
                Some(Step::Kill {
                    again: (kills == 1).then_some(pid),
                })
            }
            State::Removing {
                again_at: Some(at), ..
            } if at <= now => {
                if let State::Removing { again_at, .. } = &mut self.state {
                    *again_at = None;
                }
                Some(Step::Remove)
            }
            // A spec that changed after the end is started, and so is a container that the agent stopped.
            State::Ended { stopped, .. }
                if wanted && (stopped || self.running_spec != self.spec) =>
            {
                self.state = State::Idle { start_at: now };
                self.step(now, (wanted, pod_wanted), grace_ms)
            }
            _ => None,
        }
    }

    /// Sets a new spec. It does not wait for the back-off of the old one.
    pub(crate) fn set_spec(&mut self, spec: Hash16) {
        if self.spec == spec {
            return;
        }
        self.spec = spec;
        if let State::Idle { start_at: at }
        | State::Removing {
            next: Next::Start(at),
            ..
        } = &mut self.state
        {
            *at = 0;
            self.failures = 0;
            self.failure = None;
        }
    }

    pub(crate) const fn deadline(&self, wanted: bool) -> Option<Millis> {
        match self.state {
            State::Idle { start_at } if wanted => Some(start_at),
            State::Stopping { kill_at, .. } => Some(kill_at),
            State::Removing { again_at, .. } => again_at,
            _ => None,
        }
    }

    /// The shell has started it with `spec`.
    pub(crate) fn started(&mut self, now: Millis, pid: u32, spec: Hash16) {
        self.failure = None;
        self.running_spec = spec;
        self.state = State::Running { pid, since: now };
    }

    /// Starts again later, unless the failure counts as a run and the policy does not restart.
    pub(crate) fn start_failed(
        &mut self,
        now: Millis,
        failure: StartFailure,
        policy: RestartPolicy,
        wanted: bool,
    ) {
        let given_up = matches!(
            self.state,
            State::Starting {
                cancelled: true,
                ..
            }
        );
        self.failures = self.failures.saturating_add(1);
        self.failure = Some(StartFailure {
            reason: clip_reason(&failure.reason).into(),
            message: clip(&failure.message).into(),
            counts_as_run: failure.counts_as_run,
        });
        let code = Some(EXIT_NOT_RUN);
        if failure.counts_as_run {
            (self.last_exit_code, self.last_oom) = (code, false);
        }
        let next = if failure.counts_as_run && !restarts(policy, code) {
            Next::End {
                code,
                oom: false,
                // A cancelled start may have failed because of that.
                stopped: !wanted || given_up,
            }
        } else {
            if failure.counts_as_run {
                self.restarts = self.restarts.saturating_add(1);
            }
            // Unlike a crash, a failed start is not repeated at once: nothing has changed.
            let delay = backoff::delay_ms(self.failures.saturating_add(1));
            Next::Start(now.saturating_add(delay))
        };
        self.state = removing(next);
    }

    /// It ended before its pod's spec was known.
    pub(crate) const fn leave_undecided(&mut self) {
        self.undecided = true;
    }

    /// Returns the delay before the restart, `None` when there will be none.
    pub(crate) fn exited(
        &mut self,
        now: Millis,
        code: Option<i32>,
        oom: bool,
        policy: RestartPolicy,
        wanted: bool,
    ) -> Option<Millis> {
        let stopped = matches!(self.state, State::Stopping { .. });
        // Its SIGKILL was ours.
        let killed = matches!(self.state, State::Stopping { kills: 1.., .. });
        let oom = ended_by_oom(code, oom) && !killed;
        // Wanted and yet stopped by us: it was replaced, or wanted again meanwhile.
        let replaced = stopped && wanted;
        if let State::Running { since, .. } = self.state
            && now.saturating_sub(since) >= BACKOFF_RESET_MS
        {
            self.failures = 0;
        }
        (self.last_exit_code, self.last_oom) = (code, oom);
        let again = restarts(policy, code);
        let next = if replaced {
            self.failures = 0;
            Next::Start(now)
        } else if wanted && again {
            self.failures = self.failures.saturating_add(1);
            self.restarts = self.restarts.saturating_add(1);
            Next::Start(now.saturating_add(backoff::delay_ms(self.failures)))
        } else {
            Next::End { code, oom, stopped }
        };
        let delay = match next {
            Next::Start(at) => Some(at.saturating_sub(now)),
            Next::End { .. } => None,
        };
        self.state = removing(next);
        delay
    }

    /// Returns whether this is the first failure in a row.
    pub(crate) fn remove_failed(&mut self, now: Millis, error: &str) -> bool {
        let State::Removing { again_at, .. } = &mut self.state else {
            return false;
        };
        *again_at = Some(now.saturating_add(KILL_RETRY_MS));
        self.remains.replace(clip(error).into()).is_none()
    }

    /// Why its end or removal is delayed, human-readable; `None` in the normal case.
    pub(crate) fn stuck(&self) -> Option<String> {
        match &self.state {
            State::Stopping { pid, kills, .. } if *kills > 1 => {
                let pid = pid.to_string();
                Some(["process ", &pid, " does not end after SIGKILL"].concat())
            }
            State::Removing { .. } => self.remains.clone(),
            _ => None,
        }
    }

    pub(crate) fn removed(&mut self) {
        self.remains = None;
        if let State::Removing { next, .. } = &self.state {
            self.state = match *next {
                Next::Start(start_at) => State::Idle { start_at },
                Next::End { code, oom, stopped } => State::Ended { code, oom, stopped },
            };
        }
    }

    /// Spec of the running container.
    pub(crate) const fn running_spec(&self) -> Hash16 {
        self.running_spec
    }

    /// Whether a process of it is on the board.
    pub(crate) const fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Stopping { .. })
    }

    /// Whether nothing of it is left on the board.
    pub(crate) const fn is_gone(&self) -> bool {
        matches!(self.state, State::Idle { .. } | State::Ended { .. })
    }

    pub(crate) fn has_started(&self) -> bool {
        let ran = self.failure.as_ref().is_none_or(|why| why.counts_as_run);
        self.run > 0 && ran && !matches!(self.state, State::Starting { .. }) || self.restarts > 0
    }

    pub(crate) const fn ended(&self) -> Option<Option<i32>> {
        match self.state {
            State::Ended { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Why it never ran, if it ended so: the state of an ended container has no message of its own.
    pub(crate) fn never_ran(&self) -> Option<&str> {
        let failure = self.failure.as_ref()?;
        self.ended().map(|_| failure.message.as_str())
    }

    pub(crate) fn status(&self) -> ContainerStatus {
        let waiting = |reason: &str, message: &str| ContainerState::Waiting {
            reason: reason.into(),
            message: clip(message).into(),
        };
        let state = match &self.state {
            State::Running { pid, .. } | State::Stopping { pid, .. } => {
                ContainerState::Running { pid: *pid }
            }
            State::Ended { code, oom, .. }
            | State::Removing {
                next: Next::End { code, oom, .. },
                ..
            } => ContainerState::Terminated {
                exit_code: *code,
                reason: match (oom, code) {
                    _ if self.failure.is_some() => "StartError".into(),
                    (true, _) => "OOMKilled".into(),
                    (false, Some(0)) => "Completed".into(),
                    (false, _) => "Error".into(),
                },
            },
            State::Idle { .. } | State::Starting { .. } | State::Removing { .. } => {
                match &self.failure {
                    _ if self.remains.is_some() => waiting(
                        "RemoveContainerError",
                        self.remains.as_deref().unwrap_or(""),
                    ),
                    Some(failure) => waiting(&failure.reason, &failure.message),
                    None if self.failures > 1 && self.last_oom => {
                        waiting("CrashLoopBackOff", "the last run was OOMKilled")
                    }
                    None if self.failures > 1 => waiting("CrashLoopBackOff", ""),
                    None => waiting("ContainerCreating", ""),
                }
            }
        };
        ContainerStatus {
            name: self.name.clone(),
            state,
            restarts: self.restarts,
            last_exit_code: self.last_exit_code,
            last_oom: self.last_oom,
        }
    }
}

/// Whether the kernel's OOM killer ended a run in whose cgroup it struck: its first process, and not
/// another that the container got over.
fn ended_by_oom(code: Option<i32>, struck: bool) -> bool {
    struck && code.is_none_or(|code| code == EXIT_KILLED)
}

/// An unknown code counts as a failure.
fn restarts(policy: RestartPolicy, code: Option<i32>) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code != Some(0),
        RestartPolicy::Never => false,
    }
}

const fn removing(next: Next) -> State {
    State::Removing {
        next,
        again_at: None,
    }
}

/// A reason is one word; a longer one would exceed the status.
fn clip_reason(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default()
}
