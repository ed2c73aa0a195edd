//! A board in virtual time for the agent: processes that run, crash or hang, and answers that
//! arrive late.

use std::collections::{BTreeMap, VecDeque};

use edge_core::{Agent, AgentConfig, Discovered, Input, Output, Signal, StartFailure};
use edge_proto::Millis;
use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Uid};
use edge_proto::object::{NodeStatus, Pod, PodStatus};

/// A board whose containers run until a test ends them or they are stopped.
pub(crate) struct Board {
    pub(crate) agent: Agent,
    pub(crate) now: Millis,
    pub(crate) running: BTreeMap<(Uid, String), (u32, Hash16)>,
    pub(crate) answers: VecDeque<Input>,
    pub(crate) starts: u32,
    pub(crate) pids: u32,
    pub(crate) ignores_term: bool,
    pub(crate) broken_image: bool,
    pub(crate) broken_program: bool,
    pub(crate) survives_kill: bool,
    pub(crate) keeps_remains: bool,
    pub(crate) keeps_pods: bool,
    pub(crate) removals: u32,
    pub(crate) pod_removals: u32,
    pub(crate) repairs: u32,
    /// Pods whose starts the agent has cancelled.
    pub(crate) cancelled: Vec<Uid>,
    pub(crate) events: Vec<String>,
    pub(crate) reported: BTreeMap<Key, Vec<u8>>,
}

pub(crate) fn agent() -> Agent {
    let facts = NodeStatus {
        pods_max: 20,
        ..NodeStatus::default()
    };
    Agent::new(AgentConfig {
        facts,
        ..AgentConfig::default()
    })
}

/// What is found on a board without directories of other pods.
pub(crate) const fn discovered(containers: Vec<Discovered>) -> Input {
    Input::Discovered {
        containers,
        pods: Vec::new(),
    }
}

impl Board {
    pub(crate) fn new() -> Self {
        let mut board = Self {
            agent: agent(),
            now: 1000,
            running: BTreeMap::new(),
            answers: VecDeque::new(),
            starts: 0,
            pids: 0,
            ignores_term: false,
            broken_image: false,
            broken_program: false,
            survives_kill: false,
            keeps_remains: false,
            keeps_pods: false,
            removals: 0,
            pod_removals: 0,
            repairs: 0,
            cancelled: Vec::new(),
            events: Vec::new(),
            reported: BTreeMap::new(),
        };
        board.tell(discovered(Vec::new()));
        board
    }

    pub(crate) fn tell(&mut self, input: Input) {
        self.agent.handle(self.now, input);
        while let Some(output) = self.agent.poll() {
            self.perform(output);
        }
    }

    pub(crate) fn perform(&mut self, output: Output) {
        match output {
            Output::PreparePod { uid, .. } => {
                self.answers.push_back(Input::PodPrepared(uid, Ok(())))
            }
            Output::Start(start) => {
                let (uid, container, spec) = (start.uid, start.container, start.hash);
                self.starts += 1;
                let result = if self.broken_image {
                    Err(StartFailure {
                        reason: "ErrImageNeverPull".into(),
                        message: "no".into(),
                        counts_as_run: false,
                    })
                } else if self.broken_program {
                    Err(StartFailure {
                        reason: "RunContainerError".into(),
                        message: "there is no such file".into(),
                        counts_as_run: true,
                    })
                } else {
                    self.pids += 1;
                    let before = self
                        .running
                        .insert((uid, container.clone()), (self.pids, spec));
                    assert_eq!(before, None, "two runs at once");
                    Ok(self.pids)
                };
                self.answers.push_back(Input::Started {
                    uid,
                    container,
                    run: start.run,
                    spec,
                    result,
                });
            }
            Output::Signal {
                uid,
                container,
                spec,
                signal,
            } => {
                if let Some((_, runs)) = self.running.get(&(uid, container.clone())) {
                    assert_eq!(*runs, spec, "signalled under another spec");
                }
                if signal == Signal::Kill && !self.survives_kill || !self.ignores_term {
                    self.exit(uid, &container, Some(143));
                }
            }
            Output::Remove { uid, container } => {
                assert!(!self.running.contains_key(&(uid, container.clone())));
                self.removals += 1;
                let result = if self.keeps_remains {
                    Err("rmdir: busy".to_owned())
                } else {
                    Ok(())
                };
                self.answers
                    .push_back(Input::Removed(uid, container, result));
            }
            Output::RemovePod { uid, .. } => {
                assert!(!self.running.keys().any(|(running, _)| *running == uid));
                self.pod_removals += 1;
                let result = match self.keeps_pods {
                    true => Err("still mounted: logs".to_owned()),
                    false => Ok(()),
                };
                self.answers.push_back(Input::PodRemoved(uid, result));
            }
            Output::Report(key, Some(payload)) => {
                let before = self.reported.insert(key, payload.clone());
                assert_ne!(before, Some(payload), "reported without a change");
            }
            Output::Report(key, None) => drop(self.reported.remove(&key)),
            Output::Event(event) => self.events.push(event.to_string()),
            Output::CancelStarts(uid) => self.cancelled.push(uid),
            Output::UpdateConfig { .. }
            | Output::TrimLog { .. }
            | Output::Uplink(_)
            | Output::FlashOverBudget(_)
            | Output::ReadWear => {}
            Output::RepairStore => self.repairs += 1,
            Output::Discover => unreachable!("all was known at once"),
        }
    }

    pub(crate) fn exit(&mut self, uid: Uid, container: &str, code: Option<i32>) {
        if self.running.remove(&(uid, container.into())).is_some() {
            let container = container.into();
            self.answers.push_back(Input::Exited {
                uid,
                container,
                code,
                oom: false,
            });
        }
    }

    /// Answers until nothing is output, without letting time pass.
    pub(crate) fn settle(&mut self) {
        while let Some(answer) = self.answers.pop_front() {
            self.tell(answer);
        }
    }

    /// Lets time pass to the deadline, at most `limit` times.
    pub(crate) fn advance(&mut self, limit: u32) {
        self.settle();
        for _ in 0..limit {
            let Some(deadline) = self.agent.deadline() else {
                return;
            };
            self.now = self.now.max(deadline);
            self.tell(Input::Tick);
            self.settle();
            assert!(
                self.agent.deadline().is_none_or(|next| next > self.now),
                "deadline passed"
            );
        }
    }

    /// Replaces the agent: pending answers are lost, running containers continue.
    pub(crate) fn restart_agent<'a>(&mut self, desired: impl Iterator<Item = &'a Pod>) {
        self.agent = agent();
        self.answers.clear();
        self.reported.clear();
        for pod in desired {
            self.put(pod);
        }
        let found = self.running.iter();
        let found = found.map(|((uid, container), (pid, spec))| Discovered {
            uid: *uid,
            container: container.clone(),
            spec: *spec,
            pid: Some(*pid),
        });
        let found = found.collect();
        self.tell(discovered(found));
    }

    pub(crate) fn put(&mut self, pod: &Pod) {
        self.tell(Input::Desired(Key::pod(pod.uid), Some(pod.encode())));
    }

    pub(crate) fn status(&self, uid: Uid) -> Option<PodStatus> {
        let payload = self.reported.get(&Key::pod_status(uid))?;
        Some(PodStatus::decode(payload).unwrap())
    }
}
