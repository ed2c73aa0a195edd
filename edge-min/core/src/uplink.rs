//! The link to the cloud: when a connection is tried and with which certificate, when the
//! certificate is renewed, and which time of the cloud is believed. The session over the link is
//! another machine (`edge_proto::session`), which the shell drives.

use alloc::boxed::Box;
use alloc::string::String;

use edge_proto::Millis;
use edge_proto::object::NodePolicy;

use crate::agent::Agent;
use crate::certificates::{Certificates, Proof};
use crate::event::Event;
use crate::port::{CertificateInput, Output, UplinkInput, UplinkOutput};
use crate::reconnect::{self, Reconnect};
use crate::renewal::{Life, Time};
use crate::timer::Timer;

/// For people, while the connection is up and the session is not.
const UNANSWERED: &str = "the link is up, and edge-cloud has not answered yet";

/// The node's side of the link.
#[derive(Debug, Default)]
pub(crate) struct Uplink {
    /// `None` before the join.
    identity: Option<Box<Identity>>,
    up: bool,
    live: bool,
    /// Why there is no connection, for people.
    error: String,
    /// The latest time, and the monotonic instant at which it held.
    time: Option<(Time, Millis)>,
}

#[derive(Debug)]
struct Identity {
    certificates: Certificates,
    reconnect: Reconnect,
}

impl Uplink {
    fn certificates(&mut self) -> Option<&mut Certificates> {
        self.identity.as_mut().map(|one| &mut one.certificates)
    }

    /// The time at `now`: a confirmed one runs on, the floor stands still.
    fn time(&self, now: Millis) -> Time {
        let (time, at) = self.time.unwrap_or_default();
        let since_s = match time.confirmed {
            true => now.saturating_sub(at) / 1000,
            false => 0,
        };
        Time {
            unix_s: time.unix_s.saturating_add(since_s),
            ..time
        }
    }

    pub(crate) const fn is_live(&self) -> bool {
        self.live
    }

    pub(crate) fn error(&self) -> &str {
        match self.up && !self.live && self.error.is_empty() {
            true => UNANSWERED,
            false => &self.error,
        }
    }

    /// End of the certificate, when it is renewed, and why that failed; 0 before the join.
    pub(crate) fn certificate(&self) -> (u64, u64, &str) {
        self.identity.as_ref().map_or((0, 0, ""), |one| {
            let certificates = &one.certificates;
            let renewal = &certificates.renewal;
            (
                renewal.not_after(),
                renewal.due_unix_s(),
                certificates.error(),
            )
        })
    }

    pub(crate) fn proven_not_after(&self) -> u64 {
        let identity = self.identity.as_ref();
        identity.map_or(0, |one| one.certificates.proven_not_after())
    }
}

impl Agent {
    pub(crate) fn handle_uplink(&mut self, now: Millis, input: UplinkInput) {
        match input {
            UplinkInput::Identity {
                node,
                seed,
                new,
                old,
            } => {
                let identity = Identity {
                    certificates: Certificates::new(&node, new, old),
                    reconnect: Reconnect::new(seed, reconnect::slot(&node)),
                };
                self.uplink.identity = Some(identity.into());
                self.timers.set(Timer::Connect, Some(now));
                self.review_certificate(now);
            }
            UplinkInput::Unlinked(reason) => {
                self.emit(Event::NoLink(reason.clone()));
                self.uplink.error = reason;
            }
            UplinkInput::Up => {
                self.uplink.up = true;
                self.uplink.error.clear();
                if let Some(identity) = &mut self.uplink.identity {
                    identity.reconnect.up(now);
                }
            }
            UplinkInput::Down { reason, refused } => self.handle_down(now, reason, refused),
            UplinkInput::Live => {
                self.uplink.live = true;
                self.certificate_works(now);
            }
            UplinkInput::NotLive => self.uplink.live = false,
            UplinkInput::PeerProblem(problem) => {
                if !self.uplink.live {
                    self.uplink.error = problem;
                }
            }
        }
    }

    fn handle_down(&mut self, now: Millis, reason: String, refused: bool) {
        let spread_ms = NodePolicy::reconnect_spread_ms(&self.policy);
        self.uplink.up = false;
        if let Some(identity) = &mut self.uplink.identity {
            let at = identity.reconnect.down(now, spread_ms);
            if refused {
                identity.certificates.refused();
            }
            self.timers.set(Timer::Connect, Some(at));
            let wait_ms = at.saturating_sub(now);
            self.emit(Event::LinkDown(wait_ms, reason.clone()));
        }
        self.uplink.error = reason;
    }

    pub(crate) fn handle_certificate(&mut self, now: Millis, input: CertificateInput) {
        match input {
            CertificateInput::Wanted => {
                if let Some(certificates) = self.uplink.certificates() {
                    certificates.renewal.want();
                }
            }
            CertificateInput::Renewed { new, unix_s } => self.renewed(now, new, unix_s),
            CertificateInput::NotRenewed { reason, refused } => {
                self.emit(Event::NotRenewed(reason.clone()));
                if let Some(certificates) = self.uplink.certificates() {
                    certificates.renewal_failed(now, reason, refused);
                }
                self.review_certificate(now);
            }
        }
    }

    fn renewed(&mut self, now: Millis, new: Life, unix_s: u64) {
        let Some(certificates) = self.uplink.certificates() else {
            return;
        };
        certificates.renewed(new);
        self.emit(Event::Renewed(new.not_after));
        self.handle_cloud_time(unix_s);
        self.review_certificate(now);
        // The pods do not notice: only the link begins anew.
        if self.uplink.up {
            self.ask(UplinkOutput::Close);
        } else if self.timers.get(Timer::Connect).is_some() {
            self.timers.set(Timer::Connect, Some(now));
        }
    }

    fn certificate_works(&mut self, now: Millis) {
        let proof = self.uplink.certificates().and_then(|one| one.works(now));
        let (not_after, ..) = self.uplink.certificate();
        match proof {
            Some(Proof::New) => {
                self.emit(Event::CertificateInUse(not_after));
                self.ask(UplinkOutput::ForgetOldCertificate);
            }
            Some(Proof::Old) => {
                self.emit(Event::CertificateRefused);
                self.ask(UplinkOutput::RestoreOldCertificate);
            }
            Some(Proof::Stale) if self.uplink.up => self.ask(UplinkOutput::Close),
            Some(Proof::Stale) | None => {}
        }
        self.review_certificate(now);
    }

    /// The cloud sent its time. Over a link that this node's certificate has opened it cannot be
    /// after the certificate's end: such a clock would shut the node out for good.
    pub(crate) fn handle_cloud_time(&mut self, unix_s: u64) {
        let (not_after, ..) = self.uplink.certificate();
        if self.uplink.identity.is_some() && unix_s >= not_after {
            self.emit(Event::TimeRefused(unix_s));
        } else {
            self.ask(UplinkOutput::ConfirmTime(unix_s));
        }
    }

    /// The time that can be relied on has changed.
    pub(crate) fn handle_time(&mut self, now: Millis, time: Time) {
        self.uplink.time = Some((time, now));
        self.review_certificate(now);
    }

    fn ask(&mut self, output: UplinkOutput) {
        self.outputs.push_back(Output::Uplink(output));
    }

    fn review_certificate(&mut self, now: Millis) {
        let time = self.uplink.time(now);
        let condition = self.uplink.certificates().map(|one| one.condition(time));
        if let Some(condition) = condition {
            self.node.set_condition(condition);
        }
    }

    /// Begins what is due, and sets the timer of the renewal.
    pub(crate) fn run_uplink(&mut self, now: Millis) {
        let time = self.uplink.time(now);
        let Some(identity) = &mut self.uplink.identity else {
            return;
        };
        let certificates = &mut identity.certificates;
        if self.timers.expired(Timer::Connect, now) {
            let with = certificates.next();
            let connect = Output::Uplink(UplinkOutput::Connect(with));
            self.outputs.push_back(connect);
        }
        if certificates.renewal.begins(now, time) {
            let event = Output::Event(Event::RenewalBegins);
            let renew = Output::Uplink(UplinkOutput::Renew);
            self.outputs.extend([event, renew]);
        }
        let at = certificates.renewal.deadline(now, time);
        self.timers.set(Timer::Renewal, at);
    }
}
