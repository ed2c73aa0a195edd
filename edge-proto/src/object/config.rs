//! ConfigMap, Secret and NodePolicy.

use alloc::string::String;
use alloc::vec::Vec;

use crate::fields::{FieldError, Reader, Skip, Writer};

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
}

impl NodePolicy {
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
                _ => field.unknown()?,
            }
        }
        Ok(policy)
    }
}
