//! Times of issue and expiry of a certificate: the few DER elements that the agent reads
//! itself (RFC 5280, section 4.1). rustls verifies certificates; this module does not.

use edge_proto::enrol::issued_unix_s;

const DAY_S: u64 = 24 * 3600;

/// Issue and expiry, seconds since 1970. `None` when it is not a certificate.
#[must_use]
pub fn life(der: &[u8]) -> Option<(u64, u64)> {
    let (_, certificate, _) = element(der)?;
    let (_, body, _) = element(certificate)?;
    let mut rest = body;
    // The version, which may be missing, then serial number, algorithm and issuer.
    if element(rest)?.0 == 0xa0 {
        rest = element(rest)?.2;
    }
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, validity, _) = element(rest)?;
    let (tag, begin, rest) = element(validity)?;
    // A time before 1970 is not from our CA: it then does not determine the issue.
    let begin = time(tag, begin).unwrap_or(0);
    let (tag, end, _) = element(rest)?;
    let end = time(tag, end)?;
    let begin = i64::try_from(begin).unwrap_or(i64::MAX);
    Some((issued_unix_s(begin, end), end))
}

fn time(tag: u8, text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    // UTCTime has two digits of the year: those from 50 on are of the last century.
    let (year, text) = match tag {
        0x17 => {
            let (year, text) = text.split_at_checked(2)?;
            let year: u64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text)
        }
        0x18 => {
            let (year, text) = text.split_at_checked(4)?;
            (year.parse().ok()?, text)
        }
        _ => return None,
    };
    let two = |at: usize| text.get(at..at + 2)?.parse::<u64>().ok();
    let day = days_since_1970(year, two(0)?, two(2)?)?;
    Some(day * DAY_S + two(4)? * 3600 + two(6)? * 60 + two(8)?)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
pub(crate) fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years begin in March here, so that the leap day is their last.
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    // 719,468 is 1970-01-01 by the same count.
    days.checked_sub(719_468)
}

/// The first DER element: tag, content, and the remaining bytes.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 3 {
            return None;
        }
        let join = |length: usize, byte: &u8| length << 8 | usize::from(*byte);
        (digits.iter().fold(0, join), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(der: &[u8]) -> Option<u64> {
        life(der).map(|(_, end)| end)
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_forms() {
        let with = |tag: u8, time: &str| {
            let wrap = |tag: u8, content: &[u8]| {
                let length = u8::try_from(content.len()).unwrap();
                [&[tag, length], content].concat()
            };
            let start = wrap(0x17, b"130305000001Z");
            let validity = wrap(0x30, &[start, wrap(tag, time.as_bytes())].concat());
            let head = [
                wrap(0xa0, &[2, 1, 2]),
                wrap(2, &[9]),
                wrap(0x30, &[]),
                wrap(0x30, &[]),
            ];
            wrap(0x30, &wrap(0x30, &[head.concat(), validity].concat()))
        };
        let der = with(0x17, "240301000001Z");
        assert_eq!(end(&der), Some(19_783 * DAY_S + 1));
        assert_eq!(
            end(&with(0x18, "20240301000001Z")),
            Some(19_783 * DAY_S + 1)
        );
        assert_eq!(end(&with(0x17, "24")), None);
        // Ten years of 365 days from the beginning on.
        assert_eq!(
            life(&der),
            Some((
                days_since_1970(2013, 3, 5).unwrap() * DAY_S + 1 + edge_proto::enrol::BACKDATE_S,
                19_783 * DAY_S + 1
            ))
        );
        for length in 0..der.len() {
            assert_eq!(end(&der[..length]), None, "{length}");
        }
    }
}
