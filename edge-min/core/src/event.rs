//! Events for the agent's log: event word first, then `key=value`.

use alloc::string::String;

use edge_proto::Millis;
use edge_proto::key::{Key, Uid};

/// One logged state change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container that an earlier agent started was adopted.
    Adopted(Uid, String),
    /// A container runs.
    Started(Uid, String, u32),
    /// A container could not be started.
    StartFailed(Uid, String, String),
    /// A container ended.
    Exited(Uid, String, Option<i32>),
    /// A container will be started again after this delay, milliseconds.
    Restart(Uid, String, Millis),
    /// A container did not end after SIGKILL.
    KillFailed(Uid, String, u32),
    /// Remains of a container could not be cleared.
    RemoveFailed(Uid, String, String),
    /// Remains of a pod could not be cleared.
    PodRemoveFailed(Uid, String),
    /// A container that no desired pod has is stopped.
    Orphan(Uid, String),
    /// Nothing of a pod is left on the board.
    PodGone(Uid),
    /// An object was refused.
    Refused(Key, String),
    /// There is no link, for this reason.
    NoLink(String),
    /// The link is down; the next attempt is after so many milliseconds.
    LinkDown(Millis, String),
    /// An attempt to renew the certificate starts.
    RenewalBegins,
    /// The certificate was renewed; contains its expiry, seconds since 1970.
    Renewed(u64),
    /// The certificate could not be renewed.
    NotRenewed(String),
    /// The new certificate has passed its trial; contains its expiry.
    CertificateInUse(u64),
    /// The new certificate was refused, and the old one works.
    CertificateRefused,
    /// The cloud's time is after the expiry of the certificate, and was not accepted.
    TimeRefused(u64),
}

impl Event {
    /// Whether the event reports a failure that the agent handles, and that may recur.
    #[must_use]
    pub const fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::PodRemoveFailed(..)
                | Self::NoLink(_)
                | Self::NotRenewed(_)
                | Self::CertificateRefused
                | Self::TimeRefused(_)
        )
    }
}

impl core::fmt::Display for Event {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Adopted(uid, name) => write!(f, "adopted pod={uid} container={name}"),
            Self::Started(uid, name, pid) => {
                write!(f, "started pod={uid} container={name} pid={pid}")
            }
            Self::StartFailed(uid, name, reason) => {
                write!(f, "start_failed pod={uid} container={name} reason={reason}")
            }
            Self::Exited(uid, name, Some(code)) => {
                write!(f, "exited pod={uid} container={name} code={code}")
            }
            Self::Exited(uid, name, None) => {
                write!(f, "exited pod={uid} container={name} code=unknown")
            }
            Self::Restart(uid, name, delay_ms) => {
                write!(f, "restart pod={uid} container={name} delay_ms={delay_ms}")
            }
            Self::KillFailed(uid, name, pid) => {
                write!(f, "kill_failed pod={uid} container={name} pid={pid}")
            }
            Self::RemoveFailed(uid, name, reason) => {
                write!(f, "remove_failed pod={uid} container={name} error={reason}")
            }
            Self::PodRemoveFailed(uid, reason) => {
                write!(f, "pod_remove_failed pod={uid} error={reason}")
            }
            Self::Orphan(uid, name) => write!(f, "orphan pod={uid} container={name}"),
            Self::PodGone(uid) => write!(f, "pod_gone pod={uid}"),
            Self::Refused(key, reason) => write!(f, "refused key={key} reason={reason}"),
            Self::NoLink(reason) => write!(f, "no_link reason={reason}"),
            Self::LinkDown(wait_ms, reason) => {
                write!(f, "link_down again_ms={wait_ms} reason={reason}")
            }
            Self::RenewalBegins => f.write_str("renewal_begins"),
            Self::Renewed(not_after) => write!(f, "renewed not_after={not_after}"),
            Self::NotRenewed(reason) => write!(f, "not_renewed reason={reason}"),
            Self::CertificateInUse(not_after) => {
                write!(f, "certificate_in_use not_after={not_after}")
            }
            Self::CertificateRefused => f.write_str("certificate_refused the_old_one_works=true"),
            Self::TimeRefused(unix_s) => write!(f, "time_refused unix_s={unix_s}"),
        }
    }
}
