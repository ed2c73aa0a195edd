//! Calls that the cloud makes on a node: method numbers, arguments and the form of the answer.
//! The numbers are wire constants: append, never reuse.

use alloc::string::String;
use alloc::vec::Vec;

use crate::fields::{FieldError, Reader, Skip, Writer};

/// Output of a container. The body is a [`LogsRequest`]; the answer is one of [`ANSWER_OK`] and
/// [`ANSWER_ERROR`], then the log's bytes, or text that says what is wrong.
pub const METHOD_LOGS: u16 = 1;
/// The node is to renew its certificate now, as after a change of the CA; with a body that is not empty it
/// only answers. The answer after [`ANSWER_OK`] is the end of the certificate that its session lives
/// with, seconds since 1970, u64 little-endian: 0 while it does not know which one that is.
pub const METHOD_RENEW: u16 = 2;
/// First byte of an answer: the rest is what was asked for.
pub const ANSWER_OK: u8 = 0;
/// First byte of an answer: the rest is a reason for a person, UTF-8.
pub const ANSWER_ERROR: u8 = 1;

/// Which log, and how much of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogsRequest {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Container; empty is the pod's only one.
    pub container: String,
    /// Bytes from the end, from a line's beginning on; 0 is all that is kept.
    pub tail_bytes: u32,
    /// Goes on until the call is cancelled or the container is gone.
    pub follow: bool,
}

impl LogsRequest {
    /// Bytes of the body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Writer::default();
        fields.put(1, Skip::Refused, &self.namespace);
        fields.put(2, Skip::Refused, &self.pod);
        fields.put(3, Skip::Refused, &self.container);
        fields.put(4, Skip::Allowed, &self.tail_bytes);
        fields.put(5, Skip::Allowed, &self.follow);
        fields.into_bytes()
    }

    /// Reads a body.
    ///
    /// # Errors
    /// The first wrong field.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut request = Self::default();
        for field in Reader::new(bytes) {
            let field = field?;
            match field.number {
                1 => request.namespace = field.read()?,
                2 => request.pod = field.read()?,
                3 => request.container = field.read()?,
                4 => request.tail_bytes = field.read()?,
                5 => request.follow = field.read()?,
                _ => field.unknown()?,
            }
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: another implementation reads these bytes.
    #[test]
    fn a_logs_request_keeps_its_bytes() {
        let request = LogsRequest {
            namespace: "n".into(),
            pod: "p".into(),
            container: String::new(),
            tail_bytes: 300,
            follow: true,
        };
        let bytes = [3, 2, 1, b'n', 5, 2, 1, b'p', 8, 2, 0xac, 2, 10, 1, 1];
        assert_eq!(request.encode(), bytes);
        assert_eq!(LogsRequest::decode(&bytes), Ok(request));
    }
}
