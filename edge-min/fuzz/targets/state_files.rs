//! Bytes as each of the small files that the agent reads: time floor, board key, identity, the wear
//! registers of an eMMC, and the board's identifiers for its name. None may end the agent, and
//! results are within their bounds.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use edge_min::board::clock::Clock;
use edge_min::link::identity::{self, Identity};
use edge_min::board::name::Template;
use edge_min::storage::seal::Sealer;
use edge_min::link::certificate;
use edge_min::storage::wear;
use edge_min_fuzz::scratch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| scratch("state-files")).join("state");
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    fs::remove_dir_all(&dir).ok();
    fs::create_dir_all(&dir).unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    // Two files that are read together share the input.
    let (one, other) = bytes.split_at(bytes.len() / 2);
    match mode % 5 {
        0 => {
            put("time.floor", bytes);
            let clock = Clock::open(&dir);
            clock.confirm(clock.now().0.saturating_add(86_400));
            std::hint::black_box(Clock::open(&dir).reliable());
        }
        1 => {
            put("board.key", bytes);
            let sealer = Sealer::open(&dir).unwrap();
            drop(sealer.open_sealed(b"key", bytes));
            let sealed = sealer.seal(b"key", b"plain").unwrap();
            let again = Sealer::open(&dir).unwrap();
            assert_eq!(again.open_sealed(b"key", &sealed).unwrap(), b"plain");
        }
        2 => read_identity(&dir, one, other),
        3 => {
            put("block/mmcblk0/device/life_time", one);
            put("block/mmcblk0/device/pre_eol_info", other);
            assert!(wear::devices(&dir).len() <= 1);
        }
        _ => {
            put("class/dmi/id/product_serial", one);
            put("class/net/eth0/address", other);
            put("firmware/devicetree/base/gate", one);
            for template in ["{serial}", "gate-{mac:eth0}", "{devicetree:gate}"] {
                if let Ok(name) = Template::parse(template).unwrap().resolve(&dir) {
                    assert!((1..=63).contains(&name.len()), "{name}");
                }
            }
        }
    }
});

/// One file is the input, the others are valid.
fn read_identity(dir: &Path, one: &[u8], other: &[u8]) {
    let home = edge_min::paths::identity(dir);
    fs::create_dir_all(&home).unwrap();
    let which = one.first().copied().unwrap_or_default() % 6;
    for (at, name) in (0..).zip([
        "node.name",
        "node.key",
        "node.crt",
        "ca.crt",
        "broker",
        "cloud.url",
    ]) {
        let bytes = if at == which { other } else { b"gate" };
        // Without a broker in most of them.
        if name != "broker" || at == which {
            fs::write(home.join(name), bytes).unwrap();
        }
    }
    if let Ok(Some(identity)) = Identity::load(dir) {
        assert!(!identity.anchors().is_empty());
        std::hint::black_box(certificate::life(&identity.certificate));
    }
    drop(Identity::load_old(dir));
    drop(identity::pending_key(dir));
}
