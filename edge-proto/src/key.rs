//! Keys of objects in a replicated set, and the kinds of objects.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::hash::hex;
use crate::limits::{CONFIG_BYTES_MAX, NAME_BYTES_MAX, OTHER_BYTES_MAX, POD_BYTES_MAX};

/// Kind of an object. The numbers are wire constants: append, never reorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// A Kubernetes Pod, down.
    Pod,
    /// A ConfigMap, down.
    ConfigMap,
    /// A Secret, down. Sealed at rest on the node.
    Secret,
    /// A device twin, down. Reserved.
    Device,
    /// A device model, down. Reserved.
    DeviceModel,
    /// A service of the mesh, down. Reserved.
    Service,
    /// A rule, down. Reserved.
    Rule,
    /// An artifact to fetch ahead, down. Reserved.
    Artifact,
    /// Bandwidth, offline, reconnect and time policy, down.
    NodePolicy,
    /// Firmware or agent target, down. Reserved.
    Update,
    /// The node itself, up.
    NodeStatus,
    /// A pod, up.
    PodStatus,
    /// A device, up. Reserved.
    DeviceStatus,
    /// An artifact, up. Reserved.
    ArtifactStatus,
    /// An update, up. Reserved.
    UpdateStatus,
}

impl Kind {
    /// Cap of the payload bytes of one object of this kind.
    #[must_use]
    pub const fn bytes_max(self) -> usize {
        match self {
            Self::Pod => POD_BYTES_MAX,
            Self::ConfigMap | Self::Secret => CONFIG_BYTES_MAX,
            _ => OTHER_BYTES_MAX,
        }
    }

    /// Bit of this kind in the mask of supported kinds in `Hello`.
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// UID of a Pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Uid(pub [u8; 16]);

hex!(Uid);

impl Uid {
    /// Reads 32 hex digits, with or without dashes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut digits = text.bytes().filter(|byte| *byte != b'-');
        let mut uid = [0; 16];
        for byte in &mut uid {
            let high = char::from(digits.next()?).to_digit(16)?;
            let low = char::from(digits.next()?).to_digit(16)?;
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        digits.next().is_none().then_some(Self(uid))
    }
}

/// Key of an object in a set. The order is that of the root hash: by kind, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// Pod and PodStatus: by UID.
    Uid(Kind, Uid),
    /// Everything else; cluster-wide objects have an empty namespace.
    Name(Kind, String, String),
}

impl Key {
    /// Key of a Pod.
    #[must_use]
    pub const fn pod(uid: Uid) -> Self {
        Self::Uid(Kind::Pod, uid)
    }

    /// Key of a pod's status.
    #[must_use]
    pub const fn pod_status(uid: Uid) -> Self {
        Self::Uid(Kind::PodStatus, uid)
    }

    /// Key of the one NodeStatus.
    #[must_use]
    pub const fn node_status() -> Self {
        Self::Name(Kind::NodeStatus, String::new(), String::new())
    }

    /// Kind of the object.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Uid(kind, _) | Self::Name(kind, _, _) => *kind,
        }
    }

    /// Canonical bytes: what the root hash covers. At most 2 + 2 x (2 + 253).
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Encoding these types into a Vec cannot fail; an empty key would only differ in the root.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Whether kind and form belong together and the names are within their cap.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        match self {
            Self::Uid(kind, _) => matches!(kind, Kind::Pod | Kind::PodStatus),
            Self::Name(kind, namespace, name) => {
                !matches!(kind, Kind::Pod | Kind::PodStatus)
                    && namespace.len() <= NAME_BYTES_MAX
                    && name.len() <= NAME_BYTES_MAX
            }
        }
    }
}

/// `Pod/0123..`, `ConfigMap/default/app`.
impl core::fmt::Display for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let kind = match self.kind() {
            Kind::Pod => "Pod",
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
            Kind::Device => "Device",
            Kind::DeviceModel => "DeviceModel",
            Kind::Service => "Service",
            Kind::Rule => "Rule",
            Kind::Artifact => "Artifact",
            Kind::NodePolicy => "NodePolicy",
            Kind::Update => "Update",
            Kind::NodeStatus => "NodeStatus",
            Kind::PodStatus => "PodStatus",
            Kind::DeviceStatus => "DeviceStatus",
            Kind::ArtifactStatus => "ArtifactStatus",
            Kind::UpdateStatus => "UpdateStatus",
        };
        match self {
            Self::Uid(_, uid) => write!(f, "{kind}/{uid}"),
            Self::Name(_, namespace, name) => write!(f, "{kind}/{namespace}/{name}"),
        }
    }
}
