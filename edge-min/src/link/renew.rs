//! Renewal of the node's certificate: an enrolment with the old certificate and its key instead of a
//! token, see `docs/wire.md`. `edge_core::renewal` decides when.

use std::io;
use std::path::PathBuf;

use async_channel::Sender;
use edge_core::renewal;
use edge_proto::enrol::{Endpoint, RenewRequest};

use crate::board::clock::Clock;
use crate::link::certificate;
use crate::link::connection::LinkEvent;
use crate::link::identity::{Identity, Renewed};
use crate::link::join::{self, JoinError, STACK_BYTES, exchange_tls};
use crate::link::tls;

/// Makes one attempt on a thread of its own, which then ends. It sends [`LinkEvent::Renewed`] or
/// [`LinkEvent::NotRenewed`].
///
/// # Errors
/// The system's, when no thread can be started.
pub fn spawn(
    cloud: Option<String>,
    state: PathBuf,
    time: Clock,
    events: Sender<LinkEvent>,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name("renew".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let result = match renew(cloud.as_deref(), &state, time) {
                Ok(renewed) => LinkEvent::Renewed(Box::new(renewed)),
                Err(error) => {
                    let refused = matches!(error, JoinError::Refused(_));
                    LinkEvent::NotRenewed(error.to_string(), refused)
                }
            };
            // The driver runs as long as the process.
            events.send_blocking(result).ok();
        })
        .map(drop)
}

fn renew(cloud: Option<&str>, state: &std::path::Path, time: Clock) -> Result<Renewed, JoinError> {
    let failed = |error| JoinError::Io("read the identity", error);
    let none = || failed(io::ErrorKind::NotFound.into());
    let old = Identity::load(state).map_err(failed)?.ok_or_else(none)?;
    let url = old.urls(cloud).renewal();
    let end = Endpoint::parse(url).ok_or(JoinError::Url)?;
    let (key, csr) = join::key_and_csr(&old.node, state, &old.key)?;
    let ca = old.cas.first().map_or(&[][..], Vec::as_slice);
    let ca_sha256 = edge_proto::hash::sha256(ca).0;
    let signed = RenewRequest::signed(&ca_sha256, &old.certificate, &csr);
    let signature = crate::link::csr::sign(&old.key, &signed).ok_or(JoinError::Random)?;
    let message = RenewRequest {
        ca_sha256,
        certificate: old.certificate.clone(),
        csr,
        signature,
    };
    let config = tls::renew_config(&old, end.https, time.clone()).map_err(JoinError::Tls)?;
    let issued = exchange_tls(&end, config, &message.encode())?;
    let end = |certificate: &[u8]| certificate::life(certificate).map(|(_, end)| end);
    let not_after = end(&issued.certificate).ok_or(JoinError::Answer)?;
    let in_use = end(&old.certificate).unwrap_or(0);
    if !renewal::is_taken(not_after, in_use, time.floor()) {
        return Err(JoinError::CloudClock);
    }
    let identity = Identity {
        node: old.node,
        key,
        certificate: issued.certificate,
        cas: issued.cas,
        cloud: old.cloud,
        broker: issued.broker,
    };
    // Also checks that key and certificate belong together.
    tls::link_config(&identity, time).map_err(JoinError::Tls)?;
    identity
        .save_renewed(state)
        .map_err(|error| JoinError::Io("store the identity", error))?;
    Ok(Renewed {
        identity,
        unix_s: issued.unix_s,
    })
}
