//! Bytes as text: hashes, serial numbers and random ids in files, answers and tokens.

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
