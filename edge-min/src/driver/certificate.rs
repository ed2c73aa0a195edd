//! The node's certificate: which one the link uses, and its renewal. A new one is on trial until a
//! session has lived with it; until then the old one is kept, on disk and here.

use std::sync::Arc;

use async_channel::Sender;
use edge_core::renewal::{Life, Renewal, Time};
use edge_proto::enrol::Endpoint;

use super::Driver;
use crate::link::connection::{LinkEvent, Target};
use crate::link::identity::{self, Identity, Renewed};
use crate::link::renew;
use crate::link::{certificate, tls};

/// A certificate in use.
struct InUse {
    target: Arc<Target>,
    life: Life,
}

/// What the driver knows of its certificates.
pub(super) struct Certificates {
    pub(super) renewal: Renewal,
    new: InUse,
    /// The one before, until `new` has proven good.
    old: Option<InUse>,
    /// `new` was refused, so the next connection is with `old`.
    turns_back: bool,
    /// What the last connection was made with.
    tried: Option<Arc<Target>>,
    /// Why the last renewal failed.
    error: String,
}

impl Certificates {
    /// What the next connection is made with.
    pub(super) fn next(&mut self) -> Arc<Target> {
        let old = self.old.as_ref().filter(|_| self.turns_back);
        let target = Arc::clone(&old.unwrap_or(&self.new).target);
        self.tried = Some(Arc::clone(&target));
        target
    }

    /// When the certificate ends that the session lives with, seconds since 1970; 0 while it is not
    /// known which one that is.
    pub(super) const fn proven_end(&self) -> u64 {
        match self.old {
            None => self.renewal.not_after(),
            Some(_) => 0,
        }
    }

    fn tried(&self, one: &InUse) -> bool {
        let tried = self.tried.as_ref();
        tried.is_some_and(|tried| Arc::ptr_eq(tried, &one.target))
    }

    /// When the certificate ends and when it is renewed, seconds since 1970, and why that failed.
    pub(super) fn facts(&self) -> (u64, u64, &str) {
        let renewal = &self.renewal;
        (renewal.not_after(), renewal.due_unix_s(), &self.error)
    }
}

impl Driver {
    fn in_use(&self, identity: &Identity) -> Result<InUse, String> {
        // Moving the cloud is a line in the config.
        let url = identity.link_url(self.config.cloud.as_deref());
        let end = Endpoint::parse(url).ok_or("cloud is missing in the config")?;
        let tls = tls::link_config(identity, self.clock.clone())
            .map_err(|error| ["identity: ", &error.to_string()].concat())?;
        let (issued_unix_s, not_after) =
            certificate::life(&identity.certificate).ok_or("identity: node.crt is none")?;
        Ok(InUse {
            target: Arc::new(Target {
                host: end.host,
                port: end.port,
                tls,
            }),
            life: Life {
                issued_unix_s,
                not_after,
            },
        })
    }

    pub(super) fn certificates_of(&self, identity: &Identity) -> Result<Certificates, String> {
        let new = self.in_use(identity)?;
        let old = Identity::load_old(&self.config.state_dir);
        Ok(Certificates {
            renewal: Renewal::new(&identity.node, new.life),
            new,
            old: old.and_then(|old| self.in_use(&old).ok()),
            turns_back: false,
            tried: None,
            error: String::new(),
        })
    }

    fn time(&self) -> Time {
        let (unix_s, confirmed) = self.clock.reliable();
        Time { unix_s, confirmed }
    }

    pub(super) fn renewal_deadline(&self) -> Option<u64> {
        let certificates = self.certificates.as_ref()?;
        certificates.renewal.deadline(self.now(), self.time())
    }

    /// Begins a renewal that is due.
    pub(super) fn renew(&mut self, now: u64, events: &Sender<LinkEvent>) {
        let time = self.time();
        let certificates = self.certificates.as_mut();
        if !certificates.is_some_and(|one| one.renewal.begins(now, time)) {
            return;
        }
        log::info!("renewal_begins");
        let (cloud, state) = (self.config.cloud.clone(), self.config.state_dir.clone());
        if let Err(error) = renew::spawn(cloud, state, self.clock.clone(), events.clone()) {
            self.not_renewed(now, error.to_string(), false);
        }
    }

    /// The cloud has said the time. Over a link that this node's certificate has opened it cannot
    /// be after the certificate's end: such a clock would shut the node out for good.
    pub(super) fn time_from_cloud(&mut self, unix_s: u64) {
        let end = self.certificates.as_ref().map(|one| one.facts().0);
        if end.is_some_and(|end| unix_s >= end) {
            log::warn!("time_refused unix_s={unix_s}");
            return;
        }
        self.clock.confirm(unix_s);
        self.watch_certificate();
    }

    pub(super) fn renewed(&mut self, now: u64, renewed: Renewed) {
        let new = match self.in_use(&renewed.identity) {
            Ok(new) => new,
            Err(error) => return self.not_renewed(now, error, true),
        };
        let Some(certificates) = &mut self.certificates else {
            return;
        };
        log::info!("renewed not_after={}", new.life.not_after);
        certificates.renewal.renewed(new.life);
        certificates.error.clear();
        certificates.turns_back = false;
        certificates.old = Some(core::mem::replace(&mut certificates.new, new));
        self.time_from_cloud(renewed.unix_s);
        self.watch_certificate();
        // The pods do not notice: only the link begins anew.
        match &self.link {
            Some(link) => link.close(),
            None => self.connect_at = self.connect_at.map(|_| now),
        }
    }

    pub(super) fn not_renewed(&mut self, now: u64, error: String, refused: bool) {
        log::warn!("not_renewed reason={error}");
        if let Some(certificates) = &mut self.certificates {
            certificates.renewal.failed(now, refused);
            certificates.error = error;
        }
        self.watch_certificate();
    }

    /// The other end of the link refuses the certificate: it may have expired there, or a new one
    /// is not known there.
    pub(super) fn certificate_refused(&mut self) {
        if let Some(certificates) = &mut self.certificates {
            // Both may have ended while the board was off.
            if certificates.old.is_none() || certificates.turns_back {
                certificates.renewal.want();
            }
            certificates.turns_back = certificates.old.is_some() && !certificates.turns_back;
        }
    }

    /// A session lives with the certificate that the connection was made with.
    pub(super) fn certificate_works(&mut self) {
        let Some(certificates) = &mut self.certificates else {
            return;
        };
        let Some(old) = certificates.old.take() else {
            return;
        };
        let state = &self.config.state_dir;
        let done = if certificates.tried(&certificates.new) {
            log::info!(
                "certificate_in_use not_after={}",
                certificates.new.life.not_after
            );
            identity::forget_old(state)
        } else if certificates.turns_back {
            log::warn!("certificate_refused the_old_one_works=true");
            certificates.error = "the new certificate is refused, the old one is not".to_owned();
            certificates.turns_back = false;
            certificates.renewal.renewed(old.life);
            let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            certificates.renewal.failed(now, true);
            certificates.new = old;
            identity::go_back(state)
        } else {
            // This connection was begun before the renewal.
            certificates.old = Some(old);
            if let Some(link) = &self.link {
                link.close();
            }
            Ok(())
        };
        if let Err(error) = done {
            log::error!("identity_not_changed error={error}");
        }
        self.watch_certificate();
    }

    pub(super) fn watch_certificate(&mut self) {
        let time = self.time();
        let Some(certificates) = &self.certificates else {
            return;
        };
        let late = certificates.renewal.is_late(time);
        let (end, _, error) = certificates.facts();
        let end = end.to_string();
        let message = match error {
            "" => ["ends at ", &end].concat(),
            error => ["ends at ", &end, ", not renewed: ", error].concat(),
        };
        self.condition("CertificateExpiring", late, &message);
    }
}
