//! The steps of a rollover of the CA, and its progress. [`super::authorities`] explains the steps.
//! [`crate::sessions`] asks nodes to renew.

use std::sync::{Arc, PoisonError};

use super::Identity;
use super::authorities::{Authorities, Phase};
use super::ca::{Ca, CaError, OWN_NOT_AFTER};
use crate::clock::{is_plausible, unix_s};
use crate::nodes::{CaRetired, CaRow, CaView, CaWaiting};

/// Names of waiting nodes that are shown.
pub const WAITING_SHOWN: usize = 20;

impl Identity {
    /// Performs the next step, durably, and then everything that follows from the CAs. A later failure is an
    /// event: the step is done.
    fn step(
        &self,
        step: impl FnOnce(&Authorities) -> Result<Authorities, CaError>,
    ) -> Result<Arc<Authorities>, String> {
        let text = |error: &dyn std::fmt::Display| format!("cannot change the CA: {error}");
        let stepping = self.stepping.lock().unwrap_or_else(PoisonError::into_inner);
        let next = step(&self.authorities()).map_err(|error| text(&error))?;
        next.write(&self.data).map_err(|error| text(&error))?;
        let next = Arc::new(next);
        self.authorities.send_replace(Arc::clone(&next));
        drop(stepping);
        self.keep_list();
        self.rotated.notify_one();
        Ok(next)
    }

    /// Begins a rollover, unless one is in progress.
    ///
    /// # Errors
    /// Human-readable.
    pub fn rotate(&self) -> Result<(), String> {
        if self.authorities().phase() != Phase::Single {
            return Ok(());
        }
        let now = unix_s();
        if !is_plausible(now) {
            return Err("the clock of edge-cloud is wrong: set it first".to_owned());
        }
        // An external broker has to accept the new CA's clients first.
        let signs = self.broker.is_none();
        let next = self.step(|cas| cas.rotate(now, signs))?;
        let what = match signs {
            true => "it signs from now on; nodes are asked to renew their certificates",
            false => "it signs as soon as the broker accepts its clients",
        };
        let text = format!("new CA {}: {what}", next.newest().sha256());
        self.events.add("", "CaRotated", &text);
        Ok(())
    }

    /// Ends a rollover. `cut_off` gets the names of the nodes that are revoked by it, as soon as they are
    /// and whatever fails afterwards: the caller ends their sessions.
    ///
    /// # Errors
    /// Human-readable.
    pub fn retire(
        &self,
        force: Option<usize>,
        cut_off: impl FnOnce(&[String]),
    ) -> Result<CaRetired, String> {
        let authorities = self.authorities();
        let old = match (authorities.phase(), authorities.other()) {
            (Phase::Signing, Some(old)) => old.sha256(),
            (Phase::Offered, _) => {
                return Err(
                    "the new CA does not sign yet, because the broker does not accept its \
                            clients: run `edge-cloud broker-config` again and restart the broker"
                        .to_owned(),
                );
            }
            _ => return Ok(CaRetired::default()),
        };
        if let Some(grace) = self.registry.grace(unix_s()).filter(|_| force.is_none()) {
            return Err(format!(
                "nodes that joined after the restored backup may come back until {} (seconds since \
                 1970), and nobody knows of which CA their certificates are: wait, or retire it with \
                 --force and the number of nodes that depend on it",
                grace.until_unix_s
            ));
        }
        let revoked = self
            .registry
            .revoke_others(&authorities.signer().sha256(), force.unwrap_or(0))
            .map_err(|error| error.to_string())?;
        let revoked = revoked.map_err(|depending| refusal(&depending))?;
        cut_off(&revoked);
        for name in &revoked {
            let why = "the CA of its certificate is retired: delete it, and join it again";
            self.events.add(name, "Revoked", why);
        }
        self.keep_list();
        let tokens_void = self.tokens.void(&old).map_err(|error| error.to_string())?;
        self.step(|cas| cas.retire(unix_s()))?;
        // The list for the broker contains the certificates of the remaining CAs, so this CA's can be
        // removed; but during a grace it also excludes deleted names from readmission.
        if self.registry.grace(unix_s()).is_none()
            && let Err(error) = self.registry.drop_ca(&old)
        {
            self.events.add("", "NotStored", &error.to_string());
        }
        self.keep_list();
        let text = format!("{old} is accepted no more");
        self.events.add("", "CaRetired", &text);
        Ok(CaRetired {
            retired: true,
            cut_off: revoked,
            tokens_void,
        })
    }

    /// The broker accepts clients of the new CA: it signs from now on. Does nothing if it does already.
    pub fn broker_accepts_new_ca(&self) {
        if self.authorities().phase() != Phase::Offered {
            return;
        }
        match self.step(Authorities::sign) {
            Ok(_) => self.events.add(
                "",
                "CaSigns",
                "the broker accepts its clients; nodes are asked to renew their certificates",
            ),
            Err(error) => self.events.add("", "CaNotChanged", &error),
        }
    }

    /// Names of the nodes that must renew their certificate, because the CAs have changed since.
    pub(crate) fn outdated(&self) -> Vec<String> {
        let authorities = self.authorities();
        match authorities.ever_rotated() {
            true => self.registry.outdated(&authorities.given()),
            false => Vec::new(),
        }
    }

    /// The CAs, and the progress of a rollover; `is_live` tells whether a node has a session.
    pub fn ca_view(&self, is_live: impl Fn(&str) -> bool) -> CaView {
        let cas = self.authorities();
        let enrolments = self.registry.nodes();
        let valid = || enrolments.values().filter(|enrolment| !enrolment.revoked);
        let row = |(ca, made_unix_s): (&Ca, u64)| {
            let sha256 = ca.sha256();
            let certificates = valid().filter(|enrolment| enrolment.ca_sha256 == sha256);
            let trusting = valid().filter(|enrolment| {
                enrolment.ca_sha256 == sha256 || enrolment.other_ca_sha256 == sha256
            });
            CaRow {
                signs: std::ptr::eq(ca, cas.signer()),
                made_unix_s,
                not_after: ca.not_after(),
                certificates: certificates.count(),
                trusting: trusting.count(),
                sha256,
            }
        };
        let signer = cas.signer().sha256();
        let depending = valid().filter(|enrolment| enrolment.ca_sha256 != signer);
        let outdated = self.outdated();
        let waiting = outdated.iter().take(WAITING_SHOWN).map(|node| CaWaiting {
            node: node.clone(),
            connected: is_live(node),
        });
        let grace = self.registry.grace(unix_s());
        CaView {
            phase: cas.phase().name().to_owned(),
            waiting: waiting.collect(),
            waiting_count: outdated.len(),
            cas: cas.all().zip(cas.made()).map(row).collect(),
            server_not_after: OWN_NOT_AFTER,
            nodes: valid().count(),
            depending: match cas.phase() {
                Phase::Single => 0,
                Phase::Offered | Phase::Signing => depending.count(),
            },
            grace_until_unix_s: grace.map_or(0, |grace| grace.until_unix_s),
            retired: cas.retired().iter().map(|ca| ca.sha256.clone()).collect(),
        }
    }
}

/// Why the old CA is not retired.
fn refusal(depending: &[String]) -> String {
    if depending.is_empty() {
        return "no node depends on the old CA: `edge-cloud ca retire` without a number retires it"
            .to_owned();
    }
    let shown: Vec<&str> = depending
        .iter()
        .take(WAITING_SHOWN)
        .map(String::as_str)
        .collect();
    let more = match depending.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{count} nodes have no certificate of the new CA: {names}{more}. They would be cut off for good; \
         `edge-cloud ca retire --force {count}` does so",
        count = depending.len(),
        names = shown.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::events::Events;
    use crate::identity::enrol::CertificateTimes;
    use crate::identity::registry::{Enrolment, NODES};

    fn open(data: &Path) -> Arc<Identity> {
        let (ca, events) = (Ca::open(data).unwrap(), Arc::new(Events::default()));
        Identity::open(data, ca, None, CertificateTimes::default(), events).unwrap()
    }

    /// Goal: while nodes may be readmitted after a restore, the nodes that depend on the old CA are not all
    /// known: it is retired only on request with their number.
    #[test]
    fn a_grace_holds_up_the_retirement_of_a_ca() {
        let data = tempfile::tempdir().unwrap();
        let until = unix_s() + 1_000;
        let state = format!(
            r#"{{"epoch":0,"nodes":{{}},"grace":{{"issued_from_unix_s":1,"until_unix_s":{until}}}}}"#
        );
        std::fs::write(data.path().join(NODES), state).unwrap();
        let identity = open(data.path());
        let view = || identity.ca_view(|_| false);
        assert!(!identity.retire(None, |_| {}).unwrap().retired, "one CA");
        identity.rotate().unwrap();
        assert_eq!(view().grace_until_unix_s, until);
        assert!(
            identity
                .retire(None, |_| {})
                .unwrap_err()
                .contains("--force")
        );
        assert!(identity.retire(Some(0), |_| {}).unwrap().retired);
        assert_eq!(view().retired.len(), 1);
    }

    /// Goal: rollovers do not fill the list of refused certificates; but while nodes may be readmitted by
    /// their names after a restore, the list is needed to exclude deleted ones.
    #[test]
    fn a_retired_ca_takes_its_refused_certificates_along_unless_there_is_a_grace() {
        for grace in [false, true] {
            let data = tempfile::tempdir().unwrap();
            let until = unix_s() + if grace { 1_000 } else { 0 };
            let state = format!(
                r#"{{"epoch":0,"nodes":{{}},"grace":{{"issued_from_unix_s":1,"until_unix_s":{until}}}}}"#
            );
            std::fs::write(data.path().join(NODES), state).unwrap();
            let identity = open(data.path());
            let enrolment = Enrolment {
                serial: "01".to_owned(),
                ca_sha256: identity.authorities().signer().sha256(),
                ..Enrolment::default()
            };
            identity.registry().add("a", enrolment).unwrap();
            identity.registry().delete("a", unix_s()).unwrap();
            assert_eq!(identity.registry().retired().len(), 1);
            identity.rotate().unwrap();
            assert!(identity.retire(Some(0), |_| {}).unwrap().retired);
            assert_eq!(identity.registry().retired().len(), usize::from(grace));
        }
    }
}
