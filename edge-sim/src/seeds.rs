//! Small fleets under random mixtures of all faults: the seed also determines the scenario.

use crate::report::Outcome;
use crate::rng::{PerHour, Rng, Share};
use crate::scenario::{Cloud, Faults, Scenario, Workload};
use crate::world::World;

/// The scenario of a seed.
#[must_use]
pub fn mixed(nodes: u32, seed: u64) -> Scenario {
    let mut rng = Rng::new(seed ^ 0x05ee_d000);
    let mut scenario = Scenario {
        nodes,
        seconds: rng.between(600, 2_400),
        settle_seconds: 5_400,
        starve_s: 2_400,
        station_nodes: 4,
        provinces: 2,
        pods: rng.below(4) as u32,
        config_maps: rng.below(3) as u32,
        large: Share::percent(rng.below(30) as u32),
        outbox_bytes: if rng.below(3) == 0 { 400 } else { 64 << 20 },
        reconnect_spread_s: rng.below(2) as u32 * rng.below(60) as u32,
        cloud: Cloud {
            replicas: rng.between(1, 3) as usize,
            silence_s: rng.between(300, 1_800),
            store_ms: rng.between(5, 300),
            admissions_per_s: rng.between(1, 40) as u32,
            ..Cloud::default()
        },
        ..Scenario::default()
    };
    // Each fault occurs in about half of the seeds, at a rate of its own.
    let mut rate = |max: u64| {
        let on = rng.below(2) == 0;
        let milli = rng.below(max * 1000);
        PerHour::milli(if on { milli } else { 0 })
    };
    scenario.workload = Workload {
        create: rate(20),
        update: rate(20),
        delete: rate(20),
        config: rate(20),
        record: Some(rate(200)),
        ..Workload::default()
    };
    let mut faults = Faults {
        partition_station: rate(6),
        partition_province: rate(4),
        broker_restart: rate(6),
        replica_loss: rate(6),
        replica_pause: rate(6),
        power_cut: rate(10),
        agent_crash: rate(6),
        stall: rate(6),
        store_wipe: rate(2),
        clock_jump: rate(4),
        replica_clock_jump: rate(4),
        container_crash: rate(20),
        revoke: rate(1),
        ..Faults::default()
    };
    let mut share = |max: u64| {
        let on = rng.below(2) == 0;
        Share::percent(if on { rng.below(max + 1) as u32 } else { 0 })
    };
    faults.loss = share(20);
    faults.duplication = share(20);
    faults.reordering = share(30);
    faults.slow = share(30);
    faults.compromised = share(20);
    faults.sink_failure = share(20);
    faults.start_failure = share(20);
    faults.remove_failure = share(20);
    faults.ignore_term = share(50);
    scenario.faults = faults;
    draw_the_rest(&mut scenario, &mut rng);
    scenario
}

/// Drawn last, so that earlier draws stay the same for each seed.
fn draw_the_rest(scenario: &mut Scenario, rng: &mut Rng) {
    if rng.below(2) == 0 {
        scenario.certificate_life_s = Some(rng.between(600, 3_000));
    }
    if rng.below(2) == 0 {
        scenario.workload.policy = PerHour::milli(rng.below(20_000));
    }
    if rng.below(2) == 0 {
        scenario.workload.call = PerHour::milli(rng.below(100_000));
    }
    if rng.below(2) == 0 {
        scenario.faults.write_failure = Share::percent(rng.below(40) as u32);
    }
    if rng.below(2) == 0 {
        scenario.flash_bytes_per_day = Some(rng.between(64 << 10, 1 << 20));
    }
}

/// Runs a seed.
#[must_use]
pub fn run(nodes: u32, seed: u64) -> Outcome {
    World::new(mixed(nodes, seed), seed).run()
}
