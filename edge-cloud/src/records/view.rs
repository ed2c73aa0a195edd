//! Rows about records for the API: one for each stream, and one for the sink.

use serde::{Deserialize, Serialize};

use super::ledger::{Incarnation, Lost, Stream, class_name};
use super::ledger_reader::Reading;
use super::{Records, State};

/// State of the sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkRow {
    /// As in `--records`; empty without a sink.
    pub target: String,
    /// What may happen to a record whose delivery was interrupted.
    pub guarantee: String,
    /// Why it fails, for one of the affected nodes.
    pub error: Option<String>,
    /// Why it may lose confirmed records, if it reports that.
    #[serde(default)]
    pub warning: Option<String>,
    /// Nodes for which it fails.
    pub failing: usize,
    /// Attempts that failed since the start.
    pub failures: u64,
    /// Batches that were refused because the queue was full, since the start.
    pub refused: u64,
    /// Bytes of records that wait for it.
    pub waiting_bytes: usize,
    /// Nodes whose ledgers are not read yet, after a start: they have no rows.
    #[serde(default)]
    pub unread: usize,
}

/// A stream: one class of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRow {
    /// Name of the node.
    pub node: String,
    /// Name of the class.
    pub class: String,
    /// Id of its newest outbox.
    pub incarnation: Incarnation,
    /// Lowest number of that outbox that is not accounted for.
    pub next: u64,
    /// Outboxes so far.
    pub outboxes: u64,
    /// Numbers that are accounted for, of all outboxes: `delivered + lost_total`.
    pub numbered: u64,
    /// Records that the sink has.
    pub delivered: u64,
    /// Records that were received again and dropped.
    pub duplicates: u64,
    /// Records that were not delivered, by reason.
    pub lost: Lost,
    /// Sum of these.
    pub lost_total: u64,
    /// The equation holds, for each outbox by itself.
    pub balanced: bool,
}

/// Answer of the API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Kind and state of the sink.
    pub sink: SinkRow,
    /// By node and class.
    pub streams: Vec<StreamRow>,
}

impl Records {
    /// The present state.
    #[must_use]
    pub fn view(&self) -> View {
        let state = self.lock();
        let sink = self.sink.as_ref();
        let streams = state.nodes.iter().filter(|(_, known)| !known.gone);
        let streams = streams.flat_map(|(node, known)| {
            let streams = known.ledger.iter().flat_map(|ledger| &ledger.streams);
            streams.filter_map(|(class, stream)| {
                let again = known.repeated.iter().filter(|((_, of), _)| of == class);
                let again: u64 = again.map(|(_, count)| count).sum();
                row(node, *class, stream, again)
            })
        });
        View {
            streams: streams.collect(),
            sink: SinkRow {
                target: sink.map(|sink| sink.target.clone()).unwrap_or_default(),
                guarantee: sink.map_or("", |sink| sink.guarantee()).to_owned(),
                error: state.nodes.values().find_map(|known| known.error.clone()),
                warning: sink.and_then(|sink| sink.warning()),
                failing: state.failing,
                failures: state.failures,
                refused: state.refused,
                waiting_bytes: state.bytes,
                unread: state.unread(),
            },
        }
    }
}

impl State {
    fn unread(&self) -> usize {
        let nodes = self.nodes.values();
        nodes
            .filter(|known| !known.gone && known.reading != Reading::Read)
            .count()
    }
}

fn row(node: &str, class: u8, stream: &Stream, again: u64) -> Option<StreamRow> {
    let newest = stream.outboxes.first()?;
    let totals = stream.totals();
    Some(StreamRow {
        node: node.to_owned(),
        class: class_name(class),
        incarnation: newest.incarnation,
        next: newest.next,
        outboxes: totals.outboxes,
        numbered: totals.numbered,
        delivered: totals.delivered,
        duplicates: totals.duplicates.saturating_add(again),
        lost: totals.lost,
        lost_total: totals.lost.total(),
        balanced: stream.balances() && totals.balances(),
    })
}
