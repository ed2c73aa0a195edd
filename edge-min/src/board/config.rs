//! The node's config: a small TOML file. `RawConfig` is the content of the file, [`Config`] what the
//! agent uses; only the second leaves this module, complete and checked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_proto::enrol::Endpoint;

use crate::board::board_file;
use crate::board::name::{SYSFS, Template};
use crate::board::outbox_settings;
use crate::board::toml_reader::{
    ConfigError, Table, Value, Wrong, is_label, line, number, read, text, version,
};
use crate::paths;
use crate::storage::outbox::Settings;

/// Memory budget of the agent when no board file states it: the bar of every board today.
pub const PSS_KIB_DEFAULT: u32 = 5 * 1024;
/// Keepalive when the config has none.
const KEEPALIVE_MS_DEFAULT: u64 = 60_000;
/// Bounds of the keepalive: under 5 s a slow link disconnects often; the upper bound is edge-cloud's
/// own cap.
const KEEPALIVE_MS: core::ops::RangeInclusive<u64> =
    5_000..=edge_proto::limits::KEEPALIVE_S_MAX as u64 * 1000;

/// Keys with paths. `runc` may be the name of a program.
const PATHS: [&str; 6] = [
    "token-file",
    "state-dir",
    "run-dir",
    "preload-dir",
    "host-paths",
    "board-file",
];

/// The node's config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Template of the node's name at its join, if the config has one.
    pub node: Option<Template>,
    /// `mqtts://HOST[:PORT]` of the cloud, or `https://HOST[:PORT]` of its enrolment; `None` is the
    /// cloud that the node has joined.
    pub cloud: Option<String>,
    /// File with a join token, for joining at first boot.
    pub token_file: Option<PathBuf>,
    /// Durable state.
    pub state_dir: PathBuf,
    /// Volatile state, on tmpfs.
    pub run_dir: PathBuf,
    /// Folder with OCI layouts.
    pub preload_dir: PathBuf,
    /// Path or name of the runc program.
    pub runc: PathBuf,
    /// Name of the cgroup above all workloads. Two agents on one board need different ones.
    pub cgroup: String,
    /// Prefixes that hostPath volumes may use.
    pub host_paths: Vec<String>,
    /// MQTT keepalive.
    pub keepalive: Duration,
    /// Highest number of pods.
    pub pods_max: u32,
    /// Name of the board.
    pub board: String,
    /// Path of the board file, see [`super::board_file`].
    pub board_file: Option<PathBuf>,
    /// Memory for pods, MiB; `None` is all memory of the board.
    pub memory_mib: Option<u32>,
    /// Memory budget of the agent itself, resident, KiB.
    pub pss_kib: u32,
    /// Flash budget of the agent itself, MiB a day, if the board file has one.
    pub flash_mib_per_day: Option<u32>,
    /// Labels of the node.
    pub labels: Vec<(String, String)>,
    /// Classes and quotas of records.
    pub outbox: Settings,
}

/// Reads a config file.
///
/// # Errors
/// The first error, with its line.
pub fn load(file: &Path) -> Result<Config, ConfigError> {
    let (mut config, own_pods_max, own_name) = read(file, |table| {
        let own = |key| table.contains_key(key);
        Ok((config(table)?, own("pods-max"), own("board")))
    })?;
    if let Some(file) = &config.board_file {
        let board = board_file::load(file)?;
        // Values of the config override those of the board file.
        if !own_pods_max {
            config.pods_max = board.pods_max;
        }
        if !own_name {
            config.board.clone_from(&board.name);
        }
        config.memory_mib = Some(board.memory_mib);
        config.pss_kib = board.pss_kib;
        config.flash_mib_per_day = Some(board.flash_mib_per_day);
    }
    Ok(config)
}

/// All keys except those of `[labels]` and `[outbox]`.
const KNOWN: [&str; 14] = [
    "version",
    "node",
    "cloud",
    "token-file",
    "state-dir",
    "run-dir",
    "preload-dir",
    "runc",
    "host-paths",
    "cgroup",
    "keepalive-ms",
    "pods-max",
    "board",
    "board-file",
];

fn config(table: &Table) -> Result<Config, Wrong> {
    known_keys(table)?;
    version(table)?;
    absolute_paths(table)?;
    let path = |key: &str, default: &str| {
        Ok(PathBuf::from(
            text(table, key)?.unwrap_or_else(|| default.to_owned()),
        ))
    };
    let state_dir: PathBuf = path("state-dir", paths::STATE_DEFAULT)?;
    let keepalive_ms = number(table, "keepalive-ms", KEEPALIVE_MS, KEEPALIVE_MS_DEFAULT)?;
    let pods_cap = edge_core::limits::PODS_MAX as u64;
    let pods_max = number(table, "pods-max", 1..=pods_cap, pods_cap)?;
    let node = text(table, "node")?
        .map(|node| Template::parse(&node))
        .transpose()
        .map_err(|reason| (line(table, "node"), ["node: ", &reason].concat()))?;
    let cloud = text(table, "cloud")?;
    if let Some(cloud) = &cloud
        && Endpoint::parse(cloud).is_none()
    {
        return Err((
            line(table, "cloud"),
            "cloud: not of the form mqtts://HOST[:PORT] or https://HOST[:PORT]".to_owned(),
        ));
    }
    let cgroup = text(table, "cgroup")?.unwrap_or_else(|| "edge-min".to_owned());
    if !is_label(&cgroup) {
        let reason = "cgroup: a name of a-z, 0-9 and -".to_owned();
        return Err((line(table, "cgroup"), reason));
    }
    Ok(Config {
        node,
        cloud,
        token_file: text(table, "token-file")?.map(PathBuf::from),
        preload_dir: match text(table, "preload-dir")? {
            Some(dir) => PathBuf::from(dir),
            None => paths::preload(&state_dir),
        },
        state_dir,
        run_dir: path("run-dir", paths::RUN_DEFAULT)?,
        runc: path("runc", "runc")?,
        cgroup,
        host_paths: match table.get("host-paths") {
            None => Vec::new(),
            Some((_, Value::List(list))) => list.clone(),
            Some((line, _)) => return Err((*line, "host-paths: a list of paths".to_owned())),
        },
        keepalive: Duration::from_millis(keepalive_ms),
        pods_max: u32::try_from(pods_max).unwrap_or(1),
        board: text(table, "board")?.unwrap_or_else(|| "unnamed".to_owned()),
        board_file: text(table, "board-file")?.map(PathBuf::from),
        memory_mib: None,
        pss_kib: PSS_KIB_DEFAULT,
        flash_mib_per_day: None,
        labels: labels(table)?,
        outbox: outbox_settings::settings(table)?,
    })
}

fn known_keys(table: &Table) -> Result<(), Wrong> {
    for (key, (line, _)) in table {
        let free = key.starts_with("labels.") || key.starts_with("outbox.");
        if !KNOWN.contains(&key.as_str()) && !free {
            return Err((
                *line,
                [
                    "unknown key `",
                    key,
                    "`; known are ",
                    &KNOWN.join(", "),
                    ", [labels] and [outbox]",
                ]
                .concat(),
            ));
        }
    }
    Ok(())
}

/// Relative paths are refused: the agent and the command line may run in different folders.
fn absolute_paths(table: &Table) -> Result<(), Wrong> {
    for key in PATHS {
        let relative = |path: &str| !path.starts_with('/');
        let wrong = match table.get(key) {
            Some((_, Value::Text(path))) => relative(path),
            Some((_, Value::List(list))) => list.iter().any(|path| relative(path)),
            _ => false,
        };
        if wrong {
            return Err((line(table, key), [key, ": not an absolute path"].concat()));
        }
    }
    Ok(())
}

fn labels(table: &Table) -> Result<Vec<(String, String)>, Wrong> {
    let mut labels = Vec::new();
    for (key, (line, value)) in table {
        let Some(name) = key.strip_prefix("labels.") else {
            continue;
        };
        let Value::Text(value) = value else {
            return Err((*line, [key, ": a label is text"].concat()));
        };
        labels.push((name.to_owned(), value.clone()));
    }
    if labels.len() > edge_proto::limits::LABELS_MAX {
        return Err((0, "labels: more than 32".to_owned()));
    }
    Ok(labels)
}

impl Config {
    /// The name that the template resolves to on this board; `None` without a template or if it fails.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        self.node.as_ref()?.resolve(Path::new(SYSFS)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::toml_reader::parse;
    use proptest::prelude::*;

    #[test]
    fn a_whole_config_is_read() {
        let text = "version = 1 # the first\nnode = \"gate-7\"\ncloud = \"mqtts://cloud:1\"\n\
            host-paths = [\"/dev\", \"/srv#x\"]\n[labels]\nlane = \"7\"\n\"a.b/c\" = \"d\"\n";
        let config = config(&parse(text).unwrap()).unwrap();
        assert_eq!(config.node, Some(Template::parse("gate-7").unwrap()));
        assert_eq!(config.host_paths, ["/dev", "/srv#x"]);
        assert_eq!(
            config.labels,
            [("a.b/c".into(), "d".into()), ("lane".into(), "7".into())]
        );
        assert_eq!(config.preload_dir, Path::new("/var/lib/edge-min/preload"));
    }

    #[test]
    fn each_mistake_names_its_line() {
        for (text, line, word) in [
            ("", 0, "version"),
            ("version = 2", 1, "version"),
            ("version = 1\nnodes = \"a\"", 2, "unknown key `nodes`"),
            ("version = 1\nversion = 1", 2, "twice"),
            ("version = 1\nnode = \"A_b\"", 2, "label"),
            ("version = 1\nnode = \"{imei}\"", 2, "{serial}"),
            ("version = 1\nkeepalive-ms = 1", 2, "5000"),
            ("version = 1\nkeepalive-ms = \"1\"", 2, "number"),
            ("version = 1\ncloud = \"http://a\"", 2, "mqtts"),
            ("version = 1\nnode = \"a", 2, "quotes"),
            ("version = 1\nhost-paths = [1]", 2, "list"),
            ("version = 1\nhost-paths = [\"/a\", \"b\"]", 2, "absolute"),
            ("version = 1\nstate-dir = \"state\"", 2, "absolute"),
            ("version", 1, "key = value"),
            ("[a", 1, "table"),
            ("version = 1\n[outbox]\nquota = 1", 3, "outbox.quota-mib"),
            ("version = 1\n[outbox.toll]\nnumber = 0", 3, "unknown key"),
            ("version = 1\n[outbox.weight]\nttl-s = 1", 3, "number"),
            (
                "version = 1\n[outbox.a]\nnumber = 3\n[outbox.b]\nnumber = 3",
                5,
                "twice",
            ),
            ("version = 1\n[outbox.A]\nnumber = 3", 3, "a-z"),
        ] {
            let (found, reason) = parse(text).and_then(|table| config(&table)).unwrap_err();
            assert_eq!(found, line, "{text}: {reason}");
            assert!(reason.contains(word), "{text}: {reason}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            parse(&text).and_then(|table| config(&table)).ok();
        }
    }
}
