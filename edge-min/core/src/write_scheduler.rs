//! When the store retries a failed write of an accepted change, and when it writes the state cache, which
//! follows the desired set. Nothing is due while nothing has changed.
//!
//! The store does one job at a time. After [`Input::Failed`] it accepts no further job until
//! [`Output::Retry`] has led to [`Input::Written`]: only what is on the medium is acknowledged,
//! and changes keep their order.

use alloc::vec::Vec;

use edge_proto::Millis;
use edge_proto::key::{Key, Kind};
use edge_proto::object::Pod;
use edge_proto::session::Payload;

use crate::limits::{CACHE_LATEST_MS, CACHE_QUIET_MS, CACHE_RETRY_MS, WRITE_RETRY_MS};

/// Event of the store's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The cache is older than the set.
    Changed,
    /// A mandatory write has succeeded.
    Written,
    /// A mandatory write has failed.
    Failed,
    /// The cache could not be written.
    CacheFailed,
    /// Whether the flash budget of the day is used up: writes that may be delayed are then delayed.
    OverBudget(bool),
    /// The deadline has passed.
    Tick,
}

/// Action for the store's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Report that writes fail; only the first of consecutive failures.
    Failing,
    /// Report that writes succeed again.
    Recovered,
    /// Retry the failed write.
    Retry,
    /// Write the cache.
    Cache,
}

/// When the failed write is retried; consecutive failures count as one.
#[derive(Debug, Default)]
pub(crate) struct Retry(Option<Millis>);

impl Retry {
    /// Returns whether it is the first of consecutive failures.
    pub(crate) fn failed(&mut self, now: Millis) -> bool {
        let at = now.saturating_add(WRITE_RETRY_MS);
        self.0.replace(at).is_none()
    }

    /// Returns whether it ends consecutive failures.
    pub(crate) const fn written(&mut self) -> bool {
        self.0.take().is_some()
    }

    pub(crate) const fn at(&self) -> Option<Millis> {
        self.0
    }
}

/// When the store's thread retries a failed write and writes the cache.
#[derive(Debug, Default)]
pub struct WriteScheduler {
    retry: Retry,
    /// Due time of the cache, and its latest time.
    cache: Option<(Millis, Millis)>,
    over_budget: bool,
    output: Option<Output>,
}

impl WriteScheduler {
    /// Handles one event.
    pub fn handle(&mut self, now: Millis, input: Input) {
        match input {
            Input::Changed => {
                let latest = match self.cache {
                    Some((_, latest)) => latest,
                    None => now.saturating_add(CACHE_LATEST_MS),
                };
                let due = now.saturating_add(CACHE_QUIET_MS).min(latest);
                self.cache = Some((due, latest));
            }
            Input::Written => {
                if self.retry.written() {
                    self.output = Some(Output::Recovered);
                }
            }
            Input::Failed => {
                if self.retry.failed(now) {
                    self.output = Some(Output::Failing);
                }
            }
            Input::CacheFailed => {
                let at = now.saturating_add(CACHE_RETRY_MS);
                self.cache = Some((at, at));
            }
            Input::OverBudget(over) => self.over_budget = over,
            Input::Tick if self.deadline().is_none_or(|at| at > now) => {}
            Input::Tick if self.retry.at().is_some() => self.output = Some(Output::Retry),
            Input::Tick => {
                self.cache = None;
                self.output = Some(Output::Cache);
            }
        }
    }

    /// The next output; `None` when there is nothing to do.
    pub const fn poll(&mut self) -> Option<Output> {
        self.output.take()
    }

    /// When to call `handle` with [`Input::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        let cache = || self.cache.filter(|_| !self.over_budget);
        self.retry.at().or_else(|| cache().map(|(due, _)| due))
    }
}

/// Removes of pods among changes whose write has failed; the agent gets them at once. On a full medium the
/// pods' own files may be the reason why the change cannot be written. All other changes take effect only
/// when they are durable.
#[must_use]
pub fn ends_before_write(changes: &[(Key, Option<Payload>)]) -> Vec<(Key, Option<Vec<u8>>)> {
    let mut pods = Vec::new();
    for (key, payload) in changes {
        match payload {
            _ if key.kind() != Kind::Pod => {}
            None => pods.push((key.clone(), None)),
            Some(Payload::Inline(bytes)) => {
                if Pod::decode(bytes).is_ok_and(|pod| pod.terminating) {
                    pods.push((key.clone(), Some(bytes.clone())));
                }
            }
            Some(_) => {}
        }
    }
    pods
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_proto::hash::Hash32;
    use edge_proto::key::Uid;
    use edge_proto::object::Container;
    use proptest::prelude::*;

    fn step(scheduler: &mut WriteScheduler, now: Millis, input: Input) -> Option<Output> {
        scheduler.handle(now, input);
        let output = scheduler.poll();
        assert_eq!(scheduler.poll(), None);
        output
    }

    #[test]
    fn a_failed_write_is_retried_until_it_succeeds_and_reported_once() {
        let mut scheduler = WriteScheduler::default();
        assert_eq!(scheduler.deadline(), None);
        assert_eq!(
            step(&mut scheduler, 0, Input::Failed),
            Some(Output::Failing)
        );
        for round in 1..4 {
            let at = round * WRITE_RETRY_MS;
            assert_eq!(scheduler.deadline(), Some(at));
            assert_eq!(step(&mut scheduler, at - 1, Input::Tick), None, "early");
            assert_eq!(step(&mut scheduler, at, Input::Tick), Some(Output::Retry));
            assert_eq!(step(&mut scheduler, at, Input::Failed), None);
        }
        assert_eq!(
            step(&mut scheduler, 50_000, Input::Written),
            Some(Output::Recovered)
        );
        assert_eq!(scheduler.deadline(), None);
        assert_eq!(step(&mut scheduler, 60_000, Input::Written), None);
    }

    #[test]
    fn the_cache_follows_after_quiet_and_a_row_of_changes_costs_one_write() {
        let mut scheduler = WriteScheduler::default();
        step(&mut scheduler, 0, Input::Changed);
        assert_eq!(scheduler.deadline(), Some(CACHE_QUIET_MS));
        let mut now = 0;
        while now < CACHE_LATEST_MS {
            assert_eq!(step(&mut scheduler, now, Input::Tick), None);
            step(&mut scheduler, now, Input::Changed);
            now += CACHE_QUIET_MS / 2;
        }
        assert_eq!(scheduler.deadline(), Some(CACHE_LATEST_MS), "changes go on");
        assert_eq!(step(&mut scheduler, now, Input::Tick), Some(Output::Cache));
        assert_eq!(scheduler.deadline(), None, "written, so nothing is due");
        step(&mut scheduler, now, Input::CacheFailed);
        assert_eq!(scheduler.deadline(), Some(now + CACHE_RETRY_MS));
    }

    #[test]
    fn a_change_after_a_failed_cache_does_not_hurry_it() {
        let mut scheduler = WriteScheduler::default();
        step(&mut scheduler, 0, Input::CacheFailed);
        step(&mut scheduler, CACHE_RETRY_MS - 1, Input::Changed);
        assert_eq!(scheduler.deadline(), Some(CACHE_RETRY_MS));
    }

    #[test]
    fn over_the_budget_the_cache_waits_and_a_failed_write_does_not() {
        let mut scheduler = WriteScheduler::default();
        step(&mut scheduler, 0, Input::Changed);
        step(&mut scheduler, 0, Input::OverBudget(true));
        assert_eq!(scheduler.deadline(), None);
        assert_eq!(step(&mut scheduler, 90_000, Input::Tick), None);
        step(&mut scheduler, 90_000, Input::Failed);
        assert_eq!(scheduler.deadline(), Some(90_000 + WRITE_RETRY_MS));
        step(&mut scheduler, 96_000, Input::Written);
        step(&mut scheduler, 96_000, Input::OverBudget(false));
        assert_eq!(
            step(&mut scheduler, 96_000, Input::Tick),
            Some(Output::Cache)
        );
    }

    #[test]
    fn only_pods_that_end_go_before_their_write() {
        let pod = |number: u8, terminating| {
            let pod = Pod {
                uid: Uid([number; 16]),
                namespace: "shop".into(),
                name: "till".into(),
                containers: Vec::from([Container {
                    name: "main".into(),
                    command: Vec::from(["/bin/true".into()]),
                    ..Container::default()
                }]),
                terminating,
                ..Pod::default()
            };
            (Key::pod(pod.uid), pod.encode())
        };
        let config = Key::Name(Kind::ConfigMap, "shop".into(), "prices".into());
        let (removed, _) = pod(1, false);
        let (ending, ending_bytes) = pod(2, true);
        let (wanted, wanted_bytes) = pod(3, false);
        let (large, _) = pod(4, true);
        let changes = [
            (config, None),
            (removed.clone(), None),
            (ending.clone(), Some(Payload::Inline(ending_bytes.clone()))),
            (wanted, Some(Payload::Inline(wanted_bytes))),
            (
                large,
                Some(Payload::Large {
                    sha256: Hash32([0; 32]),
                    len: 5_000,
                }),
            ),
            (pod(5, true).0, Some(Payload::Inline(Vec::from([0xff])))),
        ];
        let expected = [(removed, None), (ending, Some(ending_bytes))];
        assert_eq!(ends_before_write(&changes), expected);
    }

    proptest! {
        /// In any order of events, a failed write is retried within its delay, and the cache is never
        /// written while a retry is outstanding.
        #[test]
        fn a_failed_write_goes_before_the_cache(steps in proptest::collection::vec((0_u8..5, 0_u64..20_000), 1..60)) {
            let (mut scheduler, mut now, mut failing) = (WriteScheduler::default(), 0, false);
            let mut outputs = Vec::new();
            for (kind, wait) in steps {
                now += wait;
                let input = match kind {
                    0 => Input::Changed,
                    1 => Input::Written,
                    2 => Input::Failed,
                    3 => Input::CacheFailed,
                    _ => Input::Tick,
                };
                failing = match input { Input::Failed => true, Input::Written => false, _ => failing };
                let output = step(&mut scheduler, now, input);
                prop_assert!(!(failing && output == Some(Output::Cache)));
                if failing {
                    prop_assert!(scheduler.deadline().is_some_and(|at| at <= now + WRITE_RETRY_MS));
                }
                outputs.extend(output);
            }
            let reported: Vec<_> = outputs.into_iter().filter(|one| matches!(one, Output::Failing | Output::Recovered)).collect();
            for (index, one) in reported.iter().enumerate() {
                let wanted = if index % 2 == 0 { Output::Failing } else { Output::Recovered };
                prop_assert_eq!(*one, wanted, "reported in turn");
            }
        }
    }
}
