//! Events of a fleet.

use edge_core::Input;
use edge_proto::hash::Hash32;
use edge_proto::key::Key;
use edge_proto::session::Payload;

use crate::certs::{Certificate, Enrolment};

/// Changes of a replicated set, as the session outputs them.
pub(crate) type Changes = Vec<(Key, Option<Payload>)>;

/// Where a frame is published: `m1/u/<shard>/<node>`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topic {
    pub(crate) shard: u8,
    pub(crate) node: u32,
}

/// A frame in flight to the cloud.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) topic: Topic,
    /// The node that really sent it: only the invariants use it.
    pub(crate) from: u32,
    pub(crate) bytes: Vec<u8>,
}

/// An answer of the board's own shell to its agent or session. It is lost with them.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Input for the agent.
    Agent(Input),
    /// The node has joined: its identity is on the medium.
    Joined,
    /// The changes with this ticket are durable.
    Durable(u32),
    /// How much of a large object is stored.
    Blob(Hash32),
    /// The appended records are written.
    Written,
    /// A piece of the log for this call is read.
    Piece(u32),
    /// Records of this class from this number on, at most so many bytes.
    Records(u8, u64, usize),
}

/// Planned in the queue for a virtual time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A deadline of a board has come.
    Wake(u32),
    /// A request for the next certificate arrives at an enrolment service of the cloud.
    Enrol(Enrolment),
    /// Its answer arrives at the board: a certificate and the time, or whether it was refused.
    Enrolled(Enrolment, Result<(Certificate, u64), bool>),
    /// A board's shell answers the agent of this boot.
    Answer(u32, u32, Box<Answer>),
    /// A container's process ends with this code.
    Exit(u32, u32, i32),
    /// A board is powered on, or its agent is started again.
    Start(u32, u32),
    /// A connection is requested at the broker.
    Dial { board: u32, conn: u32 },
    /// The answer arrives at the board.
    Dialled { board: u32, conn: u32, open: bool },
    /// The board has received nothing for too long, or its connection was closed.
    Broken {
        board: u32,
        conn: u32,
        silence: bool,
    },
    /// The broker has received nothing for too long.
    Expire { node: u32, conn: u32 },
    /// A frame arrives at the broker.
    Up {
        board: u32,
        conn: u32,
        packet: Box<Packet>,
    },
    /// A frame arrives at the board; it was sent under this epoch.
    Down {
        board: u32,
        conn: u32,
        epoch: u64,
        bytes: Box<[u8]>,
    },
    /// A frame arrives at a replica, in this count of its starts.
    ToCloud {
        replica: u8,
        life: u32,
        packet: Box<Packet>,
    },
    /// A deadline of a session has come.
    Session { replica: u8, life: u32, node: u32 },
    /// A replica has written a report of a node, or the store has refused it.
    Stored {
        replica: u8,
        life: u32,
        node: u32,
        /// Of the session, and of its write.
        ticket: (u32, u32),
        changes: Box<Changes>,
    },
    /// The sink has stored records, or has refused them.
    Sunk {
        replica: u8,
        life: u32,
        node: u32,
        serial: u32,
        batch: Box<crate::outbox::Batch>,
    },
    /// A client that reads an answer may have waited for too long; session and call.
    CallTimeout {
        replica: u8,
        life: u32,
        node: u32,
        call: (u32, u32),
    },
    /// It has read so many bytes, or leaves.
    CallRead {
        replica: u8,
        life: u32,
        node: u32,
        call: (u32, u32),
        taken: Option<u32>,
    },
    /// A replica checks its leases.
    Lease { replica: u8, life: u32 },
    /// A replica probes the next nodes.
    Probe { replica: u8, life: u32 },
    /// A replica looks for silent nodes.
    Watch { replica: u8, life: u32 },
    /// A replica tries to connect to the broker.
    Connect { replica: u8, life: u32 },
    /// A replica is started.
    Launch(u8),
    /// A paused replica continues.
    Resume(u8),
    /// The broker is back.
    BrokerUp,
    /// The next fault of a kind.
    Fault(crate::faults::Kind),
    /// A step of the scenario.
    Step(usize),
    /// A node gets a new version of a pod.
    RollOut(u32),
    /// A clone is switched off permanently.
    TwinOff(u32),
    /// A second has passed.
    Second,
}
