//! Keys of objects in a replicated set, and the kinds of objects.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::hash::hex;
use crate::limits::{CONFIG_BYTES_MAX, NAME_BYTES_MAX, OTHER_BYTES_MAX, POD_BYTES_MAX};
use crate::wire::{Wire, numbers, wire_struct};

numbers! {
    /// Kind of an object. The numbers are wire constants.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    pub enum Kind {
        /// A Kubernetes Pod, down.
        0 = Pod,
        /// A ConfigMap, down.
        1 = ConfigMap,
        /// A Secret, down. Sealed at rest on the node.
        2 = Secret,
        /// A device twin, down. Reserved.
        3 = Device,
        /// A device model, down. Reserved.
        4 = DeviceModel,
        /// A service of the mesh, down. Reserved.
        5 = Service,
        /// A rule, down. Reserved.
        6 = Rule,
        /// An artifact to fetch in advance, down. Reserved.
        7 = Artifact,
        /// Bandwidth, offline, reconnect and time policy, down.
        8 = NodePolicy,
        /// Firmware or agent target, down. Reserved.
        9 = Update,
        /// The node itself, up.
        10 = NodeStatus,
        /// A pod, up.
        11 = PodStatus,
        /// A device, up. Reserved.
        12 = DeviceStatus,
        /// An artifact, up. Reserved.
        13 = ArtifactStatus,
        /// An update, up. Reserved.
        14 = UpdateStatus,
    }
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
wire_struct! {
    Uid { 0 }
}

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

/// The key of no object: a Pod without a UID.
impl Default for Key {
    fn default() -> Self {
        Self::pod(Uid::default())
    }
}

/// The number of the form, then its members. Written by hand, because `variants!` names members. There
/// will be no third form: new kinds are keyed by name. A key is constructed in many places.
impl Wire for Key {
    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Uid(kind, uid) => {
                bytes.push(0);
                kind.put(bytes);
                uid.put(bytes);
            }
            Self::Name(kind, namespace, name) => {
                bytes.push(1);
                kind.put(bytes);
                namespace.put(bytes);
                name.put(bytes);
            }
        }
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        Some(match u8::take(rest)? {
            0 => Self::Uid(Wire::take(rest)?, Wire::take(rest)?),
            1 => Self::Name(Wire::take(rest)?, Wire::take(rest)?, Wire::take(rest)?),
            _ => return None,
        })
    }
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
        self.to_wire()
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
