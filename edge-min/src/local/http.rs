//! The head of a request, as far as the record API needs it. It refuses whatever it does not
//! understand: two readers that disagree on where a request ends are a security hole.

/// Bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 2048;

/// A request's head.
#[derive(Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// For example `POST`.
    pub method: &'a str,
    /// Request target, query included.
    pub target: &'a str,
    /// `Content-Length`; 0 without it.
    pub body_bytes: usize,
    /// `Coalesce-Key`, or empty.
    pub key: &'a str,
    /// `Edge-Time`, milliseconds since 1970.
    pub unix_ms: Option<u64>,
    /// The client waits for `100 Continue`.
    pub expects: bool,
    /// The client sends no further request on this connection.
    pub close: bool,
}

/// Content of the start of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A complete head, and its length.
    Whole(Head<'a>, usize),
    /// More bytes are needed.
    Partial,
    /// The status of the answer; the connection ends with it.
    Bad(&'static str),
}

const BAD: &str = "400 Bad Request";

/// Parses the head at the start of `bytes`.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    let end = bytes
        .windows(4)
        .take(HEAD_BYTES_MAX)
        .position(|four| four == b"\r\n\r\n");
    let Some(end) = end else {
        return if bytes.len() > HEAD_BYTES_MAX {
            Parsed::Bad("431 Request Header Fields Too Large")
        } else {
            Parsed::Partial
        };
    };
    let text = bytes.get(..end).and_then(|head| str::from_utf8(head).ok());
    match text.map(head) {
        Some(Ok(head)) => Parsed::Whole(head, end + 4),
        Some(Err(status)) => Parsed::Bad(status),
        None => Parsed::Bad(BAD),
    }
}

fn head(text: &str) -> Result<Head<'_>, &'static str> {
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BAD);
    };
    let close = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return Err("505 HTTP Version Not Supported"),
    };
    let mut head = Head {
        method,
        target,
        body_bytes: 0,
        key: "",
        unix_ms: None,
        expects: false,
        close,
    };
    let mut length = None;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(BAD)?;
        let value = value.trim_matches([' ', '\t']);
        let plain = |byte: u8| byte.is_ascii_graphic();
        let text = value
            .bytes()
            .all(|byte| !byte.is_ascii_control() || byte == b'\t');
        if name.is_empty() || !name.bytes().all(plain) || !text {
            return Err(BAD);
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("content-length") {
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let bytes = value.parse().ok().filter(|_| digits).ok_or(BAD)?;
            if length.replace(bytes).is_some_and(|before| before != bytes) {
                return Err(BAD);
            }
        } else if is("transfer-encoding") {
            return Err("411 Length Required");
        } else if is("coalesce-key") {
            if value.len() > crate::storage::outbox::segment::KEY_BYTES_MAX {
                return Err("400 Coalesce-Key over 64 bytes");
            }
            head.key = value;
        } else if is("edge-time") {
            let time = value.parse();
            head.unix_ms = Some(time.map_err(|_| "400 Edge-Time is no number of milliseconds")?);
        } else if is("expect") {
            head.expects = value.eq_ignore_ascii_case("100-continue");
            if !head.expects {
                return Err("417 Expectation Failed");
            }
        } else if is("connection") {
            head.close |= value.eq_ignore_ascii_case("close");
        }
    }
    head.body_bytes = length.unwrap_or(0);
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WHOLE: &str = "POST /v1/records/toll HTTP/1.1\r\nHost: x\r\ncontent-length: 5\r\n\
        Coalesce-Key: lane 7\r\nEdge-Time: 1795651200000\r\n\r\nhello";

    #[test]
    fn a_request_is_read() {
        let Parsed::Whole(head, length) = parse(WHOLE.as_bytes()) else {
            panic!("not whole");
        };
        assert_eq!((head.method, head.target), ("POST", "/v1/records/toll"));
        assert_eq!((head.body_bytes, head.key), (5, "lane 7"));
        assert_eq!(head.unix_ms, Some(1_795_651_200_000));
        assert!(!head.close && !head.expects);
        assert_eq!(&WHOLE[length..], "hello");
        for cut in 0..length {
            assert_eq!(parse(&WHOLE.as_bytes()[..cut]), Parsed::Partial, "{cut}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let line = |line: &str| ["GET / HTTP/1.1\r\n", line, "\r\n\r\n"].concat();
        for text in [
            "GET /\r\n\r\n".to_owned(),
            "GET / / HTTP/1.1\r\n\r\n".to_owned(),
            "GET / HTTP/2\r\n\r\n".to_owned(),
            line("no colon"),
            line("content-length: +5"),
            line("content-length: 5\r\ncontent-length: 6"),
            line("content-length : 5"),
            line("a: b\r\n folded"),
            line("transfer-encoding: chunked"),
            line("edge-time: now"),
            line(&["coalesce-key: ", &"k".repeat(65)].concat()),
            line("a: b\nc: d"),
            "x".repeat(HEAD_BYTES_MAX + 4),
        ] {
            assert!(matches!(parse(text.as_bytes()), Parsed::Bad(_)), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Parsed::Whole(_, length) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
