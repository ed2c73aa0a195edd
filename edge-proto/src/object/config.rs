//! ConfigMap, Secret and NodePolicy.

use alloc::string::String;
use alloc::vec::Vec;

use crate::fields::{Fault, FieldError, field_list};
use crate::lanes::{LANES, Limits};
use crate::limits::DATA_KEYS_MAX;

/// Bytes by key, sorted by key, at most [`DATA_KEYS_MAX`].
pub type Data = Vec<(String, Vec<u8>)>;

/// A ConfigMap; `data` and `binaryData` are merged.
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

/// Settings of the node that the cloud overrides; an absent field leaves the board's own setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePolicy {
    /// MQTT keepalive, seconds.
    pub keepalive_s: Option<u32>,
    /// Time over which the fleet's first attempts after a lost link are spread, seconds.
    pub reconnect_spread_s: Option<u32>,
    /// Rate of all frames that the node sends, bits per second.
    pub bandwidth_up: Option<u64>,
    /// Rate of all frames that the cloud sends to it, bits per second.
    pub bandwidth_down: Option<u64>,
    /// Share of a full link that pieces are guaranteed, percent.
    pub blob_share_percent: Option<u8>,
    /// Limits of single lanes, at most one for each.
    pub limits: Vec<LaneLimit>,
}

/// Rate limit of one lane, bits per second; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneLimit {
    /// Number of the lane, see `lanes::Lane`.
    pub lane: u8,
    /// Rate of frames that the node sends.
    pub up: u64,
    /// Rate of frames that the cloud sends.
    pub down: u64,
}

field_list! {
    ConfigMap check check_config_map {
        1 must data,
    }
    Secret check check_secret {
        1 must data,
    }
    NodePolicy {
        1 may keepalive_s,
        2 may reconnect_spread_s,
        3 may bandwidth_up,
        4 may bandwidth_down,
        5 may blob_share_percent,
        6 may limits: lists LANES,
    }
    LaneLimit {
        1 must lane,
        2 must up,
        3 must down,
    }
}

fn check_config_map(object: &ConfigMap) -> Result<(), FieldError> {
    check_data(&object.data)
}

fn check_secret(object: &Secret) -> Result<(), FieldError> {
    check_data(&object.data)
}

fn check_data(data: &Data) -> Result<(), FieldError> {
    match data.len() {
        0..=DATA_KEYS_MAX => Ok(()),
        _ => Err(FieldError::new(Fault::Limit, 1)),
    }
}

impl NodePolicy {
    /// Limits of the frames that the node sends.
    #[must_use]
    pub fn limits_up(&self) -> Limits {
        self.lane_limits(self.bandwidth_up, |limit| limit.up)
    }

    /// Limits of the frames that the cloud sends.
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
}
