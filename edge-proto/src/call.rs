//! Calls that the cloud makes on a node: methods, their arguments and data, results and control
//! messages.
//! The numbers are wire constants: append, never reuse.

use alloc::string::String;

use crate::fields::field_list;

/// Sends the output of a container. The arguments are a [`LogsRequest`]; the node's data is the log. An
/// empty frame of data reports that the log exists.
pub const METHOD_LOGS: u16 = 1;
/// Makes the node renew its certificate now, for example after a change of the CA. With non-empty
/// arguments the node only answers. The node's data is the expiry of the certificate that its session
/// uses, seconds since 1970, u64 little-endian: 0 while the node does not know which certificate that is.
pub const METHOD_RENEW: u16 = 2;

/// Result: success. Codes below 256 have the same meaning in every method, others belong to one method.
pub const CODE_OK: u32 = 0;
/// Result: what was requested does not exist, or failed; the reason text explains it.
pub const CODE_FAILED: u32 = 1;
/// Result: the node does not know the method.
pub const CODE_UNKNOWN_METHOD: u32 = 2;
/// Result: the arguments cannot be decoded for the method.
pub const CODE_ARGUMENTS: u32 = 3;
/// Result: the node already has `CALLS_MAX` open calls.
pub const CODE_BUSY: u32 = 4;

/// Control message: the size of the caller's terminal; columns and rows, each u16 little-endian.
pub const CONTROL_TERMINAL_SIZE: u8 = 1;
/// Control message: a signal for the running process; its Linux number, one byte.
pub const CONTROL_SIGNAL: u8 = 2;

/// Arguments of [`METHOD_LOGS`]: the container, and which part of its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogsRequest {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container; empty selects the pod's only one.
    pub container: String,
    /// Length of the tail to send, bytes, rounded to the start of a line; 0 sends all that is kept.
    pub tail_bytes: u32,
    /// Continue until the call is cancelled or the container is removed.
    pub follow: bool,
}

field_list! {
    LogsRequest {
        1 must namespace,
        2 must pod,
        3 must container,
        4 may tail_bytes,
        5 may follow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: other implementations read these bytes.
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
