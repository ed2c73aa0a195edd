//! Asks nodes for what a rollover of the CA needs of them: to renew their certificate, and behind a
//! broker, which looks at the certificates, with which one they have come.

use std::sync::Arc;
use std::time::Duration;

use edge_proto::call::METHOD_RENEW;

use super::Sessions;
use super::node::NodeSession;
use crate::identity::authorities::Phase;
use crate::nodes::Calls as _;

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
const PROOF_BYTES: usize = 8;

impl Sessions {
    /// Asks nodes, for ever, when they are connected.
    pub async fn keep_current(self: &Arc<Self>) {
        loop {
            let rotated = self.identity.authorities().ever_rotated();
            if !rotated && self.identity.external_broker().is_none() {
                self.identity.rotated().await;
            }
            for name in self.due_renewals() {
                let mut answer = self.call(&name, METHOD_RENEW, Vec::new());
                // Whoever does not answer is asked again.
                tokio::spawn(async move { while answer.recv().await.is_some() {} });
            }
            for name in self.due_proofs() {
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
            tokio::time::sleep(ASK_PACE).await;
        }
    }

    /// Those that are to be asked now; they are not due again for [`ASK_AGAIN_MS`].
    fn due_renewals(&self) -> Vec<String> {
        if self.identity.authorities().phase() == Phase::Offered {
            return Vec::new();
        }
        let outdated = self.identity.outdated();
        self.due(outdated, ASK_AGAIN_MS, |node| &mut node.renewal_asked)
    }

    /// The same for [`PROOF_AGAIN_MS`], and at once in a new session.
    fn due_proofs(&self) -> Vec<String> {
        if self.identity.external_broker().is_none() {
            return Vec::new();
        }
        let pending = self.identity.registry().pending();
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
            let node = state.nodes.get_mut(name.as_str());
            let Some(node) = node.filter(|node| node.live) else {
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

    /// A node has answered with which certificate it has come.
    fn proven(&self, name: &str, answer: &[u8]) {
        let Ok(end) = answer.try_into().map(u64::from_le_bytes) else {
            return;
        };
        if let Err(error) = self.identity.registry().lives_with(name, end) {
            self.events.add(name, "NotStored", &error.to_string());
        }
    }
}
