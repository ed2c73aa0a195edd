//! Calls for logs over the link: each sends as much as its window allows and, when it follows, reads
//! again after an interval.

use std::io;
use std::path::{Path, PathBuf};

use edge_core::calls::Refusal;
use edge_core::limits::LOG_LOOK_MS;
use edge_proto::call::{CODE_FAILED, CODE_OK, LogsRequest};
use edge_proto::session::{CallInput, CallResult, NodeInput};
use edge_proto::sorted::SortedMap;

use crate::workload::logs;

/// Bytes of one answer frame.
const PIECE_BYTES: usize = 4096;

struct Call {
    file: PathBuf,
    /// What was asked for.
    request: LogsRequest,
    at: u64,
    /// What is written later is not sent: unless it is followed, a log ends where it ended.
    end: u64,
    follow: bool,
    window: u32,
    /// The whole answer, when it is not a log.
    answer: Vec<u8>,
    /// Why there is no log, with the code of the result.
    refusal: Option<Refusal>,
    /// The caller was informed that the log exists.
    begun: bool,
    look_at: u64,
}

impl Call {
    fn new(file: PathBuf, request: LogsRequest) -> Self {
        Self {
            file,
            at: 0,
            end: u64::MAX,
            follow: request.follow,
            request,
            window: 0,
            answer: Vec::new(),
            refusal: None,
            begun: false,
            look_at: 0,
        }
    }
}

/// The calls of one session; the session itself caps their number.
#[derive(Default)]
pub struct LogCalls {
    calls: SortedMap<u32, Call>,
}

impl LogCalls {
    /// Opens a call on a file, or with the reason why there is no file.
    pub fn open(&mut self, id: u32, file: Result<(PathBuf, LogsRequest), Refusal>) {
        let found = file.and_then(|(file, request)| {
            let tail = match request.tail_bytes {
                0 => u64::MAX,
                bytes => u64::from(bytes),
            };
            let place = logs::tail_of(&file, tail).map_err(refused)?;
            Ok((file, request, place))
        });
        let call = match found {
            Ok((file, request, place)) => Call {
                at: place.start,
                end: if request.follow { u64::MAX } else { place.end },
                ..Call::new(file, request)
            },
            Err(refusal) => Call {
                refusal: Some(refusal),
                ..Call::new(PathBuf::new(), LogsRequest::default())
            },
        };
        self.calls.insert(id, call);
    }

    /// Opens a call with this complete answer.
    pub fn answer(&mut self, id: u32, answer: Vec<u8>) {
        let call = Call {
            answer,
            ..Call::new(PathBuf::new(), LogsRequest::default())
        };
        self.calls.insert(id, call);
    }

    /// The caller grants more bytes.
    pub fn window(&mut self, id: u32, bytes: u32) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.window = call.window.saturating_add(bytes);
        }
    }

    /// The call has ended.
    pub fn close(&mut self, id: u32) {
        self.calls.remove(&id);
    }

    /// The session has ended, and with it every call.
    pub fn clear(&mut self) {
        self.calls.clear();
    }

    /// When to read again.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.calls
            .values()
            .filter(|call| call.window > 0)
            .map(|call| call.look_at)
            .min()
    }

    /// The next data of a call that can be sent now, or its result. `is_over` says whether the
    /// file is final: its container has ended for good, its pod is gone, or another has
    /// the same name now.
    pub fn next(
        &mut self,
        now: u64,
        is_over: &dyn Fn(&LogsRequest, &Path) -> bool,
    ) -> Option<NodeInput<'static>> {
        for (id, call) in &mut self.calls {
            let id = *id;
            if let Some((code, reason)) = call.refusal.take() {
                self.calls.remove(&id);
                return Some(CallResult { id, code, reason }.into());
            }
            if call.window == 0 || call.look_at > now {
                continue;
            }
            let limit = PIECE_BYTES.min(usize::try_from(call.window).unwrap_or(PIECE_BYTES));
            let mut bytes = std::mem::take(&mut call.answer);
            if bytes.is_empty() && !call.file.as_os_str().is_empty() {
                let (at, read) = match logs::read_from(&call.file, call.at) {
                    Ok(read) => read,
                    // Gone with its pod.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => (call.at, Vec::new()),
                    Err(error) => {
                        self.calls.remove(&id);
                        let (code, reason) = refused(error);
                        return Some(CallResult { id, code, reason }.into());
                    }
                };
                bytes = read;
                let room = usize::try_from(call.end.saturating_sub(at)).unwrap_or(limit);
                bytes.truncate(limit.min(room));
                call.at = at + bytes.len() as u64;
            } else if bytes.len() > limit {
                call.answer = bytes.split_off(limit);
            }
            call.window -= u32::try_from(bytes.len()).unwrap_or(call.window);
            let end = false;
            if !bytes.is_empty() {
                call.begun = true;
                return Some(CallInput::Data { id, bytes, end }.into());
            }
            if call.follow && call.file.exists() {
                if !call.begun {
                    call.begun = true;
                    return Some(CallInput::Data { id, bytes, end }.into());
                }
                // Asked before the last read, so that nothing written meanwhile is lost.
                call.follow = !is_over(&call.request, &call.file);
                call.look_at = if call.follow { now + LOG_LOOK_MS } else { now };
                continue;
            }
            self.calls.remove(&id);
            let (code, reason) = (CODE_OK, String::new());
            return Some(CallResult { id, code, reason }.into());
        }
        None
    }
}

fn refused(error: io::Error) -> Refusal {
    (CODE_FAILED, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All data that may be sent now, and the result if it is sent.
    fn drain(calls: &mut LogCalls, now: u64) -> (Vec<u8>, Option<(u32, String)>) {
        let mut all = Vec::new();
        while let Some(input) = calls.next(now, &|_, _| false) {
            match input {
                NodeInput::Call(CallInput::Data { bytes, end, .. }) => {
                    assert!(!end);
                    all.extend(bytes);
                }
                NodeInput::CallResult(CallResult { code, reason, .. }) => {
                    return (all, Some((code, reason)));
                }
                other => panic!("{other:?}"),
            }
        }
        (all, None)
    }

    fn done() -> Option<(u32, String)> {
        Some((CODE_OK, String::new()))
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
        assert_eq!(drain(&mut calls, 0), (vec![b'x'; 5_000], None));
        calls.window(1, 6_000);
        assert_eq!(drain(&mut calls, 0), (vec![b'x'; 5_000], done()));
        assert_eq!(calls.deadline(), None);
    }

    /// Goal: a log that grows while it is read ends all the same. Method: it grows by each piece.
    #[test]
    fn what_is_written_later_is_not_sent_unless_the_log_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        std::fs::write(&file, vec![b'x'; 10_000]).unwrap();
        let mut calls = LogCalls::default();
        calls.open(1, Ok((file.clone(), LogsRequest::default())));
        std::fs::write(&file, vec![b'x'; 20_000]).unwrap();
        calls.window(1, 50_000);
        assert_eq!(drain(&mut calls, 0), (vec![b'x'; 10_000], done()));
    }

    #[test]
    fn a_log_that_cannot_be_opened_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let target = dir.path().join("target");
        std::fs::write(&target, "secret").unwrap();
        std::os::unix::fs::symlink(&target, &file).unwrap();
        let mut calls = LogCalls::default();
        calls.open(1, Ok((file, LogsRequest::default())));
        let (sent, result) = drain(&mut calls, 0);
        let (code, reason) = result.unwrap();
        assert_eq!((sent, code), (Vec::new(), CODE_FAILED));
        assert!(!reason.is_empty());
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
        assert_eq!(drain(&mut calls, 0), (b"a".to_vec(), None));
        std::fs::write(&file, "ab").unwrap();
        assert_eq!(calls.deadline(), Some(LOG_LOOK_MS));
        assert_eq!(drain(&mut calls, LOG_LOOK_MS), (vec![b'b'], None));
    }

    /// Goal: the last output of a container is not lost when its end is noticed. Method: it writes
    /// while the agent asks whether it is over. Before, the caller is informed that there is a log.
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
        let begun = calls.next(0, &|_, _| false);
        assert!(matches!(
            begun,
            Some(NodeInput::Call(CallInput::Data { bytes, .. })) if bytes.is_empty()
        ));
        assert_eq!(drain(&mut calls, 0), (Vec::new(), None));
        let ends = |request: &LogsRequest, path: &Path| {
            assert_eq!((request.pod.as_str(), path), ("ends", file.as_path()));
            std::fs::write(path, "bye").unwrap();
            true
        };
        assert!(calls.next(LOG_LOOK_MS, &ends).is_none());
        assert_eq!(calls.deadline(), Some(LOG_LOOK_MS));
        assert_eq!(drain(&mut calls, LOG_LOOK_MS), (b"bye".to_vec(), done()));
        assert_eq!(calls.deadline(), None);
    }

    #[test]
    fn a_refusal_needs_no_window_and_an_answer_is_whole() {
        let mut calls = LogCalls::default();
        let refusal = (CODE_FAILED, "no pod".to_owned());
        calls.open(1, Err(refusal.clone()));
        assert_eq!(drain(&mut calls, 0), (Vec::new(), Some(refusal)));
        calls.answer(2, vec![7; 8]);
        calls.window(2, 512);
        assert_eq!(drain(&mut calls, 0), (vec![7; 8], done()));
    }
}
