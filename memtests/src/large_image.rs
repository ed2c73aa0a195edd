//! An image whose unpacking takes far longer than anything that must not wait for it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// Reference of the image.
pub const NAME: &str = "example.com/toll/large:1";
/// Its layers, as many as an image may have.
pub const LAYERS: usize = 32;
/// Files of a layer, near the cap of its entries: each is created, and the previous one of its name
/// removed. So the image takes tens of millions of system calls, and the restart after a crash
/// thousands.
const FILES: usize = 1000;
const REPEATS: usize = 99;

/// Creates it as an OCI layout.
///
/// # Errors
/// Those of the file system, or `gzip` or `sha256sum` is missing.
pub fn make(layout: &Path) -> Result<()> {
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let files: Vec<u8> = (0..FILES)
        .flat_map(|number| header(&format!("file-{number}")))
        .collect();
    let files = compressed(layout, &files)?.repeat(REPEATS);
    let mut layers = Vec::new();
    for number in 0..LAYERS {
        let first = compressed(layout, &header(&format!("layer-{number}")))?;
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        layers.push(blob(layout, kind, &[first, files.clone()].concat())?);
    }
    let config = blob(layout, "application/vnd.oci.image.config.v1+json", b"{}")?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let mut image = blob(layout, kind, manifest.as_bytes())?;
    image["annotations"] = json!({"org.opencontainers.image.ref.name": NAME});
    let index = json!({"schemaVersion": 2, "manifests": [image]});
    fs::write(layout.join("index.json"), index.to_string())?;
    // Last: an agent takes the folder for a layout when this file exists.
    let version = json!({"imageLayoutVersion": "1.0.0"});
    fs::write(layout.join("oci-layout"), version.to_string())?;
    Ok(())
}

/// Complete layers below a state directory, and those that are being unpacked.
///
/// # Errors
/// Those of the file system.
pub fn layers(state: &Path) -> Result<(usize, usize)> {
    let (mut whole, mut half) = (0, 0);
    for entry in fs::read_dir(state.join("layers"))? {
        let name = entry?.file_name();
        match name.to_string_lossy().ends_with(".tmp") {
            true => half += 1,
            false => whole += 1,
        }
    }
    Ok((whole, half))
}

/// The header of an empty file in a tar.
fn header(name: &str) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| {
        let bytes = header.iter_mut().skip(at);
        bytes.zip(text.bytes()).for_each(|(old, new)| *old = new);
    };
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, "00000000000");
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    let bytes = header.iter_mut().skip(148);
    bytes.zip(sum.bytes()).for_each(|(old, new)| *old = new);
    header
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(output.stdout)
}

/// One member of a gzip file, which may have many.
fn compressed(dir: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let file = dir.join("member");
    fs::write(&file, bytes)?;
    output(Command::new("gzip").args(["-1", "-c"]).arg(file))
}

/// Adds a blob to a layout; returns its descriptor.
fn blob(layout: &Path, kind: &str, bytes: &[u8]) -> Result<Value> {
    let blobs = layout.join("blobs/sha256");
    let new = blobs.join("new");
    fs::write(&new, bytes)?;
    let sum = String::from_utf8(output(Command::new("sha256sum").arg(&new))?)?;
    let hex = sum.split(' ').next().unwrap_or_default();
    fs::rename(new, blobs.join(hex))?;
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len()}))
}
