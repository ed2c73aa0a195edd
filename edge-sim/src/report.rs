//! Results of a run: a summary that is the same for the same seed, and figures over time.

use serde::Serialize;

use crate::check::Violation;

macro_rules! stats {
    ($($name:ident)*) => {
        /// Counts of a run.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        #[expect(missing_docs, reason = "each name says what was counted")]
        pub struct Stats {
            $(pub $name: u64,)*
        }

        impl Stats {
            /// Adds those of another run.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// Names and counts.
            #[must_use]
            pub fn counts(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

stats! {
    events
    dials
    connects
    refused
    takeovers
    retries_asked
    frames_up
    frames_down
    dropped
    denied
    changes
    joins
    joins_failed
    starts
    writes_failed
    syncs_failed
    flash_over_budget
    power_cuts
    agent_crashes
    wipes
    partitions
    broker_restarts
    replica_losses
    replica_pauses
    handovers
    fenced
    revoked
    calls
    calls_done
    calls_left
    calls_broken
    renewals
    renewals_failed
    expired
    twins
    twins_found
    attacks
    records
    records_delivered
    records_lost
    sink_failures
    problems_at_nodes
    problems_at_cloud
}

/// One virtual second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Second {
    /// Connections that the broker opened.
    pub connects: u32,
    /// Connections that it refused.
    pub refused: u32,
    /// Bytes from the nodes, with those of TCP/IP.
    pub bytes_up: u64,
    /// Bytes to the nodes.
    pub bytes_down: u64,
    /// Nodes whose sets are not known to be equal at both ends.
    pub unconverged: u32,
}

/// Figures over time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// By virtual second.
    pub seconds: Vec<Second>,
    pub(crate) unconverged: usize,
}

impl Series {
    fn at(&mut self, now: u64) -> &mut Second {
        let second = (now / 1000) as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Second::default());
        }
        &mut self.seconds[second]
    }

    pub(crate) fn connect(&mut self, now: u64) {
        self.at(now).connects += 1;
    }

    pub(crate) fn refused(&mut self, now: u64) {
        self.at(now).refused += 1;
    }

    pub(crate) fn up(&mut self, now: u64, bytes: usize) {
        self.at(now).bytes_up += bytes as u64;
    }

    pub(crate) fn down(&mut self, now: u64, bytes: usize) {
        self.at(now).bytes_down += bytes as u64;
    }

    /// The second before `now` has ended.
    pub(crate) fn sample(&mut self, now: u64) {
        let unconverged = u32::try_from(self.unconverged).unwrap_or(u32::MAX);
        self.at(now.saturating_sub(1)).unconverged = unconverged;
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Virtual time of the end, milliseconds.
    pub end_ms: u64,
    /// Counts.
    pub stats: Stats,
    /// Figures over time.
    pub series: Series,
    /// What was violated.
    pub violation: Option<Violation>,
}

/// The summary as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Summary<'a> {
    scenario: &'a str,
    nodes: u32,
    seed: u64,
    end_ms: u64,
    connects_per_s_max: u32,
    /// Seconds until no node was unconverged any more.
    converged_s: usize,
    bytes_up: u64,
    bytes_down: u64,
    counts: &'a Stats,
    violation: Option<String>,
}

impl Outcome {
    pub(crate) const fn new(
        end_ms: u64,
        stats: Stats,
        series: Series,
        violation: Option<Violation>,
    ) -> Self {
        Self {
            end_ms,
            stats,
            series,
            violation,
        }
    }

    /// The summary as JSON.
    #[must_use]
    pub fn json(&self, scenario: &str, nodes: u32, seed: u64) -> String {
        let seconds = &self.series.seconds;
        let summary = Summary {
            scenario,
            nodes,
            seed,
            end_ms: self.end_ms,
            connects_per_s_max: seconds.iter().map(|one| one.connects).max().unwrap_or(0),
            converged_s: seconds
                .iter()
                .rposition(|one| one.unconverged > 0)
                .map_or(0, |at| at + 1),
            bytes_up: seconds.iter().map(|one| one.bytes_up).sum(),
            bytes_down: seconds.iter().map(|one| one.bytes_down).sum(),
            counts: &self.stats,
            violation: self.violation.as_ref().map(|one| one.what.clone()),
        };
        serde_json::to_string(&summary).unwrap_or_default()
    }

    /// The summary as lines of `name value`.
    #[must_use]
    pub fn text(&self, scenario: &str, nodes: u32, seed: u64) -> String {
        let json = self.json(scenario, nodes, seed);
        let mut lines = String::new();
        let mut add = |name: &str, value: &serde_json::Value| {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            lines.extend([format!("{name:<20}"), value, "\n".to_owned()]);
        };
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
        for (name, value) in parsed.as_object().into_iter().flatten() {
            match value {
                serde_json::Value::Object(counts) => {
                    for (name, value) in counts {
                        add(name, value);
                    }
                }
                serde_json::Value::Null => {}
                value => add(name, value),
            }
        }
        lines
    }
}
