//! A disk whose own cache loses unflushed writes: QEMU's `blklogwrites` records every write and
//! every flush of the guest (the format of the kernel's dm-log-writes), and [`cut`] writes to the
//! disk what a power cut may leave of that: everything up to the last flush, and of later writes
//! each sector at random.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

const SECTOR: u64 = 512;
/// Upper bound of a write, sectors: a log with a larger one is damaged.
const SECTORS_MAX: u64 = 1 << 20;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// Result of a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Writes up to the last flush.
    pub flushed: usize,
    /// Writes after it.
    pub unflushed: usize,
    /// Sectors of these that were lost.
    pub sectors_lost: usize,
}

struct Entry {
    sector: u64,
    flags: u64,
    data: Vec<u8>,
}

/// Changes a disk, as it was at the boot, to a state in which a power cut may leave it.
///
/// # Errors
/// The log cannot be read, or is invalid.
pub fn cut(disk: &Path, log: &Path, seed: u64) -> Result<Cut> {
    let entries = read(log)?;
    let safe = entries
        .iter()
        .rposition(|entry| entry.flags & FLUSH != 0)
        .map_or(0, |at| at + 1);
    let disk = fs::OpenOptions::new().write(true).open(disk)?;
    let (mut cut, mut die) = (Cut::default(), seed);
    for (at, entry) in entries.iter().enumerate() {
        if entry.data.is_empty() {
            continue;
        }
        let sure = at < safe || entry.flags & FUA != 0;
        if sure {
            cut.flushed += 1;
            disk.write_all_at(&entry.data, entry.sector * SECTOR)?;
            continue;
        }
        cut.unflushed += 1;
        let sectors = entry.data.chunks(usize::try_from(SECTOR)?);
        for (sector, bytes) in (entry.sector..).zip(sectors) {
            if throw(&mut die).is_multiple_of(2) {
                disk.write_all_at(bytes, sector * SECTOR)?;
            } else {
                cut.sectors_lost += 1;
            }
        }
    }
    Ok(cut)
}

fn read(log: &Path) -> Result<Vec<Entry>> {
    let bytes = fs::read(log)?;
    // Cut before QEMU has started it.
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let number = |at: u64| -> Result<u64> {
        let at = usize::try_from(at)?;
        let word = bytes.get(at..at + 8).context("the log is cut off")?;
        Ok(u64::from_le_bytes(word.try_into()?))
    };
    ensure!(number(0)? == MAGIC, "no log of blklogwrites");
    let (count, sector_bytes) = (number(16)?, number(24)? & u64::from(u32::MAX));
    let mut at = sector_bytes;
    let mut entries = Vec::new();
    for _ in 0..count {
        let (sector, sectors, flags) = (number(at)?, number(at + 8)?, number(at + 16)?);
        at += sector_bytes;
        if sectors > SECTORS_MAX {
            bail!("the log has a write of {sectors} sectors");
        }
        let mut data = Vec::new();
        if flags & DISCARD == 0 {
            let length = sectors * sector_bytes;
            let range = usize::try_from(at)?..usize::try_from(at + length)?;
            data = bytes.get(range).context("the log is cut off")?.to_vec();
            at += length;
        }
        entries.push(Entry {
            sector: sector * sector_bytes / SECTOR,
            flags,
            data,
        });
    }
    Ok(entries)
}

/// Splitmix64.
fn throw(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: flushed writes are kept, unflushed ones may be lost. Method: a log as QEMU writes it.
    #[test]
    fn only_what_was_flushed_is_sure() {
        let dir = std::env::temp_dir().join(format!("edge-min-blocklog-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (disk, log) = (dir.join("disk"), dir.join("log"));
        let sector = |words: [u64; 4]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(512, 0);
            bytes
        };
        let mut bytes = sector([MAGIC, 1, 4, SECTOR]);
        bytes.extend(sector([2, 1, 0, 0]));
        bytes.extend([7; 512]);
        bytes.extend(sector([0, 0, FLUSH, 0]));
        bytes.extend(sector([4, 16, 0, 0]));
        bytes.extend([9; 16 * 512]);
        bytes.extend(sector([0, 4, DISCARD, 0]));
        fs::write(&log, &bytes).unwrap();
        let mut lost = 0;
        for seed in 0..10 {
            fs::write(&disk, [0; 32 * 512]).unwrap();
            let cut = cut(&disk, &log, seed).unwrap();
            assert_eq!((cut.flushed, cut.unflushed), (1, 1));
            let left = fs::read(&disk).unwrap();
            assert_eq!(left[2 * 512..3 * 512], [7; 512]);
            let nines = left.iter().filter(|byte| **byte == 9).count();
            assert_eq!(nines, (16 - cut.sectors_lost) * 512);
            lost += cut.sectors_lost;
        }
        assert!(lost > 40 && lost < 120, "{lost} of 160");
        fs::write(&log, &bytes[..bytes.len() - 1000]).unwrap();
        assert!(cut(&disk, &log, 1).is_err());
        fs::write(&log, []).unwrap();
        assert_eq!(cut(&disk, &log, 1).unwrap(), Cut::default());
        fs::remove_dir_all(dir).unwrap();
    }
}
