//! `edge-cloud records`.

use std::io::Write;

use axum::http::Method;

use super::table::{table, yes};
use super::{CliError, Context, Exit, found};
use crate::client;
use crate::records::View;
use crate::records::ledger::Loss;

impl Context<'_> {
    pub(super) async fn records(&self, out: &mut impl Write) -> Result<Exit, CliError> {
        let target = "/v1/records";
        let view: View = client::json(self.data, Method::GET, target, Vec::new()).await?;
        self.print(out, &view, || text(&view))?;
        let unbalanced = view.streams.iter().filter(|stream| !stream.balanced);
        Ok(found(view.sink.failing + unbalanced.count()))
    }
}

fn text(view: &View) -> String {
    let sink = &view.sink;
    let mut text = match sink.target.as_str() {
        "" => "nobody takes records: nodes keep them\n".to_owned(),
        target => format!("sink {target}: {}\n", sink.guarantee),
    };
    if let Some(warning) = &sink.warning {
        text.push_str(&format!("warning: {warning}\n"));
    }
    if let Some(error) = &sink.error {
        let nodes = sink.failing;
        text.push_str(&format!("it fails for {nodes} nodes: {error}\n"));
    }
    if sink.unread > 0 {
        let nodes = sink.unread;
        text.push_str(&format!("the ledgers of {nodes} nodes are not read yet\n"));
    }
    let rows = view.streams.iter().map(|stream| {
        let mut cells = vec![
            stream.node.clone(),
            stream.class.clone(),
            stream.incarnation.to_string(),
            stream.next.to_string(),
            stream.numbered.to_string(),
            stream.delivered.to_string(),
            stream.lost_total.to_string(),
        ];
        cells.extend(
            Loss::ALL
                .iter()
                .map(|loss| stream.lost.of(*loss).to_string()),
        );
        cells.extend([
            stream.duplicates.to_string(),
            stream.outboxes.to_string(),
            yes(stream.balanced),
        ]);
        cells
    });
    let head = [
        "NODE",
        "CLASS",
        "OUTBOX",
        "NEXT",
        "NUMBERED",
        "DELIVERED",
        "LOST",
        "QUOTA",
        "EXPIRED",
        "SUPERSEDED",
        "DAMAGED",
        "FORGOTTEN",
        "DUPLICATES",
        "OUTBOXES",
        "BALANCED",
    ];
    text.push_str(&table(&head, rows));
    text
}
