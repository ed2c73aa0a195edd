//! Passes the counters of written bytes to the core's budget, and reads the wear of the
//! flash when the core requests it.

use std::path::Path;

use edge_core::Input;
use edge_core::flash::{Budget, Risk, Subsystem};

use super::Driver;
use crate::board::name::SYSFS;
use crate::local::status;
use crate::storage::{medium, wear};

pub(super) fn status(budget: &Budget) -> status::Flash {
    let rows = Subsystem::ALL.map(|subsystem| {
        let (today, since) = budget.of(subsystem);
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
        budget_bytes_per_day: budget.bytes_max(),
        at_risk: budget.risk() != Risk::None,
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

impl Driver {
    /// Call it after every event: a write of ours is always followed by one.
    pub(super) fn watch_flash(&mut self) {
        let counters = medium::counters();
        self.agent.handle(self.now(), Input::Flash(counters));
    }

    pub(super) fn read_wear(&mut self) {
        let devices = wear::devices(Path::new(SYSFS));
        let worn = devices.iter().filter(|(_, wear)| wear.worn());
        let worn: Vec<&str> = worn.map(|(name, _)| name.as_str()).collect();
        let input = Input::FlashWorn(worn.join(", "));
        self.agent.handle(self.now(), input);
    }
}
