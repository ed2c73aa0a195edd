//! The link to the cloud: when a join or a connection is tried and with which certificate, when the
//! certificate is renewed, and which time of the cloud is accepted. The session over the link is a
//! separate state machine (`edge_proto::session`), which the shell drives.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;

use edge_proto::Millis;
use edge_proto::object::Condition;

use crate::certificates::{Certificates, Proof};
use crate::event::Event;
use crate::port::{CertificateInput, Output, UplinkInput, UplinkOutput};
use crate::reconnect::{self, Reconnect};
use crate::renewal::Time;
use crate::timer::{Timer, Timers};

/// Shown while the connection is up and the session is not.
const UNANSWERED: &str = "the link is up, and edge-cloud has not answered yet";

/// The node's side of the link.
#[derive(Debug, Default)]
pub(crate) struct Uplink {
    /// `None` before the join.
    identity: Option<Box<Identity>>,
    /// Delays between attempts to join; only where the node may join by itself.
    joins: Option<Box<Reconnect>>,
    up: bool,
    live: bool,
    /// Why there is no connection, human-readable.
    error: String,
    /// The latest reliable time, and the monotonic instant at which it was set.
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

    /// The time at `now`: a confirmed one advances, the floor does not.
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

    /// Expiry of the certificate, when it is renewed, and why that failed; 0 before the join.
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

    /// `spread_ms`: over which time the fleet's policy spreads first attempts.
    pub(crate) fn handle(
        &mut self,
        now: Millis,
        input: UplinkInput,
        spread_ms: Millis,
        timers: &mut Timers,
        outputs: &mut VecDeque<Output>,
    ) {
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
                self.identity = Some(identity.into());
                self.joins = None;
                timers.set(Timer::Join, None);
                timers.set(Timer::Connect, Some(now));
            }
            UplinkInput::MayJoin { seed } => {
                self.joins = Some(Reconnect::new(seed, 0).into());
                timers.set(Timer::Join, Some(now));
            }
            UplinkInput::NotJoined(reason) => {
                let at = self.joins.as_mut().map(|joins| joins.down(now, 0));
                timers.set(Timer::Join, at);
                outputs.push_back(Output::Event(Event::NoLink(reason.clone())));
                self.error = reason;
            }
            UplinkInput::Unlinked(reason) => {
                outputs.push_back(Output::Event(Event::NoLink(reason.clone())));
                self.error = reason;
            }
            UplinkInput::Up => {
                self.up = true;
                self.error.clear();
                if let Some(identity) = &mut self.identity {
                    identity.reconnect.up(now);
                }
            }
            UplinkInput::Down { reason, refused } => {
                self.up = false;
                if let Some(identity) = &mut self.identity {
                    let at = identity.reconnect.down(now, spread_ms);
                    if refused {
                        identity.certificates.refused();
                    }
                    timers.set(Timer::Connect, Some(at));
                    let event = Event::LinkDown(at.saturating_sub(now), reason.clone());
                    outputs.push_back(Output::Event(event));
                }
                self.error = reason;
            }
            UplinkInput::Live => {
                self.live = true;
                self.certificate_works(now, outputs);
            }
            UplinkInput::NotLive => self.live = false,
            UplinkInput::PeerProblem(problem) => {
                if !self.live {
                    self.error = problem;
                }
            }
        }
    }

    pub(crate) fn handle_certificate(
        &mut self,
        now: Millis,
        input: CertificateInput,
        timers: &mut Timers,
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(certificates) = self.certificates() else {
            return;
        };
        match input {
            CertificateInput::Wanted => certificates.renewal.want(),
            CertificateInput::Renewed { new, unix_s } => {
                certificates.renewed(new);
                outputs.push_back(Output::Event(Event::Renewed(new.not_after)));
                self.handle_cloud_time(unix_s, outputs);
                // The pods are not affected: only the link is opened again.
                if self.up {
                    ask(outputs, UplinkOutput::Close);
                } else if timers.get(Timer::Connect).is_some() {
                    timers.set(Timer::Connect, Some(now));
                }
            }
            CertificateInput::NotRenewed { reason, refused } => {
                outputs.push_back(Output::Event(Event::NotRenewed(reason.clone())));
                certificates.renewal_failed(now, reason, refused);
            }
        }
    }

    fn certificate_works(&mut self, now: Millis, outputs: &mut VecDeque<Output>) {
        let proof = self.certificates().and_then(|one| one.works(now));
        let (not_after, ..) = self.certificate();
        let (event, output) = match proof {
            Some(Proof::New) => (
                Some(Event::CertificateInUse(not_after)),
                UplinkOutput::DropOldCertificate,
            ),
            Some(Proof::Old) => (
                Some(Event::CertificateRefused),
                UplinkOutput::RestoreOldCertificate,
            ),
            Some(Proof::Stale) if self.up => (None, UplinkOutput::Close),
            Some(Proof::Stale) | None => return,
        };
        outputs.extend(event.map(Output::Event));
        ask(outputs, output);
    }

    /// The cloud has sent its time. Over a link that was opened with this node's certificate it cannot be
    /// after the certificate's expiry: such a clock would lock the node out permanently.
    pub(crate) fn handle_cloud_time(&self, unix_s: u64, outputs: &mut VecDeque<Output>) {
        let (not_after, ..) = self.certificate();
        if self.identity.is_some() && unix_s >= not_after {
            outputs.push_back(Output::Event(Event::TimeRefused(unix_s)));
        } else {
            ask(outputs, UplinkOutput::ConfirmTime(unix_s));
        }
    }

    /// The reliable time has changed.
    pub(crate) const fn handle_time(&mut self, now: Millis, time: Time) {
        self.time = Some((time, now));
    }

    /// Node condition about its certificate.
    pub(crate) fn condition(&self, now: Millis) -> Option<Condition> {
        let identity = self.identity.as_ref()?;
        Some(identity.certificates.condition(self.time(now)))
    }

    /// Starts what is due, and sets the timer of the renewal.
    pub(crate) fn run(&mut self, now: Millis, timers: &mut Timers, outputs: &mut VecDeque<Output>) {
        if timers.expired(Timer::Join, now) {
            ask(outputs, UplinkOutput::Join);
        }
        let time = self.time(now);
        let Some(certificates) = self.certificates() else {
            return;
        };
        if timers.expired(Timer::Connect, now) {
            ask(outputs, UplinkOutput::Connect(certificates.next()));
        }
        if certificates.renewal.begins(now, time) {
            outputs.push_back(Output::Event(Event::RenewalBegins));
            ask(outputs, UplinkOutput::Renew);
        }
        timers.set(Timer::Renewal, certificates.renewal.deadline(now, time));
    }
}

fn ask(outputs: &mut VecDeque<Output>, output: UplinkOutput) {
    outputs.push_back(Output::Uplink(output));
}
