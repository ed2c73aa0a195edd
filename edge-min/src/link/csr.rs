//! The PKCS#10 request of a join, written by hand: one P-256 key, one CN, no attributes. A
//! certificate library would cost the agent ten times the bytes of these few DER lines.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

/// `id-ecPublicKey` with curve `prime256v1` (RFC 5480).
const P256_ALGORITHM: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 0x03, 0x01, 0x07,
];
/// `ecdsa-with-SHA256` (RFC 5758).
const ECDSA_SHA256: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
];
/// Attribute type `id-at-commonName`.
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const UTF8_STRING: u8 = 0x0c;
const BIT_STRING: u8 = 0x03;
const ATTRIBUTES: u8 = 0xa0;

/// Generates a P-256 key, PKCS#8. `None` when the system's random source fails.
#[must_use]
pub fn generate() -> Option<Vec<u8>> {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).ok()?;
    Some(key.as_ref().to_vec())
}

/// Creates a request for `node`, signed by this key. `None` when the key is invalid, or the
/// system's random source fails.
#[must_use]
pub fn request(node: &str, key: &[u8]) -> Option<Vec<u8>> {
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key, &random).ok()?;
    let name = der(
        SEQUENCE,
        &[&der(
            SET,
            &[&der(
                SEQUENCE,
                &[COMMON_NAME, &der(UTF8_STRING, &[node.as_bytes()])],
            )],
        )],
    );
    let public = der(
        SEQUENCE,
        &[
            P256_ALGORITHM,
            &der(BIT_STRING, &[&[0], pair.public_key().as_ref()]),
        ],
    );
    let version = [0x02, 0x01, 0x00];
    let info = der(SEQUENCE, &[&version, &name, &public, &der(ATTRIBUTES, &[])]);
    let signature = pair.sign(&random, &info).ok()?;
    Some(der(
        SEQUENCE,
        &[
            &info,
            ECDSA_SHA256,
            &der(BIT_STRING, &[&[0], signature.as_ref()]),
        ],
    ))
}

/// Signs a message with this key, as ASN.1. `None` as for [`request`].
#[must_use]
pub fn sign(key: &[u8], message: &[u8]) -> Option<Vec<u8>> {
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key, &random).ok()?;
    let signature = pair.sign(&random, message).ok()?;
    Some(signature.as_ref().to_vec())
}

/// One DER value. Contents here stay far below the 64 KiB that two length bytes can express.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let [high, low] = u16::try_from(content.len())
        .unwrap_or(u16::MAX)
        .to_be_bytes();
    let mut bytes = match (high, low) {
        (0, 0..0x80) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    bytes.extend(content);
    bytes
}
