//! The rollover of the CA: its steps, and the nodes that it waits for. What a step means, see
//! [`crate::identity::authorities`].

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use edge_proto::call::{ANSWER_OK, METHOD_RENEW};
use tokio::sync::watch;

use super::{Links, NodeSession};
use crate::clock::unix_s;
use crate::identity::authorities::{Authorities, Phase};
use crate::identity::ca::{Ca, OWN_NOT_AFTER};
use crate::identity::registry::NODES_MAX;
use crate::nodes::{CaRetired, CaRow, CaView, CaWaiting, Calls as _};
use crate::transport::tls::{Port, TlsError};

/// Nodes that are asked to renew their certificate in each [`ASK_PACE`], after a change of the CAs:
/// each costs a handshake or two and a signature. 5,000 take about four minutes.
pub const RENEWALS_AT_ONCE: usize = 20;
/// See [`RENEWALS_AT_ONCE`].
pub const ASK_PACE: Duration = Duration::from_secs(1);
/// A node that was asked and has not renewed is asked again after this, milliseconds: ten minutes.
pub const ASK_AGAIN_MS: u64 = 600_000;
/// A node that has renewed behind a broker is asked again after this with which certificate it has come,
/// milliseconds: an agent of before does not say.
pub const PROOF_AGAIN_MS: u64 = 60_000;
/// Bytes of that answer.
const PROOF_BYTES: usize = 9;
/// Names of waiting nodes that a person is shown.
pub const WAITING_SHOWN: usize = 20;

impl Links {
    /// The CAs.
    #[must_use]
    pub fn authorities(&self) -> Arc<Authorities> {
        Arc::clone(&self.cas.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The configuration of the one port, now and after each change of the CAs.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn port(
        &self,
        names: Vec<String>,
    ) -> Result<watch::Receiver<Arc<rustls::ServerConfig>>, TlsError> {
        let links = (!self.is_behind_broker()).then_some(NODES_MAX);
        let port = Port::open(&self.authorities(), names, links)?;
        Ok(self.port.get_or_init(|| port).subscribe())
    }

    /// Makes the next step of a rollover, durably, and then everything that follows from the CAs. What
    /// fails then is told as an event: the step is made.
    fn step(
        &self,
        step: impl FnOnce(&Authorities) -> Result<Authorities, crate::identity::ca::CaError>,
    ) -> Result<Arc<Authorities>, String> {
        let text = |error: &dyn std::fmt::Display| format!("cannot change the CA: {error}");
        let mut cas = self.cas.lock().unwrap_or_else(PoisonError::into_inner);
        let next = step(&cas).map_err(|error| text(&error))?;
        next.write(&self.data).map_err(|error| text(&error))?;
        *cas = Arc::new(next);
        let next = Arc::clone(&cas);
        drop(cas);
        if let Some(Err(error)) = self.port.get().map(|port| port.renew(&next)) {
            let why = format!("restart edge-cloud: its certificate was not made anew: {error}");
            self.lock().event("", "PortNotRenewed", &why);
        }
        self.keep_crl();
        self.rotated.notify_one();
        Ok(next)
    }

    pub(super) fn rotate(&self) -> Result<CaView, String> {
        if self.authorities().phase() == Phase::Single {
            let now = unix_s();
            if !crate::clock::is_plausible(now) {
                return Err("the clock of edge-cloud is wrong: set it first".to_owned());
            }
            // Behind a broker, it has to accept the new CA's clients first.
            let signs = !self.is_behind_broker();
            let next = self.step(|cas| cas.rotate(now, signs))?;
            let what = match signs {
                true => "it signs from now on; nodes are asked to renew their certificates",
                false => "it signs as soon as the broker accepts its clients",
            };
            let text = format!("new CA {}: {what}", next.newest().sha256());
            self.lock().event("", "CaRotated", &text);
        }
        Ok(self.ca_view())
    }

    pub(super) fn retire(&self, force: Option<usize>) -> Result<CaRetired, String> {
        let cas = self.authorities();
        let old = match (cas.phase(), cas.other()) {
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
            .revoke_others(&cas.signer().sha256(), force.unwrap_or(0))
            .map_err(|error| error.to_string())?;
        let cut_off = revoked.map_err(|depending| refusal(&depending))?;
        // They are revoked from here on, also when the disk is full for what follows.
        let mut state = self.lock();
        for name in &cut_off {
            self.changes.changed(name);
            self.end(&mut state, name);
            let why = "the CA of its certificate is retired: delete it, and join it again";
            state.event(name, "Revoked", why);
        }
        drop(state);
        self.keep_crl();
        let tokens_void = self.tokens.void(&old).map_err(|error| error.to_string())?;
        self.step(|cas| cas.retire(unix_s()))?;
        // The list for the broker is that of the CAs that are left, so this one's may go; but during a
        // grace it also says which names do not come back.
        if self.registry.grace(unix_s()).is_none()
            && let Err(error) = self.registry.forget_ca(&old)
        {
            self.lock().event("", "NotStored", &error.to_string());
        }
        self.keep_crl();
        let mut state = self.lock();
        state.event("", "CaRetired", &format!("{old} is accepted no more"));
        drop(state);
        Ok(CaRetired {
            retired: true,
            cut_off,
            tokens_void,
        })
    }

    /// The broker accepts clients of the new CA: it signs from now on. Nothing if it does already.
    pub fn broker_accepts_new_ca(&self) {
        if self.authorities().phase() != Phase::Offered {
            return;
        }
        match self.step(Authorities::sign) {
            Ok(_) => self.lock().event(
                "",
                "CaSigns",
                "the broker accepts its clients; nodes are asked to renew their certificates",
            ),
            Err(error) => self.lock().event("", "CaNotChanged", &error),
        }
    }

    pub(super) fn ca_view(&self) -> CaView {
        let cas = self.authorities();
        let records = self.registry.nodes();
        let valid = || records.values().filter(|record| !record.revoked);
        let row = |(ca, made_unix_s): (&Ca, u64)| {
            let sha256 = ca.sha256();
            let certificates = valid().filter(|record| record.ca_sha256 == sha256);
            let trusting = valid()
                .filter(|record| record.ca_sha256 == sha256 || record.other_ca_sha256 == sha256);
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
        let depending = valid().filter(|record| record.ca_sha256 != signer);
        let outdated = match cas.ever_rotated() {
            true => self.registry.outdated(&cas.given()),
            false => Vec::new(),
        };
        let state = self.lock();
        let waiting = outdated.iter().take(WAITING_SHOWN).map(|node| CaWaiting {
            node: node.clone(),
            connected: state.nodes.get(node).is_some_and(|node| node.live),
        });
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
            grace_until_unix_s: self
                .registry
                .grace(unix_s())
                .map_or(0, |grace| grace.until_unix_s),
            retired: cas.retired().iter().map(|ca| ca.sha256.clone()).collect(),
        }
    }

    /// Asks nodes, for ever: to renew their certificate, those that have none of what they would be given
    /// now, when they are connected; and behind a broker, which looks at the certificates, those that have
    /// renewed, with which one they have come.
    pub async fn keep_current(self: &Arc<Self>) {
        loop {
            if !self.authorities().ever_rotated() && !self.is_behind_broker() {
                self.rotated.notified().await;
            }
            for name in self.due_renewals() {
                let mut answer = self.call(&name, METHOD_RENEW, Vec::new());
                // Whoever does not answer is asked again.
                tokio::spawn(async move { while answer.recv().await.is_some() {} });
            }
            for name in self.due_proofs() {
                let mut answer = self.call(&name, METHOD_RENEW, vec![0]);
                let links = Arc::clone(self);
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    while let Some(Ok(more)) = answer.recv().await {
                        bytes.extend(more);
                        bytes.truncate(PROOF_BYTES);
                    }
                    links.proven(&name, &bytes);
                });
            }
            tokio::time::sleep(ASK_PACE).await;
        }
    }

    /// Those that are to be asked now; they are not due again for [`ASK_AGAIN_MS`].
    fn due_renewals(&self) -> Vec<String> {
        let cas = self.authorities();
        if !cas.ever_rotated() || cas.phase() == Phase::Offered {
            return Vec::new();
        }
        let outdated = self.registry.outdated(&cas.given());
        self.due(outdated, ASK_AGAIN_MS, |node| &mut node.renewal_asked)
    }

    /// The same for [`PROOF_AGAIN_MS`], and at once in a new session.
    fn due_proofs(&self) -> Vec<String> {
        if !self.is_behind_broker() {
            return Vec::new();
        }
        let pending = self.registry.pending();
        self.due(pending, PROOF_AGAIN_MS, |node| &mut node.proof_asked)
    }

    fn due(
        &self,
        names: Vec<String>,
        again_ms: u64,
        asked: fn(&mut NodeSession) -> &mut Option<u64>,
    ) -> Vec<String> {
        let now = self.now();
        let mut state = self.lock();
        let due = names.into_iter().filter(|name| {
            let Some(node) = state.nodes.get_mut(name).filter(|node| node.live) else {
                return false;
            };
            let at = asked(node);
            let due = at.is_none_or(|at| now >= at + again_ms);
            if due {
                *at = Some(now);
            }
            due
        });
        due.take(RENEWALS_AT_ONCE).collect()
    }

    /// A node has said with which certificate it has come.
    fn proven(&self, name: &str, answer: &[u8]) {
        let Some((&ANSWER_OK, end)) = answer.split_first() else {
            return;
        };
        let Ok(end) = end.try_into().map(u64::from_le_bytes) else {
            return;
        };
        if let Err(error) = self.registry.lives_with(name, end) {
            self.lock().event(name, "NotStored", &error.to_string());
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
