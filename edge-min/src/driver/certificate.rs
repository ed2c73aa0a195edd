//! The targets of the link, one for each certificate that the node holds, and attempts to renew.
//! The core decides which one is used, and when to renew.

use std::sync::Arc;

use edge_core::renewal::Validity;
use edge_core::{Certificate, CertificateInput, Input};
use edge_proto::enrol::Endpoint;

use super::Driver;
use crate::link::connection::Target;
use crate::link::identity::{self, Identity, Renewed};
use crate::link::renew;
use crate::link::{certificate, tls};

/// Connection target for each certificate.
pub(super) struct Targets {
    new: Arc<Target>,
    /// With the old certificate, as long as the core keeps it.
    old: Option<Arc<Target>>,
}

impl Targets {
    pub(super) fn with(&self, certificate: Certificate) -> Arc<Target> {
        let old = self
            .old
            .as_ref()
            .filter(|_| certificate == Certificate::Old);
        Arc::clone(old.unwrap_or(&self.new))
    }
}

impl Driver {
    fn target(&self, identity: &Identity) -> Result<(Arc<Target>, Validity), String> {
        let url = identity.urls(self.config.cloud.as_deref()).link();
        let end = Endpoint::parse(url).ok_or("cloud is missing in the config")?;
        let tls = tls::link_config(identity, self.clock.clone())
            .map_err(|error| ["identity: ", &error.to_string()].concat())?;
        let (issued_unix_s, not_after) =
            certificate::life(&identity.certificate).ok_or("identity: node.crt is none")?;
        let target = Target {
            host: end.host,
            port: end.port,
            tls,
        };
        let life = Validity {
            issued_unix_s,
            not_after,
        };
        Ok((Arc::new(target), life))
    }

    /// The targets of an identity, and the validity of its new and its old certificate.
    pub(super) fn targets(
        &self,
        identity: &Identity,
    ) -> Result<(Targets, Validity, Option<Validity>), String> {
        let (new, life) = self.target(identity)?;
        let old = Identity::load_old(&self.config.state_dir);
        let (old, old_life) = old.and_then(|old| self.target(&old).ok()).unzip();
        Ok((Targets { new, old }, life, old_life))
    }

    /// Passes the reliable time to the core.
    pub(super) fn pass_time(&mut self) {
        let time = self.clock.reliable();
        self.agent.handle(self.now(), Input::Time(time));
    }

    /// Makes one attempt to renew the certificate.
    pub(super) fn renew(&mut self) {
        let (cloud, state) = (self.config.cloud.clone(), self.config.state_dir.clone());
        let events = self.link_events.clone();
        if let Err(error) = renew::spawn(cloud, state, self.clock.clone(), events) {
            self.not_renewed(error.to_string(), false);
        }
    }

    pub(super) fn renewed(&mut self, renewed: Renewed) {
        let (target, new) = match self.target(&renewed.identity) {
            Ok(target) => target,
            Err(error) => return self.not_renewed(error, true),
        };
        if let Some(targets) = &mut self.targets {
            targets.old = Some(core::mem::replace(&mut targets.new, target));
        }
        let unix_s = renewed.unix_s;
        let input = CertificateInput::Renewed { new, unix_s };
        self.agent.handle(self.now(), Input::Certificate(input));
    }

    pub(super) fn not_renewed(&mut self, reason: String, refused: bool) {
        let input = CertificateInput::NotRenewed { reason, refused };
        self.agent.handle(self.now(), Input::Certificate(input));
    }

    /// Keeps one of the two certificates, here and on the medium.
    pub(super) fn keep_certificate(&mut self, keep: Certificate) {
        let old = self.targets.as_mut().and_then(|targets| {
            let old = targets.old.take()?;
            Some((targets, old))
        });
        let state = &self.config.state_dir;
        let done = match (keep, old) {
            (Certificate::Old, Some((targets, old))) => {
                targets.new = old;
                identity::restore_old(state)
            }
            _ => identity::delete_old(state),
        };
        if let Err(error) = done {
            log::error!("identity_not_changed error={error}");
        }
    }
}
