//! Commands, arguments and options, as clap reads them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::ca;
use crate::identity::ca::NODE_VALIDITY_S;
use crate::records::target;
use crate::sessions::ADMISSIONS_PER_S;
use crate::transport::broker;

/// The cloud end of edge-min. Exit codes: 0 done, 1 problems found, 2 wrong usage, 3 edge-cloud
/// does not answer, 4 refused or not found, 5 other failures.
#[derive(Debug, Parser)]
#[command(name = "edge-cloud", version)]
pub struct Cli {
    /// Prints JSON.
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Folder with the CA, the registry of nodes and the API's socket.
    #[arg(long, global = true, default_value = "/var/lib/edge-cloud")]
    pub(super) data: PathBuf,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serves nodes, manifests and the API until Ctrl-C.
    Serve(Box<Serve>),
    /// Creates, lists and revokes join tokens.
    #[command(subcommand)]
    Token(Token),
    /// Lists the nodes.
    Nodes,
    /// Lists the pods: desired ones and those that the nodes report.
    Pods,
    /// Lists the latest events.
    Events,
    /// Lists the streams of records: what was delivered, and what was lost and why. Exit code 1 if
    /// the ledger of one does not balance, or the sink fails.
    Records,
    /// Lists what in the manifests was refused, and pods that are not placed. Exit code 1 if any.
    Problems,
    /// Prints the output of a container.
    Logs(Logs),
    /// Approves, revokes or deletes a node.
    #[command(subcommand)]
    Node(Node),
    /// Changes the labels by which workloads select a node.
    #[command(subcommand)]
    Label(Label),
    /// Shows the CAs and rolls over from one to the next.
    #[command(subcommand)]
    Ca(ca::Command),
    /// Writes the whole state of edge-cloud into one file, whether it serves or not. The
    /// file contains the key of the CA: anyone who has it controls your cloud.
    Backup {
        /// The file; an older one is replaced.
        file: PathBuf,
    },
    /// Restores a backup into the data folder. edge-cloud must not serve from it.
    Restore(Restore),
    /// Writes the files that an external broker needs: certificates, access control, a mosquitto.conf.
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
pub(super) struct Serve {
    /// Folder of Kubernetes manifests, watched for changes.
    #[arg(long)]
    pub(super) manifests: PathBuf,
    /// Where nodes connect.
    #[arg(long, default_value = "0.0.0.0:8883")]
    pub(super) listen: SocketAddr,
    /// Names and addresses under which nodes reach this machine, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "localhost,127.0.0.1")]
    pub(super) name: Vec<String>,
    /// Serves the read-only API and /metrics here, without authentication.
    #[arg(long)]
    pub(super) http: Option<SocketAddr>,
    /// Connections and sessions admitted a second. When more nodes connect at once, each gets its own time.
    #[arg(long, default_value_t = ADMISSIONS_PER_S, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) admissions: u32,
    /// Serves the nodes through this MQTT broker, mqtts://HOST:PORT; --listen is then for
    /// enrolment only.
    #[arg(long)]
    pub(super) broker: Option<String>,
    /// PEM with the CAs of the broker's certificate, also for the nodes; edge-cloud's own CA when
    /// absent.
    #[arg(long, requires = "broker")]
    pub(super) broker_ca: Option<PathBuf>,
    /// PEM with edge-cloud's certificate for the broker; issued by its own CA when absent.
    #[arg(long, requires_all = ["broker", "broker_key"])]
    pub(super) broker_cert: Option<PathBuf>,
    /// PEM with its key.
    #[arg(long, requires = "broker_cert")]
    pub(super) broker_key: Option<PathBuf>,
    /// Keeps the list of refused certificates for the broker here.
    #[arg(long, requires = "broker")]
    pub(super) broker_crl: Option<PathBuf>,
    /// Probes a node that was silent for so long: a number with s, m, h or d.
    #[arg(long, default_value = "30m", value_parser = duration_s)]
    pub(super) broker_silence: u64,
    /// Where the nodes' records go: files:DIR, stdout, http(s)://HOST:PORT/PATH,
    /// mqtt(s)://HOST:PORT/TOPIC or nats(s)://HOST:PORT/SUBJECT. The folder `records` in --data
    /// when absent.
    #[arg(long)]
    pub(super) records: Option<String>,
    /// PEM with the CAs of that server's certificate; the system's when absent.
    #[arg(long, requires = "records")]
    pub(super) records_ca: Option<PathBuf>,
    /// PEM with edge-cloud's certificate for that server.
    #[arg(long, requires = "records_key")]
    pub(super) records_cert: Option<PathBuf>,
    /// PEM with its key.
    #[arg(long, requires = "records_cert")]
    pub(super) records_key: Option<PathBuf>,
    /// File with edge-cloud's credentials for that server: a bearer token (HTTP), USER:PASSWORD (MQTT,
    /// NATS), or a NATS token or credentials file.
    #[arg(long, requires = "records")]
    pub(super) records_auth: Option<PathBuf>,
    /// Validity of the nodes' certificates, at most 365d: a number with s, m, h or d. A node renews
    /// its own at two thirds of it.
    #[arg(long, default_value = "365d", value_parser = life_s)]
    pub(super) node_certificate_life: u64,
    /// Time after its expiry in which a node's certificate may still be renewed; later the node has to
    /// join again. A number with s, m, h or d; 0 is not at all.
    #[arg(long, default_value = "90d", value_parser = grace_s)]
    pub(super) renewal_grace: u64,
}

impl Serve {
    /// Where the records go.
    pub(super) fn records(&self) -> target::Config {
        target::Config {
            url: self.records.clone(),
            ca: self.records_ca.clone(),
            identity: self.records_cert.clone().zip(self.records_key.clone()),
            auth: self.records_auth.clone(),
        }
    }

    /// The external broker, if there is one.
    pub(super) fn broker(&self) -> Option<broker::Config> {
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
pub(super) enum Token {
    /// Creates a token and prints it; it is a secret and is not shown again.
    Create {
        /// Nodes that may join with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Until it expires: a number with s, m, h or d.
        #[arg(long, default_value = "1h", value_parser = duration_s)]
        ttl: u64,
        /// A label of its nodes, KEY=VALUE; may be given more than once.
        #[arg(long = "label", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Keys of labels that may come from the boards' own config, separated by commas. Others there
        /// select no workload.
        #[arg(long = "label-keys", value_delimiter = ',')]
        label_keys: Vec<String>,
        /// Its nodes get no pods before `edge-cloud node approve NAME`.
        #[arg(long)]
        approve: bool,
    },
    /// Lists the tokens that have not expired, without their secrets.
    List,
    /// Revokes a token. Nodes that have joined with it stay.
    Revoke {
        /// Its id: what stands between the first two dots of the token.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Label {
    /// Changes the labels of a node.
    Node {
        /// Name of the node.
        name: String,
        /// KEY=VALUE sets a label, KEY- removes it, also where the board's own config has it.
        #[arg(required = true)]
        changes: Vec<String>,
    },
}

/// `KEY=VALUE`.
fn label(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=');
    let (key, value) = parts.ok_or_else(|| "must be KEY=VALUE".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Debug, Subcommand)]
pub(super) enum Node {
    /// Gives pods to a node that has joined with a token that asks for approval.
    Approve {
        /// Name of the node.
        name: String,
    },
    /// Deletes a node; it may join again with a token. Lists the Secrets that its board held.
    Delete {
        /// Name of the node.
        name: String,
        /// Does not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// Refuses a node's certificate from now on, also on its live connection. Lists the Secrets that its
    /// board held.
    Revoke {
        /// Name of the node.
        name: String,
        /// Does not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The backup.
    pub(super) file: PathBuf,
    /// Replaces the content of the data folder; a backup of it is left there.
    #[arg(long)]
    pub(super) force: bool,
    /// Keeps tokens valid that had uses left. Only if none was used since the backup: a used
    /// one would become valid again.
    #[arg(long)]
    pub(super) keep_tokens: bool,
    /// Time in which nodes that joined after the backup are readmitted: a number with s, m, h or d; 0 is
    /// not at all.
    #[arg(long, default_value = "30d", value_parser = grace_s)]
    pub(super) grace: u64,
}

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// NODE/POD or NODE/NAMESPACE/POD.
    pub(super) pod: String,
    /// Container; may be left out when the pod has one.
    #[arg(short, long)]
    pub(super) container: Option<String>,
    /// Continues until the container has ended for good, its pod is gone, or Ctrl-C.
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Bytes from the end; everything that the node keeps when absent.
    #[arg(long, default_value_t = 0)]
    pub(super) tail: u32,
}

fn life_s(text: &str) -> Result<u64, String> {
    let seconds = duration_s(text)?;
    match seconds <= NODE_VALIDITY_S {
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
