//! The driver's look at the flash: what was written goes into the budget, what comes out becomes a
//! condition, and the store waits with what may be late.

use std::path::Path;

use edge_core::flash::{Budget, Risk, Subsystem};

use super::Driver;
use crate::board::name::SYSFS;
use crate::driver::workers::StoreJob;
use crate::local::status;
use crate::storage::{medium, wear};

/// How often the wear is read, if anything happens at all: it moves by a tenth in years.
const WEAR_MS: u64 = 24 * 3_600_000;
const AT_RISK: &str =
    "more is written than the board file's flash-mib-per-day: see edge-min status";

/// The budget, and when the wear is read next.
pub(super) struct Flash {
    budget: Budget,
    wear_at: u64,
}

impl Flash {
    pub(super) fn new(mib_per_day: Option<u32>) -> Self {
        Self {
            budget: Budget::new(mib_per_day.map(|mib| u64::from(mib) << 20)),
            wear_at: 0,
        }
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.budget.deadline()
    }

    pub(super) fn status(&self) -> status::Flash {
        let rows = Subsystem::ALL.map(|subsystem| {
            let (today, since) = self.budget.of(subsystem);
            status::FlashRow {
                name: subsystem.as_str().to_owned(),
                today_bytes: today.bytes,
                today_syncs: today.syncs,
                bytes: since.bytes,
                syncs: since.syncs,
            }
        });
        let devices = wear::devices(Path::new(SYSFS)).into_iter();
        status::Flash {
            budget_bytes_per_day: self.budget.bytes_max(),
            at_risk: self.budget.risk() != Risk::None,
            subsystems: rows.into(),
            wear: devices
                .map(|(device, wear)| status::Wear {
                    device,
                    used_percent: wear.used_percent,
                    reserve: wear.reserve,
                })
                .collect(),
        }
    }
}

impl Driver {
    /// To be called after every event: a write of ours is always followed by one.
    pub(super) fn watch_flash(&mut self) {
        let now = self.now();
        if let Some(risk) = self.flash.budget.handle(now, &medium::counters()) {
            self.condition("FlashBudgetAtRisk", risk != Risk::None, AT_RISK);
            self.store_jobs
                .push(StoreJob::OverBudget(risk == Risk::Over));
        }
        if now >= self.flash.wear_at {
            self.flash.wear_at = now.saturating_add(WEAR_MS);
            let devices = wear::devices(Path::new(SYSFS));
            let worn = devices.iter().filter(|(_, wear)| wear.worn());
            let worn: Vec<&str> = worn.map(|(name, _)| name.as_str()).collect();
            self.condition("FlashWorn", !worn.is_empty(), &worn.join(", "));
        }
    }
}
