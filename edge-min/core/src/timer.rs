//! The agent's timers: one table, so that its deadline is their minimum and none is missed.
//! The timers of single pods stay with the pods; the earliest of them is in the table.

use edge_proto::Millis;

/// Which action is due. The order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The earliest of all pods: a start after its back-off, a kill after its grace, a retry.
    Pods,
    /// What is on the board could not be known, and is looked at again.
    Discover,
    /// Truncate the logs of running containers to their tail.
    TrimLogs,
    /// Try to join.
    Join,
    /// Try to connect to the cloud.
    Connect,
    /// Renew the certificate, or retry a failed renewal.
    Renewal,
    /// End of an hour of the flash budget while the day is at risk.
    FlashHour,
    /// Read the wear of the flash; set by the first `Flash`.
    Wear,
}

impl Timer {
    /// The last variant: it determines the size of the table.
    const LAST: Self = Self::Wear;
}

/// Due time of each timer; `None` is not set.
#[derive(Debug, Default)]
pub(crate) struct Timers([Option<Millis>; Timer::LAST as usize + 1]);

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Option<Millis>) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = at;
        }
    }

    pub(crate) fn get(&self, timer: Timer) -> Option<Millis> {
        self.0.get(timer as usize).copied().flatten()
    }

    /// Whether the timer is due; if so, it is cleared.
    pub(crate) fn expired(&mut self, timer: Timer, now: Millis) -> bool {
        let due = self.get(timer).is_some_and(|at| at <= now);
        if due {
            self.set(timer, None);
        }
        due
    }

    pub(crate) fn earliest(&self) -> Option<Millis> {
        self.0.iter().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_timer_is_the_deadline_and_expires_once() {
        let mut timers = Timers::default();
        assert_eq!(timers.earliest(), None);
        timers.set(Timer::LAST, Some(9));
        timers.set(Timer::Pods, Some(5));
        assert_eq!(timers.earliest(), Some(5));
        assert!(!timers.expired(Timer::Pods, 4));
        assert!(timers.expired(Timer::Pods, 5));
        assert!(!timers.expired(Timer::Pods, 6));
        assert_eq!(timers.earliest(), Some(9));
    }
}
