//! The promises that a test can check on any host, from the budget of the board file: memory,
//! threads, wakeups, CPU, flash writes and bytes of the link. `scripts/bench` measures the same,
//! over longer windows, and also latencies.
#![cfg(test)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use memtests::measure::scenario::{
    Kind, idle, idle_metered, link_bytes, link_bytes_behind_broker, ten_pods_in_memory,
};
use memtests::measure::{Board, Figure, all_kept};

/// One gate at a time: two of them share the pages of their program, and wait for each other.
static GATE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_long() -> bool {
    std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty())
}

/// Other load of this host makes a figure worse and never better: a late answer, for example, costs a
/// TCP acknowledgement of its own. So a miss is measured twice more, and both must keep their bars.
fn check(measure: impl Fn() -> Result<Vec<Figure>>) {
    let kept = || {
        let figures = measure().unwrap();
        assert!(!figures.is_empty());
        for figure in &figures {
            println!("{figure}");
        }
        all_kept(&figures)
    };
    if kept().is_err() {
        kept().unwrap();
        kept().unwrap();
    }
}

/// Goal: with 10 pods the static agent is the whole node stack, and within its budget.
#[test]
#[ignore = "needs root, runc, and scripts/build x86_64-unknown-linux-musl"]
fn ten_pods_fit_the_memory_budget() {
    let _alone = alone();
    for kind in [Kind::Process, Kind::Runc] {
        check(|| ten_pods_in_memory(&Board::here()?, kind));
    }
}

/// Goal: an idle agent does almost nothing. Method: ten pods over a window of
/// whole keepalives; bytes are counted by the kernel, outside the agent.
#[test]
#[ignore = "needs root, runc, nft, and scripts/build x86_64-unknown-linux-musl"]
fn an_idle_gate_hardly_wakes_and_writes_nothing() {
    let _alone = alone();
    let minutes = if is_long() { 10 } else { 1 };
    check(|| idle(&Board::here()?, minutes));
}

/// Goal: the metered profile costs what the exchange of a minute predicts. Method: real time, in
/// the long run only.
#[test]
#[ignore = "needs root, nft, and scripts/build x86_64-unknown-linux-musl"]
fn an_idle_metered_gate_stays_within_its_month() {
    if !is_long() {
        println!("not run: needs half an hour, see scripts/test --long");
        return;
    }
    check(|| idle_metered(&Board::here()?, 3));
}

/// Goal: opening the link, reopening it, and deploying a pod are within their budgets.
#[test]
#[ignore = "needs root, runc, and scripts/build x86_64-unknown-linux-musl"]
fn the_link_fits_its_byte_budget() {
    let _alone = alone();
    check(|| link_bytes(&Board::here()?));
    check(|| link_bytes_behind_broker(&Board::here()?));
}
