//! The driver's side of the link: passes its events to the session, and performs the session's outputs.

use edge_core::calls::Answer;
use edge_core::{Certificate, Input, UplinkInput, UplinkOutput};
use edge_proto::call::CODE_FAILED;
use edge_proto::session::{
    BlobOutput, CallOpen, CallOutput, LinkInput, LinkOutput, NodeOutput, StateOutput,
};

use super::Driver;
use crate::driver::workers::StoreJob;
use crate::link::connection::{self, Connect, LinkConfig, LinkEvent};
use crate::link::identity::Identity;
use crate::link::join;

impl Driver {
    pub(super) fn start_link(&mut self, identity: &Identity) -> Result<(), String> {
        let (targets, new, old) = self.targets(identity)?;
        self.targets = Some(targets);
        self.node.clone_from(&identity.node);
        let (connects, receiver) = async_channel::bounded(1);
        let link = LinkConfig {
            node: identity.node.clone(),
            keepalive: self.config.keepalive,
        };
        let events = self.link_events.clone();
        connection::spawn(link, receiver, events).map_err(|error| error.to_string())?;
        self.connects = Some(connects);
        self.pass_time();
        self.uplink_input(UplinkInput::Identity {
            node: identity.node.clone(),
            seed: super::random().unwrap_or(1),
            new,
            old,
        });
        Ok(())
    }

    /// Why there is no link, human-readable; the agent continues without one.
    pub(super) fn unlinked(&mut self, reason: String) {
        self.uplink_input(UplinkInput::Unlinked(reason));
    }

    /// The node has no identity: it joins by itself if the config has all that this needs.
    pub(super) fn not_joined(&mut self) {
        match join::lacks(&self.config) {
            Some(reason) => self.unlinked(reason.to_owned()),
            None => self.uplink_input(UplinkInput::MayJoin {
                seed: super::random().unwrap_or(1),
            }),
        }
    }

    /// Makes one attempt to join.
    fn join(&mut self) {
        let events = self.link_events.clone();
        if let Err(error) = join::spawn(&self.config, self.clock.clone(), events) {
            self.uplink_input(UplinkInput::NotJoined(error.to_string()));
        }
    }

    fn uplink_input(&mut self, input: UplinkInput) {
        self.agent.handle(self.now(), Input::Uplink(input));
    }

    pub(super) fn handle_link(&mut self, now: u64, event: LinkEvent) {
        match event {
            LinkEvent::Up(sender) => {
                self.link = Some(sender);
                self.uplink_input(UplinkInput::Up);
                self.session.handle(now, LinkInput::TransportUp);
            }
            LinkEvent::Writable => {}
            LinkEvent::Frame(frame) => self.session.handle(now, LinkInput::Frame(&frame)),
            LinkEvent::Down(reason, refused) => {
                self.link = None;
                self.lanes.clear();
                self.session.handle(now, LinkInput::TransportDown);
                self.uplink_input(UplinkInput::Down { reason, refused });
            }
            LinkEvent::Renewed(renewed) => self.renewed(*renewed),
            LinkEvent::NotRenewed(reason, refused) => self.not_renewed(reason, refused),
            LinkEvent::Joined(joined) => {
                let (identity, unix_s) = *joined;
                self.clock.confirm(unix_s);
                if let Err(reason) = self.start_link(&identity) {
                    self.unlinked(reason);
                }
            }
            LinkEvent::NotJoined(reason) => self.uplink_input(UplinkInput::NotJoined(reason)),
        }
    }

    /// Performs the core's outputs for the link and the certificates.
    pub(super) fn perform_uplink(&mut self, output: UplinkOutput) {
        match output {
            UplinkOutput::Join => self.join(),
            UplinkOutput::Connect(certificate) => {
                if let (Some(connects), Some(targets)) = (&self.connects, &self.targets) {
                    let connect = Connect {
                        to: targets.with(certificate),
                        will: self.session.will(),
                    };
                    // The thread takes one at a time, and only this sends them.
                    connects.try_send(connect).ok();
                }
            }
            UplinkOutput::Close => {
                if let Some(link) = &self.link {
                    link.close();
                }
            }
            UplinkOutput::Renew => self.renew(),
            UplinkOutput::DropOldCertificate => self.keep_certificate(Certificate::New),
            UplinkOutput::RestoreOldCertificate => self.keep_certificate(Certificate::Old),
            UplinkOutput::ConfirmTime(unix_s) => {
                self.clock.confirm(unix_s);
                self.pass_time();
            }
        }
    }

    pub(super) fn perform_session(&mut self, output: NodeOutput) {
        match output {
            NodeOutput::Link(LinkOutput::Send(frame)) => {
                // A frame that does not fit is lost like one in transit: the session repeats.
                self.lanes.push(frame);
            }
            NodeOutput::State(StateOutput::Apply {
                ticket,
                changes,
                epoch,
            }) => {
                self.store_jobs.push(StoreJob::Apply {
                    ticket,
                    changes,
                    epoch,
                });
            }
            NodeOutput::Blob(BlobOutput::Wanted { sha256, len }) => {
                self.store_jobs.push(StoreJob::BlobWanted(sha256, len));
            }
            NodeOutput::Blob(BlobOutput::Piece {
                sha256,
                offset,
                bytes,
            }) => {
                self.store_jobs.push(StoreJob::Piece(sha256, offset, bytes));
            }
            NodeOutput::Link(LinkOutput::Live { unix_s }) => {
                log::info!("session_live");
                self.uplink_input(UplinkInput::Live);
                if unix_s != 0 {
                    self.agent.handle(self.now(), Input::CloudTime(unix_s));
                }
            }
            NodeOutput::Link(LinkOutput::Down) => {
                self.uplink_input(UplinkInput::NotLive);
                self.log_calls.clear();
                log::info!("session_down");
            }
            NodeOutput::State(StateOutput::InSync { desired, reported }) => {
                self.in_sync = desired && reported;
                if desired {
                    self.agent.handle(self.now(), Input::Confirmed);
                }
            }
            NodeOutput::CallOpen(open) => self.open_call(open),
            NodeOutput::Call(CallOutput::Window { id, bytes }) => self.log_calls.window(id, bytes),
            NodeOutput::Call(CallOutput::Cancelled { id }) => self.log_calls.close(id),
            // No method takes data or control messages. What is not taken gets no credit.
            NodeOutput::Call(CallOutput::Data { .. } | CallOutput::Control { .. }) => {}
            NodeOutput::State(StateOutput::PutRefused { key, reason }) => {
                log::error!("report_refused key={key} reason={reason}");
            }
            NodeOutput::Link(LinkOutput::PeerProblem(problem)) => {
                log::warn!("peer_problem {problem}");
                self.uplink_input(UplinkInput::PeerProblem(problem.to_string()));
            }
            NodeOutput::Records(output) => self.perform_records(output),
            // Fetches and other features that this agent does not use.
            _ => {}
        }
    }

    fn open_call(&mut self, CallOpen { id, method, args }: CallOpen) {
        let log = match self.agent.call(self.now(), method, &args) {
            Ok(Answer::Bytes(bytes)) => return self.log_calls.answer(id, bytes),
            Ok(Answer::Log(request, log)) => match self.log_file(&log) {
                Ok(file) => Ok((file, request)),
                Err(reason) => Err((CODE_FAILED, reason)),
            },
            Err(refusal) => Err(refusal),
        };
        self.log_calls.open(id, log);
    }

    /// Gives the link frames in the order of the lanes, as long as it accepts them. The time of the next
    /// frame that only a rate delays becomes [`Driver::send_at`].
    pub(super) fn pump_lanes(&mut self) {
        let now = self.now();
        self.send_at = None;
        let limits = self.agent.policy().limits_up();
        if limits != self.limits {
            self.lanes.set_limits(now, &limits);
            self.limits = limits;
        }
        let Some(link) = &mut self.link else {
            self.lanes.clear();
            return;
        };
        while !self.lanes.is_empty() && link.is_writable() {
            let Some(frame) = self.lanes.poll(now) else {
                self.send_at = self.lanes.deadline();
                return;
            };
            link.send(frame);
        }
    }

    pub(super) fn pump_log_calls(&mut self) -> bool {
        let now = self.now();
        let mut calls = std::mem::take(&mut self.log_calls);
        let answer = calls.next(now, &|request, file| {
            let (namespace, pod) = (&request.namespace, &request.pod);
            let log = self.agent.log(namespace, pod, &request.container);
            !log.is_ok_and(|log| !log.over && self.log_file(&log).is_ok_and(|known| known == file))
        });
        self.log_calls = calls;
        let Some(answer) = answer else {
            return false;
        };
        self.session.handle(now, answer);
        true
    }
}
