//! Asks nodes for the actions that a rollover of the CA needs: to renew their certificate, and behind a
//! broker, which verifies the certificates, to report which one they use.

use std::sync::Arc;
use std::time::Duration;

use edge_proto::call::METHOD_RENEW;

use super::node::NodeSession;
use super::{Sessions, State};
use crate::identity::authorities::Phase;
use crate::identity::registry::Enrolment;
use crate::nodes::Calls as _;

/// Nodes that are asked to renew their certificate in each [`ASK_INTERVAL`], after a change of the CAs:
/// each costs a handshake or two and a signature. 5,000 take about four minutes.
pub const RENEWALS_AT_ONCE: usize = 20;
/// See [`RENEWALS_AT_ONCE`].
pub const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// A node that was asked and has not renewed is asked again after this, milliseconds: ten minutes.
pub const ASK_AGAIN_MS: u64 = 600_000;
/// A node that has renewed behind a broker is asked again after this which certificate it uses,
/// milliseconds: an older agent does not report it.
pub const PROOF_AGAIN_MS: u64 = 60_000;
/// Bytes of that answer.
const PROOF_BYTES: usize = 8;

impl Sessions {
    /// Asks connected nodes, for ever.
    pub async fn keep_current(self: &Arc<Self>) {
        loop {
            for name in self.due_renewals() {
                let mut answer = self.call(&name, METHOD_RENEW, Vec::new());
                // A node that does not answer is asked again.
                tokio::spawn(async move { while answer.recv().await.is_some() {} });
            }
            for name in self.due(Ask::Proof, |node| node.pending.is_some()) {
                let mut answer = self.call(&name, METHOD_RENEW, vec![0]);
                let sessions = Arc::clone(self);
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    while let Some(Ok(more)) = answer.recv().await {
                        bytes.extend(more);
                        bytes.truncate(PROOF_BYTES);
                    }
                    sessions.proven(&name, &bytes);
                });
            }
            let may_ask = self.may_ask_renewals() || self.identity.external_broker().is_some();
            tokio::select! {
                () = self.identity.rotated() => self.ask_all(),
                () = tokio::time::sleep(ASK_INTERVAL), if may_ask => {}
            }
        }
    }

    /// Before the first rollover every node has the present certificates.
    fn may_ask_renewals(&self) -> bool {
        self.identity.authorities().ever_rotated()
    }

    /// A node has a new session or a further certificate: checks soon whether to ask it.
    pub(super) fn ask_soon(&self, state: &mut State, name: &str) {
        let now = self.now();
        let is_asked = |node: &NodeSession| node.renewal_due.is_some();
        let node = state.nodes.get(name).filter(|node| node.live);
        if node.is_some_and(|node| !is_asked(node)) && self.may_ask_renewals() {
            Ask::Renewal.schedule(state, name, Some(now));
        }
        if self.identity.external_broker().is_some() {
            Ask::Proof.schedule(state, name, Some(now));
        }
    }

    /// The CAs have changed, and with them the certificates that nodes get.
    pub(super) fn ask_all(&self) {
        let mut state = self.lock();
        let names: Vec<_> = state.nodes.keys().cloned().collect();
        for name in names {
            self.ask_soon(&mut state, &name);
        }
    }

    /// Nodes that are to be asked now to renew.
    pub(super) fn due_renewals(&self) -> Vec<Arc<str>> {
        let authorities = self.identity.authorities();
        if authorities.phase() == Phase::Offered {
            return Vec::new();
        }
        let given = authorities.given();
        self.due(Ask::Renewal, |node| !node.has(&given))
    }

    /// Up to [`RENEWALS_AT_ONCE`] nodes that are to be asked now. Checks only those that are due;
    /// one that is not `concerned` is not due again before [`Self::ask_soon`].
    fn due(&self, ask: Ask, concerned: impl Fn(&Enrolment) -> bool) -> Vec<Arc<str>> {
        let now = self.now();
        let mut state = self.lock();
        let mut asked = Vec::new();
        while asked.len() < RENEWALS_AT_ONCE {
            let Some(name) = ask.first_due(&state, now) else {
                break;
            };
            state.visited += 1;
            let is_live = state.nodes.get(&name).is_some_and(|node| node.live);
            let node = self.identity.registry().find(&name);
            let node = node.filter(|node| is_live && !node.revoked && concerned(node));
            let again = node.map(|_| now + ask.again_ms());
            ask.schedule(&mut state, &name, again);
            asked.extend(again.map(|_| name));
        }
        asked
    }

    /// A node has answered which certificate it uses.
    fn proven(&self, name: &str, answer: &[u8]) {
        let Ok(end) = answer.try_into().map(u64::from_le_bytes) else {
            return;
        };
        if let Err(error) = self.identity.registry().lives_with(name, end) {
            self.events.add(name, "NotStored", &error.to_string());
        }
    }
}

/// Request to a node.
#[derive(Clone, Copy)]
enum Ask {
    /// To renew its certificate.
    Renewal,
    /// To report which certificate it uses.
    Proof,
}

impl Ask {
    const fn again_ms(self) -> u64 {
        match self {
            Self::Renewal => ASK_AGAIN_MS,
            Self::Proof => PROOF_AGAIN_MS,
        }
    }

    fn first_due(self, state: &State, now: u64) -> Option<Arc<str>> {
        let order = match self {
            Self::Renewal => &state.renewals,
            Self::Proof => &state.proofs,
        };
        order.due(now, 1).pop()
    }

    fn schedule(self, state: &mut State, name: &str, at: Option<u64>) {
        if let Some(node) = state.nodes.get_mut(name) {
            match self {
                Self::Renewal => state.renewals.set(&node.name, &mut node.renewal_due, at),
                Self::Proof => state.proofs.set(&node.name, &mut node.proof_due, at),
            }
        }
    }
}
