//! The tables of the commands that list something.

use super::table::{ago, ahead, table, yes};
use crate::api::{NodeRow, PodRow, ProblemRow};
use crate::backup::Report;
use crate::clock::unix_s;
use crate::nodes::Event;

/// `edge-cloud nodes`.
pub(super) fn nodes(rows: &[NodeRow]) -> String {
    let line = |row: &NodeRow| {
        let link = match (row.revoked, row.cloned, row.connected) {
            (true, _, _) => "revoked",
            _ if row.awaits_approval => "unapproved",
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

/// `edge-cloud pods`.
pub(super) fn pods(rows: &[PodRow]) -> String {
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

/// `edge-cloud events`.
pub(super) fn events(rows: &[Event]) -> String {
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

/// What `edge-cloud restore` has done, and what is left to a person.
pub(super) fn restored(report: &Report) -> String {
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

/// `edge-cloud problems`.
pub(super) fn problems(rows: &[ProblemRow]) -> String {
    let line = |row: &ProblemRow| {
        let place = match row.document {
            0 => row.file.clone(),
            document => format!("{} document {document}", row.file),
        };
        vec![
            row.severity.as_str().to_owned(),
            place,
            row.object.clone().unwrap_or_default(),
            row.path.clone(),
            row.reason.clone(),
        ]
    };
    table(
        &["SEVERITY", "FILE", "OBJECT", "FIELD", "REASON"],
        rows.iter().map(line),
    )
}
