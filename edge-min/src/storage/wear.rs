//! Wear of the board's eMMCs, from sysfs. SD cards, NVMe and SATA disks have no
//! such files, and neither have eMMCs before version 5.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use edge_core::flash::Wear;

/// Devices that are listed; a board has one, rarely two.
const DEVICES_MAX: usize = 8;
/// Bytes of a register's file that are read.
const TEXT_BYTES_MAX: u64 = 64;

/// The eMMCs that report wear, by name.
#[must_use]
pub fn devices(sysfs: &Path) -> Vec<(String, Wear)> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(sysfs.join("block"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        // Not `mmcblk0boot0`, which is a part of the same chip.
        let number = name.to_str().and_then(|name| name.strip_prefix("mmcblk"));
        if !number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
            continue;
        }
        let device = entry.path().join("device");
        let wear = Wear::parse(
            &text(&device.join("life_time")),
            &text(&device.join("pre_eol_info")),
        );
        if wear != Wear::default() && devices.len() < DEVICES_MAX {
            devices.push((name.to_string_lossy().into_owned(), wear));
        }
    }
    devices.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    devices
}

/// Empty for a missing file.
fn text(path: &Path) -> String {
    let mut text = String::new();
    if let Ok(file) = fs::File::open(path) {
        // A partial text, or none, is parsed like any other text.
        drop(file.take(TEXT_BYTES_MAX).read_to_string(&mut text));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an eMMC is found among other devices of a board. Method: the tree as sysfs has it.
    #[test]
    fn only_emmcs_that_say_something_are_listed() {
        let sysfs = tempfile::tempdir().unwrap();
        let put = |name: &str, files: &[(&str, &str)]| {
            let device = sysfs.path().join("block").join(name).join("device");
            fs::create_dir_all(&device).unwrap();
            for (file, text) in files {
                fs::write(device.join(file), text).unwrap();
            }
        };
        assert_eq!(devices(sysfs.path()), []);
        let life = ("life_time", "0x01 0x0a\n");
        put("mmcblk1", &[life, ("pre_eol_info", "0x01\n")]);
        put("mmcblk1boot0", &[life]);
        put("mmcblk0", &[("type", "SD\n")]);
        put("nvme0n1", &[life]);
        put("vda", &[]);
        put("mmcblk2", &[("life_time", "0x02 0x01\n")]);
        let found = devices(sysfs.path());
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["mmcblk1", "mmcblk2"]);
        assert!(found[0].1.worn() && !found[1].1.worn());
    }
}
