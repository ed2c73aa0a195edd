//! ConfigMap, Secret and NodePolicy.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::fields::{FieldError, Reader, Skip, Writer};
use crate::lanes::{LANES, Limits};

/// Bytes by key, sorted by key.
pub type Data = Vec<(String, Vec<u8>)>;

/// A ConfigMap; `data` and `binaryData` are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigMap {
    /// Values by key.
    pub data: Data,
}

/// A Secret. Its `Debug` shows keys only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret {
    /// Values by key.
    pub data: Data,
}

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list()
            .entries(self.data.iter().map(|(key, _)| key))
            .finish()
    }
}

fn encode(data: &Data) -> Vec<u8> {
    let mut fields = Writer::default();
    fields.put(1, Skip::Refused, data);
    fields.into_bytes()
}

fn decode(bytes: &[u8]) -> Result<Data, FieldError> {
    let mut data = Data::new();
    for field in Reader::new(bytes) {
        let field = field?;
        match field.number {
            1 => data = field.read()?,
            _ => field.unknown()?,
        }
    }
    Ok(data)
}

impl ConfigMap {
    /// Payload bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(&self.data)
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// The first wrong field.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        decode(bytes).map(|data| Self { data })
    }
}

impl Secret {
    /// Payload bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(&self.data)
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// The first wrong field.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        decode(bytes).map(|data| Self { data })
    }
}

/// What the cloud allows the node; absent fields leave the board's own setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePolicy {
    /// MQTT keepalive, seconds.
    pub keepalive_s: Option<u32>,
    /// Time over which the fleet's first attempts after a lost link are spread, seconds.
    pub reconnect_spread_s: Option<u32>,
    /// What the node may send, bits per second.
    pub bandwidth_up: Option<u64>,
    /// What it may be sent, bits per second.
    pub bandwidth_down: Option<u64>,
    /// What pieces are owed of a full link, percent.
    pub blob_share_percent: Option<u8>,
    /// Limits of single lanes, at most one for each.
    pub limits: Vec<LaneLimit>,
}

/// What one lane may take, bits per second; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneLimit {
    /// Number of the lane, see `lanes::Lane`.
    pub lane: u8,
    /// From the node.
    pub up: u64,
    /// To the node.
    pub down: u64,
}

impl NodePolicy {
    /// What holds for the frames that the node sends.
    #[must_use]
    pub fn limits_up(&self) -> Limits {
        self.lane_limits(self.bandwidth_up, |limit| limit.up)
    }

    /// What holds for the frames that the cloud sends.
    #[must_use]
    pub fn limits_down(&self) -> Limits {
        self.lane_limits(self.bandwidth_down, |limit| limit.down)
    }

    fn lane_limits(&self, bandwidth: Option<u64>, rate: fn(&LaneLimit) -> u64) -> Limits {
        let mut limits = Limits::NONE;
        limits.link_bits_per_s = bandwidth.unwrap_or(0);
        if let Some(percent) = self.blob_share_percent {
            limits.blob_share_percent = percent;
        }
        for limit in &self.limits {
            if let Some(place) = limits.lane_bits_per_s.get_mut(usize::from(limit.lane)) {
                *place = rate(limit);
            }
        }
        limits
    }

    /// [`Self::reconnect_spread_s`] in milliseconds; 0 when absent.
    #[must_use]
    pub fn reconnect_spread_ms(&self) -> u64 {
        u64::from(self.reconnect_spread_s.unwrap_or(0)) * 1_000
    }

    /// Payload bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Writer::default();
        fields.put(1, Skip::Allowed, &self.keepalive_s);
        fields.put(2, Skip::Allowed, &self.reconnect_spread_s);
        fields.put(3, Skip::Allowed, &self.bandwidth_up);
        fields.put(4, Skip::Allowed, &self.bandwidth_down);
        fields.put(5, Skip::Allowed, &self.blob_share_percent);
        fields.put(6, Skip::Allowed, &self.limits);
        fields.into_bytes()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// The first wrong field.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut policy = Self::default();
        for field in Reader::new(bytes) {
            let field = field?;
            match field.number {
                1 => policy.keepalive_s = field.read()?,
                2 => policy.reconnect_spread_s = field.read()?,
                3 => policy.bandwidth_up = field.read()?,
                4 => policy.bandwidth_down = field.read()?,
                5 => policy.blob_share_percent = field.read()?,
                6 => policy.limits = field.read()?,
                _ => field.unknown()?,
            }
        }
        if policy.limits.len() > LANES {
            return Err(FieldError::Limit(6));
        }
        Ok(policy)
    }
}
