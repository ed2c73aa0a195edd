//! Operations of a process and its children on a folder, system call by system call, from `strace`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Longest run time of a recorded process, seconds, also on a busy host.
const TIMEOUT_S: &str = "900";
/// Every call that may change a folder or make it durable. One that is not modelled fails the test.
const CALLS: &str = "trace=open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,truncate,\
ftruncate,fallocate,copy_file_range,sendfile,rename,renameat,renameat2,link,linkat,symlink,symlinkat,\
unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,sync_file_range,syncfs,sync,msync";

/// One operation; paths are relative to the folder, which itself is the empty path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A file was created.
    Create(PathBuf),
    /// A folder was created.
    MakeDir(PathBuf),
    /// Bytes at an offset.
    Write(PathBuf, u64, Vec<u8>),
    /// A new length.
    Truncate(PathBuf, u64),
    /// Another name in the same folder.
    Rename(PathBuf, PathBuf),
    /// Two names in the same folder are exchanged.
    Exchange(PathBuf, PathBuf),
    /// A file or an empty folder was removed.
    Remove(PathBuf),
    /// A file, or the names of a folder, are durable when this has returned.
    Sync(PathBuf),
    /// An acknowledgement: a line of the process that begins with `@`, without it.
    Printed(String),
}

/// A command under `strace`, which writes its log to `log`.
pub(crate) fn traced(options: &[&str], log: &Path, command: &[&str]) -> Command {
    let mut strace = Command::new("timeout");
    strace.args([TIMEOUT_S, "strace", "-f", "-o"]).arg(log);
    strace.args(options).arg("--").args(command);
    strace.stdin(Stdio::null()).stderr(Stdio::null());
    strace
}

/// Runs a command and returns what it did to `folder`, in the order in which calls returned.
pub(crate) fn record(folder: &Path, command: &[&str], env: &[(&str, &str)]) -> Vec<Op> {
    let scratch = tempfile::tempdir().unwrap();
    let log = scratch.path().join("log");
    let options = [
        "-y",
        "-xx",
        "-s",
        "4000000",
        "-e",
        CALLS,
        "-e",
        "signal=none",
    ];
    let output = traced(&options, &log, command)
        .envs(env.iter().copied())
        .output()
        .expect("strace is missing: scripts/setup");
    let text = fs::read_to_string(&log).unwrap_or_default();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", tail(&text));
    Parser::new(folder).parse(&text)
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().take(20).collect();
    lines.join("\n")
}

struct Parser {
    folder: PathBuf,
    /// First halves of calls that were interrupted by a call of another thread.
    unfinished: HashMap<String, String>,
    /// Where the next `write` to a file goes; `None` is its end.
    positions: HashMap<PathBuf, Option<u64>>,
    /// Lengths of the files, as they are now.
    lengths: HashMap<PathBuf, u64>,
    ops: Vec<Op>,
}

impl Parser {
    fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            unfinished: HashMap::new(),
            positions: HashMap::new(),
            lengths: HashMap::new(),
            ops: Vec::new(),
        }
    }

    fn parse(mut self, text: &str) -> Vec<Op> {
        for line in text.lines() {
            let (thread, call) = line.split_once(' ').unwrap();
            let call = call.trim_start();
            if let Some(begin) = call.strip_suffix(" <unfinished ...>") {
                self.unfinished.insert(thread.to_owned(), begin.to_owned());
            } else if let Some(rest) = call.strip_prefix("<... ") {
                let begin = self.unfinished.remove(thread).unwrap_or_default();
                let (_, end) = rest.split_once(" resumed>").unwrap();
                self.call(&(begin + end));
            } else if !call.starts_with("+++") {
                self.call(call);
            }
        }
        self.ops
    }

    /// One call, its arguments and what it returned.
    fn call(&mut self, call: &str) {
        let (call, result) = call.rsplit_once(" = ").expect(call);
        if result.starts_with('-') || result.starts_with('?') {
            return;
        }
        let (name, args) = call.split_once('(').expect(call);
        let args = args.trim_end().strip_suffix(')').expect(call);
        assert!(!args.contains("\"..."), "cut off: {name}");
        let args: Vec<&str> = args.split(", ").collect();
        let moved = match name {
            "open" | "openat" | "creat" => {
                return self.opened(result, args[args.len() - 2..].join(""));
            }
            "write" if args[0].starts_with("1<") => return self.printed(&text(args[1])),
            "write" => None,
            "pwrite64" => Some(args[3].parse().unwrap()),
            "ftruncate" => {
                if let Some(path) = self.of_fd(args[0]) {
                    self.resize(&path, args[1].parse().unwrap());
                }
                return;
            }
            "fsync" | "fdatasync" => {
                let path = self.of_fd(args[0]);
                return self.ops.extend(path.map(Op::Sync));
            }
            "mkdir" => return self.op(self.inside(&text(args[0])), Op::MakeDir),
            "mkdirat" => return self.op(self.at(args[0], args[1]), Op::MakeDir),
            "unlink" | "rmdir" => return self.op(self.inside(&text(args[0])), Op::Remove),
            "unlinkat" => return self.op(self.at(args[0], args[1]), Op::Remove),
            "rename" => {
                return self.renamed(self.inside(&text(args[0])), self.inside(&text(args[1])), "");
            }
            "renameat" | "renameat2" => {
                let flags = args.get(4).copied().unwrap_or_default();
                return self.renamed(self.at(args[0], args[1]), self.at(args[2], args[3]), flags);
            }
            // Guarantees nothing for a power cut.
            "sync_file_range" => return,
            _ => {
                let named = args
                    .iter()
                    .any(|arg| self.inside(&text(arg)).is_some() || self.of_fd(arg).is_some());
                assert!(!named, "not modelled: {name}({args:?})");
                return;
            }
        };
        let Some(path) = self.of_fd(args[0]) else {
            return;
        };
        let count: usize = result.split_whitespace().next().unwrap().parse().unwrap();
        let bytes = bytes(args[1])[..count].to_vec();
        let length = self.lengths.entry(path.clone()).or_default();
        let position = self.positions.entry(path.clone()).or_insert(Some(0));
        let offset = moved.or(*position).unwrap_or(*length);
        let end = offset + bytes.len() as u64;
        *length = end.max(*length);
        if moved.is_none() && position.is_some() {
            *position = Some(end);
        }
        self.ops.push(Op::Write(path, offset, bytes));
    }

    fn opened(&mut self, result: &str, flags: String) {
        let Some(path) = self.of_fd(result) else {
            return;
        };
        if !flags.contains("O_WRONLY") && !flags.contains("O_RDWR") {
            return;
        }
        if flags.contains("O_CREAT") && !self.lengths.contains_key(&path) {
            self.lengths.insert(path.clone(), 0);
            self.ops.push(Op::Create(path.clone()));
        }
        if flags.contains("O_TRUNC") {
            self.resize(&path, 0);
        }
        let position = (!flags.contains("O_APPEND")).then_some(0);
        self.positions.insert(path, position);
    }

    fn resize(&mut self, path: &Path, length: u64) {
        if self.lengths.insert(path.to_owned(), length) != Some(length) {
            self.ops.push(Op::Truncate(path.to_owned(), length));
        }
    }

    fn renamed(&mut self, from: Option<PathBuf>, to: Option<PathBuf>, flags: &str) {
        let (Some(from), Some(to)) = (from, to) else {
            return;
        };
        if flags.contains("RENAME_EXCHANGE") {
            return self.ops.push(Op::Exchange(from, to));
        }
        // All files below it move with a folder.
        let lengths = &self.lengths;
        let below: Vec<PathBuf> = lengths
            .keys()
            .filter(|path| path.starts_with(&from))
            .cloned()
            .collect();
        for path in below {
            let length = self.lengths.remove(&path).unwrap();
            let rest = path.strip_prefix(&from).unwrap();
            let whole = rest.as_os_str().is_empty();
            self.lengths
                .insert(if whole { to.clone() } else { to.join(rest) }, length);
        }
        self.ops.push(Op::Rename(from, to));
    }

    fn op(&mut self, path: Option<PathBuf>, op: impl Fn(PathBuf) -> Op) {
        if let Some(path) = path {
            let op = op(path.clone());
            if matches!(op, Op::Remove(_)) {
                self.lengths.remove(&path);
            }
            self.ops.push(op);
        }
    }

    fn printed(&mut self, text: &str) {
        let lines = text.lines().filter_map(|line| line.strip_prefix('@'));
        self.ops
            .extend(lines.map(|line| Op::Printed(line.to_owned())));
    }

    /// `3</path>`: the path in the folder.
    fn of_fd(&self, arg: &str) -> Option<PathBuf> {
        let (_, path) = arg.strip_suffix('>')?.split_once('<')?;
        self.inside(&String::from_utf8_lossy(&unescaped(path)))
    }

    /// A name in the folder of a descriptor, or an absolute one.
    fn at(&self, fd: &str, name: &str) -> Option<PathBuf> {
        let (_, dir) = fd.strip_suffix('>')?.split_once('<')?;
        let dir = String::from_utf8_lossy(&unescaped(dir)).into_owned();
        self.inside(&Path::new(&dir).join(text(name)).to_string_lossy())
    }

    fn inside(&self, path: &str) -> Option<PathBuf> {
        let path = Path::new(path.strip_suffix(" (deleted)").unwrap_or(path));
        path.strip_prefix(&self.folder).ok().map(Path::to_owned)
    }
}

fn text(arg: &str) -> String {
    String::from_utf8_lossy(&bytes(arg)).into_owned()
}

/// The bytes in quotes.
fn bytes(arg: &str) -> Vec<u8> {
    arg.split('"')
        .skip(1)
        .step_by(2)
        .flat_map(unescaped)
        .collect()
}

/// `\x2f\x74`, as `-xx` prints everything.
fn unescaped(text: &str) -> Vec<u8> {
    let hex = text.split("\\x").filter(|two| !two.is_empty());
    hex.map(|two| u8::from_str_radix(two, 16).unwrap_or(b'?'))
        .collect()
}
