//! What `scripts/build --board FILE` tells cargo, without a build.
#![cfg(test)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// In cargo's place: notes its arguments, and makes the binary that the script expects.
const CARGO: &str = r#"#!/bin/sh
echo "$*" > "${0%/*}/args"
while [ "$1" != --target ]; do shift; done
mkdir -p "$CARGO_TARGET_DIR/static/$2/$2/edge"
echo binary > "$CARGO_TARGET_DIR/static/$2/$2/edge/edge-min"
"#;

/// The arguments of cargo for a board file with these lines; `None` when the script refuses it.
fn built(lines: &str) -> Option<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let name = format!("board-build-{}", std::process::id());
    let dir = std::env::temp_dir().join(&name);
    let bin = dir.join(".cargo/bin");
    fs::create_dir_all(&bin).unwrap();
    let (cargo, board) = (bin.join("cargo"), dir.join("board.toml"));
    fs::write(&cargo, CARGO).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&board, format!("name = \"{name}\"\n{lines}")).unwrap();
    let done = Command::new(top.join("scripts/build"))
        .arg("--board")
        .arg(&board)
        // Where the script looks for cargo first.
        .env("HOME", &dir)
        .env("CARGO_TARGET_DIR", &dir)
        .env("EDGE_MIN_BUILD", "rustup")
        .output()
        .unwrap();
    let args = fs::read_to_string(bin.join("args")).ok();
    let dist = top.join("dist").join(&name);
    assert_eq!(done.status.success(), dist.join("edge-min").exists());
    fs::remove_dir_all(dist).ok();
    fs::remove_dir_all(dir).unwrap();
    args.filter(|_| done.status.success())
}

/// Goal: a board gets the target and the features that its file says, and all features without a word of
/// them. Method: a program in cargo's place, one board file after the other.
#[test]
fn a_board_file_chooses_target_and_features() {
    let target = "target = \"x86_64-unknown-linux-musl\"\n";
    let with = |lines: &str| built(&(target.to_owned() + lines));
    let all = with("").unwrap();
    assert!(all.contains("--target x86_64-unknown-linux-musl"), "{all}");
    assert!(!all.contains("features"), "{all}");
    let none = with("features = []\n").unwrap();
    assert!(
        none.contains("--no-default-features --features= "),
        "{none}"
    );
    let some = with("features = [\"state-cache\", \"other\"] # why\n").unwrap();
    assert!(
        some.contains("--no-default-features --features=state-cache,other "),
        "{some}"
    );
    assert_eq!(built(""), None, "no target");
    assert_eq!(built("target = \"mips\"\n"), None);
}
