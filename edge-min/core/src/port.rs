//! What goes into the agent and what comes out.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Uid};
use edge_proto::object::{Condition, NodeStatus};

use crate::certificates::Certificate;
use crate::event::Event;
use crate::flash::Counters;
use crate::renewal::{Life, Time};
use crate::spec::{ContainerSpec, Volume};
use crate::supervisor::StartFailure;

/// Facts that the core cannot know.
#[derive(Clone, Debug, Default)]
pub struct AgentConfig {
    /// The node's facts; conditions and refusals are filled in by the core.
    pub facts: NodeStatus,
    /// The stored desired set may be incomplete: containers that it does not name are left alone
    /// until [`Input::Confirmed`].
    pub unconfirmed: bool,
    /// Containers write logs, which have to be kept short.
    pub trims_logs: bool,
    /// Bytes that may be written to the flash in a day; `None` is no budget.
    pub flash_bytes_per_day: Option<u64>,
}

/// A container that was on the board when the agent started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// Pod.
    pub uid: Uid,
    /// Container.
    pub container: String,
    /// Spec that it was started with.
    pub spec: Hash16,
    /// Its process; `None` when only its remains are there.
    pub pid: Option<u32>,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// An object of the desired set was put, or removed (`None`).
    Desired(Key, Option<Vec<u8>>),
    /// How the latest run of a container ended, as an earlier agent noted it; comes after the
    /// stored desired set and before `Discovered`.
    Ended {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
        /// Spec that it was started with.
        spec: Hash16,
        /// Exit code, `None` when unknown.
        code: Option<i32>,
        /// The kernel's OOM killer did it.
        oom: bool,
    },
    /// All that was on the board at start; comes once, after the stored desired set.
    Discovered {
        /// Containers and remains of containers.
        containers: Vec<Discovered>,
        /// Pods that have a directory.
        pods: Vec<Uid>,
    },
    /// The cloud has confirmed the whole desired set.
    Confirmed,
    /// Answer to `PreparePod`; the error is for a person.
    PodPrepared(Uid, Result<(), String>),
    /// Answer to `Start`.
    Started {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
        /// Number of the run, from `Start`.
        run: u32,
        /// Hash of the spec, from `Start`.
        spec: Hash16,
        /// The process, or why there is none.
        result: Result<u32, StartFailure>,
    },
    /// A container ended.
    Exited {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
        /// Code, 128 + signal; `None` is unknown.
        code: Option<i32>,
        /// The kernel's OOM killer did it.
        oom: bool,
    },
    /// Answer to `Remove`; the error is for a person, and it is asked again.
    Removed(Uid, String, Result<(), String>),
    /// Answer to `RemovePod`; the error is for a person, and it is asked again while the pod is known.
    PodRemoved(Uid, Result<(), String>),
    /// Something happened to the link.
    Uplink(UplinkInput),
    /// Something happened to the node's certificate.
    Certificate(CertificateInput),
    /// The cloud has sent its time, seconds since 1970; the answer is `ConfirmTime` or nothing.
    CloudTime(u64),
    /// The time that can be relied on: comes at start, and after each `ConfirmTime`.
    Time(Time),
    /// What was written to the flash since the agent's start; comes after each event that may have
    /// written something, and costs nothing when nothing was.
    Flash(Counters),
    /// Answer to `ReadWear`: the devices that should be replaced, for a person; empty when none.
    FlashWorn(String),
    /// A node condition was evaluated.
    Condition(Condition),
    /// Stop and remove every pod, whatever is desired: the node leaves the fleet.
    Shutdown,
    /// The deadline passed.
    Tick,
}

/// What happened to the link.
#[derive(Clone, Debug)]
pub enum UplinkInput {
    /// The node has an identity, stored or just joined; a connection may be tried.
    Identity {
        /// Name of the node.
        node: String,
        /// Of the delays between two attempts; differs from node to node.
        seed: u64,
        /// Life of its certificate.
        new: Life,
        /// Life of the one before, when the trial of the new one has not ended.
        old: Option<Life>,
    },
    /// The node has no identity, and may join by itself.
    MayJoin {
        /// Of the delays between two attempts; differs from node to node.
        seed: u64,
    },
    /// Answer to `Join`: it failed; for a person. After one that did not comes `Identity`, or
    /// `Unlinked` when nothing can be done with what it brought.
    NotJoined(String),
    /// There will be no link until the agent's next start; for a person.
    Unlinked(String),
    /// A connection is up.
    Up,
    /// The connection has ended, or the answer to `Connect` is that there is none.
    Down {
        /// For a person.
        reason: String,
        /// The other end has refused the certificate.
        refused: bool,
    },
    /// A session lives.
    Live,
    /// It does not live any more.
    NotLive,
    /// The other end does not keep to the protocol; for a person.
    PeerProblem(String),
}

/// What happened to the node's certificate.
#[derive(Clone, Debug)]
pub enum CertificateInput {
    /// The cloud asks for a renewal.
    Wanted,
    /// Answer to `RenewCertificate`: it is stored, and the one before is kept.
    Renewed {
        /// Life of the new certificate.
        new: Life,
        /// The cloud's time, seconds since 1970.
        unix_s: u64,
    },
    /// Answer to `RenewCertificate`: there is none.
    NotRenewed {
        /// For a person.
        reason: String,
        /// The cloud has refused; otherwise it was not reached.
        refused: bool,
    },
}

/// Signal to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGKILL to the whole container.
    Kill,
}

/// What to do about the link and the node's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UplinkOutput {
    /// Make one attempt to join; answered by `UplinkInput::Identity`, `NotJoined` or `Unlinked`.
    Join,
    /// Try a connection with this certificate; answered by `UplinkInput::Up` or `Down`.
    Connect(Certificate),
    /// Close the connection in order; `UplinkInput::Down` follows.
    Close,
    /// Make one attempt to renew the certificate; answered by `CertificateInput`.
    Renew,
    /// The new certificate works: drop the old one, on the medium as well.
    ForgetOldCertificate,
    /// The new certificate does not work: the old one is the node's again, on the medium as well.
    RestoreOldCertificate,
    /// Believe this time, seconds since 1970; answered by `Input::Time`.
    ConfirmTime(u64),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Make the pod's directory and the space of its logs; idempotent.
    PreparePod {
        /// Pod.
        uid: Uid,
        /// Bytes of the space of its logs.
        logs_bytes: u64,
    },
    /// Rewrite the files of ConfigMaps and Secrets in those of these volumes that stand.
    UpdateConfig {
        /// Pod.
        uid: Uid,
        /// Volumes with files.
        volumes: Vec<Volume>,
    },
    /// Start a container.
    Start(Box<ContainerSpec>),
    /// Give up the starts of this pod that are under way, such as the unpacking of an image. Each is
    /// answered all the same, and may have succeeded.
    CancelStarts(Uid),
    /// Signal a container.
    Signal {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
        /// Hash of the spec of what runs.
        spec: Hash16,
        /// Which.
        signal: Signal,
    },
    /// Clear what a container left behind.
    Remove {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
    },
    /// Clear what a pod left behind, and layers that no pod uses any more.
    RemovePod {
        /// Pod.
        uid: Uid,
        /// References of the images of the pods that stay.
        images_in_use: Vec<String>,
    },
    /// Cut the log of a running container to its tail.
    TrimLog {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
        /// Bytes that stay.
        log_bytes: u64,
    },
    /// Put an object into the reported set, or remove it.
    Report(Key, Option<Vec<u8>>),
    /// Something for the link or the node's certificate.
    Uplink(UplinkOutput),
    /// Whether the flash budget of the day is used up: what may be written late is late then.
    FlashOverBudget(bool),
    /// Read how worn the flash is.
    ReadWear,
    /// A line for the log.
    Event(Event),
}
