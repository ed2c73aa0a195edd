//! Calls for logs over the link: each sends what its window allows and, when it follows, looks
//! again after a while.

use std::path::{Path, PathBuf};

use edge_proto::call::{ANSWER_ERROR, ANSWER_OK, LogsRequest, METHOD_LOGS};
use edge_proto::session::NodeCallInput;
use edge_proto::sorted::SortedMap;

use crate::workload::logs;

/// Bytes of one answer frame.
const PIECE_BYTES: usize = 4096;
/// How often a followed log is looked at, milliseconds.
const FOLLOW_MS: u64 = 500;

struct Call {
    file: PathBuf,
    /// What was asked for.
    request: LogsRequest,
    at: u64,
    follow: bool,
    window: u32,
    /// Text to send before the log: the first byte of the answer, or all of a refusal.
    head: Vec<u8>,
    refused: bool,
    look_at: u64,
}

/// The calls of one session; the session itself caps their number.
#[derive(Default)]
pub struct LogCalls {
    calls: SortedMap<u32, Call>,
}

impl LogCalls {
    /// Reads a call's arguments.
    ///
    /// # Errors
    /// For the caller.
    pub fn request(method: u16, body: &[u8]) -> Result<LogsRequest, String> {
        if method != METHOD_LOGS {
            return Err("this agent does not know the call; upgrade it".to_owned());
        }
        LogsRequest::decode(body).map_err(|error| error.to_string())
    }

    /// Opens a call on a file, or with the reason why there is none.
    pub fn open(&mut self, id: u32, file: Result<(PathBuf, LogsRequest), String>) {
        let call = match file {
            Ok((file, request)) => {
                let tail = match request.tail_bytes {
                    0 => u64::MAX,
                    bytes => u64::from(bytes),
                };
                let at = logs::start_of_tail(&file, tail).unwrap_or(0);
                let (follow, head) = (request.follow, vec![ANSWER_OK]);
                Call {
                    file,
                    request,
                    at,
                    follow,
                    window: 0,
                    head,
                    refused: false,
                    look_at: 0,
                }
            }
            Err(reason) => {
                let head = [&[ANSWER_ERROR], reason.as_bytes()].concat();
                return self.answer(id, head);
            }
        };
        self.calls.insert(id, call);
    }

    /// Opens a call that is answered by these bytes alone.
    pub fn answer(&mut self, id: u32, head: Vec<u8>) {
        let call = Call {
            file: PathBuf::new(),
            request: LogsRequest::default(),
            at: 0,
            follow: false,
            window: 0,
            head,
            refused: true,
            look_at: 0,
        };
        self.calls.insert(id, call);
    }

    /// The caller takes so many bytes more.
    pub fn window(&mut self, id: u32, bytes: u32) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.window = call.window.saturating_add(bytes);
        }
    }

    /// The call is over.
    pub fn close(&mut self, id: u32) {
        self.calls.remove(&id);
    }

    /// The session is over, and with it every call.
    pub fn clear(&mut self) {
        self.calls.clear();
    }

    /// When to look again.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.calls
            .values()
            .filter(|call| call.window > 0)
            .map(|call| call.look_at)
            .min()
    }

    /// The next piece of an answer that can go now. `is_over` says whether nothing more will be
    /// written to a file: its container has ended for good, its pod is gone, or another has taken
    /// its name.
    pub fn next(
        &mut self,
        now: u64,
        is_over: &dyn Fn(&LogsRequest, &Path) -> bool,
    ) -> Option<NodeCallInput> {
        for (id, call) in &mut self.calls {
            if call.window == 0 || call.look_at > now {
                continue;
            }
            let limit = PIECE_BYTES.min(usize::try_from(call.window).unwrap_or(PIECE_BYTES));
            let id = *id;
            let mut bytes = std::mem::take(&mut call.head);
            if bytes.len() > limit {
                call.head = bytes.split_off(limit);
            } else if !call.refused {
                let mut more = logs::read_from(&call.file, call.at).unwrap_or_default();
                more.truncate(limit - bytes.len());
                call.at += more.len() as u64;
                bytes.extend(more);
            }
            call.window -= u32::try_from(bytes.len()).unwrap_or(call.window);
            if call.follow && bytes.is_empty() && call.file.exists() {
                // Asked before the last look, so that nothing written meanwhile is lost.
                call.follow = !is_over(&call.request, &call.file);
                call.look_at = if call.follow { now + FOLLOW_MS } else { now };
                continue;
            }
            let whole = bytes.is_empty() || (call.refused && call.head.is_empty());
            if whole {
                self.calls.remove(&id);
            }
            return Some(NodeCallInput::Answer {
                id,
                bytes,
                end: whole,
            });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(calls: &mut LogCalls, now: u64) -> (Vec<u8>, bool) {
        let (mut all, mut ended) = (Vec::new(), false);
        while let Some(NodeCallInput::Answer { bytes, end, .. }) = calls.next(now, &|_, _| false) {
            all.extend(bytes);
            ended = end;
        }
        (all, ended)
    }

    #[test]
    fn an_answer_keeps_to_its_window_and_ends_with_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        std::fs::write(&file, vec![b'x'; 10_000]).unwrap();
        let mut calls = LogCalls::default();
        calls.open(1, Ok((file, LogsRequest::default())));
        assert_eq!(drain(&mut calls, 0).0.len(), 0, "no window yet");
        calls.window(1, 5_000);
        assert_eq!(
            drain(&mut calls, 0),
            ([vec![ANSWER_OK], vec![b'x'; 4_999]].concat(), false)
        );
        calls.window(1, 6_000);
        assert_eq!(drain(&mut calls, 0), (vec![b'x'; 5_001], true));
        assert_eq!(calls.deadline(), None);
    }

    #[test]
    fn a_followed_log_is_looked_at_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        std::fs::write(&file, "a").unwrap();
        let mut calls = LogCalls::default();
        let request = LogsRequest {
            follow: true,
            ..LogsRequest::default()
        };
        calls.open(1, Ok((file.clone(), request)));
        calls.window(1, 100);
        assert_eq!(drain(&mut calls, 0), (vec![ANSWER_OK, b'a'], false));
        std::fs::write(&file, "ab").unwrap();
        assert_eq!(calls.deadline(), Some(FOLLOW_MS));
        assert_eq!(drain(&mut calls, FOLLOW_MS), (vec![b'b'], false));
    }

    /// Goal: what a container says last is not lost when its end is noticed. Method: it writes
    /// while the agent asks whether it is over.
    #[test]
    fn a_followed_log_ends_with_its_container_and_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        std::fs::write(&file, "").unwrap();
        let mut calls = LogCalls::default();
        let request = LogsRequest {
            follow: true,
            pod: "ends".to_owned(),
            ..LogsRequest::default()
        };
        calls.open(1, Ok((file.clone(), request)));
        calls.window(1, 100);
        assert_eq!(drain(&mut calls, 0), (vec![ANSWER_OK], false));
        let ends = |request: &LogsRequest, path: &Path| {
            assert_eq!((request.pod.as_str(), path), ("ends", file.as_path()));
            std::fs::write(path, "bye").unwrap();
            true
        };
        assert!(calls.next(FOLLOW_MS, &ends).is_none());
        assert_eq!(calls.deadline(), Some(FOLLOW_MS));
        assert_eq!(drain(&mut calls, FOLLOW_MS), (b"bye".to_vec(), true));
        assert_eq!(calls.deadline(), None);
    }

    #[test]
    fn a_refusal_is_one_whole_answer() {
        let mut calls = LogCalls::default();
        calls.open(1, Err("no pod".to_owned()));
        calls.window(1, 100);
        assert_eq!(
            drain(&mut calls, 0),
            ([&[ANSWER_ERROR], b"no pod".as_slice()].concat(), true)
        );
        assert!(LogCalls::request(99, &[]).is_err());
    }
}
