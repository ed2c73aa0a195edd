//! A board's connections to the broker: attempts, connections and losses, and the outputs of
//! the agent's core for them and for the node's certificate.

use edge_core::limits::CONNECT_TIMEOUT_MS;
use edge_core::{Certificate, Input as AgentInput, UplinkInput, UplinkOutput};
use edge_proto::limits::SILENCE_PERCENT;
use edge_proto::session::LinkInput;

use crate::board::Conn;
use crate::event::Event;
use crate::world::World;

/// Bytes of TCP, TLS and MQTT to open a connection, up and down.
const OPEN_BYTES: (usize, usize) = (1_500, 2_000);
/// One-way delays of opening a connection: TCP, TLS 1.3 and MQTT, a round trip each.
const OPEN_DELAYS: u64 = 5;

impl World {
    pub(crate) fn perform_uplink(&mut self, board: usize, output: UplinkOutput) {
        match output {
            UplinkOutput::Join => self.ask_to_join(board),
            UplinkOutput::Connect(with) => self.ask_for_connection(board, with),
            UplinkOutput::Close => {
                if let Conn::Up(conn) = self.boards[board].conn {
                    self.socket_closed(board, conn);
                    self.link_down(board);
                }
            }
            UplinkOutput::Renew => self.renew(board),
            UplinkOutput::DropOldCertificate => self.boards[board].keep(Certificate::New),
            UplinkOutput::RestoreOldCertificate => self.boards[board].keep(Certificate::Old),
            UplinkOutput::ConfirmTime(unix_s) => self.boards[board].confirm_time(self.now, unix_s),
        }
    }

    fn ask_for_connection(&mut self, board: usize, with: Certificate) {
        let conn = self.broker.next_conn();
        let one = &mut self.boards[board];
        one.conn = Conn::Trying(conn);
        one.shown = one.certificate(with);
        self.stats.dials += 1;
        let index = board as u32;
        let node = self.boards[board].node;
        let one = &self.boards[board];
        let local = one.local(self.now);
        let floor_s = one.machine.as_ref().map(|one| one.time.floor(local));
        let expired = floor_s > Some(self.broker.not_after_s);
        let open = OPEN_DELAYS * self.scenario.link.delay_ms;
        let failed = Event::Dialled {
            board: index,
            conn,
            open: false,
        };
        if self.is_cut(node) {
            self.plan(CONNECT_TIMEOUT_MS, failed);
        } else if !self.broker.up || expired {
            self.plan(2 * self.scenario.link.delay_ms, failed);
        } else {
            self.series.up(self.now, OPEN_BYTES.0);
            self.series.down(self.now, OPEN_BYTES.1);
            let spread = self.boards[board]
                .rng
                .below(self.scenario.link.jitter_ms + 1);
            self.plan(open + spread, Event::Dial { board: index, conn });
        }
    }

    /// The answer to a connect arrives.
    pub(crate) fn dialled(&mut self, board: usize, conn: u32, open: bool) {
        let now = self.now;
        let one = &mut self.boards[board];
        if one.conn != Conn::Trying(conn) {
            // The agent was replaced meanwhile, or has cancelled the attempt.
            if open {
                self.socket_closed(board, conn);
            }
            return;
        }
        let node = one.node;
        if open && self.is_cut(node) {
            self.leave_half_open(board, Conn::Up(conn));
            let index = board as u32;
            let open = false;
            self.plan(
                CONNECT_TIMEOUT_MS,
                Event::Dialled {
                    board: index,
                    conn,
                    open,
                },
            );
            return;
        }
        if open {
            self.server_proven(board);
        }
        let one = &mut self.boards[board];
        let local = one.local(now);
        let Some(machine) = &mut one.machine else {
            return;
        };
        if open {
            one.conn = Conn::Up(conn);
            machine
                .agent
                .handle(local, AgentInput::Uplink(UplinkInput::Up));
            machine.session.handle(local, LinkInput::TransportUp);
        } else {
            self.link_down(board);
        }
        self.settle_board(board);
    }

    /// The broker has presented its certificate and proven its key, before the board presents its own.
    pub(crate) fn server_proven(&mut self, board: usize) {
        let one = &mut self.boards[board];
        let local = one.local(self.now);
        if let Some(machine) = &mut one.machine {
            machine.time.server(local, self.broker.not_after_s);
        }
    }

    /// As the driver does it when the link ends or the attempt fails.
    pub(crate) fn link_down(&mut self, board: usize) {
        let now = self.now;
        let one = &mut self.boards[board];
        let local = one.local(now);
        one.conn = Conn::None;
        if let Some(machine) = &mut one.machine {
            machine.session.handle(local, LinkInput::TransportDown);
            let down = UplinkInput::Down {
                reason: String::new(),
                refused: std::mem::take(&mut machine.refused),
            };
            machine.agent.handle(local, AgentInput::Uplink(down));
        }
    }

    /// The board's connection has ended: the broker closed it, or nothing was received for too long.
    pub(crate) fn connection_broken(&mut self, board: usize, conn: u32, silence: bool) {
        let one = &self.boards[board];
        let still_silent = !silence || self.is_cut(one.node);
        let current = matches!(one.conn, Conn::Up(id) | Conn::Trying(id) if id == conn);
        if current && still_silent {
            if silence {
                let gone = one.conn;
                self.leave_half_open(board, gone);
            }
            self.link_down(board);
            self.settle_board(board);
        }
    }

    /// A cut begins: each end notices after its own timeout, if the cut lasts so long.
    pub(crate) fn cut_begins(&mut self, board: usize) {
        if let Conn::Up(conn) = self.boards[board].conn {
            let keepalive = self.scenario.broker.keepalive_s * 1000;
            let heard = self.boards[board].rng.below(keepalive);
            let timeout = keepalive * u64::from(SILENCE_PERCENT) / 100;
            let index = board as u32;
            self.plan(
                timeout - heard,
                Event::Broken {
                    board: index,
                    conn,
                    silence: true,
                },
            );
            self.leave_half_open(board, Conn::Up(conn));
        }
    }

    /// The broker does not know that this connection is gone; it will after one and a half
    /// keepalives.
    pub(crate) fn leave_half_open(&mut self, board: usize, conn: Conn) {
        if let Conn::Up(conn) | Conn::Trying(conn) = conn {
            let keepalive = self.scenario.broker.keepalive_s * 1000;
            let heard = self.boards[board].rng.below(keepalive);
            let node = self.boards[board].node;
            self.plan(keepalive * 3 / 2 - heard, Event::Expire { node, conn });
        }
    }
}
