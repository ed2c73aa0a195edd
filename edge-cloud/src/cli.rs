//! The command line. Tables for people, `--json` for programs.
//!
//! Exit codes: see [`Exit`].

mod args;
mod ca;
mod lists;
mod nodes;
mod records;
mod table;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use axum::http::Method;
use http_body_util::BodyExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::args::{Command, Logs, Restore, Serve};
use self::lists::{events, nodes, pods, problems, restored};
use self::table::table;
use crate::api::ProblemRow;
use crate::backup::{self, Backup, BackupError};
use crate::client::{self, ClientError};
use crate::clock::unix_s;
use crate::identity::authorities::Authorities;
use crate::identity::enrol::CertificateTimes;
use crate::identity::registry::{self, NODES};
use crate::manifest::{Manifests, Severity};
use crate::serve;
use crate::transport::broker::files::{self, FILES};

pub use self::args::Cli;

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command succeeded.
    Done = 0,
    /// `check` or `problems` found something.
    Found = 1,
    /// The command line is wrong (clap's own code, too).
    Usage = 2,
    /// edge-cloud does not answer.
    Unreachable = 3,
    /// edge-cloud refused, or what was named does not exist.
    Refused = 4,
    /// Anything else: files, a broken connection.
    Failed = 5,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The API.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A backup or a restore.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// Standard output.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// The server could not start or go on.
    #[error("{0}")]
    Serve(io::Error),
    /// Files could not be read or written.
    #[error("{0}")]
    Files(io::Error),
    /// An argument that clap cannot judge.
    #[error("{0}")]
    Usage(String),
}

impl CliError {
    /// Its exit code.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Client(ClientError::Unreachable { .. }) => Exit::Unreachable,
            Self::Client(ClientError::Refused(_)) => Exit::Refused,
            Self::Backup(BackupError::File { .. }) => Exit::Failed,
            Self::Backup(_) => Exit::Refused,
            Self::Client(ClientError::Answer(_) | ClientError::Denied { .. })
            | Self::Output(_)
            | Self::Serve(_)
            | Self::Files(_) => Exit::Failed,
            Self::Usage(_) => Exit::Usage,
        }
    }
}

/// Runs a command and prints to `out`.
///
/// # Errors
/// See [`CliError`].
pub async fn run(cli: Cli, out: &mut impl Write) -> Result<Exit, CliError> {
    let ctx = Context {
        data: &cli.data,
        json: cli.json,
    };
    match cli.command {
        Command::Serve(serve) => {
            let config = config(cli.data, *serve);
            serve::run(config).await.map_err(CliError::Serve)?;
            Ok(Exit::Done)
        }
        Command::Token(command) => ctx.token(out, command).await,
        Command::Label(command) => ctx.label(out, command).await,
        Command::Nodes => ctx.list(out, "/v1/nodes", nodes).await,
        Command::Pods => ctx.list(out, "/v1/pods", pods).await,
        Command::Events => ctx.list(out, "/v1/events", events).await,
        Command::Records => ctx.records(out).await,
        Command::Problems => ctx.problems(out).await,
        Command::Logs(logs) => ctx.logs(out, &logs).await,
        Command::Node(command) => ctx.node(out, command).await,
        Command::Ca(command) => ctx.ca(out, &command).await,
        Command::Backup { file } => ctx.backup(out, &file),
        Command::Restore(restore) => ctx.restore(out, &restore),
        Command::BrokerConfig { dir, name, port } => {
            broker_config(&cli.data, &dir, &name, port).map_err(CliError::Files)?;
            ctx.print(out, &FILES, || {
                let row = |(file, what): &(&str, &str)| {
                    let file = dir.join(file).display().to_string();
                    vec![file, (*what).to_owned()]
                };
                table(&["FILE", "WHAT"], FILES.iter().map(row))
            })?;
            Ok(Exit::Done)
        }
        Command::Check { manifests } => ctx.check(out, &manifests),
    }
}

fn config(data: PathBuf, serve: Serve) -> serve::Config {
    serve::Config {
        data,
        broker: serve.broker(),
        records: serve.records(),
        manifests: serve.manifests,
        listen: serve.listen,
        names: serve.name,
        http: serve.http,
        admissions_per_s: serve.admissions,
        times: CertificateTimes {
            node_s: serve.node_certificate_life,
            grace_s: serve.renewal_grace,
        },
    }
}

/// Works beside a running server, but for the first start, which makes the CA.
fn broker_config(data: &Path, dir: &Path, names: &[String], port: u16) -> io::Result<()> {
    let _lock = if data.join(NODES).exists() {
        None
    } else {
        Some(serve::lock(data)?)
    };
    let cas = Authorities::open(data).map_err(io::Error::other)?;
    files::write(dir, &cas, names, port, registry::retired(data)?)
}

const fn found(count: usize) -> Exit {
    if count == 0 { Exit::Done } else { Exit::Found }
}

/// Warnings are listed, and are no reason to fail.
fn errors(all: impl Iterator<Item = Severity>) -> usize {
    all.filter(|severity| *severity == Severity::Error).count()
}

struct Context<'a> {
    data: &'a Path,
    json: bool,
}

impl Context<'_> {
    /// Prints a list.
    async fn list<T: Serialize + DeserializeOwned>(
        &self,
        out: &mut impl Write,
        target: &str,
        text: impl Fn(&[T]) -> String,
    ) -> Result<Exit, CliError> {
        let rows: Vec<T> = client::json(self.data, Method::GET, target, Vec::new()).await?;
        self.print(out, &rows, || text(&rows))?;
        Ok(Exit::Done)
    }

    async fn problems(&self, out: &mut impl Write) -> Result<Exit, CliError> {
        let rows: Vec<ProblemRow> =
            client::json(self.data, Method::GET, "/v1/problems", Vec::new()).await?;
        self.print(out, &rows, || problems(&rows))?;
        Ok(found(errors(rows.iter().map(|row| row.severity))))
    }

    fn print(
        &self,
        out: &mut impl Write,
        value: &impl Serialize,
        text: impl Fn() -> String,
    ) -> Result<(), CliError> {
        if self.json {
            serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            out.write_all(text().as_bytes())?;
        }
        Ok(())
    }

    async fn logs(&self, out: &mut impl Write, logs: &Logs) -> Result<Exit, CliError> {
        let parts: Vec<_> = logs.pod.split('/').collect();
        let (node, namespace, pod) = match parts.as_slice() {
            [node, pod] => (*node, "default", *pod),
            [node, namespace, pod] => (*node, *namespace, *pod),
            _ => {
                let wanted = "the pod must be NODE/POD or NODE/NAMESPACE/POD".to_owned();
                return Err(CliError::Usage(wanted));
            }
        };
        let mut target = "/v1/logs".to_owned();
        for part in [node, namespace, pod]
            .into_iter()
            .chain(logs.container.as_deref())
        {
            check_name(part)?;
            target.push('/');
            target.push_str(part);
        }
        target.push_str(&format!("?tail={}&follow={}", logs.tail, logs.follow));
        let response = client::send(self.data, Method::GET, &target, Vec::new()).await?;
        let mut body = response.into_body();
        loop {
            let frame = match logs.follow {
                true => body.frame().await,
                false => client::timely(body.frame()).await?,
            };
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| ClientError::Answer(error.to_string()))?;
            if let Some(bytes) = frame.data_ref() {
                out.write_all(bytes)?;
                out.flush()?;
            }
        }
        Ok(Exit::Done)
    }

    fn backup(&self, out: &mut impl Write, file: &Path) -> Result<Exit, CliError> {
        let backup = Backup::of(self.data, unix_s())?;
        backup.write(file)?;
        let made = serde_json::json!({ "file": file, "unix_s": backup.unix_s });
        self.print(out, &made, || {
            let file = file.display();
            format!(
                "{file}: it holds the key of the CA and all Secrets; keep it as you keep those\n"
            )
        })?;
        Ok(Exit::Done)
    }

    fn restore(&self, out: &mut impl Write, restore: &Restore) -> Result<Exit, CliError> {
        let backup = Backup::read(&restore.file)?;
        let options = backup::Options {
            force: restore.force,
            keep_tokens: restore.keep_tokens,
            grace_s: restore.grace,
        };
        let report = backup::restore(&backup, self.data, options, unix_s())?;
        self.print(out, &report, || restored(&report))?;
        Ok(Exit::Done)
    }

    fn check(&self, out: &mut impl Write, folder: &Path) -> Result<Exit, CliError> {
        // A slip of the pen here is none in the manifests.
        std::fs::metadata(folder).map_err(|error| {
            CliError::Files(io::Error::new(
                error.kind(),
                format!("{}: {error}", folder.display()),
            ))
        })?;
        let manifests = Manifests::read(folder);
        let problems = errors(manifests.problems.iter().map(|problem| problem.severity));
        let warnings = manifests.problems.len() - problems;
        self.print(out, &manifests.problems, || {
            let mut text = String::new();
            for problem in &manifests.problems {
                text.push_str(&problem.to_string());
                text.push('\n');
            }
            let accepted = manifests.objects.len();
            text.push_str(&format!("{accepted} objects accepted, {problems} problems"));
            if warnings > 0 {
                text.push_str(&format!(", {warnings} warnings"));
            }
            text.push('\n');
            text
        })?;
        Ok(found(problems))
    }
}

/// A name becomes a part of the API's path: nothing in it may be a separator.
fn check_name(name: &str) -> Result<(), CliError> {
    let fits = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.');
    if !name.is_empty() && name.bytes().all(fits) {
        Ok(())
    } else {
        Err(CliError::Usage(format!("{name:?} is not a name")))
    }
}
