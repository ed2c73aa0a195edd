//! State of one node in the registry: its certificate, and the next one.

use serde::{Deserialize, Serialize};

use super::state::{Retired, Step};
use crate::identity::ca::NODE_VALIDITY_S;
use crate::nodes::Grants;

/// An issued certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Serial number, hex.
    pub serial: String,
    /// Hex SHA-256 of its public key.
    pub key_sha256: String,
    /// When it was issued, seconds since 1970.
    pub issued_unix_s: u64,
    /// How long it lives, seconds.
    pub life_s: u64,
    /// Hex SHA-256 of the CA that signed it.
    pub ca_sha256: String,
    /// Hex SHA-256 of the other CA that was sent with it; empty when there was none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub other_ca_sha256: String,
}

/// State of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Serial number of its certificate, hex.
    pub serial: String,
    /// It is refused.
    pub revoked: bool,
    /// When its certificate was issued, seconds since 1970.
    pub joined_unix_s: u64,
    /// Hex SHA-256 of its public key; empty when it is not known.
    #[serde(default)]
    pub key_sha256: String,
    /// Token that it joined with.
    #[serde(default)]
    pub token_id: String,
    /// How long its certificate lives, seconds; 0 is [`NODE_VALIDITY_S`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub life_s: u64,
    /// Hex SHA-256 of the CA that signed its certificate; empty when it was not stored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca_sha256: String,
    /// Hex SHA-256 of the other CA that was sent with it; empty when there was none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub other_ca_sha256: String,
    /// The next certificate, until the node has connected with it. Until then both are valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Certificate>,
    /// What its token has given it, and an operator since.
    #[serde(flatten)]
    pub grants: Grants,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Enrolment {
    /// The certificate with which the node last connected.
    #[must_use]
    pub fn certificate(&self) -> Certificate {
        let life_s = match self.life_s {
            0 => NODE_VALIDITY_S,
            life_s => life_s,
        };
        Certificate {
            serial: self.serial.clone(),
            key_sha256: self.key_sha256.clone(),
            issued_unix_s: self.joined_unix_s,
            life_s,
            ca_sha256: self.ca_sha256.clone(),
            other_ca_sha256: self.other_ca_sha256.clone(),
        }
    }

    /// When that certificate expires, seconds since 1970.
    #[must_use]
    pub fn expires_unix_s(&self) -> u64 {
        let certificate = self.certificate();
        let issued = certificate.issued_unix_s;
        issued.saturating_add(certificate.life_s)
    }

    /// The same; `None` for a node that was readmitted by its name, so that its certificate is unknown.
    #[must_use]
    pub fn known_not_after(&self) -> Option<u64> {
        (!self.serial.is_empty()).then(|| self.expires_unix_s())
    }

    /// Whether it has connected with the present CAs: a certificate of this CA, and the same other CA
    /// or none.
    #[must_use]
    pub fn has(&self, (ca, other): &(String, String)) -> bool {
        self.ca_sha256 == *ca && self.other_ca_sha256 == *other
    }

    /// Makes the pending certificate the node's own.
    pub(super) fn promote(&mut self) {
        let Some(next) = self.pending.take() else {
            return;
        };
        self.joined_unix_s = next.issued_unix_s;
        self.key_sha256 = next.key_sha256;
        self.life_s = next.life_s;
        self.ca_sha256 = next.ca_sha256;
        self.other_ca_sha256 = next.other_ca_sha256;
        self.serial = next.serial;
    }

    /// Of two pending certificates of one node, the newer one counts.
    pub(crate) fn take_pending(&mut self, other: &Self) {
        let issued = |enrolment: &Self| enrolment.pending.as_ref().map(|one| one.issued_unix_s);
        if issued(other) > issued(self) {
            self.pending.clone_from(&other.pending);
        }
    }

    /// Refuses every certificate that is valid now.
    pub(super) fn retire(&self, node: &str) -> impl Iterator<Item = Step> {
        let own = Retired::now(node, &self.serial, &self.ca_sha256);
        let pending = self.pending.as_ref();
        let pending = pending.map(|next| Retired::now(node, &next.serial, &next.ca_sha256));
        std::iter::once(own).chain(pending).map(Step::Retire)
    }
}
