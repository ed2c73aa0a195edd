//! UIDs of pods, and the key that makes them a proof.
//!
//! A UID is the MAC of what the pod is and of the node that is asked for it. The key stays in
//! edge-cloud's data folder and in its backups, so a node knows the UIDs of pods that it was asked to
//! run and no others. After a restore, a node that reports such a UID was asked for that very pod once,
//! even if the backup is older than that.

use std::fmt;

use edge_proto::key::Uid;
use edge_proto::object::Pod;
use ring::hmac;

use super::claims::Claim;
use crate::manifest::Template;

/// Length of the key in `pods.key`: that of the output of SHA-256.
pub const KEY_BYTES: usize = 32;

/// Makes the UIDs of all pods.
pub struct PodIds(hmac::Key);

impl fmt::Debug for PodIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodIds")
    }
}

#[cfg(test)]
impl Default for PodIds {
    fn default() -> Self {
        Self::new(&[7; KEY_BYTES])
    }
}

impl PodIds {
    /// With this key.
    #[must_use]
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// UID of a pod on `node`.
    pub(super) fn uid(&self, claim: &Claim, template: &Template, node: &str) -> Uid {
        let spec = Pod {
            labels: Vec::new(),
            ..template.pod.clone()
        };
        let ordinal = claim.ordinal.to_string();
        let mut mac = hmac::Context::with_key(&self.0);
        for part in [
            b"edge-min pod 1".as_slice(),
            claim.owner.kind.as_str().as_bytes(),
            claim.owner.namespace.as_bytes(),
            claim.owner.name.as_bytes(),
            ordinal.as_bytes(),
            node.as_bytes(),
            &spec.encode(),
        ] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        let mut uid = [0; 16];
        for (byte, of_mac) in uid.iter_mut().zip(mac.sign().as_ref()) {
            *byte = *of_mac;
        }
        // A version 8 UUID (RFC 9562), so that Kubernetes and people recognise it.
        uid[6] = uid[6] & 0x0f | 0x80;
        uid[8] = uid[8] & 0x3f | 0x80;
        Uid(uid)
    }

    /// The pod as `node` gets it.
    pub(super) fn pod(&self, claim: &Claim, template: &Template, node: &str) -> Pod {
        Pod {
            uid: self.uid(claim, template, node),
            name: claim.name().1,
            ..template.pod.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_not_printed() {
        assert_eq!(format!("{:?}", PodIds::default()), "PodIds");
    }
}
