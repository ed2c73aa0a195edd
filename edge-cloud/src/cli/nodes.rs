//! `edge-cloud token`, `node` and `label`: what a person decides about nodes.

use std::io::{self, BufRead as _, IsTerminal as _, Write};

use axum::http::Method;
use serde_json::Value;

use super::args::{Label, Node, Token};
use super::table::{ahead, table};
use super::{CliError, Context, Exit, check_name};
use crate::api::{NodeAnswer, TokenAnswer};
use crate::client;
use crate::nodes::{Grants, LabelChange, TokenRow, TokenSpec};

impl Context<'_> {
    pub(super) async fn token(
        &self,
        out: &mut impl Write,
        command: Token,
    ) -> Result<Exit, CliError> {
        match command {
            Token::Create {
                uses,
                ttl,
                labels,
                label_keys,
                approve,
            } => {
                let grants = Grants {
                    labels: labels.into_iter().collect(),
                    label_keys: label_keys.into_iter().collect(),
                    awaits_approval: approve,
                };
                let ttl_s = ttl;
                let spec = TokenSpec {
                    uses,
                    ttl_s,
                    grants,
                };
                let body = serde_json::to_vec(&spec).map_err(io::Error::from)?;
                let answer: TokenAnswer =
                    client::json(self.data, Method::POST, "/v1/tokens", body).await?;
                self.print(out, &answer, || format!("{}\n", answer.token))?;
            }
            Token::List => {
                self.list(out, "/v1/tokens", tokens).await?;
            }
            Token::Revoke { id } => {
                check_name(&id)?;
                let target = format!("/v1/tokens/{id}");
                let answer: Value =
                    client::json(self.data, Method::DELETE, &target, Vec::new()).await?;
                self.print(out, &answer, || format!("token {id} revoked\n"))?;
            }
        }
        Ok(Exit::Done)
    }

    pub(super) async fn node(&self, out: &mut impl Write, command: Node) -> Result<Exit, CliError> {
        let (name, method, target, done) = match &command {
            Node::Approve { name } => (name, Method::POST, "/approve", "approved"),
            Node::Revoke { name, .. } => (name, Method::POST, "/revoke", "revoked"),
            Node::Delete { name, .. } => (name, Method::DELETE, "", "deleted"),
        };
        check_name(name)?;
        match &command {
            Node::Revoke { yes: false, .. } => {
                ask(&format!("refuse the certificate of node {name} for good?"))?;
            }
            Node::Delete { yes: false, .. } => {
                ask(&format!(
                    "forget node {name}, which then has to join again?"
                ))?;
            }
            _ => {}
        }
        let target = format!("/v1/nodes/{name}{target}");
        let answer: NodeAnswer = client::json(self.data, method, &target, Vec::new()).await?;
        self.print(out, &answer, || {
            let mut text = format!("node {name} {done}\n");
            for secret in &answer.secrets {
                text.push_str(&format!("its board held Secret {secret}: replace it\n"));
            }
            text
        })?;
        Ok(Exit::Done)
    }

    pub(super) async fn label(
        &self,
        out: &mut impl Write,
        command: Label,
    ) -> Result<Exit, CliError> {
        let Label::Node { name, changes } = command;
        check_name(&name)?;
        let mut change = LabelChange::default();
        for text in &changes {
            if let Some((key, value)) = text.split_once('=') {
                change.set.insert(key.to_owned(), value.to_owned());
            } else if let Some(key) = text.strip_suffix('-') {
                change.remove.insert(key.to_owned());
            } else {
                let wrong =
                    format!("{text:?}: must be KEY=VALUE to set a label or KEY- to remove it");
                return Err(CliError::Usage(wrong));
            }
        }
        let body = serde_json::to_vec(&change).map_err(io::Error::from)?;
        let target = format!("/v1/nodes/{name}/labels");
        let answer: NodeAnswer = client::json(self.data, Method::POST, &target, body).await?;
        self.print(out, &answer, || format!("node {name} labelled\n"))?;
        Ok(Exit::Done)
    }
}

/// Asks a person at a terminal. Nobody else can answer.
fn ask(question: &str) -> Result<(), CliError> {
    let no = || CliError::Usage("nothing was done: say yes, or add --yes".to_owned());
    if !io::stdin().is_terminal() {
        return Err(no());
    }
    write!(io::stderr(), "{question} [yes/no] ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "yes" => Ok(()),
        _ => Err(no()),
    }
}

/// `edge-cloud token list`.
fn tokens(rows: &[TokenRow]) -> String {
    let line = |row: &TokenRow| {
        let Grants {
            labels,
            label_keys,
            awaits_approval,
        } = &row.grants;
        let labels = labels.iter().map(|(key, value)| format!("{key}={value}"));
        let keys: Vec<_> = label_keys.iter().map(String::as_str).collect();
        vec![
            row.id.clone(),
            row.uses_left.to_string(),
            ahead(row.expires_unix_s),
            labels.collect::<Vec<_>>().join(","),
            keys.join(","),
            super::table::yes(*awaits_approval),
        ]
    };
    table(
        &["ID", "USES", "EXPIRES", "LABELS", "LABEL KEYS", "APPROVAL"],
        rows.iter().map(line),
    )
}
