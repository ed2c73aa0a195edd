//! Enrolment: one length-capped request, one answer, close; all within [`DEADLINE`]. A node joins
//! with a token, and gets each further certificate by the previous one.

use std::convert::Infallible;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use edge_proto::enrol::{Broker, EnrolRequest, HTTP_PATH, JoinAnswer, JoinRequest, RenewRequest};
use edge_proto::limits::{ENROL_BYTES_MAX, RENEW_GRACE_S};
use edge_proto::wire::Wire as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::authorities::Authorities;
use super::ca::{self, CaError, NODE_VALIDITY_S};
use super::peer::{Peer, verify_expired};
use super::registry::{Certificate, Enrolment, Registry, RegistryError};
use super::token::{TokenError, TokenStore};
use crate::clock::{is_plausible, unix_s};
use crate::hex::hex;

/// Time for a whole enrolment after the TLS handshake: TCP at 30 % loss needs up to 70 s.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Bytes of an HTTP request that are buffered until it is parsed, mainly its head.
const HTTP_BUFFER_BYTES_MAX: usize = 16 * 1024;

/// Validity and grace of the nodes' certificates, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateTimes {
    /// How long a new certificate lives; at most [`NODE_VALIDITY_S`].
    pub node_s: u64,
    /// Time after its expiry in which a certificate may still be renewed.
    pub grace_s: u64,
}

impl Default for CertificateTimes {
    fn default() -> Self {
        Self {
            node_s: NODE_VALIDITY_S,
            grace_s: RENEW_GRACE_S,
        }
    }
}

/// Result of an enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// This node has joined.
    Joined(String),
    /// This node has got a further certificate.
    Renewed(String),
}

/// Why a node was refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the certificate request is not valid: {0}")]
    Request(#[from] CaError),
    /// Its certificate would have expired as soon as the clock is correct.
    #[error("the clock of edge-cloud is wrong: set it, and try again")]
    Clock,
    #[error("the node was joined to another cloud: join this one with a token")]
    OtherCloud,
    #[error("its certificate is none of this cloud's: join again with a token")]
    Foreign,
    #[error("the request is not signed by the key of its certificate")]
    Proof,
    #[error("the new certificate must have a new key")]
    SameKey,
    #[error(
        "its certificate expired {days} days ago, and only {grace} days later is it renewed: \
         delete the node, and join again with a token"
    )]
    TooLate { days: u64, grace: u64 },
}

/// Enrols nodes: the state that an enrolment reads and writes.
#[derive(Clone, Copy)]
pub struct EnrolmentService<'a> {
    /// Sign the certificates.
    pub cas: &'a Authorities,
    /// Spends the tokens.
    pub tokens: &'a TokenStore,
    /// Keeps the nodes.
    pub registry: &'a Registry,
    /// External broker of the links, if there is one.
    pub broker: Option<&'a Broker>,
    /// How long certificates live.
    pub times: CertificateTimes,
}

impl EnrolmentService<'_> {
    /// Serves one enrolment. Returns its result, or `None` when the node was refused.
    ///
    /// # Errors
    /// Those of the connection, an invalid request, and the deadline.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        self,
        mut stream: S,
    ) -> io::Result<Option<Enrolled>> {
        let work = async {
            let len = usize::from(stream.read_u16().await?);
            if len > ENROL_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).await?;
            let (answer, joined) = self.answer(&bytes).ok_or(io::ErrorKind::InvalidData)?;
            let len = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            stream.write_u16(len).await?;
            stream.write_all(&answer).await?;
            stream.shutdown().await?;
            Ok(joined)
        };
        tokio::time::timeout(DEADLINE, work).await?
    }

    /// Serves one HTTP connection, which may enrol one node: `POST` of the request to [`HTTP_PATH`].
    ///
    /// # Errors
    /// Those of the connection, and the deadline. An invalid request gets its HTTP status.
    pub async fn serve_http<S: AsyncRead + AsyncWrite + Unpin>(
        self,
        stream: S,
    ) -> io::Result<Option<Enrolled>> {
        let joined = Mutex::new(None);
        let service = service_fn(|request: Request<Incoming>| async {
            let (status, body) = match self.answer_http(request).await {
                Ok((answer, node)) => {
                    *joined.lock().unwrap_or_else(PoisonError::into_inner) = node;
                    (StatusCode::OK, answer)
                }
                Err(status) => (status, Vec::new()),
            };
            let mut response = Response::new(Full::<Bytes>::from(body));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(HTTP_BUFFER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::time::timeout(DEADLINE, connection)
            .await?
            .map_err(io::Error::other)?;
        Ok(joined.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    async fn answer_http(
        &self,
        request: Request<Incoming>,
    ) -> Result<(Vec<u8>, Option<Enrolled>), StatusCode> {
        if request.uri().path() != HTTP_PATH {
            return Err(StatusCode::NOT_FOUND);
        }
        if request.method() != Method::POST {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        let body = Limited::new(request.into_body(), ENROL_BYTES_MAX).collect();
        let body = body.await.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
        self.answer(&body.to_bytes()).ok_or(StatusCode::BAD_REQUEST)
    }

    /// The answer to a request, with its result; `None` when the request is invalid.
    fn answer(&self, bytes: &[u8]) -> Option<(Vec<u8>, Option<Enrolled>)> {
        let unix_s = unix_s();
        let result = match EnrolRequest::decode(bytes)? {
            EnrolRequest::Join(request) => {
                let joined = self.join(&request, unix_s);
                joined.map(|der| (self.joined(der, unix_s), Enrolled::Joined(request.node)))
            }
            EnrolRequest::Renew(request) => {
                let renewed = self.renew(&request, unix_s);
                renewed.map(|(node, der)| (self.issued(der, unix_s), Enrolled::Renewed(node)))
            }
        };
        let (answer, enrolled) = match result {
            Ok((answer, enrolled)) => (answer, Some(enrolled)),
            Err(refusal) => {
                log::warn!("enrolment_refused reason={refusal}");
                (
                    JoinAnswer::Refused {
                        reason: refusal.to_string(),
                    },
                    None,
                )
            }
        };
        Some((answer.to_wire(), enrolled))
    }

    fn joined(&self, certificate: Vec<u8>, unix_s: u64) -> JoinAnswer {
        let ca = self.cas.signer().der().to_vec();
        match self.broker {
            // Only then must the node know the form with two.
            _ if self.cas.other().is_some() => self.issued(certificate, unix_s),
            None => JoinAnswer::Accepted {
                certificate,
                ca,
                unix_s,
            },
            Some(broker) => JoinAnswer::ExternalBroker {
                certificate,
                ca,
                unix_s,
                broker: broker.clone(),
            },
        }
    }

    fn issued(&self, certificate: Vec<u8>, unix_s: u64) -> JoinAnswer {
        let cas = self.cas.ders().into_iter();
        JoinAnswer::Issued {
            certificate,
            cas: cas.map(|ca| ca.to_vec()).collect(),
            unix_s,
            broker: self.broker.cloned(),
        }
    }

    /// A further certificate for a node that proves that it holds the key of the last one, also when that
    /// has expired. The whole proof is checked before anything is written.
    fn renew(&self, request: &RenewRequest, unix_s: u64) -> Result<(String, Vec<u8>), Refusal> {
        let Self { cas, registry, .. } = *self;
        let CertificateTimes { node_s, grace_s } = self.times;
        if !is_plausible(unix_s) {
            return Err(Refusal::Clock);
        }
        let hash = hex(&request.ca_sha256);
        if !cas.all().any(|ca| ca.sha256() == hash) {
            return Err(Refusal::OtherCloud);
        }
        let old = verify_expired(&cas.ders(), &request.certificate);
        let (peer, key) = old.ok_or(Refusal::Foreign)?;
        let RenewRequest {
            ca_sha256,
            certificate,
            csr,
            signature,
        } = request;
        let signed = RenewRequest::signed(ca_sha256, certificate, csr);
        ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_ASN1, &key)
            .verify(&signed, signature)
            .map_err(|_| Refusal::Proof)?;
        let csr = ca::Request::read(csr)?;
        if csr.has_key(&key) {
            return Err(Refusal::SameKey);
        }
        let over_s = unix_s.saturating_sub(peer.expires_unix_s);
        if over_s > grace_s {
            const DAY_S: u64 = 24 * 3600;
            let (days, grace) = (over_s / DAY_S, grace_s / DAY_S);
            return Err(Refusal::TooLate { days, grace });
        }
        let ca = cas.signer();
        let issued = ca.node(&peer.node, &csr, None, unix_s, node_s)?;
        let next = self.certificate(&issued.serial, &csr, unix_s);
        let known = registry.renew(&peer, &next, unix_s)?;
        let Peer { node, .. } = peer;
        if known == next {
            return Ok((node, issued.der));
        }
        log::info!("renewal_answer_repeated node={node}");
        let serial = Some(known.serial.as_str());
        let again = ca.node(&node, &csr, serial, known.issued_unix_s, known.life_s)?;
        Ok((node, again.der))
    }

    fn certificate(&self, serial: &str, csr: &ca::Request, unix_s: u64) -> Certificate {
        let (ca_sha256, other_ca_sha256) = self.cas.given();
        Certificate {
            serial: serial.to_owned(),
            key_sha256: csr.key_sha256(),
            issued_unix_s: unix_s,
            life_s: self.times.node_s,
            ca_sha256,
            other_ca_sha256,
        }
    }

    /// The name and the request are checked before the token is used; after a crash between that and the
    /// registry only the same board gets in with the same use. A node that sends the key with which it has
    /// joined did not get our answer: it gets the same certificate, and with the same token that costs
    /// nothing.
    fn join(&self, request: &JoinRequest, unix_s: u64) -> Result<Vec<u8>, Refusal> {
        let Self {
            cas,
            tokens,
            registry,
            ..
        } = *self;
        let ca = cas.signer();
        if !is_plausible(unix_s) {
            return Err(Refusal::Clock);
        }
        let (id, secret) = (&request.token_id, &request.token_secret);
        let csr = ca::Request::read(&request.csr)?;
        let key_sha256 = csr.key_sha256();
        // Of two concurrent joins with one key, the later one would be refused by the registry and give
        // back a use that the other one has taken.
        let _joining = tokens.lock_joins();
        let known = registry.find(&request.node);
        if let Some(known) = known.filter(|known| !known.revoked && known.key_sha256 == key_sha256)
        {
            let last = known.certificate();
            let (serial, issued) = (Some(last.serial.as_str()), last.issued_unix_s);
            let again = ca.node(&request.node, &csr, serial, issued, last.life_s)?;
            if known.token_id == *id {
                tokens.verify(id, secret)?;
            } else {
                tokens.spend(id, secret, unix_s)?;
            }
            registry.joined_with(&request.node, id, cas.given())?;
            log::info!("join_answer_repeated node={}", request.node);
            return Ok(again.der);
        }
        registry.check(&request.node)?;
        let life_s = self.times.node_s;
        let issued = ca.node(&request.node, &csr, None, unix_s, life_s)?;
        let grants = tokens.spend_for(id, secret, unix_s, &request.node, &key_sha256)?;
        let (ca_sha256, other_ca_sha256) = cas.given();
        let enrolment = Enrolment {
            serial: issued.serial,
            joined_unix_s: unix_s,
            key_sha256,
            token_id: id.clone(),
            life_s,
            ca_sha256,
            other_ca_sha256,
            grants,
            ..Enrolment::default()
        };
        if let Err(error) = registry.add(&request.node, enrolment) {
            // A full disk: without its one use, this board could not try again.
            tokens.give_back(id);
            return Err(error.into());
        }
        Ok(issued.der)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::TokenSpec;

    /// What the service reads and writes.
    struct Parts {
        cas: Authorities,
        tokens: TokenStore,
        registry: Registry,
    }

    impl Parts {
        fn open(folder: &std::path::Path) -> Self {
            Self {
                cas: Authorities::open(folder).unwrap(),
                tokens: TokenStore::open(folder).unwrap(),
                registry: Registry::open(folder, 1_000).unwrap(),
            }
        }

        fn service(&self) -> EnrolmentService<'_> {
            EnrolmentService {
                cas: &self.cas,
                tokens: &self.tokens,
                registry: &self.registry,
                broker: None,
                times: CertificateTimes::default(),
            }
        }
    }

    /// Goal: no node joins with a certificate that has expired once the clock is correct. Method: the
    /// clock of a machine without a battery.
    #[test]
    fn nobody_joins_while_the_clock_is_before_this_build() {
        let folder = tempfile::tempdir().unwrap();
        let parts = Parts::open(folder.path());
        let service = parts.service();
        let request = JoinRequest {
            token_id: String::new(),
            token_secret: String::new(),
            node: "gate".to_owned(),
            csr: Vec::new(),
        };
        let refused = service.join(&request, 1_000);
        assert!(matches!(refused, Err(Refusal::Clock)));
        let refused = service.join(&request, unix_s());
        assert!(matches!(refused, Err(Refusal::Request(_))));
    }

    /// Goal: what a token grants is the node's from its first moment on, and a node cannot add to it.
    #[test]
    fn a_node_has_what_its_token_grants() {
        use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

        use crate::nodes::Grants;
        let folder = tempfile::tempdir().unwrap();
        let parts = Parts::open(folder.path());
        let service = parts.service();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default().serialize_request(&key);
        let now = unix_s();
        let spec = TokenSpec {
            grants: Grants {
                labels: [("site".to_owned(), "a".to_owned())].into(),
                label_keys: ["line".to_owned()].into(),
                awaits_approval: true,
            },
            ..TokenSpec::plain(1, 60)
        };
        let token = service.tokens.create(b"ca", &spec, now).unwrap();
        let words: Vec<&str> = token.split('.').collect();
        let request = JoinRequest {
            token_id: words[1].to_owned(),
            token_secret: words[2].to_owned(),
            node: "gate".to_owned(),
            csr: csr.unwrap().der().to_vec(),
        };
        service.join(&request, now).unwrap();
        // It asks again, because the answer was lost.
        service.join(&request, now).unwrap();
        let grants = parts.registry.find("gate").unwrap().grants;
        assert_eq!(grants, spec.grants);
        let own = [("site", "bank"), ("line", "2"), ("role", "bank")];
        let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let labels: Vec<_> = grants.labels(&own).into_iter().collect();
        let expected = [("line", "2"), ("site", "a")];
        assert_eq!(labels, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    /// Goal: a token with one use admits one board, also when that sends two concurrent requests.
    /// Method: two threads with the same request, many times.
    #[test]
    fn a_board_that_asks_twice_at_once_gives_no_use_back() {
        use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
        let folder = tempfile::tempdir().unwrap();
        let parts = Parts::open(folder.path());
        let service = parts.service();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default().serialize_request(&key);
        let csr = csr.unwrap().der().to_vec();
        for round in 0..50 {
            let now = unix_s();
            let token = service
                .tokens
                .create(b"ca", &TokenSpec::plain(1, 60), now)
                .unwrap();
            let parts: Vec<&str> = token.split('.').collect();
            let request = JoinRequest {
                token_id: parts[1].to_owned(),
                token_secret: parts[2].to_owned(),
                node: format!("gate-{round}"),
                csr: csr.clone(),
            };
            let start = std::sync::Barrier::new(2);
            let join = || {
                start.wait();
                service.join(&request, now)
            };
            let (one, two) = std::thread::scope(|scope| {
                let other = scope.spawn(join);
                (join(), other.join().unwrap())
            });
            assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
            let used = service.tokens.spend(parts[1], parts[2], now);
            assert!(matches!(used, Err(TokenError::Used)), "round {round}");
        }
    }
}
