//! Shared by the targets: a scratch folder in memory, an outbox, and tars with correct checksums.

use std::fs;
use std::path::{Path, PathBuf};

use edge_core::outbox::ClassConfig;
use edge_min::storage::outbox::{Class, Settings};

const BLOCK: usize = 512;

/// An empty folder of this process, on a tmpfs where there is one.
pub fn scratch(name: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let path = base.join(format!("edge-min-fuzz-{name}-{}", std::process::id()));
    edge_min::storage::tree::remove(&path).unwrap();
    fs::create_dir_all(&path).unwrap();
    path
}

/// An outbox of 1 MiB with one durable class.
pub fn toll_only() -> Settings {
    Settings {
        quota_bytes: 1 << 20,
        classes: vec![Class {
            name: "toll".to_owned(),
            config: ClassConfig {
                number: 0,
                quota_bytes: 1 << 20,
                ttl_ms: None,
            },
            must: true,
        }],
    }
}

/// The bytes as a tar with a correct checksum in each header: otherwise hardly any input would get past
/// the first header.
pub fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut tar = bytes.to_vec();
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + BLOCK) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = header[124..136]
            .iter()
            .take_while(|byte| (b'0'..=b'7').contains(*byte))
            .fold(0_usize, |size, byte| (size << 3) + usize::from(byte - b'0'));
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    tar
}

/// A header with its content, as a tar has them.
pub fn entry(kind: u8, path: &[u8], link: &[u8], mode: u32, body: &[u8]) -> Vec<u8> {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], room: usize| {
        let length = bytes.len().min(room);
        header[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, path, 100);
    put(100, format!("{:07o}", mode & 0o7777).as_bytes(), 8);
    put(108, b"0000000", 8);
    put(116, b"0000000", 8);
    put(124, format!("{:011o}", body.len()).as_bytes(), 12);
    put(136, b"00000000001", 12);
    put(156, &[kind], 1);
    put(157, link, 100);
    put(257, b"ustar\x0000", 8);
    let mut entry = header.to_vec();
    entry.extend_from_slice(body);
    entry.resize(entry.len().next_multiple_of(BLOCK), 0);
    entry
}
