//! `[outbox]` and `[outbox.CLASS]` of the config.

use edge_core::outbox::ClassConfig;
use edge_proto::limits::{CLASS_EVENT, CLASS_TELEMETRY, CLASS_TOLL, CLASSES_MAX};

use crate::board::toml_reader::{self, Table, Value, Wrong, number};
use crate::storage::outbox::{Class, Settings};

/// Quota of all classes, MiB, and its bounds.
const QUOTA_MIB_DEFAULT: u64 = 64;
const QUOTA_MIB: core::ops::RangeInclusive<u64> = 1..=4096;
/// Bounds of a class's own quota, KiB: eight segments of one record each, at least.
const QUOTA_KIB: core::ops::RangeInclusive<u64> = 64..=4096 * 1024;
/// Bounds of a time to live, seconds: up to ten years.
const TTL_S: core::ops::RangeInclusive<u64> = 1..=315_360_000;
/// Time to live of telemetry, seconds: a week.
const TELEMETRY_TTL_S: u64 = 7 * 24 * 3600;

const KNOWN: &str = "known are outbox.quota-mib, and in [outbox.CLASS] quota-kib, ttl-s, durability, \
    and number for a class of your own";
/// Classes that every outbox has; those of the config follow.
const FIXED: usize = 3;

pub(super) fn settings(table: &Table) -> Result<Settings, Wrong> {
    let quota_mib = number(table, "outbox.quota-mib", QUOTA_MIB, QUOTA_MIB_DEFAULT)?;
    let quota_bytes = quota_mib << 20;
    let part = (quota_bytes / 4).max(*QUOTA_KIB.start() << 10);
    let mut classes = vec![
        class("toll", CLASS_TOLL, quota_bytes),
        class("event", CLASS_EVENT, part),
        class("telemetry", CLASS_TELEMETRY, part),
    ];
    if let Some(telemetry) = classes.last_mut() {
        telemetry.config.ttl_ms = Some(TELEMETRY_TTL_S * 1000);
        telemetry.must = false;
    }
    for (key, (line, value)) in table {
        let Some(name) = key
            .strip_prefix("outbox.")
            .filter(|key| *key != "quota-mib")
        else {
            continue;
        };
        let wrong = |reason: &str| (*line, ["`", key, "`: ", reason].concat());
        let (name, setting) = name.split_once('.').ok_or_else(|| wrong(KNOWN))?;
        if !toml_reader::is_label(name) {
            return Err(wrong("the name of a class is of a-z, 0-9 and -"));
        }
        let place = match classes.iter().position(|class| class.name == name) {
            Some(place) => place,
            None => {
                let own = ["outbox.", name, ".number"].concat();
                if !table.contains_key(&own) {
                    return Err(wrong("the class needs a number, from 3 to 15"));
                }
                let number = own_number(table, &own, &classes)?;
                classes.push(class(name, number, part));
                classes.len() - 1
            }
        };
        let Some(class) = classes.get_mut(place) else {
            continue;
        };
        match setting {
            "number" if place >= FIXED => {}
            "quota-kib" => class.config.quota_bytes = number(table, key, QUOTA_KIB, 0)? << 10,
            "ttl-s" => class.config.ttl_ms = Some(number(table, key, TTL_S, 0)? * 1000),
            "durability" => {
                class.must = match value {
                    Value::Text(text) if text == "must" => true,
                    Value::Text(text) if text == "soon" => false,
                    _ => return Err(wrong("\"must\" or \"soon\"")),
                }
            }
            _ => return Err(wrong(&["unknown key; ", KNOWN].concat())),
        }
    }
    classes.sort_by_key(|class| class.config.number);
    Ok(Settings {
        quota_bytes,
        classes,
    })
}

/// A durable class without a time to live.
fn class(name: &str, number: u8, quota_bytes: u64) -> Class {
    Class {
        name: name.to_owned(),
        config: ClassConfig {
            number,
            quota_bytes,
            ttl_ms: None,
        },
        must: true,
    }
}

/// The number of a class of the config, which no other class may have.
fn own_number(table: &Table, key: &str, classes: &[Class]) -> Result<u8, Wrong> {
    let number = number(table, key, FIXED as u64..=CLASSES_MAX as u64 - 1, 0)?;
    let number = u8::try_from(number).unwrap_or(u8::MAX);
    if classes.iter().any(|class| class.config.number == number) {
        let reason = [key, ": this number stands twice"].concat();
        return Err((toml_reader::line(table, key), reason));
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::toml_reader::parse;

    #[test]
    fn classes_are_named_with_what_they_keep() {
        let text = "[outbox]\nquota-mib = 8\n[outbox.telemetry]\nttl-s = 60\nquota-kib = 512\n\
            [outbox.weight]\nnumber = 3\ndurability = \"soon\"\n";
        let settings = settings(&parse(text).unwrap()).unwrap();
        assert_eq!(settings.quota_bytes, 8 << 20);
        let names: Vec<_> = settings
            .classes
            .iter()
            .map(|class| class.name.as_str())
            .collect();
        assert_eq!(names, ["toll", "event", "telemetry", "weight"]);
        let [toll, _, telemetry, weight] = &settings.classes[..] else {
            panic!("not four");
        };
        assert!(toll.must && toll.config.ttl_ms.is_none());
        assert_eq!(toll.config.quota_bytes, 8 << 20);
        assert_eq!(telemetry.config.ttl_ms, Some(60_000));
        assert_eq!(telemetry.config.quota_bytes, 512 << 10);
        assert!(!weight.must && weight.config.number == 3);
    }
}
