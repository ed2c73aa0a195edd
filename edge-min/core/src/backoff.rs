//! Delay before a restart.

use edge_proto::Millis;

use crate::limits::{BACKOFF_MS_MAX, BACKOFF_MS_MIN};

/// Delay after the given number of consecutive failures: 0 for the first, then 10 s doubling to 5 minutes.
///
/// The exponent is clamped before the shift: a wrapped delay would be zero.
#[must_use]
pub fn delay_ms(failures: u32) -> Millis {
    match failures {
        0 | 1 => 0,
        more => {
            let exponent = (more - 2).min(16);
            BACKOFF_MS_MIN
                .saturating_mul(1 << exponent)
                .min(BACKOFF_MS_MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_restart_is_immediate_then_kubernetes_delays() {
        let delays: alloc::vec::Vec<_> = (1..9).map(delay_ms).collect();
        assert_eq!(
            delays,
            [0, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000]
        );
    }

    proptest! {
        #[test]
        fn delays_never_shrink_and_never_pass_the_cap(failures in 2_u32..=u32::MAX) {
            prop_assert!(delay_ms(failures) >= delay_ms(failures - 1));
            prop_assert!((BACKOFF_MS_MIN..=BACKOFF_MS_MAX).contains(&delay_ms(failures)));
        }
    }
}
