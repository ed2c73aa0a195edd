//! Why a program could not be executed, human-readable: one error code of the kernel has several causes.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Bytes at the start of a program that are read.
const HEAD_BYTES: usize = 128;
/// Longest name of an interpreter.
const INTERPRETER_BYTES_MAX: usize = 256;
/// Size of an ELF program header of 64 and of 32 bits, and the type of the one that names the
/// interpreter.
const HEADER_BYTES: (usize, usize) = (56, 32);
const PT_INTERP: u64 = 3;
/// Machines by their number in an ELF header.
const MACHINES: [(u64, &str); 7] = [
    (3, "x86"),
    (8, "mips"),
    (20, "powerpc"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv"),
];

/// Explains `error` for `program`, started in `cwd` with this `PATH`.
#[must_use]
pub fn explain(error: &io::Error, program: &str, search: &str, cwd: &Path) -> String {
    let Some(file) = find(program, search, cwd) else {
        let tail = if program.contains('/') {
            ": there is no such file".to_owned()
        } else {
            [": not found in PATH ", search].concat()
        };
        return [program, &tail].concat();
    };
    let name = file.to_string_lossy().into_owned();
    let reason = match error.kind() {
        io::ErrorKind::NotFound => interpreter(&file).map(|interpreter| {
            let hint = "install it, or use a static build";
            ["its interpreter ", &interpreter, " is missing: ", hint].concat()
        }),
        io::ErrorKind::PermissionDenied => denied(&file),
        _ if error.raw_os_error() == Some(nix::libc::ENOEXEC) => Some(format_of(&file)),
        _ => None,
    };
    [&name, ": ", &reason.unwrap_or_else(|| error.to_string())].concat()
}

/// The file that the kernel tried to execute.
fn find(program: &str, search: &str, cwd: &Path) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(cwd.join(program)).filter(|file| file.exists());
    }
    let mut files = search.split(':').map(|dir| Path::new(dir).join(program));
    files.find(|file| file.is_file())
}

fn denied(file: &Path) -> Option<String> {
    let metadata = fs::metadata(file).ok()?;
    if metadata.is_dir() {
        return Some("is a directory".to_owned());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Some("is not executable: chmod +x".to_owned());
    }
    let flags = rustix::fs::statvfs(file).ok()?.f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC) {
        return Some("stands on a file system that is mounted noexec".to_owned());
    }
    Some("the container's user may not execute it, or not enter one of its directories".to_owned())
}

/// The format of the file, when the kernel cannot execute it.
fn format_of(file: &Path) -> String {
    let own = std::env::consts::ARCH;
    let head = head(file).unwrap_or_default();
    let Some(elf) = Elf::of(&head) else {
        let empty = head.is_empty();
        let what = if empty {
            "is empty"
        } else {
            "is neither a program nor a script with #!"
        };
        return what.to_owned();
    };
    let number = elf.number(18, 2);
    let known = MACHINES
        .iter()
        .find(|(machine, _)| Some(*machine) == number);
    match known {
        Some((_, machine)) if *machine != own => {
            ["is built for ", machine, ", and this board is ", own].concat()
        }
        _ => ["is a program that this board (", own, ") cannot run"].concat(),
    }
}

/// The interpreter that a script or a dynamic program names.
fn interpreter(file: &Path) -> Option<String> {
    let head = head(file)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?;
        let line = String::from_utf8_lossy(line);
        return line.split_whitespace().next().map(str::to_owned);
    }
    let elf = Elf::of(&head)?;
    let (table, size, count) = if elf.wide {
        (elf.number(32, 8)?, HEADER_BYTES.0, elf.number(56, 2)?)
    } else {
        (elf.number(28, 4)?, HEADER_BYTES.1, elf.number(44, 2)?)
    };
    let opened = File::open(file).ok()?;
    for index in 0..count {
        let mut bytes = [0; HEADER_BYTES.0];
        let header = bytes.get_mut(..size)?;
        let at = table.checked_add(index.checked_mul(size as u64)?)?;
        opened.read_exact_at(header, at).ok()?;
        let header = Elf {
            bytes: header,
            ..elf
        };
        if header.number(0, 4)? != PT_INTERP {
            continue;
        }
        let (offset, length) = if elf.wide {
            (header.number(8, 8)?, header.number(32, 8)?)
        } else {
            (header.number(4, 4)?, header.number(16, 4)?)
        };
        let length = usize::try_from(length).ok()?.min(INTERPRETER_BYTES_MAX);
        let mut name = vec![0; length];
        opened.read_exact_at(&mut name, offset).ok()?;
        let name = name.split(|byte| *byte == 0).next()?;
        return Some(String::from_utf8_lossy(name).into_owned());
    }
    None
}

fn head(file: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let file = File::open(file).ok()?;
    file.take(HEAD_BYTES as u64).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Reader of the numbers of an ELF file, in its own width and order.
#[derive(Clone, Copy)]
struct Elf<'a> {
    bytes: &'a [u8],
    wide: bool,
    big: bool,
}

impl<'a> Elf<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(b"\x7fELF")?;
        let wide = rest.first() == Some(&2);
        let big = rest.get(1) == Some(&2);
        Some(Self { bytes, wide, big })
    }

    fn number(&self, at: usize, size: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at + size)?;
        let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.big {
            bytes.iter().fold(0, join)
        } else {
            bytes.iter().rev().fold(0, join)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Why the kernel refuses a program that was just written. A process that another test forked
    /// meanwhile also has the file open until it executes a program of its own.
    fn refusal(program: &Path) -> io::Error {
        loop {
            let error = Command::new(program).spawn().unwrap_err();
            if error.kind() != io::ErrorKind::ExecutableFileBusy {
                return error;
            }
            std::thread::yield_now();
        }
    }

    /// Goal: each refusal of the kernel gets an explanation with a fix. Method: files
    /// that it refuses, really executed.
    #[test]
    fn each_refusal_of_the_kernel_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8], mode: u32| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_string_lossy().into_owned()
        };
        let explained = |program: &str| {
            let error = refusal(Path::new(program));
            explain(&error, program, "/nowhere:/bin", dir.path())
        };
        assert!(explained("/nowhere/x").contains("no such file"));
        assert!(explained("edge-min-nothing").contains("not found in PATH /nowhere:/bin"));
        let script = file("script", b"#!/nowhere/sh -e\n", 0o755);
        assert!(explained(&script).contains("its interpreter /nowhere/sh is missing"));
        let plain = file("plain", b"#!/bin/sh\n", 0o644);
        assert!(explained(&plain).contains("chmod +x"));
        assert!(explained(&dir.path().to_string_lossy()).contains("directory"));
        // The header of a 64-bit program for a machine that does not exist.
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        (elf[16], elf[18]) = (2, 20);
        let foreign = file("foreign", &elf, 0o755);
        let words = explained(&foreign);
        assert!(words.contains("is built for powerpc"), "{words}");
    }

    #[test]
    fn the_interpreter_of_a_dynamic_program_is_found() {
        let own = std::env::current_exe().unwrap();
        let found = interpreter(&own).unwrap();
        assert!(found.starts_with("/lib"), "{found}");
        let dir = tempfile::tempdir().unwrap();
        let moved = dir.path().join("moved");
        let mut bytes = fs::read(&own).unwrap();
        let at = bytes
            .windows(found.len())
            .position(|window| window == found.as_bytes())
            .unwrap();
        bytes[at + 1] = b'x';
        fs::write(&moved, bytes).unwrap();
        fs::set_permissions(&moved, fs::Permissions::from_mode(0o755)).unwrap();
        let error = refusal(&moved);
        let words = explain(&error, &moved.to_string_lossy(), "", Path::new("/"));
        assert!(words.contains("its interpreter /xib"), "{words}");
        // A truncated file only gets a less precise explanation.
        for length in [0, 3, 5, 20, 63, 100] {
            fs::write(&moved, &fs::read(&own).unwrap()[..length]).unwrap();
            assert_eq!(interpreter(&moved), None);
        }
    }
}
