//! Bytes as an OCI layout: a tar of one, its documents alone, or documents that refer to each other by
//! their correct digests.
#![no_main]

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use edge_min::image::layout::{ConfigFile, Index, Layout, Manifest};
use edge_min::worker::Stop;
use edge_min_fuzz::{scratch, with_checksums};
use libfuzzer_sys::fuzz_target;

/// Documents of one layout: one digit names each.
const DOCUMENTS_MAX: usize = 9;

/// Reads an image as the agent does, except for the unpacking.
fn read(layout: PathBuf) {
    let Some(layout) = Layout::at(layout) else {
        return;
    };
    let stop = Stop::after(Duration::from_secs(3600));
    for arch in ["x86_64", "aarch64", "arm"] {
        let Ok(index) = layout.index() else { break };
        let Ok(Some(manifest)) = layout.find(&index, "a:1", arch) else {
            continue;
        };
        layout.verified::<ConfigFile>(&manifest.config).ok();
        for descriptor in &manifest.layers {
            if let Ok(hex) = descriptor.hex() {
                assert!(hex.len() == 64 && !hex.contains(['/', '.']));
            }
            descriptor.packing().ok();
            if let Ok(mut bytes) = layout.layer(descriptor, &stop) {
                bytes.read_to_end(&mut Vec::new()).unwrap();
            }
        }
    }
}

/// Documents separated by an empty line, the first one is the index. `#2` becomes the digest of the
/// second one and `$2` its size, and so on.
fn documents(text: &str, dir: &PathBuf) {
    let blobs = dir.join("blobs/sha256");
    edge_min::storage::tree::remove(dir).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    fs::write(dir.join("oci-layout"), "{}").unwrap();
    let mut done: Vec<(usize, String, usize)> = Vec::new();
    let all: Vec<&str> = text.splitn(DOCUMENTS_MAX, "\n\n").collect();
    for (index, document) in all.iter().enumerate().rev() {
        let mut document = (*document).to_owned();
        for (number, hex, size) in &done {
            document = document
                .replace(&format!("#{number}"), &format!("sha256:{hex}"))
                .replace(&format!("${number}"), &size.to_string());
        }
        if index == 0 {
            fs::write(dir.join("index.json"), document).unwrap();
            return;
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, document.as_bytes());
        let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        fs::write(blobs.join(&hex), &document).unwrap();
        done.push((index + 1, hex, document.len()));
    }
}

fuzz_target!(|data: &[u8]| {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| scratch("layout"));
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    match mode % 3 {
        0 => {
            let file = dir.join("layout.tar");
            fs::write(&file, with_checksums(bytes)).unwrap();
            read(file);
        }
        1 => {
            serde_json::from_slice::<Index>(bytes).ok();
            serde_json::from_slice::<Manifest>(bytes).ok();
            serde_json::from_slice::<ConfigFile>(bytes).ok();
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(bytes) {
                let layout = dir.join("layout");
                documents(text, &layout);
                read(layout);
            }
        }
    }
});
