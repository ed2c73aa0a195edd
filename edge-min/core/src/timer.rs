//! The agent's timers: one table, so that its deadline is their minimum and nothing is forgotten.
//! The timers of single pods stay with the pods; the earliest of them stands here.

use edge_proto::Millis;

/// What is due at a time. The order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The earliest of all pods: a start after its back-off, a kill after its grace, a retry.
    Pods,
    /// The logs of running containers are cut to their tail.
    TrimLogs,
    /// A join is tried.
    Join,
    /// A connection to the cloud is tried.
    Connect,
    /// The certificate is to be renewed, or that is tried again.
    Renewal,
    /// An hour of the flash budget ends while the day is at risk.
    FlashHour,
    /// The wear of the flash is read; set by the first `Flash`.
    Wear,
}

impl Timer {
    /// The last one: it sizes the table.
    const LAST: Self = Self::Wear;
}

/// When each timer is due; `None` is not set.
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

    /// Whether the timer is due; it is not set any more then.
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
