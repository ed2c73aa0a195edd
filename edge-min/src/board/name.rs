//! The node's name as a template over identifiers of the board, so that one image names a
//! whole fleet: `gate-{serial}`, `{mac:eth0}`, `{devicetree:serial-number}`.
//!
//! The result must be unique: a missing source, a placeholder serial of the
//! manufacturer, an address that the kernel generated at this boot and a name that does not fit
//! are errors, and nothing is truncated.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use edge_proto::limits::NODE_NAME_BYTES_MAX;

use crate::board::toml_reader::is_label;

/// Where the kernel presents the board.
pub const SYSFS: &str = "/sys";
/// Bytes of a serial number, an address or a device tree property; a longer one is refused.
const VALUE_BYTES_MAX: u64 = 128;
/// Values in DMI of boards whose manufacturer has set no serial number, in lower case.
const PLACEHOLDERS: [&str; 8] = [
    "0",
    "none",
    "default string",
    "not specified",
    "not applicable",
    "system serial number",
    "to be filled by o.e.m.",
    "0123456789",
];
/// `addr_assign_type` of an address that differs at each boot.
const ADDRESS_RANDOM: &str = "1";

/// A template that was checked to be well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Serial,
    Mac(String),
    DeviceTree(String),
}

impl Template {
    /// Parses a template; a plain name is a template without sources.
    ///
    /// # Errors
    /// What is wrong, human-readable.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        // Any value fits where this is: values are labels themselves.
        let mut sample = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (source, after) = after
                .split_once('}')
                .ok_or("a `{` in the name has no `}`")?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(part(source)?);
            sample += before;
            sample.push('x');
            rest = after;
        }
        sample += rest;
        if !is_label(&sample) {
            return Err("not a DNS label (a-z, 0-9, -; at most 63)".to_owned());
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    /// The name of this board; `sysfs` is [`SYSFS`] except in tests.
    ///
    /// # Errors
    /// The source that is missing or has no value, human-readable.
    pub fn resolve(&self, sysfs: &Path) -> Result<String, String> {
        let mut name = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => name += text,
                Part::Serial => name += &serial(sysfs)?,
                Part::Mac(interface) => name += &mac(sysfs, interface)?,
                Part::DeviceTree(path) => name += &device_tree(sysfs, path)?,
            }
        }
        // Truncation could give two boards one name.
        if name.len() > NODE_NAME_BYTES_MAX {
            return Err(["the name ", &name, " is longer than 63 characters"].concat());
        }
        Ok(name)
    }
}

fn part(source: &str) -> Result<Part, String> {
    let (kind, argument) = source.split_once(':').unwrap_or((source, ""));
    match (kind, argument) {
        ("serial", "") => Ok(Part::Serial),
        // `..` and a second component would leave the folder.
        ("mac", interface) if is_file_name(interface) => Ok(Part::Mac(interface.to_owned())),
        ("devicetree", path) if path.split('/').all(is_file_name) => {
            Ok(Part::DeviceTree(path.to_owned()))
        }
        _ => Err([
            "{",
            source,
            "} is no source; there are {serial}, {mac:INTERFACE} and {devicetree:PROPERTY}",
        ]
        .concat()),
    }
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains('/')
}

/// The serial number from the boot loader or the firmware.
fn serial(sysfs: &Path) -> Result<String, String> {
    let places = [
        "firmware/devicetree/base/serial-number",
        "class/dmi/id/product_serial",
        "class/dmi/id/board_serial",
    ];
    places
        .iter()
        .filter_map(|place| read(&sysfs.join(place)))
        .filter(|value| !PLACEHOLDERS.contains(&value.to_ascii_lowercase().as_str()))
        .map(|value| label(&value))
        .find(|value| !value.is_empty())
        .ok_or_else(|| {
            "{serial}: this board gives no serial number, neither in the device tree nor in DMI; \
             use {mac:INTERFACE}"
                .to_owned()
        })
}

fn mac(sysfs: &Path, interface: &str) -> Result<String, String> {
    let wrong = |reason: &str| Err(["{mac:", interface, "}: ", reason].concat());
    let folder = sysfs.join("class/net");
    let Some(address) = read(&folder.join(interface).join("address")) else {
        let mut reason = "no such interface; there are:".to_owned();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            reason.push(' ');
            reason += &entry.file_name().to_string_lossy();
        }
        return wrong(&reason);
    };
    let digits = address.to_ascii_lowercase().replace(':', "");
    if digits.bytes().all(|digit| digit == b'0')
        || !digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    {
        return wrong("it has no hardware address");
    }
    if read(&folder.join(interface).join("addr_assign_type")).as_deref() == Some(ADDRESS_RANDOM) {
        return wrong("its address is random, another one at each boot");
    }
    Ok(digits)
}

fn device_tree(sysfs: &Path, path: &str) -> Result<String, String> {
    let wrong = |reason: &str| Err(["{devicetree:", path, "}: ", reason].concat());
    let base = sysfs.join("firmware/devicetree/base");
    if !base.is_dir() {
        return wrong("this board has no device tree");
    }
    match read(&base.join(path)).map(|value| label(&value)) {
        Some(value) if !value.is_empty() => Ok(value),
        _ => wrong("no such property, or it is no text"),
    }
}

/// The text at the start of a file, up to a NUL (the device tree ends its texts with one).
fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(VALUE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let text = bytes.split(|byte| *byte == 0).next()?;
    let text = core::str::from_utf8(text).ok()?.trim();
    let plain = !text.is_empty() && !text.chars().any(char::is_control);
    plain.then(|| text.to_owned())
}

/// `value` converted to a DNS label: lower case, and one `-` for each run of other characters.
fn label(value: &str) -> String {
    let mut label = String::new();
    for character in value.chars() {
        if character.is_ascii_alphanumeric() {
            label.push(character.to_ascii_lowercase());
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
    }
    label.truncate(label.trim_end_matches('-').len());
    label
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(sysfs: &Path, file: &str, bytes: impl AsRef<[u8]>) {
        let path = sysfs.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn name(sysfs: &Path, template: &str) -> Result<String, String> {
        Template::parse(template).and_then(|template| template.resolve(sysfs))
    }

    /// Goal: each source gives its value as a label. Method: a sysfs of an ARM board.
    #[test]
    fn a_name_is_put_together_from_the_board() {
        let sysfs = tempfile::tempdir().unwrap();
        let sysfs = sysfs.path();
        let tree = "firmware/devicetree/base";
        put(sysfs, &format!("{tree}/serial-number"), b"10000000ABCDEF\0");
        put(
            sysfs,
            &format!("{tree}/chosen/board id"),
            b"Rev. B / 7\0more\0",
        );
        put(sysfs, "class/net/eth0/address", "02:42:AC:00:00:07\n");
        put(sysfs, "class/net/eth0/addr_assign_type", "0\n");
        for (template, expected) in [
            ("gate-7", "gate-7"),
            ("gate-{serial}", "gate-10000000abcdef"),
            ("{mac:eth0}", "0242ac000007"),
            ("{devicetree:serial-number}", "10000000abcdef"),
            (
                "a-{devicetree:chosen/board id}-{mac:eth0}-z",
                "a-rev-b-7-0242ac000007-z",
            ),
        ] {
            assert_eq!(name(sysfs, template).as_deref(), Ok(expected), "{template}");
        }
    }

    /// Goal: a board without a serial number gets no name that a thousand others have too.
    #[test]
    fn a_serial_that_is_none_is_passed_over() {
        let sysfs = tempfile::tempdir().unwrap();
        let sysfs = sysfs.path();
        assert!(name(sysfs, "{serial}").unwrap_err().contains("{mac:"));
        put(
            sysfs,
            "class/dmi/id/product_serial",
            "To be filled by O.E.M.\n",
        );
        assert!(name(sysfs, "{serial}").is_err());
        put(sysfs, "class/dmi/id/board_serial", "PC-0815/x\n");
        assert_eq!(name(sysfs, "{serial}").as_deref(), Ok("pc-0815-x"));
    }

    #[test]
    fn a_missing_source_says_what_there_is() {
        let sysfs = tempfile::tempdir().unwrap();
        let sysfs = sysfs.path();
        put(sysfs, "class/net/end0/address", "02:42:ac:00:00:07\n");
        put(sysfs, "class/net/lo/address", "00:00:00:00:00:00\n");
        put(sysfs, "class/net/veth0/address", "02:42:ac:00:00:08\n");
        put(sysfs, "class/net/veth0/addr_assign_type", "1\n");
        for (template, words) in [
            ("{mac:eth0}", " veth0"),
            ("{mac:lo}", "no hardware address"),
            ("{mac:veth0}", "random"),
            ("{devicetree:serial-number}", "no device tree"),
        ] {
            let reason = name(sysfs, template).unwrap_err();
            assert!(reason.starts_with(template), "{reason}");
            assert!(reason.contains(words), "{reason}");
        }
        put(sysfs, "firmware/devicetree/base/cells", [0xff, 0xfe, 1]);
        let reason = name(sysfs, "{devicetree:cells}").unwrap_err();
        assert!(reason.contains("no text"), "{reason}");
        put(sysfs, "firmware/devicetree/base/long", [b'a'; 60]);
        assert!(name(sysfs, "abc{devicetree:long}").is_ok());
        let reason = name(sysfs, "abcd{devicetree:long}").unwrap_err();
        assert!(reason.contains("63"), "{reason}");
    }

    #[test]
    fn a_template_that_cannot_give_a_label_is_refused_at_once() {
        for (template, word) in [
            ("", "label"),
            ("Gate", "label"),
            ("-{serial}", "label"),
            ("{serial}_", "label"),
            ("{serial", "no `}`"),
            ("{imei}", "{imei} is no source"),
            ("{mac}", "{mac:INTERFACE}"),
            ("{mac:../eth0}", "no source"),
            ("{serial:1}", "no source"),
            ("{devicetree:}", "no source"),
            ("{devicetree:a/../../b}", "no source"),
        ] {
            let reason = Template::parse(template).unwrap_err();
            assert!(reason.contains(word), "{template}: {reason}");
        }
    }

    proptest! {
        /// Whatever values the board has, a resulting name is a valid node name.
        #[test]
        fn every_name_is_a_label(value in "\\PC{0,80}") {
            let sysfs = tempfile::tempdir().unwrap();
            put(sysfs.path(), "firmware/devicetree/base/serial-number", &value);
            if let Ok(name) = name(sysfs.path(), "g-{serial}") {
                prop_assert!(is_label(&name), "{name}");
            }
        }
    }
}
