//! The node's certificates: which one the link uses, and the trial of a new one. A new certificate
//! is on trial until a session was live with it. Until then the old one is kept, on the medium and
//! here, and is used again if the new one is refused.

use alloc::string::{String, ToString as _};

use edge_proto::Millis;
use edge_proto::object::Condition;

use crate::renewal::{Renewal, Time, Validity};

/// One of the certificates that a node holds; there are at most two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// The one issued last.
    New,
    /// Its predecessor, while the new one is on trial.
    Old,
}

/// What a live session proves about the certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The new certificate works: the old one can go.
    New,
    /// The new one was refused and the old one works, so the node returns to the old one.
    Old,
    /// The connection was begun before the renewal and proves nothing.
    Stale,
}

/// Both certificates of one node, and the trial of the new one.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) renewal: Renewal,
    /// Validity of the old certificate, while the new one is on trial.
    old: Option<Validity>,
    /// The new one was refused, so the next connection uses the old one.
    returns_to_old: bool,
    /// Certificate of the last connection; `None` when it is neither of the two.
    tried: Option<Certificate>,
    /// Why the last renewal failed; empty after a success.
    error: String,
}

impl Certificates {
    pub(crate) fn new(node: &str, new: Validity, old: Option<Validity>) -> Self {
        Self {
            renewal: Renewal::new(node, new),
            old,
            returns_to_old: false,
            tried: None,
            error: String::new(),
        }
    }

    /// Chooses the certificate of the next connection.
    pub(crate) fn next(&mut self) -> Certificate {
        let next = match self.returns_to_old && self.old.is_some() {
            true => Certificate::Old,
            false => Certificate::New,
        };
        self.tried = Some(next);
        next
    }

    /// Expiry of the certificate that the session uses, seconds since 1970; 0 while it is
    /// not known which one that is.
    pub(crate) const fn proven_not_after(&self) -> u64 {
        match self.old {
            None => self.renewal.not_after(),
            Some(_) => 0,
        }
    }

    pub(crate) fn error(&self) -> &str {
        &self.error
    }

    /// A renewal has returned a new certificate, which is now on trial.
    pub(crate) fn renewed(&mut self, new: Validity) {
        self.old = Some(self.renewal.life());
        self.tried = match self.tried {
            Some(Certificate::New) => Some(Certificate::Old),
            _ => None,
        };
        self.renewal.renewed(new);
        self.returns_to_old = false;
        self.error.clear();
    }

    pub(crate) fn renewal_failed(&mut self, now: Millis, reason: String, refused: bool) {
        self.renewal.failed(now, refused);
        self.error = reason;
    }

    /// The other end of the link refuses the certificate: it may have expired, or a new one
    /// is not known there yet.
    pub(crate) const fn refused(&mut self) {
        // Both may have expired while the board was off.
        if self.old.is_none() || self.returns_to_old {
            self.renewal.want();
        }
        self.returns_to_old = self.old.is_some() && !self.returns_to_old;
    }

    /// A session is live with the certificate of its connection. `None` when no
    /// certificate is on trial.
    pub(crate) fn works(&mut self, now: Millis) -> Option<Proof> {
        let old = self.old?;
        if self.tried == Some(Certificate::New) {
            self.old = None;
            return Some(Proof::New);
        }
        if !self.returns_to_old {
            return Some(Proof::Stale);
        }
        self.old = None;
        self.returns_to_old = false;
        self.tried = Some(Certificate::New);
        self.renewal.renewed(old);
        let reason = "the new certificate is refused, the old one is not".to_string();
        self.renewal_failed(now, reason, true);
        Some(Proof::Old)
    }

    /// Node condition about the certificates.
    pub(crate) fn condition(&self, time: Time) -> Condition {
        let end = self.renewal.not_after().to_string();
        let message = match self.error.as_str() {
            "" => ["expires at ", &end].concat(),
            error => ["expires at ", &end, ", not renewed: ", error].concat(),
        };
        Condition {
            name: "CertificateExpiring".to_string(),
            holds: self.renewal.is_late(time),
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn life(number: u64) -> Validity {
        Validity {
            issued_unix_s: number * 1_000_000,
            not_after: (number + 2) * 1_000_000,
        }
    }

    const TIME: Time = Time {
        unix_s: 0,
        confirmed: true,
    };

    fn on_trial() -> Certificates {
        let mut certificates = Certificates::new("gate", life(1), None);
        assert_eq!(certificates.next(), Certificate::New);
        assert_eq!(certificates.works(0), None);
        certificates.renewed(life(2));
        certificates
    }

    #[test]
    fn a_new_certificate_that_works_ends_its_trial() {
        let mut certificates = on_trial();
        assert_eq!(certificates.proven_not_after(), 0, "not known yet");
        assert_eq!(certificates.next(), Certificate::New);
        assert_eq!(certificates.works(5), Some(Proof::New));
        assert_eq!(certificates.proven_not_after(), life(2).not_after);
        assert_eq!(certificates.works(5), None);
        assert_eq!(certificates.error(), "");
    }

    #[test]
    fn a_new_certificate_that_is_refused_gives_way_to_the_old_one_which_is_renewed_later() {
        let mut certificates = on_trial();
        certificates.next();
        certificates.refused();
        assert_eq!(certificates.next(), Certificate::Old);
        assert_eq!(certificates.works(7), Some(Proof::Old));
        assert_eq!(certificates.proven_not_after(), life(1).not_after);
        assert_eq!(certificates.next(), Certificate::New, "there is only one");
        assert!(certificates.condition(TIME).message.contains("refused"));
        // It counts as a refusal of the cloud: the next attempt is much later.
        let at = certificates.renewal.deadline(7, TIME).unwrap();
        assert!(at > 7 + 60_000, "{at}");
    }

    /// Goal: a session over a connection from before the renewal neither proves the new certificate
    /// nor drops it.
    #[test]
    fn a_connection_from_before_the_renewal_proves_nothing() {
        let mut certificates = on_trial();
        assert_eq!(certificates.works(0), Some(Proof::Stale));
        certificates.next();
        certificates.refused();
        assert_eq!(certificates.next(), Certificate::Old);
        certificates.renewed(life(3));
        // The certificate of that connection is neither the new one nor its predecessor.
        assert_eq!(certificates.works(0), Some(Proof::Stale));
        assert_eq!(certificates.next(), Certificate::New);
    }

    /// Goal: when both have expired the node does not alternate between them for ever.
    #[test]
    fn when_both_are_refused_a_renewal_is_wanted() {
        let mut certificates = on_trial();
        let due = |certificates: &Certificates| certificates.renewal.deadline(9, TIME) == Some(9);
        certificates.next();
        certificates.refused();
        assert!(!due(&certificates));
        assert_eq!(certificates.next(), Certificate::Old);
        certificates.refused();
        assert!(due(&certificates));
        assert_eq!(certificates.next(), Certificate::New);
    }

    #[test]
    fn a_single_certificate_that_is_refused_is_renewed_at_once() {
        let mut certificates = Certificates::new("gate", life(1), None);
        certificates.next();
        certificates.refused();
        assert_eq!(certificates.renewal.deadline(9, TIME), Some(9));
        assert_eq!(certificates.next(), Certificate::New);
    }

    #[test]
    fn after_a_restart_the_trial_goes_on() {
        let mut certificates = Certificates::new("gate", life(2), Some(life(1)));
        assert_eq!(certificates.next(), Certificate::New);
        certificates.refused();
        assert_eq!(certificates.next(), Certificate::Old);
        assert_eq!(certificates.works(0), Some(Proof::Old));
    }

    #[test]
    fn the_condition_names_the_end_and_the_failure() {
        let mut certificates = Certificates::new("gate", life(1), None);
        assert_eq!(certificates.condition(TIME).message, "expires at 3000000");
        assert!(!certificates.condition(TIME).holds);
        certificates.renewal_failed(0, "no route".to_string(), false);
        let late = Time {
            unix_s: 2_900_000,
            ..TIME
        };
        let condition = certificates.condition(late);
        assert!(condition.holds);
        assert_eq!(
            condition.message,
            "expires at 3000000, not renewed: no route"
        );
    }
}
