//! The agent's file on a board: its size against the board's budget, static, and
//! position-independent. Looks at what `scripts/build` left in `dist/`: `scripts/test`
//! builds all targets first, and a checkout where nothing was built has nothing to show.

use std::path::{Path, PathBuf};

use memtests::measure::{all_kept, scenario};
use memtests::root;

/// Entries of a folder, sorted; none when it does not exist.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(listed) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn agent_fits_the_budget_of_every_board() {
    let figures = scenario::sizes().unwrap();
    for figure in &figures {
        println!("{figure}");
    }
    assert!(!figures.is_empty(), "dist/ is empty: scripts/build");
    all_kept(&figures).unwrap();
}

#[test]
fn agent_is_static_and_position_independent() {
    let folders = entries(&root().join("dist"));
    assert!(!folders.is_empty(), "dist/ is empty: scripts/build");
    for folder in folders {
        let Ok(image) = std::fs::read(folder.join("edge-min")) else {
            continue;
        };
        let name = folder.display();
        assert_eq!(&image[..4], b"\x7fELF", "{name}");
        // e_type, at the same place in both ELF classes; all three boards are little-endian.
        let kind = u16::from_le_bytes([image[16], image[17]]);
        assert_eq!(
            kind, 3,
            "{name}: e_type is not ET_DYN, so the image has a fixed address"
        );
        assert!(
            !segment_types(&image).contains(&3),
            "{name}: PT_INTERP, so it is not static"
        );
    }
}

/// The `p_type` of every program header.
fn segment_types(image: &[u8]) -> Vec<u32> {
    let half = |at: usize| usize::from(u16::from_le_bytes([image[at], image[at + 1]]));
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
    let wide = image[4] == 2;
    // e_phoff, e_phentsize and e_phnum of ELF64 and ELF32; the offset fits 32 bits in our files.
    let (offset, entry_bytes, count) = if wide {
        (word(32), half(54), half(56))
    } else {
        (word(28), half(42), half(44))
    };
    let offset = usize::try_from(offset).unwrap();
    (0..count)
        .map(|index| word(offset + index * entry_bytes))
        .collect()
}
