//! Calls that the cloud makes on a node: methods, their arguments and data, results and control
//! messages.
//! The numbers are wire constants: append, never reuse.

use alloc::string::String;

use crate::fields::field_list;

/// Output of a container. The arguments are a [`LogsRequest`]; the node's data is the log. An empty
/// frame of data says that there is one.
pub const METHOD_LOGS: u16 = 1;
/// The node is to renew its certificate now, as after a change of the CA; with arguments that are not
/// empty it only answers. The node's data is the end of the certificate that its session lives with,
/// seconds since 1970, u64 little-endian: 0 while it does not know which one that is.
pub const METHOD_RENEW: u16 = 2;

/// A result: all went well. Codes below 256 mean the same in every method, others are a method's own.
pub const CODE_OK: u32 = 0;
/// A result: what was asked for is not there, or failed; the reason says why.
pub const CODE_FAILED: u32 = 1;
/// A result: the node does not know the method.
pub const CODE_UNKNOWN_METHOD: u32 = 2;
/// A result: the arguments are not those of the method.
pub const CODE_ARGUMENTS: u32 = 3;
/// A result: the node has `CALLS_MAX` open calls.
pub const CODE_BUSY: u32 = 4;

/// A control message: the size of the caller's terminal; columns and rows, each u16 little-endian.
pub const CONTROL_TERMINAL_SIZE: u8 = 1;
/// A control message: a signal for what runs; its number on Linux, one byte.
pub const CONTROL_SIGNAL: u8 = 2;

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
