//! The command line. Tables for people, `--json` for programs.
//!
//! Exit codes: see [`Exit`].

mod ca;
mod records;
mod table;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::Method;
use clap::{Args, Parser, Subcommand};
use http_body_util::BodyExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{NodeRow, PodRow, ProblemRow, TokenAnswer, TokenRequest};
use crate::backup::{self, Backup, BackupError, Report};
use crate::client::{self, ClientError};
use crate::clock::unix_s;
use crate::identity::authorities::Authorities;
use crate::identity::ca::NODE_LIFE_S;
use crate::transport::broker::{self, files::FILES};

use crate::identity::enrol::Lives;
use crate::identity::registry::{self, NODES};
use crate::manifest::Manifests;
use crate::nodes::Event;
use crate::records::target;
use crate::serve;
use crate::sessions::ADMISSIONS_PER_S;
use table::{ago, ahead, table, yes};

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
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

/// The cloud end of edge-min. Exit codes: 0 done, 1 problems found, 2 wrong usage, 3 edge-cloud
/// does not answer, 4 refused or not found, 5 other failures.
#[derive(Debug, Parser)]
#[command(name = "edge-cloud", version)]
pub struct Cli {
    /// Prints JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Folder with the CA, the registry of nodes and the API's socket.
    #[arg(long, global = true, default_value = "/var/lib/edge-cloud")]
    data: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves nodes, manifests and the API until Ctrl-C.
    Serve(Box<Serve>),
    /// Makes join tokens.
    #[command(subcommand)]
    Token(Token),
    /// Lists the nodes.
    Nodes,
    /// Lists the pods: what is asked for and what the nodes report.
    Pods,
    /// Lists the latest events.
    Events,
    /// Lists the streams of records: what was delivered, and what was lost and why. Exit code 1 if
    /// the books of one do not balance, or the sink fails.
    Records,
    /// Lists what in the manifests was refused, and pods that are not placed. Exit code 1 if any.
    Problems,
    /// Prints the output of a container.
    Logs(Logs),
    /// Deletes or revokes a node.
    #[command(subcommand)]
    Node(Node),
    /// Shows the CAs and rolls over from one to the next.
    #[command(subcommand)]
    Ca(ca::Command),
    /// Writes everything that edge-cloud remembers into one file, whether it serves or not. The
    /// file holds the key of the CA: who has it is your cloud.
    Backup {
        /// The file; an older one is replaced.
        file: PathBuf,
    },
    /// Puts a backup into the data folder. edge-cloud must not serve from it.
    Restore(Restore),
    /// Writes what an external broker needs: certificates, access control, a mosquitto.conf.
    BrokerConfig {
        /// Folder for the files.
        dir: PathBuf,
        /// Names and addresses under which the broker is reached, separated by commas.
        #[arg(long, value_delimiter = ',', required = true)]
        name: Vec<String>,
        /// Port of the broker.
        #[arg(long, default_value_t = 8883)]
        port: u16,
    },
    /// Checks a folder of manifests, without a server. Exit code 1 if anything is refused.
    Check {
        /// The folder, or one file.
        manifests: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// Folder of Kubernetes manifests, watched for changes.
    #[arg(long)]
    manifests: PathBuf,
    /// Where nodes connect.
    #[arg(long, default_value = "0.0.0.0:8883")]
    listen: SocketAddr,
    /// Names and addresses under which nodes reach this machine, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "localhost,127.0.0.1")]
    name: Vec<String>,
    /// Serves the read-only API and /metrics here, without authentication.
    #[arg(long)]
    http: Option<SocketAddr>,
    /// Connections and sessions admitted a second. When more nodes come at once, each gets a turn.
    #[arg(long, default_value_t = ADMISSIONS_PER_S, value_parser = clap::value_parser!(u32).range(1..))]
    admissions: u32,
    /// Serves the nodes through this MQTT broker, mqtts://HOST:PORT; --listen is then for
    /// enrolment only.
    #[arg(long)]
    broker: Option<String>,
    /// PEM with the CAs of the broker's certificate, also for the nodes; edge-cloud's own CA when
    /// absent.
    #[arg(long, requires = "broker")]
    broker_ca: Option<PathBuf>,
    /// PEM with edge-cloud's certificate for the broker; issued by its own CA when absent.
    #[arg(long, requires_all = ["broker", "broker_key"])]
    broker_cert: Option<PathBuf>,
    /// PEM with its key.
    #[arg(long, requires = "broker_cert")]
    broker_key: Option<PathBuf>,
    /// Keeps the list of refused certificates for the broker here.
    #[arg(long, requires = "broker")]
    broker_crl: Option<PathBuf>,
    /// Asks a node for a sign of life when it was silent for so long: a number with s, m, h or d.
    #[arg(long, default_value = "30m", value_parser = duration_s)]
    broker_silence: u64,
    /// Where the nodes' records go: files:DIR, stdout, http(s)://HOST:PORT/PATH,
    /// mqtt(s)://HOST:PORT/TOPIC or nats(s)://HOST:PORT/SUBJECT. The folder `records` in --data
    /// when absent.
    #[arg(long)]
    records: Option<String>,
    /// PEM with the CAs of that server's certificate; the system's when absent.
    #[arg(long, requires = "records")]
    records_ca: Option<PathBuf>,
    /// PEM with edge-cloud's certificate for that server.
    #[arg(long, requires = "records_key")]
    records_cert: Option<PathBuf>,
    /// PEM with its key.
    #[arg(long, requires = "records_cert")]
    records_key: Option<PathBuf>,
    /// File with edge-cloud's credentials for that server: a bearer token (HTTP), USER:PASSWORD (MQTT,
    /// NATS), or a NATS token or credentials file.
    #[arg(long, requires = "records")]
    records_auth: Option<PathBuf>,
    /// Life of the nodes' certificates, at most 365d: a number with s, m, h or d. A node renews
    /// its own at two thirds of it.
    #[arg(long, default_value = "365d", value_parser = life_s)]
    node_certificate_life: u64,
    /// How long after its end a node's certificate may still be renewed; later the node has to
    /// join again. A number with s, m, h or d; 0 is not at all.
    #[arg(long, default_value = "90d", value_parser = grace_s)]
    renewal_grace: u64,
}

impl Serve {
    fn records(&self) -> target::Config {
        target::Config {
            url: self.records.clone(),
            ca: self.records_ca.clone(),
            identity: self.records_cert.clone().zip(self.records_key.clone()),
            auth: self.records_auth.clone(),
        }
    }

    fn broker(&self) -> Option<broker::Config> {
        Some(broker::Config {
            url: self.broker.clone()?,
            ca: self.broker_ca.clone(),
            identity: self.broker_cert.clone().zip(self.broker_key.clone()),
            crl: self.broker_crl.clone(),
            silence: Duration::from_secs(self.broker_silence),
        })
    }
}

#[derive(Debug, Subcommand)]
enum Token {
    /// Makes a token and prints it; it is a secret and is not shown again.
    Create {
        /// Nodes that may join with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Until it expires: a number with s, m, h or d.
        #[arg(long, default_value = "1h", value_parser = duration_s)]
        ttl: u64,
    },
}

#[derive(Debug, Subcommand)]
enum Node {
    /// Forgets a node; it may join again with a token.
    Delete {
        /// Name of the node.
        name: String,
    },
    /// Refuses a node's certificate from now on, also on its live connection.
    Revoke {
        /// Name of the node.
        name: String,
    },
}

#[derive(Debug, Args)]
struct Restore {
    /// The backup.
    file: PathBuf,
    /// Replaces what the data folder holds; a backup of that is left in it.
    #[arg(long)]
    force: bool,
    /// Keeps tokens valid that had uses left. Only if none was used since the backup: a used
    /// one would come back to life.
    #[arg(long)]
    keep_tokens: bool,
    /// How long nodes that joined after the backup may come back: a number with s, m, h or d; 0 is
    /// not at all.
    #[arg(long, default_value = "30d", value_parser = grace_s)]
    grace: u64,
}

#[derive(Debug, Args)]
struct Logs {
    /// NODE/POD or NODE/NAMESPACE/POD.
    pod: String,
    /// Container; may be left out when the pod has one.
    #[arg(short, long)]
    container: Option<String>,
    /// Goes on until the container has ended for good, its pod is gone, or Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// Bytes from the end; everything that the node keeps when absent.
    #[arg(long, default_value_t = 0)]
    tail: u32,
}

fn life_s(text: &str) -> Result<u64, String> {
    let seconds = duration_s(text)?;
    match seconds <= NODE_LIFE_S {
        true => Ok(seconds),
        false => Err("must be at most 365d".to_owned()),
    }
}

fn grace_s(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { duration_s(text) }
}

/// `90`, `90s`, `5m`, `1h`, `7d` in seconds.
fn duration_s(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(number) => (number, text.as_bytes().last()),
        None => (text, None),
    };
    let unit = match unit {
        Some(b'm') => 60,
        Some(b'h') => 3600,
        Some(b'd') => 24 * 3600,
        _ => 1,
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    seconds
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| "must be a number above 0 with s, m, h or d".to_owned())
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
            let serve = *serve;
            let (broker, records) = (serve.broker(), serve.records());
            let config = serve::Config {
                data: cli.data,
                broker,
                records,
                manifests: serve.manifests,
                listen: serve.listen,
                names: serve.name,
                http: serve.http,
                admissions_per_s: serve.admissions,
                lives: Lives {
                    node_s: serve.node_certificate_life,
                    grace_s: serve.renewal_grace,
                },
            };
            serve::run(config).await.map_err(CliError::Serve)?;
            Ok(Exit::Done)
        }
        Command::Token(Token::Create { uses, ttl }) => ctx.create_token(out, uses, ttl).await,
        Command::Nodes => ctx.list(out, "/v1/nodes", nodes).await.map(|_| Exit::Done),
        Command::Pods => ctx.list(out, "/v1/pods", pods).await.map(|_| Exit::Done),
        Command::Events => ctx
            .list(out, "/v1/events", events)
            .await
            .map(|_| Exit::Done),
        Command::Records => ctx.records(out).await,
        Command::Problems => {
            let rows = ctx.list(out, "/v1/problems", problems).await?;
            Ok(found(rows))
        }
        Command::Logs(logs) => ctx.logs(out, &logs).await,
        Command::Node(Node::Delete { name }) => {
            ctx.act(
                out,
                Method::DELETE,
                &format!("/v1/nodes/{name}"),
                &name,
                "deleted",
            )
            .await
        }
        Command::Node(Node::Revoke { name }) => {
            let target = format!("/v1/nodes/{name}/revoke");
            ctx.act(out, Method::POST, &target, &name, "revoked").await
        }
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

/// Works beside a running server, but for the first start, which makes the CA.
fn broker_config(data: &Path, dir: &Path, names: &[String], port: u16) -> io::Result<()> {
    let _lock = if data.join(NODES).exists() {
        None
    } else {
        Some(serve::lock(data)?)
    };
    let cas = Authorities::open(data).map_err(io::Error::other)?;
    broker::files::write(dir, &cas, names, port, registry::retired(data)?)
}

const fn found(count: usize) -> Exit {
    if count == 0 { Exit::Done } else { Exit::Found }
}

struct Context<'a> {
    data: &'a Path,
    json: bool,
}

impl Context<'_> {
    /// Prints a list and returns its length.
    async fn list<T: Serialize + DeserializeOwned>(
        &self,
        out: &mut impl Write,
        target: &str,
        text: impl Fn(&[T]) -> String,
    ) -> Result<usize, CliError> {
        let rows: Vec<T> = client::json(self.data, Method::GET, target, Vec::new()).await?;
        self.print(out, &rows, || text(&rows))?;
        Ok(rows.len())
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

    async fn create_token(
        &self,
        out: &mut impl Write,
        uses: u32,
        ttl_s: u64,
    ) -> Result<Exit, CliError> {
        let body = serde_json::to_vec(&TokenRequest { uses, ttl_s }).map_err(io::Error::from)?;
        let answer: TokenAnswer = client::json(self.data, Method::POST, "/v1/tokens", body).await?;
        self.print(out, &answer, || format!("{}\n", answer.token))?;
        Ok(Exit::Done)
    }

    async fn act(
        &self,
        out: &mut impl Write,
        method: Method,
        target: &str,
        node: &str,
        done: &str,
    ) -> Result<Exit, CliError> {
        check_name(node)?;
        let answer: serde_json::Value = client::json(self.data, method, target, Vec::new()).await?;
        self.print(out, &answer, || format!("node {node} {done}\n"))?;
        Ok(Exit::Done)
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
        let count = manifests.problems.len();
        self.print(out, &manifests.problems, || {
            let mut text = String::new();
            for problem in &manifests.problems {
                text.push_str(&problem.to_string());
                text.push('\n');
            }
            let accepted = manifests.objects.len();
            text.push_str(&format!("{accepted} objects accepted, {count} problems\n"));
            text
        })?;
        Ok(found(count))
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

fn nodes(rows: &[NodeRow]) -> String {
    let line = |row: &NodeRow| {
        let link = match (row.revoked, row.cloned, row.connected) {
            (true, _, _) => "revoked",
            (false, true, _) => "cloned",
            (false, false, true) => "connected",
            (false, false, false) => "offline",
        };
        let conditions: Vec<_> = row.conditions.keys().map(String::as_str).collect();
        vec![
            row.name.clone(),
            link.to_owned(),
            yes(row.in_sync),
            ago(row.changed_unix_s),
            row.pods.to_string(),
            row.refused.len().to_string(),
            row.arch.clone(),
            row.agent.clone(),
            ahead(row.certificate_not_after),
            conditions.join(","),
        ]
    };
    table(
        &[
            "NAME",
            "LINK",
            "IN SYNC",
            "SINCE",
            "PODS",
            "REFUSED",
            "ARCH",
            "AGENT",
            "CERTIFICATE",
            "CONDITIONS",
        ],
        rows.iter().map(line),
    )
}

fn pods(rows: &[PodRow]) -> String {
    let line = |row: &PodRow| {
        let phase = match (row.terminating, row.reason.as_str()) {
            (true, _) => "Terminating",
            (false, "") => &row.phase,
            (false, reason) => reason,
        };
        let running = row.containers.iter().filter(|c| c.state == "running");
        let waits = row
            .containers
            .iter()
            .filter(|c| c.state != "running" && !c.reason.is_empty())
            // It waits for what its pod waits for.
            .filter(|c| row.message.is_empty() || c.reason != "ContainerCreating")
            .map(|c| match c.message.as_str() {
                "" => format!("{}: {}", c.name, c.reason),
                message => format!("{}: {}: {message}", c.name, c.reason),
            });
        let of_pod = Some(row.message.clone()).filter(|message| !message.is_empty());
        let note = waits.chain(of_pod).collect::<Vec<_>>().join("; ");
        vec![
            row.namespace.clone(),
            row.name.clone(),
            row.node.clone(),
            phase.to_owned(),
            format!("{}/{}", running.count(), row.containers.len()),
            row.restarts.to_string(),
            yes(row.current),
            note,
        ]
    };
    table(
        &[
            "NAMESPACE",
            "NAME",
            "NODE",
            "PHASE",
            "RUNNING",
            "RESTARTS",
            "CURRENT",
            "NOTE",
        ],
        rows.iter().map(line),
    )
}

fn events(rows: &[Event]) -> String {
    let line = |row: &Event| {
        vec![
            ago(row.unix_s),
            row.node.clone(),
            row.reason.clone(),
            row.message.clone(),
        ]
    };
    table(&["AGO", "NODE", "REASON", "MESSAGE"], rows.iter().map(line))
}

fn restored(report: &Report) -> String {
    let list = |names: &[String]| match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    let made = ago(report.made_unix_s);
    let mut lines = vec![format!(
        "restored {} nodes from a backup that was made {made} ago",
        report.nodes
    )];
    if let Some(path) = &report.replaced {
        lines.push(format!("what was there before: {}", path.display()));
        lines.push(format!("nodes kept from it: {}", list(&report.nodes_kept)));
        if report.cas_kept {
            lines.push("CAs kept from it: the backup is from before their last change".to_owned());
        }
    }
    lines.push(
        "put the folder of manifests back before you serve: what is not in it ends".to_owned(),
    );
    lines.push(format!("revoked nodes: {}", list(&report.revoked)));
    lines.push("  revoke again what was revoked after the backup and is not among them".to_owned());
    lines.push(format!(
        "tokens that are void now: {}",
        list(&report.tokens_void)
    ));
    lines.push(format!("tokens that are valid: {}", report.tokens_valid));
    lines.push(match report.grace_until_unix_s.saturating_sub(unix_s()) {
        _ if report.all_known => "nodes that joined after the backup are known".to_owned(),
        0 => "nodes that joined after the backup have to join again".to_owned(),
        left => format!(
            "nodes that joined after the backup come back by themselves within {} days; see the events",
            left.div_ceil(24 * 3600)
        ),
    });
    lines.join("\n") + "\n"
}

fn problems(rows: &[ProblemRow]) -> String {
    let line = |row: &ProblemRow| {
        let place = match row.document {
            0 => row.file.clone(),
            document => format!("{} document {document}", row.file),
        };
        vec![
            place,
            row.object.clone().unwrap_or_default(),
            row.path.clone(),
            row.reason.clone(),
        ]
    };
    table(
        &["FILE", "OBJECT", "FIELD", "REASON"],
        rows.iter().map(line),
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration_s("90"), Ok(90));
        assert_eq!(duration_s("5m"), Ok(300));
        assert_eq!(duration_s("1h"), Ok(3600));
        assert_eq!(duration_s("7d"), Ok(604_800));
        for text in ["", "0", "h", "1w", "-1h", "99999999999999999999d"] {
            assert!(duration_s(text).is_err(), "{text}");
        }
    }
}
