//! A model of the MQTT broker: one connection for each identity, wills, QoS 0, access control by
//! topic, a rate of TLS handshakes. A restart loses every connection and sends no will.

use edge_core::limits::CONNECT_TIMEOUT_MS;
use edge_proto::limits::SILENCE_PERCENT;

use crate::board::Conn;
use crate::cloud::FRAME_MS;
use crate::event::{Event, Packet, Topic};
use crate::shell::PACKET_BYTES;
use crate::world::{START_UNIX_S, World};

/// An open connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) id: u32,
    pub(crate) board: u32,
    will: Vec<u8>,
}

/// Its connections, its TLS capacity and its certificate.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) up: bool,
    /// By node.
    pub(crate) connections: Vec<Option<Connection>>,
    /// Time at which the next connection can be opened, microseconds.
    free_us: u64,
    conns: u32,
    /// Expiry of its certificate, seconds since 1970.
    pub(crate) not_after_s: u64,
}

impl Broker {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            up: true,
            connections: vec![None; nodes],
            free_us: 0,
            conns: 0,
            not_after_s: START_UNIX_S + 90 * 86_400,
        }
    }

    pub(crate) const fn next_conn(&mut self) -> u32 {
        self.conns += 1;
        self.conns
    }

    /// Access control: a node may write under its own name only. The reader must check the shard.
    const fn may_write(connection: u32, topic: Topic) -> bool {
        topic.node == connection
    }
}

impl World {
    /// Requests a connection: it waits for the TLS handshakes before it.
    pub(crate) fn dial(&mut self, board: usize, conn: u32) {
        let node = self.boards[board].node;
        let options = &self.scenario.broker;
        let now_us = self.now * 1000;
        let slot = self.broker.free_us.max(now_us);
        let cost = 1_000_000 / options.accept_per_s;
        let full = slot - now_us > options.accept_queue * cost;
        let wait_ms = (slot - now_us) / 1000;
        let delay = self.scenario.link.delay_ms;
        let away = !self.broker.up || self.is_cut(node) || full;
        let shown = self.boards[board].shown;
        let revoked = self.stored_nodes[node as usize].revoked.is_some();
        let refused = !away && (revoked || !self.admits_certificate(node, shown));
        if refused {
            self.server_proven(board);
            self.boards[board].alert(conn);
        }
        if away || refused {
            self.stats.refused += 1;
            self.series.refused(self.now);
            let board = board as u32;
            let open = false;
            self.plan(delay, Event::Dialled { board, conn, open });
            return;
        }
        self.broker.free_us = slot + cost;
        let index = board as u32;
        if wait_ms > CONNECT_TIMEOUT_MS {
            // The handshake is done although the client is gone.
            self.plan(
                CONNECT_TIMEOUT_MS,
                Event::Dialled {
                    board: index,
                    conn,
                    open: false,
                },
            );
            return;
        }
        if self.boards[board].conn != Conn::Trying(conn) {
            return;
        }
        self.series.connect(self.now + wait_ms);
        self.stats.connects += 1;
        self.check_admitted(node);
        let Some(machine) = &self.boards[board].machine else {
            return;
        };
        let will = machine.session.will();
        let connection = Connection {
            id: conn,
            board: index,
            will,
        };
        if let Some(old) = self.broker.connections[node as usize].replace(connection) {
            // The newest connection of an identity replaces the older.
            self.stats.takeovers += 1;
            self.close(node, &old);
        }
        let open = true;
        self.plan(
            wait_ms + delay,
            Event::Dialled {
                board: index,
                conn,
                open,
            },
        );
    }

    /// The broker closes a connection: its will is published, and its board is informed.
    fn close(&mut self, node: u32, connection: &Connection) {
        self.publish_will(node, connection);
        self.plan_broken(connection.board, connection.id, 0);
    }

    /// Plans that a board notices the end of its connection, after `ms` and its delay; while it is cut off
    /// only when that ends, or by its timeout.
    fn plan_broken(&mut self, board: u32, conn: u32, ms: u64) {
        let node = self.boards[board as usize].node;
        let keepalive = self.scenario.broker.keepalive_s * 1000;
        let cut = self.cut_until(node).saturating_sub(self.now);
        let timeout = keepalive * u64::from(SILENCE_PERCENT) / 100;
        let event = Event::Broken {
            board,
            conn,
            silence: false,
        };
        self.plan(ms + cut.min(timeout) + self.scenario.link.delay_ms, event);
    }

    fn publish_will(&mut self, node: u32, connection: &Connection) {
        let shard = self.stored_nodes[node as usize].shard;
        self.route(Packet {
            topic: Topic { shard, node },
            from: node,
            bytes: connection.will.clone(),
        });
    }

    fn remove(&mut self, node: u32, conn: u32) -> Option<Connection> {
        self.broker.connections[node as usize].take_if(|one| one.id == conn)
    }

    /// The socket of a board was closed at its end, without a DISCONNECT.
    pub(crate) fn socket_closed(&mut self, board: usize, conn: u32) {
        let node = self.boards[board].node;
        if self.is_cut(node) {
            self.leave_half_open(board, Conn::Up(conn));
        } else if let Some(connection) = self.remove(node, conn) {
            self.publish_will(node, &connection);
        }
    }

    /// Nothing was received from a board for one and a half keepalives, if that is still so.
    pub(crate) fn connection_expires(&mut self, node: u32, conn: u32) {
        let Some(connection) = &self.broker.connections[node as usize] else {
            return;
        };
        let board = &self.boards[connection.board as usize];
        let heard = board.conn == Conn::Up(conn) && !self.is_cut(node);
        if !heard && let Some(connection) = self.remove(node, conn) {
            self.close(node, &connection);
        }
    }

    /// The node is refused from now on: its connection ends.
    pub(crate) fn end_connection(&mut self, node: u32) {
        if let Some(connection) = self.broker.connections[node as usize].take() {
            self.close(node, &connection);
        }
    }

    /// A frame has arrived; the replica that reads its shard gets it.
    pub(crate) fn frame_at_broker(&mut self, board: usize, conn: u32, packet: Packet) {
        self.boards[board].up.waiting = self.boards[board].up.waiting.saturating_sub(1);
        let node = self.boards[board].node;
        let current = self.broker.connections[node as usize].as_ref();
        if current.is_none_or(|connection| connection.id != conn) {
            return;
        }
        if !Broker::may_write(node, packet.topic) {
            self.stats.denied += 1;
            return;
        }
        self.route(packet);
    }

    fn route(&mut self, packet: Packet) {
        if !self.broker.up {
            return;
        }
        for replica in 0..self.replicas.len() {
            let one = &self.replicas[replica];
            if one.linked && one.reads(packet.topic.shard) {
                let life = one.life;
                let packet = Box::new(packet.clone());
                let index = u8::try_from(replica).unwrap_or_default();
                let Some(ms) = self.take_place(replica) else {
                    self.stats.dropped += 1;
                    continue;
                };
                self.plan(
                    ms,
                    Event::ToCloud {
                        replica: index,
                        life,
                        packet,
                    },
                );
            }
        }
    }

    /// A frame for a node, from a replica with `epoch`.
    pub(crate) fn publish_down(&mut self, node: u32, epoch: u64, bytes: Vec<u8>) {
        self.stats.frames_down += 1;
        if !self.broker.up {
            return;
        }
        let Some(connection) = &self.broker.connections[node as usize] else {
            return;
        };
        let (board, conn) = (connection.board, connection.id);
        let index = board as usize;
        if self.boards[index].down.waiting >= self.scenario.broker.queue {
            self.stats.dropped += 1;
            return;
        }
        let size = bytes.len() + PACKET_BYTES;
        self.series.down(self.now, size);
        if self.is_cut(node) {
            return;
        }
        let bytes = bytes.into_boxed_slice();
        for at in self.transmit(index, false, size).into_iter().flatten() {
            self.boards[index].down.waiting += 1;
            let bytes = bytes.clone();
            self.queue.push(
                at + FRAME_MS,
                Event::Down {
                    board,
                    conn,
                    epoch,
                    bytes,
                },
            );
        }
    }

    /// The broker stops; `down_ms` later it is back, without any state.
    pub(crate) fn broker_restarts(&mut self, down_ms: u64) {
        if !self.broker.up {
            return;
        }
        self.stats.broker_restarts += 1;
        self.broker.up = false;
        for node in 0..self.broker.connections.len() {
            if let Some(connection) = self.broker.connections[node].take() {
                // The kernel of the broker's host closes its sockets.
                let ms = self.rng.below(500);
                self.plan_broken(connection.board, connection.id, ms);
            }
        }
        self.replicas_lose_broker();
        self.plan(down_ms, Event::BrokerUp);
    }

    pub(crate) fn broker_up(&mut self) {
        self.broker.up = true;
        self.broker.free_us = self.now * 1000;
        self.disturbed_at = self.now;
    }
}
