//! Kubernetes quantities (`100m`, `64Mi`, `1.5Gi`, `2e3`) and names, exactly.

/// Longest quantity that is read; real ones have fewer than 20 characters.
const QUANTITY_BYTES_MAX: usize = 32;

/// Value of a quantity in units of 10^-`places`, rounded up as Kubernetes does. `None` when it is
/// not a quantity, is negative or too large.
fn scaled(text: &str, places: u32) -> Option<u64> {
    if text.len() > QUANTITY_BYTES_MAX {
        return None;
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (exponent, binary) = suffix_of(suffix)?;
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let exponent = exponent + i32::try_from(places).ok()? - i32::try_from(fraction.len()).ok()?;
    let value = digits.checked_mul(1_u128.checked_shl(binary)?)?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    let value = if exponent >= 0 {
        value.checked_mul(power?)?
    } else {
        // A power that does not fit would divide every possible value to less than one.
        power.map_or(u128::from(value > 0), |power| value.div_ceil(power))
    };
    u64::try_from(value).ok()
}

/// (power of ten, power of two).
fn suffix_of(suffix: &str) -> Option<(i32, u32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            if exponent.abs() > 30 {
                return None;
            }
            (exponent, 0)
        }
    })
}

/// Thousandths of a core.
#[must_use]
pub(super) fn cpu_millis(text: &str) -> Option<u32> {
    scaled(text, 3).and_then(|millis| u32::try_from(millis).ok())
}

/// Bytes, or a plain count.
#[must_use]
pub(super) fn units(text: &str) -> Option<u64> {
    scaled(text, 0)
}

/// An RFC 1123 label: for names of containers, volumes, namespaces and nodes.
///
/// # Errors
/// The violated rule.
pub(super) fn label_name(text: &str) -> Result<(), &'static str> {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
    {
        Ok(())
    } else {
        Err("must be an RFC 1123 label: at most 63 of a-z, 0-9 and -, no - at either end")
    }
}

/// An RFC 1123 subdomain: for names of objects.
///
/// # Errors
/// The violated rule.
pub(super) fn subdomain_name(text: &str) -> Result<(), &'static str> {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if text.len() <= edge_proto::limits::NAME_BYTES_MAX && text.split('.').all(part) {
        Ok(())
    } else {
        Err(
            "must be an RFC 1123 subdomain: at most 253 of a-z, 0-9, - and ., \
             each part beginning and ending with a letter or digit",
        )
    }
}

fn qualified(text: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && end(text.chars().next())
        && end(text.chars().next_back())
}

/// A label's key: an optional subdomain and `/`, then a name.
///
/// # Errors
/// The violated rule.
pub(super) fn label_key(text: &str) -> Result<(), &'static str> {
    let (prefix, name) = text
        .split_once('/')
        .map_or((None, text), |(prefix, name)| (Some(prefix), name));
    if prefix.is_none_or(|prefix| subdomain_name(prefix).is_ok()) && qualified(name) {
        Ok(())
    } else {
        Err(
            "must have a label's key: an optional DNS prefix and /, then at most 63 of A-Z, a-z, 0-9, -, _ and .",
        )
    }
}

/// A label's value.
///
/// # Errors
/// The violated rule.
pub(super) fn label_value(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || qualified(text) {
        Ok(())
    } else {
        Err("must be a label's value: at most 63 of A-Z, a-z, 0-9, -, _ and .")
    }
}

/// A key of a ConfigMap or Secret, which becomes a file name.
///
/// # Errors
/// The violated rule.
pub(super) fn config_key(text: &str) -> Result<(), &'static str> {
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(inner)
        && text != "."
        && !text.starts_with("..")
    {
        Ok(())
    } else {
        Err("must have keys of at most 253 of A-Z, a-z, 0-9, -, _ and ., not beginning with ..")
    }
}

/// Name of an environment variable.
///
/// # Errors
/// The violated rule.
pub(super) fn env_name(text: &str) -> Result<(), &'static str> {
    if !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|c| c.is_ascii_graphic() && c != b'=')
    {
        Ok(())
    } else {
        Err("must be a variable's name: printable ASCII without = and blanks")
    }
}

/// An absolute path.
///
/// # Errors
/// The violated rule.
pub(super) fn absolute_path(text: &str) -> Result<(), &'static str> {
    if text.starts_with('/') && text.len() <= 1024 && !text.split('/').any(|part| part == "..") {
        Ok(())
    } else {
        Err("must be an absolute path of at most 1024 bytes without ..")
    }
}

/// A relative path that does not leave its start.
///
/// # Errors
/// The violated rule.
pub(super) fn relative_path(text: &str) -> Result<(), &'static str> {
    if !text.is_empty()
        && !text.starts_with('/')
        && text.len() <= 1024
        && !text.split('/').any(|part| part == "..")
    {
        Ok(())
    } else {
        Err("must be a relative path of at most 1024 bytes without ..")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly() {
        for (text, millis) in [
            ("100m", 100),
            ("1", 1000),
            ("0.5", 500),
            ("1.0005", 1001),
            ("2e1", 20_000),
            ("100u", 1),
            (".5", 500),
            ("0", 0),
        ] {
            assert_eq!(cpu_millis(text), Some(millis), "{text}");
        }
        for (text, bytes) in [
            ("64Mi", 64 << 20),
            ("1.5Gi", 3 << 29),
            ("1k", 1000),
            ("1E", 1_000_000_000_000_000_000),
            ("128974848000m", 128_974_848),
            ("12e6", 12_000_000),
        ] {
            assert_eq!(units(text), Some(bytes), "{text}");
        }
        for text in [
            "", ".", "-1", "1 Mi", "1mi", "1.2.3", "1e", "1e99", "99Ei", "Mi",
        ] {
            assert_eq!(units(text), None, "{text}");
        }
    }

    #[test]
    fn names_follow_rfc_1123() {
        assert!(label_name("gate-1").is_ok());
        for text in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(label_name(text).is_err(), "{text}");
        }
        assert!(subdomain_name("a.b-c.1").is_ok());
        assert!(subdomain_name("a..b").is_err());
        assert!(label_key("edge-min.io/gate").is_ok());
        assert!(label_key("/gate").is_err());
        assert!(config_key("..data").is_err());
    }
}
