//! When the outbox syncs what it has written, and when it writes again after a failure. The outbox's
//! thread writes records, calls [`SyncScheduler::must_sync`], and passes in the result of the sync.
//!
//! After a failed write the outbox accepts no record until the write is to be retried. Consecutive
//! failures are reported once, as is their end.

use edge_proto::Millis;

use crate::limits::RECORD_SOON_MS;
use crate::write_scheduler::Retry;

/// When the outbox's thread syncs, and when it retries a failed write.
#[derive(Debug, Default)]
pub struct SyncScheduler {
    retry: Retry,
    /// Latest time of the next sync.
    sync_at: Option<Millis>,
}

impl SyncScheduler {
    /// Whether a new record is refused because the last write failed a short time ago.
    #[must_use]
    pub fn refuses(&self, now: Millis) -> bool {
        self.retry.at().is_some_and(|at| now < at)
    }

    /// Whether to sync now: `waiting` is set if a record is answered only after its sync. The oldest of the
    /// other records has waited long enough.
    #[must_use]
    pub fn must_sync(&self, now: Millis, waiting: bool) -> bool {
        waiting || self.sync_at.is_some_and(|at| at <= now)
    }

    /// Records were written and are not synced.
    pub fn written(&mut self, now: Millis) {
        self.sync_at = self.sync_at.or_else(|| now.checked_add(RECORD_SOON_MS));
    }

    /// What was written is synced; returns whether to report that writes succeed again.
    pub const fn synced(&mut self) -> bool {
        self.sync_at = None;
        self.recovered()
    }

    /// Another write that had failed has succeeded; returns whether to report that writes succeed
    /// again.
    pub const fn recovered(&mut self) -> bool {
        self.retry.written()
    }

    /// Records could not be written or synced: none of them is left to sync. Returns whether to
    /// report it.
    pub fn records_failed(&mut self, now: Millis) -> bool {
        self.sync_at = None;
        self.failed(now)
    }

    /// Another write failed; returns whether to report it.
    pub fn failed(&mut self, now: Millis) -> bool {
        self.retry.failed(now)
    }

    /// When to act without a job: to sync, or to retry if the medium is `behind`.
    #[must_use]
    pub fn deadline(&self, behind: bool) -> Option<Millis> {
        let retry_at = self.retry.at().filter(|_| behind);
        [self.sync_at, retry_at].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::WRITE_RETRY_MS;
    use proptest::prelude::*;

    #[test]
    fn records_that_nobody_waits_for_share_a_later_sync() {
        let mut scheduler = SyncScheduler::default();
        assert!(scheduler.must_sync(0, true), "a writer waits");
        assert!(!scheduler.must_sync(0, false), "nothing is written");
        scheduler.written(10);
        scheduler.written(1_000);
        assert_eq!(scheduler.deadline(false), Some(10 + RECORD_SOON_MS));
        assert!(!scheduler.must_sync(9 + RECORD_SOON_MS, false));
        assert!(scheduler.must_sync(10 + RECORD_SOON_MS, false));
        assert!(!scheduler.synced(), "nothing had failed");
        assert_eq!(scheduler.deadline(false), None);
    }

    #[test]
    fn after_a_failure_records_are_refused_until_the_retry_and_it_is_reported_once() {
        let mut scheduler = SyncScheduler::default();
        scheduler.written(0);
        assert!(scheduler.records_failed(1), "the first of a row");
        assert!(!scheduler.must_sync(10_000, false), "nothing is left of it");
        assert!(scheduler.refuses(WRITE_RETRY_MS));
        assert!(!scheduler.refuses(1 + WRITE_RETRY_MS));
        assert!(!scheduler.failed(1 + WRITE_RETRY_MS), "reported already");
        assert!(scheduler.refuses(2 * WRITE_RETRY_MS));
        assert!(scheduler.synced(), "the end of the row");
        assert!(!scheduler.refuses(2 * WRITE_RETRY_MS));
        assert!(!scheduler.recovered());
    }

    #[test]
    fn a_failure_is_retried_unasked_only_if_something_is_behind() {
        let mut scheduler = SyncScheduler::default();
        assert!(scheduler.failed(7));
        assert_eq!(scheduler.deadline(false), None, "the next record tries");
        assert_eq!(scheduler.deadline(true), Some(7 + WRITE_RETRY_MS));
        scheduler.written(8);
        assert_eq!(scheduler.deadline(true), Some(8 + RECORD_SOON_MS));
    }

    proptest! {
        /// In any order of events, a written record is synced or failed within its time, failures and
        /// recoveries are reported alternately, and no record is refused for longer than the retry delay.
        #[test]
        fn failures_and_recoveries_alternate(steps in proptest::collection::vec((0_u8..5, 0_u64..9_000), 1..60)) {
            let (mut scheduler, mut now, mut failing) = (SyncScheduler::default(), 0, false);
            for (step, wait) in steps {
                now += wait;
                match step {
                    0 => scheduler.written(now),
                    1 => prop_assert_eq!(scheduler.synced(), core::mem::take(&mut failing)),
                    2 => prop_assert_eq!(scheduler.recovered(), core::mem::take(&mut failing)),
                    3 => prop_assert_eq!(scheduler.failed(now), !core::mem::replace(&mut failing, true)),
                    _ => prop_assert_eq!(scheduler.records_failed(now), !core::mem::replace(&mut failing, true)),
                }
                let due = scheduler.deadline(true);
                prop_assert!(due.is_none_or(|at| at <= now + WRITE_RETRY_MS.max(RECORD_SOON_MS)));
                prop_assert!(step != 0 || due.is_some());
                prop_assert!(failing || !scheduler.refuses(now));
                prop_assert!(!scheduler.refuses(now + WRITE_RETRY_MS));
            }
        }
    }
}
