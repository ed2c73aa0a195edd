//! The one port of an embedded edge-cloud: TLS, then by ALPN either one enrolment or MQTT 5 for
//! one node. Behind an external broker it is for enrolment only, bare or by HTTPS. Only the
//! certificate identifies a node.

mod admission;
mod mqtt;
mod outgoing;
mod unauthenticated;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use edge_proto::enrol::ALPN_JOIN;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::admission::Admission;
use self::mqtt::Mqtt;
use self::unauthenticated::{Place, Unauthenticated};
use super::tls::{self, Port};
use crate::clock::unix_s;
use crate::events::Events;
use crate::identity::Identity;
use crate::identity::enrol::Enrolled;
use crate::identity::peer::Peer;
use crate::identity::registry::NODES_MAX;
use crate::sessions::Sessions;

/// Connections without a session, enrolments included: however many there are, there is capacity for
/// nodes. When all are taken, a further one replaces another.
const UNAUTHENTICATED_MAX: usize = 2_048;
/// Connections at once: one of each session, and those without a session.
const CONNECTIONS_MAX: usize = NODES_MAX + UNAUTHENTICATED_MAX;
/// Longest time of TLS and of an enrolment: TCP and TLS took 70 s at 30 % loss.
const OPENING_TIMEOUT: Duration = Duration::from_secs(90);
/// Timeout from TLS to CONNECT, and from CONNACK to SUBSCRIBE: one packet each, which the node sends at
/// once. At 30 % loss, six losses in a row have a probability of 0.1 %.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(45);
/// Unsent bytes beyond which the kernel accepts no more of a connection: a queue there would have
/// no lanes either.
const UNSENT_BYTES_MAX: u32 = 4 * 1024;
/// The port, and the receivers of its connections.
pub struct Hub {
    port: Arc<Port>,
    identity: Arc<Identity>,
    sessions: Arc<Sessions>,
    admission: Admission,
}

impl Hub {
    /// A hub that admits this many connections a second.
    #[must_use]
    pub fn new(
        port: Arc<Port>,
        identity: Arc<Identity>,
        sessions: Arc<Sessions>,
        events: Arc<Events>,
        admissions_per_s: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            port,
            identity,
            sessions,
            admission: Admission::new(admissions_per_s, events),
        })
    }

    /// Accepts connections, for ever; each with the present configuration.
    pub async fn serve(self: &Arc<Self>, listener: TcpListener) {
        // Accepted sockets inherit it. Without it a frame only waits longer.
        if let Err(error) = SockRef::from(&listener).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
            log::warn!("notsent_lowat_failed error={error}");
        }
        // On a link that loses packets at random, other algorithms take each loss for a queue and slow down.
        // A kernel without it keeps its own.
        if let Err(error) = SockRef::from(&listener).set_tcp_congestion(b"bbr") {
            log::info!("no_bbr error={error}");
        }
        tokio::select! {
            () = self.accept(listener) => {}
            () = self.admission.run() => {}
        }
    }

    async fn accept(self: &Arc<Self>, listener: TcpListener) {
        let capacity = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let unauthenticated = Unauthenticated::new(UNAUTHENTICATED_MAX);
        loop {
            let Ok(permit) = Arc::clone(&capacity).acquire_owned().await else {
                return;
            };
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors: wait until some are closed.
                    log::warn!("accept_failed error={error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let admitted = self.admission.enter(address.ip());
            let place = unauthenticated.enter(address.ip());
            let hub = Arc::clone(self);
            tokio::spawn(async move {
                let mut place = place;
                let opened = hub.connection(stream, admitted, &mut place).await;
                match opened {
                    // In a task of its own: this one has memory for a handshake and an enrolment, which a
                    // link of several months would keep.
                    Ok(Some((stream, peer))) => {
                        let link = Box::new(Mqtt::new(stream, &peer.node));
                        tokio::spawn(hub.link(link, peer, place, permit));
                    }
                    Ok(None) => {}
                    Err(error) => log::debug!("connection_ended error={error}"),
                }
            });
        }
    }

    async fn connection(
        &self,
        stream: TcpStream,
        admitted: oneshot::Receiver<()>,
        place: &mut Place,
    ) -> io::Result<Option<(TlsStream<TcpStream>, Peer)>> {
        // Frames are few and complete: Nagle's algorithm would only add a delay.
        stream.set_nodelay(true)?;
        let opened = tokio::select! {
            opened = self.open(stream, admitted) => opened?,
            () = place.wanted() => return Err(replaced()),
        };
        if let Some((_, peer)) = &opened {
            place.identify(&peer.node);
        }
        Ok(opened)
    }

    /// One node's link, until it ends.
    async fn link(
        self: Arc<Self>,
        mut link: Box<Mqtt<TlsStream<TcpStream>>>,
        peer: Peer,
        place: Place,
        permit: OwnedSemaphorePermit,
    ) {
        if let Err(error) = link.serve(&peer, place, &self.sessions).await {
            log::debug!("connection_ended error={error}");
        }
        drop(permit);
    }

    /// Everything before a connection has presented a certificate, a whole enrolment included.
    async fn open(
        &self,
        stream: TcpStream,
        admitted: oneshot::Receiver<()>,
    ) -> io::Result<Option<(TlsStream<TcpStream>, Peer)>> {
        admitted
            .await
            .map_err(|_| io::Error::other("too many connections wait"))?;
        let tls = TlsAcceptor::from(self.port.current());
        let stream = timely(OPENING_TIMEOUT, tls.accept(stream)).await?;
        let (_, session) = stream.get_ref();
        let joins = session.alpn_protocol() == Some(ALPN_JOIN);
        if joins || self.identity.external_broker().is_some() {
            // Boxed: a link does not need it, and there are more of those.
            let enrolled = Box::pin(self.identity.enrol(stream, !joins)).await?;
            if let Some(Enrolled::Joined(node) | Enrolled::Renewed(node)) = enrolled {
                self.sessions.joined(&node);
            }
            return Ok(None);
        }
        match tls::peer(session, unix_s()) {
            Some(peer) => Ok(Some((stream, peer))),
            None => Err(io::Error::other("no valid client certificate")),
        }
    }
}

fn replaced() -> io::Error {
    io::Error::other("replaced by another connection")
}

async fn timely<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
