//! The driver's side of the link: its events into the session, what the session asks is done.

use std::path::PathBuf;

use async_channel::Sender;
use edge_core::Input;
use edge_core::reconnect::{self, Reconnect};
use edge_proto::call::{ANSWER_OK, LogsRequest, METHOD_RENEW};
use edge_proto::session::{
    BlobOutput, LinkInput, LinkOutput, NodeCallOutput, NodeOutput, StateOutput,
};

use super::Driver;
use crate::driver::log_calls::LogCalls;
use crate::driver::workers::StoreJob;
use crate::link::connection::{self, LinkConfig, LinkEvent};
use crate::link::identity::Identity;

impl Driver {
    pub(super) fn start_link(
        &mut self,
        identity: &Identity,
        events: &Sender<LinkEvent>,
    ) -> Result<(), String> {
        self.certificates = Some(self.certificates_of(identity)?);
        self.node.clone_from(&identity.node);
        let seed = super::random().unwrap_or(1);
        self.reconnect = Reconnect::new(seed, reconnect::slot(&self.node));
        let (connects, receiver) = async_channel::bounded(1);
        let link = LinkConfig {
            node: identity.node.clone(),
            keepalive: self.config.keepalive,
        };
        connection::spawn(link, receiver, events.clone()).map_err(|error| error.to_string())?;
        self.connects = Some(connects);
        self.connect_at = Some(self.now());
        self.watch_certificate();
        Ok(())
    }

    /// Why there is no link, for people: the agent goes on without one.
    pub(super) fn unlinked(&mut self, reason: String) {
        log::warn!("no_link reason={reason}");
        self.link_error = reason;
    }

    pub(super) fn handle_link(&mut self, now: u64, event: LinkEvent) {
        match event {
            LinkEvent::Up(sender) => {
                self.reconnect.up(now);
                self.link_error.clear();
                self.link = Some(sender);
                self.session.handle(now, LinkInput::TransportUp);
            }
            LinkEvent::Room => {}
            LinkEvent::Frame(frame) => self.session.handle(now, LinkInput::Frame(&frame)),
            LinkEvent::Down(reason, refused) => {
                self.link = None;
                self.lanes.clear();
                self.session.handle(now, LinkInput::TransportDown);
                let at = self
                    .reconnect
                    .down(now, self.agent.policy().reconnect_spread_ms());
                log::info!("link_down again_ms={} reason={reason}", at - now);
                self.connect_at = Some(at);
                self.link_error = reason;
                if refused {
                    self.certificate_refused();
                }
            }
            LinkEvent::Renewed(renewed) => self.renewed(now, *renewed),
            LinkEvent::NotRenewed(reason, refused) => self.not_renewed(now, reason, refused),
            LinkEvent::NotJoined(reason) => self.unlinked(reason),
        }
    }

    pub(super) fn perform_session(&mut self, output: NodeOutput) {
        match output {
            NodeOutput::Link(LinkOutput::Send(frame)) => {
                // A frame that does not fit is lost like one on the way: the session repeats.
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
                self.live = true;
                log::info!("session_live");
                self.certificate_works();
                if unix_s != 0 {
                    self.time_from_cloud(unix_s);
                }
            }
            NodeOutput::Link(LinkOutput::Down) => {
                self.live = false;
                self.log_calls.clear();
                log::info!("session_down");
            }
            NodeOutput::State(StateOutput::InSync { desired, reported }) => {
                self.in_sync = desired && reported;
                if desired {
                    // The cloud has sent again what was lost.
                    self.store_jobs.push(StoreJob::Repair);
                    self.condition("StoreDamaged", false, "");
                    self.agent.handle(self.now(), Input::Confirmed);
                }
            }
            NodeOutput::Call(NodeCallOutput::Request { id, method, body })
                if method == METHOD_RENEW =>
            {
                let mut answer = vec![ANSWER_OK];
                if let Some(certificates) = &mut self.certificates {
                    if body.is_empty() {
                        certificates.renewal.want();
                    }
                    answer.extend_from_slice(&certificates.proven_end().to_le_bytes());
                }
                self.log_calls.answer(id, answer);
            }
            NodeOutput::Call(NodeCallOutput::Request { id, method, body }) => {
                let file = LogCalls::request(method, &body).and_then(|request| {
                    let (file, _) = self.called_log(&request)?;
                    Ok((file, request))
                });
                self.log_calls.open(id, file);
            }
            NodeOutput::Call(NodeCallOutput::Window { id, bytes }) => {
                self.log_calls.window(id, bytes)
            }
            NodeOutput::Call(NodeCallOutput::Cancelled { id }) => self.log_calls.close(id),
            NodeOutput::State(StateOutput::PutRefused { key, reason }) => {
                log::error!("report_refused key={key} reason={reason}");
            }
            NodeOutput::Link(LinkOutput::PeerProblem(problem)) => {
                log::warn!("peer_problem {problem}");
                if !self.live {
                    self.link_error = problem.to_string();
                }
            }
            NodeOutput::Records(output) => self.perform_records(output),
            // Fetches and what an agent without them is not asked for.
            _ => {}
        }
    }

    /// Gives the link the frames whose turn it is, as long as it has room. The time of the next one
    /// that is only kept back by a rate becomes [`Driver::send_at`].
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
        while !self.lanes.is_empty() && link.has_room() {
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
            !matches!(self.called_log(request), Ok((known, false)) if known == file)
        });
        self.log_calls = calls;
        let Some(answer) = answer else {
            return false;
        };
        self.session.handle(now, answer);
        true
    }

    fn called_log(&self, request: &LogsRequest) -> Result<(PathBuf, bool), String> {
        let container = (!request.container.is_empty()).then_some(request.container.as_str());
        self.log_path(&request.namespace, &request.pod, container)
    }
}
