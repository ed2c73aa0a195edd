//! Bytes as a certificate: none may panic, and x509-parser and the agent must read the same expiry.
//! The agent may read fewer: x509-parser accepts a constructed time.
#![no_main]

use edge_min::link::certificate::life;
use libfuzzer_sys::fuzz_target;
use x509_parser::prelude::{FromDer as _, X509Certificate};

fuzz_target!(|data: &[u8]| {
    let Some((issued, end)) = life(data) else {
        return;
    };
    assert!(issued <= end, "{issued} {end}");
    // Bytes after the certificate do not belong to it.
    let mut longer = data.to_vec();
    longer.push(0x30);
    assert_eq!(life(&longer), Some((issued, end)));
    if let Ok((_, certificate)) = X509Certificate::from_der(data) {
        assert_eq!(
            u64::try_from(certificate.validity().not_after.timestamp()),
            Ok(end)
        );
    }
});
