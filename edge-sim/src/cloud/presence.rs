//! Which nodes are connected: a replica probes all of them when it connects to the broker, and those that
//! are silent for long.

use edge_proto::frame::Frame;
use edge_proto::limits::{
    PROBE_INTERVAL_MS, PROBES_AT_ONCE, SILENCE_PROBES_AT_ONCE, SILENCE_PROBES_MAX,
};
use edge_proto::session::LinkInput;

use super::index;
use crate::event::Event;
use crate::world::World;

impl World {
    pub(super) fn start_probing(&mut self, replica: usize) {
        let one = &mut self.replicas[replica];
        if one.linked && !one.probing && !one.unasked.is_empty() {
            one.probing = true;
            let life = one.life;
            let replica = index(replica);
            self.plan(PROBE_INTERVAL_MS, Event::Probe { replica, life });
        }
    }

    pub(crate) fn probe_next(&mut self, replica: usize) {
        self.replicas[replica].probing = false;
        if !self.replicas[replica].linked {
            return;
        }
        let mut left = PROBES_AT_ONCE;
        while left > 0
            && let Some(node) = self.replicas[replica].unasked.pop_front()
        {
            let session = self.replicas[replica].sessions[node as usize].as_ref();
            if session.is_some_and(|session| !session.attached) {
                left -= 1;
                self.attach(replica, node);
            }
        }
        self.start_probing(replica);
    }

    pub(super) fn attach(&mut self, replica: usize, node: u32) {
        let now = self.now;
        if let Some(session) = &mut self.replicas[replica].sessions[node as usize] {
            session.attached = true;
            session.heard = now;
            session.asked = 0;
            session.line.clear();
            session
                .line
                .limit(now, self.stored_nodes[node as usize].limits_down());
            self.session_input(replica, node, LinkInput::TransportUp);
        }
    }

    /// As `Sessions::probe_silent`.
    pub(crate) fn watch_silence(&mut self, replica: usize, life: u32) {
        let silence_ms = self.scenario.cloud.silence_s * 1000;
        let now = self.now;
        let (mut asked, mut gone) = (Vec::new(), Vec::new());
        let sessions = self.replicas[replica].sessions.iter_mut().enumerate();
        let silent = sessions.filter_map(|(node, session)| {
            let session = session
                .as_mut()
                .filter(|session| session.live && session.attached)?;
            (now.saturating_sub(session.heard) >= silence_ms).then_some((node as u32, session))
        });
        for (node, session) in silent.take(SILENCE_PROBES_AT_ONCE) {
            if session.asked < SILENCE_PROBES_MAX {
                session.asked += 1;
                asked.push(node);
            } else {
                gone.push(node);
            }
        }
        let unix_s = self
            .unix_s()
            .saturating_add_signed(self.replicas[replica].ahead_s);
        for node in asked {
            let shard = usize::from(self.stored_nodes[node as usize].shard);
            if let Some(epoch) = self.replicas[replica].owned[shard] {
                self.publish_down(node, epoch, Frame::Probe { epoch, unix_s }.encode());
            }
        }
        for node in gone {
            self.session_input(replica, node, LinkInput::TransportDown);
            self.session_input(replica, node, LinkInput::TransportUp);
        }
        let replica = index(replica);
        let interval = (silence_ms / 30).max(1_000);
        self.plan(interval, Event::Watch { replica, life });
    }
}
