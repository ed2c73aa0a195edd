//! Inputs and outputs of the agent.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Uid};
use edge_proto::object::NodeStatus;

use crate::certificates::Certificate;
use crate::event::Event;
use crate::flash::Counters;
use crate::host_paths::HostPaths;
use crate::renewal::{Time, Validity};
use crate::spec::{ContainerSpec, Volume};
use crate::supervisor::StartFailure;

/// Facts that the core cannot determine.
#[derive(Clone, Debug, Default)]
pub struct AgentConfig {
    /// Facts of the node; the core fills in conditions and refusals.
    pub facts: NodeStatus,
    /// What of the stored desired set is damaged, human-readable. Then the set may be incomplete, as when
    /// it is empty: containers that it does not name are not touched until [`Input::Confirmed`].
    pub damage: Option<String>,
    /// Nothing is stored.
    pub empty: bool,
    /// Containers write logs, which have to be truncated.
    pub trims_logs: bool,
    /// What hostPath volumes may mount.
    pub host_paths: HostPaths,
    /// Flash budget: bytes that may be written in a day; `None` is no budget.
    pub flash_bytes_per_day: Option<u64>,
}

/// A container that was on the board when the agent started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// UID of the pod.
    pub uid: Uid,
    /// Name in the pod.
    pub container: String,
    /// Hash of the spec that it was started with.
    pub spec: Hash16,
    /// Its process; `None` when only its remains exist.
    pub pid: Option<u32>,
}

/// Event for the agent.
#[derive(Clone, Debug)]
pub enum Input {
    /// An object of the desired set was set, or removed (`None`).
    Desired(Key, Option<Vec<u8>>),
    /// How the latest run of a container ended, as stored by an earlier agent; comes after the
    /// stored desired set and before `Discovered`.
    Ended {
        /// UID of the pod.
        uid: Uid,
        /// Name in the pod.
        container: String,
        /// Hash of the spec that it was started with.
        spec: Hash16,
        /// Exit code, `None` when unknown.
        code: Option<i32>,
        /// The kernel's OOM killer ended it.
        oom: bool,
    },
    /// All that was on the board at start; comes once, after the stored desired set, and may come after
    /// some `NotDiscovered`.
    Discovered {
        /// Containers and remains of containers.
        containers: Vec<Discovered>,
        /// Pods that have a directory.
        pods: Vec<Uid>,
    },
    /// What is on the board cannot be known now, for a person; nothing was done. [`Output::Discover`]
    /// follows later.
    NotDiscovered(String),
    /// The cloud has confirmed the whole desired set.
    Confirmed,
    /// Answer to `PreparePod`; the error is human-readable.
    PodPrepared(Uid, Result<(), String>),
    /// Answer to `Start`.
    Started {
        /// UID of the pod.
        uid: Uid,
        /// Name in the pod.
        container: String,
        /// Number of the run, from `Start`.
        run: u32,
        /// Hash of the spec, from `Start`.
        spec: Hash16,
        /// The process id, or why there is no process.
        result: Result<u32, StartFailure>,
    },
    /// A container ended.
    Exited {
        /// UID of the pod.
        uid: Uid,
        /// Name in the pod.
        container: String,
        /// Exit code, or 128 + signal; `None` is unknown.
        code: Option<i32>,
        /// The kernel's OOM killer ended it.
        oom: bool,
    },
    /// Answer to `Remove`; the error is human-readable, and `Remove` is repeated.
    Removed(Uid, String, Result<(), String>),
    /// Answer to `RemovePod`; the error is human-readable, and `RemovePod` is repeated while the pod is
    /// known.
    PodRemoved(Uid, Result<(), String>),
    /// Event of the link.
    Uplink(UplinkInput),
    /// Event of the node's certificate.
    Certificate(CertificateInput),
    /// The cloud has sent its time, seconds since 1970; the answer is `ConfirmTime` or nothing.
    CloudTime(u64),
    /// The reliable time: comes at start, and after each `ConfirmTime`.
    Time(Time),
    /// Bytes written to the flash since the agent's start; comes after each event that may have
    /// written something, and has no effect when nothing was written.
    Flash(Counters),
    /// Answer to `ReadWear`: names of the devices that should be replaced; empty when there are none.
    FlashWorn(String),
    /// Something does not work, and why; `None` when it does again. Becomes a condition of the node.
    Fault(Fault, Option<String>),
    /// Stop and remove every pod, whatever is desired: the node is removed from the fleet.
    Shutdown,
    /// The deadline has passed.
    Tick,
}

/// Event of the link.
#[derive(Clone, Debug)]
pub enum UplinkInput {
    /// The node has an identity, stored or just received; a connection may be tried.
    Identity {
        /// Name of the node.
        node: String,
        /// Seed of the delays between two attempts; differs from node to node.
        seed: u64,
        /// Validity of its certificate.
        new: Validity,
        /// Validity of the old certificate, if the trial of the new one has not ended.
        old: Option<Validity>,
    },
    /// The node has no identity, and may join by itself.
    MayJoin {
        /// Seed of the delays between two attempts; differs from node to node.
        seed: u64,
    },
    /// Answer to `Join`: it failed, for this human-readable reason. After a success comes `Identity`, or
    /// `Unlinked` when its result cannot be used.
    NotJoined(String),
    /// There will be no link until the agent's next start, for this human-readable reason.
    Unlinked(String),
    /// A connection is established.
    Up,
    /// The connection has ended, or could not be established after `Connect`.
    Down {
        /// Human-readable.
        reason: String,
        /// The other end has refused the certificate.
        refused: bool,
    },
    /// A session is live.
    Live,
    /// No session is live any more.
    NotLive,
    /// The other end violates the protocol; the text is human-readable.
    PeerProblem(String),
}

/// Event of the node's certificate.
#[derive(Clone, Debug)]
pub enum CertificateInput {
    /// The cloud requests a renewal.
    Wanted,
    /// Answer to `RenewCertificate`: the new certificate is stored, and the old one is kept.
    Renewed {
        /// Validity of the new certificate.
        new: Validity,
        /// The cloud's time, seconds since 1970.
        unix_s: u64,
    },
    /// Answer to `RenewCertificate`: no certificate was issued.
    NotRenewed {
        /// Human-readable.
        reason: String,
        /// The cloud has refused; otherwise it was not reached.
        refused: bool,
    },
}

/// What the shell notices and only a person can repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A change of the desired set cannot be written.
    StoreUnwritable,
    /// Records cannot be written.
    OutboxUnwritable,
    /// Threads are over the deadline of their jobs.
    WorkerStalled,
    /// The program at the agent's path cannot be executed.
    HandOverFailed,
}

/// Signal to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGKILL to the whole container.
    Kill,
}

/// Action for the link or the node's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UplinkOutput {
    /// Make one attempt to join; answered by `UplinkInput::Identity`, `NotJoined` or `Unlinked`.
    Join,
    /// Try a connection with this certificate; answered by `UplinkInput::Up` or `Down`.
    Connect(Certificate),
    /// Close the connection gracefully; `UplinkInput::Down` follows.
    Close,
    /// Make one attempt to renew the certificate; answered by `CertificateInput`.
    Renew,
    /// The new certificate works: delete the old one, on the medium as well.
    DropOldCertificate,
    /// The new certificate does not work: return to the old one, on the medium as well.
    RestoreOldCertificate,
    /// Accept this time, seconds since 1970; answered by `Input::Time`.
    ConfirmTime(u64),
}

/// Action for the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Look again what is on the board; answered by [`Input::Discovered`] or [`Input::NotDiscovered`].
    Discover,
    /// Create the pod's directory and the tmpfs of its logs; idempotent.
    PreparePod {
        /// UID of the pod.
        uid: Uid,
        /// Size of the tmpfs of its logs.
        logs_bytes: u64,
    },
    /// Rewrite the files of ConfigMaps and Secrets in those of these volumes that exist.
    UpdateConfig {
        /// UID of the pod.
        uid: Uid,
        /// Volumes with files.
        volumes: Vec<Volume>,
    },
    /// Start a container.
    Start(Box<ContainerSpec>),
    /// Cancel the starts of this pod that are in progress, such as the unpacking of an image. Each is
    /// answered nevertheless, and may have succeeded.
    CancelStarts(Uid),
    /// Signal a container.
    Signal {
        /// UID of the pod.
        uid: Uid,
        /// Name in the pod.
        container: String,
        /// Hash of the spec of the running container.
        spec: Hash16,
        /// The signal to send.
        signal: Signal,
    },
    /// Remove what a container left behind.
    Remove {
        /// UID of the pod.
        uid: Uid,
        /// Name in the pod.
        container: String,
    },
    /// Remove what a pod left behind, and layers that no pod uses any more.
    RemovePod {
        /// UID of the pod.
        uid: Uid,
        /// References of the images of the pods that stay.
        images_in_use: Vec<String>,
    },
    /// Truncate the log of a running container to its tail.
    TrimLog {
        /// UID of the pod.
        uid: Uid,
        /// Name in the pod.
        container: String,
        /// Bytes that are kept.
        log_bytes: u64,
    },
    /// Set an object of the reported set, or remove it.
    Report(Key, Option<Vec<u8>>),
    /// Action for the link or the node's certificate.
    Uplink(UplinkOutput),
    /// Whether the flash budget of the day is used up: writes that may be delayed are then delayed.
    FlashOverBudget(bool),
    /// Read how worn the flash is.
    ReadWear,
    /// The cloud has confirmed the desired set: write over what is damaged in the store.
    RepairStore,
    /// A line for the log.
    Event(Event),
}
