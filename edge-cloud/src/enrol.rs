//! Enrolment: one length-capped request, one answer, close; all within [`DEADLINE`].

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edge_proto::enrol::{JoinAnswer, JoinRequest};
use edge_proto::limits::ENROL_BYTES_MAX;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::ca::{self, Ca, CaError, NODE_LIFE_S};
use crate::registry::{NodeRecord, Registry, RegistryError};
use crate::token::{TokenError, TokenStore};

/// Time for a whole enrolment after the TLS handshake: TCP at 30 % loss needs up to 70 s.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Why a node was refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the certificate request is not valid: {0}")]
    Request(#[from] CaError),
}

/// Serves one enrolment. Returns the node that joined, or `None` when one was refused.
///
/// # Errors
/// Those of the connection, a request that is not one, and the deadline.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    ca: &Ca,
    tokens: &TokenStore,
    registry: &Registry,
) -> io::Result<Option<String>> {
    let work = async {
        let len = usize::from(stream.read_u16().await?);
        if len > ENROL_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).await?;
        let request = postcard::from_bytes::<JoinRequest>(&bytes)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let unix_s = unix_s();
        let (answer, joined) = match join(&request, unix_s, ca, tokens, registry) {
            Ok(certificate) => {
                let ca = ca.der().to_vec();
                let accepted = JoinAnswer::Accepted {
                    certificate,
                    ca,
                    unix_s,
                };
                (accepted, Some(request.node))
            }
            Err(refusal) => {
                log::warn!("join_refused reason={refusal}");
                (JoinAnswer::Refused(refusal.to_string()), None)
            }
        };
        let bytes = edge_proto::encode(&answer);
        let len = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        stream.write_u16(len).await?;
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        Ok(joined)
    };
    tokio::time::timeout(DEADLINE, work).await?
}

/// The name and the request are checked before the token is spent; a crash after that costs the
/// use, never gives a second one. A node that asks again with the key that it has joined with did
/// not get our answer: it gets the same certificate, and with the same token that costs nothing.
fn join(
    request: &JoinRequest,
    unix_s: u64,
    ca: &Ca,
    tokens: &TokenStore,
    registry: &Registry,
) -> Result<Vec<u8>, Refusal> {
    let (id, secret) = (&request.token_id, &request.token_secret);
    let csr = ca::Request::read(&request.csr)?;
    let key_sha256 = csr.key_sha256();
    let known = registry.find(&request.node);
    if let Some(known) = known.filter(|known| !known.revoked && known.key_sha256 == key_sha256) {
        let (serial, issued) = (Some(known.serial.as_str()), known.joined_unix_s);
        let again = ca.node(&request.node, &csr, serial, issued, NODE_LIFE_S)?;
        if known.token_id == *id {
            tokens.verify(id, secret)?;
        } else {
            tokens.spend(id, secret, unix_s)?;
            registry.joined_with(&request.node, id)?;
        }
        log::info!("join_answer_repeated node={}", request.node);
        return Ok(again.der);
    }
    registry.check(&request.node)?;
    let issued = ca.node(&request.node, &csr, None, unix_s, NODE_LIFE_S)?;
    tokens.spend(id, secret, unix_s)?;
    let record = NodeRecord {
        serial: issued.serial,
        revoked: false,
        joined_unix_s: unix_s,
        key_sha256,
        token_id: id.clone(),
    };
    registry.add(&request.node, record)?;
    Ok(issued.der)
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
