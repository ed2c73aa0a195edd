//! Goal: a node gets its next certificate for a proof that it holds the key of the last one, and
//! for nothing less.
//! Method: requests as a node makes them, given to the enrolment service that the server uses.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::time::{SystemTime, UNIX_EPOCH};

use edge_cloud::identity::authorities::Authorities;
use edge_cloud::identity::ca::Request;
use edge_cloud::identity::enrol::{CertificateTimes, Enrolled, EnrolmentService};
use edge_cloud::identity::peer::Peer;
use edge_cloud::identity::registry::{Admission, Enrolment, Registry};
use edge_cloud::identity::token::TokenStore;
use edge_proto::enrol::{JoinAnswer, RenewRequest};
use edge_proto::wire::Wire as _;
use rcgen::KeyPair;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const DAY_S: u64 = 24 * 3600;

struct Cloud {
    data: tempfile::TempDir,
    cas: Authorities,
    registry: Registry,
    tokens: TokenStore,
    times: CertificateTimes,
}

struct Identity {
    certificate: Vec<u8>,
    key: KeyPair,
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

fn csr(key: &KeyPair) -> Vec<u8> {
    let params = rcgen::CertificateParams::default();
    params.serialize_request(key).unwrap().der().to_vec()
}

fn sign(key: &KeyPair, bytes: &[u8]) -> Vec<u8> {
    let random = ring::rand::SystemRandom::new();
    let algorithm = &ring::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
    let der = key.serialize_der();
    let key = ring::signature::EcdsaKeyPair::from_pkcs8(algorithm, &der, &random).unwrap();
    key.sign(&random, bytes).unwrap().as_ref().to_vec()
}

impl Cloud {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        Self {
            cas: Authorities::open(data.path()).unwrap(),
            registry: Registry::open(data.path(), now()).unwrap(),
            tokens: TokenStore::open(data.path()).unwrap(),
            times: CertificateTimes {
                node_s: 30 * DAY_S,
                grace_s: 90 * DAY_S,
            },
            data,
        }
    }

    /// A node whose certificate of 30 days was issued so many days ago.
    fn joined(&self, node: &str, days: u64) -> Identity {
        let (key, issued) = (new_key(), now() - days * DAY_S);
        let request = Request::read(&csr(&key)).unwrap();
        let certificate = self
            .cas
            .signer()
            .node(node, &request, None, issued, 30 * DAY_S);
        let certificate = certificate.unwrap();
        let enrolment = Enrolment {
            serial: certificate.serial,
            joined_unix_s: issued,
            ca_sha256: self.cas.given().0,
            ..Enrolment::default()
        };
        self.registry.add(node, enrolment).unwrap();
        let certificate = certificate.der;
        Identity { certificate, key }
    }

    fn request(&self, old: &Identity, new: &KeyPair) -> RenewRequest {
        let ca_sha256 = Sha256::digest(self.cas.signer().der()).into();
        let csr = csr(new);
        let signed = RenewRequest::signed(&ca_sha256, &old.certificate, &csr);
        RenewRequest {
            ca_sha256,
            certificate: old.certificate.clone(),
            signature: sign(&old.key, &signed),
            csr,
        }
    }

    async fn ask(&self, request: &RenewRequest) -> (JoinAnswer, Option<Enrolled>) {
        let service = EnrolmentService {
            cas: &self.cas,
            tokens: &self.tokens,
            registry: &self.registry,
            broker: None,
            times: self.times,
        };
        let (mut near, far) = tokio::io::duplex(16 * 1024);
        let bytes = request.encode();
        near.write_u16(bytes.len() as u16).await.unwrap();
        near.write_all(&bytes).await.unwrap();
        let served = service.serve(far).await.unwrap();
        let mut answer = vec![0; usize::from(near.read_u16().await.unwrap())];
        near.read_exact(&mut answer).await.unwrap();
        (JoinAnswer::from_wire(&answer).unwrap(), served)
    }

    /// The identity in the new certificate.
    async fn renewed(&self, old: &Identity, new: &KeyPair) -> Peer {
        let (answer, served) = self.ask(&self.request(old, new)).await;
        let JoinAnswer::Issued {
            certificate, cas, ..
        } = answer
        else {
            panic!("{answer:?}");
        };
        assert_eq!(cas, [self.cas.signer().der().to_vec()]);
        let peer = Peer::of(&certificate).unwrap();
        assert_eq!(served, Some(Enrolled::Renewed(peer.node.clone())));
        peer
    }

    async fn refused(&self, request: &RenewRequest) -> String {
        match self.ask(request).await {
            (JoinAnswer::Refused { reason }, None) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn admission(&self, der: &[u8]) -> Admission {
        let peer = Peer::of(der).unwrap();
        self.registry.admit(&peer, now()).unwrap()
    }
}

#[tokio::test]
async fn a_lost_answer_is_given_again_and_locks_nobody_out() {
    let cloud = Cloud::new();
    let old = cloud.joined("gate", 20);
    let key = new_key();
    let first = cloud.renewed(&old, &key).await;
    assert_eq!(
        (first.node.as_str(), first.expires_unix_s),
        ("gate", first.issued_unix_s + 30 * DAY_S)
    );
    assert_eq!(cloud.renewed(&old, &key).await, first, "the same again");
    assert_eq!(cloud.admission(&old.certificate), Admission::Known);
    let other = cloud.refused(&cloud.request(&old, &new_key())).await;
    assert!(other.contains("ask again later"), "{other}");
    assert_eq!(
        cloud.registry.admit(&first, now()).unwrap(),
        Admission::Known
    );
    assert_eq!(cloud.admission(&old.certificate), Admission::Refused);
    let replaced = cloud.refused(&cloud.request(&old, &new_key())).await;
    assert!(replaced.contains("join again"), "{replaced}");
}

#[tokio::test]
async fn an_expired_certificate_is_a_proof_within_the_grace() {
    let cloud = Cloud::new();
    // Expired 89 and 91 days ago.
    let (late, later) = (cloud.joined("late", 119), cloud.joined("later", 121));
    assert_eq!(cloud.renewed(&late, &new_key()).await.node, "late");
    let refused = cloud.refused(&cloud.request(&later, &new_key())).await;
    assert!(
        refused.contains("91 days ago") && refused.contains("join again"),
        "{refused}"
    );
    assert_eq!(cloud.registry.find("later").unwrap().pending, None);
}

#[tokio::test]
async fn less_than_a_proof_is_refused_and_changes_nothing() {
    let cloud = Cloud::new();
    let (old, other) = (cloud.joined("gate", 20), cloud.joined("other", 20));
    let before = cloud.registry.nodes();
    let good = cloud.request(&old, &new_key());
    let swapped = RenewRequest {
        csr: csr(&new_key()),
        ..good.clone()
    };
    let by_other = RenewRequest {
        certificate: other.certificate.clone(),
        ..good.clone()
    };
    let garbage = RenewRequest {
        certificate: vec![0x30; 300],
        ..good.clone()
    };
    let elsewhere = Cloud::new();
    let foreign = Identity {
        certificate: elsewhere.joined("gate", 20).certificate,
        key: new_key(),
    };
    // A certificate of its own making, with the serial number of the real one.
    let forged = {
        let key = new_key();
        let serial = Peer::of(&old.certificate).unwrap().serial;
        let request = Request::read(&csr(&key)).unwrap();
        let made = elsewhere
            .cas
            .signer()
            .node("gate", &request, Some(&serial), now(), DAY_S);
        let certificate = made.unwrap().der;
        Identity { certificate, key }
    };
    for (request, wanted) in [
        (&swapped, "not signed by"),
        (&by_other, "not signed by"),
        (&garbage, "none of this cloud's"),
        (&cloud.request(&foreign, &new_key()), "none of this cloud's"),
        (&cloud.request(&forged, &new_key()), "none of this cloud's"),
        (&elsewhere.request(&old, &new_key()), "another cloud"),
        (&cloud.request(&old, &old.key), "a new key"),
    ] {
        let reason = cloud.refused(request).await;
        assert!(reason.contains(wanted), "{reason}");
    }
    assert_eq!(cloud.registry.nodes(), before);
    cloud.registry.revoke("gate", now()).unwrap();
    cloud.registry.delete("other", now()).unwrap();
    for (node, old) in [("gate", &old), ("other", &other)] {
        let reason = cloud.refused(&cloud.request(old, &new_key())).await;
        assert!(reason.contains("revoked"), "{node}: {reason}");
    }
    // And after a restart.
    let registry = Registry::open(cloud.data.path(), now()).unwrap();
    assert!(registry.find("gate").unwrap().revoked);
}

/// Goal: during a rollover certificates of both CAs are a proof, and no node waits for one of the new CA;
/// afterwards the old one is none. Method: certificates that were issued just now, which cannot be renewed
/// yet without the change.
#[tokio::test]
async fn a_change_of_the_ca_lets_everybody_renew_once() {
    let mut cloud = Cloud::new();
    let (old, new) = (cloud.joined("a", 0), new_key());
    let missed = cloud.joined("b", 0);
    let request = cloud.request(&missed, &new_key());
    cloud.cas = cloud.cas.rotate(now(), true).unwrap();
    let (answer, served) = cloud.ask(&cloud.request(&old, &new)).await;
    assert_eq!(served, Some(Enrolled::Renewed("a".to_owned())));
    let JoinAnswer::Issued {
        certificate, cas, ..
    } = answer
    else {
        panic!("{answer:?}");
    };
    let expected: Vec<_> = cloud.cas.ders().iter().map(|ca| ca.to_vec()).collect();
    assert_eq!(cas, expected);
    let peer = Peer::of(&certificate).unwrap();
    assert_eq!(
        cloud.registry.admit(&peer, now()).unwrap(),
        Admission::Known
    );
    assert!(cloud.registry.find("a").unwrap().has(&cloud.cas.given()));
    assert_eq!(cloud.registry.outdated(&cloud.cas.given()), ["b"]);
    // Only once: the next one has to wait again.
    let identity = Identity {
        certificate,
        key: new,
    };
    let (answer, _) = cloud.ask(&cloud.request(&identity, &new_key())).await;
    let JoinAnswer::Refused { reason: why } = answer else {
        panic!("{answer:?}");
    };
    assert!(why.contains("ask again later"), "{why}");

    cloud.cas = cloud.cas.retire(now()).unwrap();
    let (answer, _) = cloud.ask(&request).await;
    assert!(matches!(answer, JoinAnswer::Refused { reason: why } if why.contains("another cloud")));
    // Also when it names the new CA.
    let (answer, _) = cloud.ask(&cloud.request(&missed, &new_key())).await;
    assert!(
        matches!(answer, JoinAnswer::Refused { reason: why } if why.contains("none of this cloud's"))
    );
    let revoked = cloud.registry.revoke_others(&cloud.cas.given().0, 1);
    assert_eq!(revoked.unwrap(), Ok(vec!["b".to_owned()]));
}
