//! `edge-cloud ca`.

use std::io::{self, BufRead as _, IsTerminal as _, Write};

use axum::http::Method;
use clap::Subcommand;

use super::table::{ahead, table, yes};
use super::{CliError, Context, Exit};
use crate::api::RetireRequest;
use crate::client;
use crate::nodes::{CaRetired, CaView};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows the CAs that are accepted, which one signs, and for how many nodes a rollover waits.
    Status,
    /// Begins a rollover: makes a new CA beside the old one. Both are accepted, and connected nodes are asked
    /// to renew their certificates, twenty a second; others when they come. Does nothing if a rollover
    /// goes on. No workload is touched.
    Rotate {
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Ends a rollover: the old CA, its certificates and its join tokens are accepted no more. Refused
    /// while nodes depend on it. Does nothing if there is one CA.
    Retire {
        /// Does not ask.
        #[arg(long)]
        yes: bool,
        /// Revokes the nodes that depend on the old CA, if there are exactly this many. They have to be
        /// deleted and to join again.
        #[arg(long, value_name = "NODES")]
        force: Option<usize>,
    },
}

impl Context<'_> {
    pub(super) async fn ca(
        &self,
        out: &mut impl Write,
        command: &Command,
    ) -> Result<Exit, CliError> {
        match command {
            Command::Status => {
                let view: CaView =
                    client::json(self.data, Method::GET, "/v1/ca", Vec::new()).await?;
                self.print(out, &view, || status(&view))?;
            }
            Command::Rotate { yes } => {
                confirm(
                    *yes,
                    "Make a new CA, and have every node renew its certificate?",
                )?;
                let target = "/v1/ca/rotate";
                let view: CaView =
                    client::json(self.data, Method::POST, target, Vec::new()).await?;
                self.print(out, &view, || {
                    let next = "make a backup now: one from before does not know the new CA\n";
                    status(&view) + next
                })?;
            }
            Command::Retire { yes, force } => {
                let question = match force {
                    None | Some(0) => "Retire the old CA?".to_owned(),
                    Some(count) => {
                        format!("Retire the old CA, and cut {count} nodes off for good?")
                    }
                };
                confirm(*yes, &question)?;
                let body = serde_json::to_vec(&RetireRequest { force: *force });
                let body = body.map_err(io::Error::from)?;
                let target = "/v1/ca/retire";
                let done: CaRetired = client::json(self.data, Method::POST, target, body).await?;
                self.print(out, &done, || retired(&done))?;
            }
        }
        Ok(Exit::Done)
    }
}

/// Asks a person, unless the answer is given.
fn confirm(yes: bool, question: &str) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::Usage(
            "nobody is there to ask: add --yes".to_owned(),
        ));
    }
    let mut terminal = io::stderr();
    write!(terminal, "{question} [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::Usage("nothing was done".to_owned())),
    }
}

fn status(view: &CaView) -> String {
    let rows = view.cas.iter().map(|ca| {
        vec![
            ca.sha256.get(..16).unwrap_or_default().to_owned(),
            yes(ca.signs),
            ahead(ca.not_after),
            ca.certificates.to_string(),
            ca.trusting.to_string(),
        ]
    });
    let head = [
        "CA",
        "SIGNS",
        "ENDS IN",
        "NODES WITH ITS CERTIFICATE",
        "NODES THAT TRUST IT",
    ];
    let mut text = table(&head, rows);
    let end = ahead(view.server_not_after);
    text.push_str(&format!("edge-cloud's own certificate ends in {end}\n"));
    let nodes = view.nodes;
    text.push_str(&match view.phase.as_str() {
        "offered" => "rollover: the new CA signs as soon as the broker accepts its clients: run `edge-cloud \
                      broker-config` again and restart the broker\n"
            .to_owned(),
        "signing" => match view.depending {
            0 => format!(
                "rollover: all {nodes} nodes have a certificate of the new CA: `edge-cloud ca retire` ends it\n"
            ),
            count => format!("rollover: {count} of {nodes} nodes depend on the old CA\n"),
        },
        _ => match view.retired.last() {
            Some(retired) => format!(
                "no rollover; retired last: {}\n",
                retired.get(..16).unwrap_or_default()
            ),
            None => "no rollover\n".to_owned(),
        },
    });
    if view.waiting_count > 0 {
        let name = |waiting: &crate::nodes::CaWaiting| {
            let name = waiting.node.replace(char::is_control, "?");
            match waiting.connected {
                true => name,
                false => format!("{name} (offline)"),
            }
        };
        let names: Vec<String> = view.waiting.iter().map(name).collect();
        let more = match view.waiting_count - view.waiting.len().min(view.waiting_count) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        text.push_str(&format!(
            "to renew their certificate: {}{more}\n",
            names.join(", ")
        ));
    }
    text
}

fn retired(done: &CaRetired) -> String {
    if !done.retired {
        return "there is one CA: nothing to retire\n".to_owned();
    }
    let mut text = "the old CA is retired\n".to_owned();
    if !done.cut_off.is_empty() {
        let names = done.cut_off.join(", ");
        text.push_str(&format!(
            "revoked, to be deleted and joined again: {names}\n"
        ));
    }
    text.push_str(&format!(
        "join tokens that are void now: {}\n",
        done.tokens_void
    ));
    text + "make a backup now: one from before would not be of this CA alone\n"
}
