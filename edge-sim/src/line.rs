//! One end of a node's link: the real lanes ([`edge_proto::lanes`]), and how long their frames
//! wait.

use std::collections::VecDeque;

use edge_core::limits::{SEND_BUFFER_BYTES, UNSENT_BYTES_MAX};
use edge_proto::lanes::{LANE_BYTES_MAX, LANES, Lane, Lanes, Limits, SHARE_PERCENT};

use crate::world::World;

/// Bytes between the lanes and the link: what the transport takes in advance, and the socket's buffer
/// of the agent's link.
pub(crate) const SOCKET_BYTES: u64 = UNSENT_BYTES_MAX as u64 + SEND_BUFFER_BYTES as u64;
/// Tolerance of a frame's wait over its lane's share of the rate: bursts and rounding.
const SLACK_MS: u64 = 1_000;

/// The lanes of one direction, at the end that sends.
#[derive(Debug, Default)]
pub(crate) struct Line {
    lanes: Lanes,
    limits: Limits,
    /// When each frame was put into its lane.
    since: [VecDeque<u64>; LANES],
}

impl Line {
    pub(crate) fn limit(&mut self, now: u64, limits: Limits) {
        if limits != self.limits {
            self.lanes.set_limits(now, &limits);
            self.limits = limits;
        }
    }

    /// Returns whether the frame's lane took it.
    pub(crate) fn push(&mut self, now: u64, frame: Vec<u8>) -> bool {
        let lane = Lane::of(&frame);
        let taken = self.lanes.push(frame);
        if taken {
            self.since[lane as usize].push_back(now);
        }
        taken
    }

    /// The next frame that may be sent, its lane, and when it was put there.
    pub(crate) fn poll(&mut self, now: u64) -> Option<(Lane, u64, Vec<u8>)> {
        let frame = self.lanes.poll(now)?;
        let lane = Lane::of(&frame);
        let since = self.since[lane as usize].pop_front().unwrap_or(now);
        Some((lane, since, frame))
    }

    pub(crate) fn clear(&mut self) {
        self.lanes.clear();
        self.since = Default::default();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        self.lanes.deadline()
    }

    /// The oldest frame of each lane.
    pub(crate) fn oldest(&self) -> impl Iterator<Item = (Lane, u64)> {
        let oldest = Lane::ALL.into_iter().zip(&self.since);
        oldest.filter_map(|(lane, since)| Some((lane, *since.front()?)))
    }

    /// Longest time that a frame of a lane may wait on a link of so many kbit/s: its whole lane is
    /// before it, and the lane gets no more than its share and its own rate. Control waits for the
    /// socket only.
    pub(crate) fn wait_ms_max(&self, lane: Lane, kbit_per_s: u64) -> u64 {
        let socket_ms = SOCKET_BYTES * 8 / kbit_per_s.max(1);
        if lane == Lane::Control {
            return socket_ms + SLACK_MS;
        }
        let index = lane as usize;
        let bits = LANE_BYTES_MAX[index] as u64 * 8;
        let line = kbit_per_s * 1000;
        let link = match self.limits.link_bits_per_s {
            0 => line,
            rate => rate.min(line),
        };
        let share = match lane {
            Lane::Blob => self.limits.blob_share_percent,
            _ => SHARE_PERCENT[index],
        };
        let shared = (link * u64::from(share) / 100).max(1);
        let own = match self.limits.lane_bits_per_s[index] {
            0 => u64::MAX,
            rate => rate,
        };
        2 * bits * 1000 / shared.min(own) + socket_ms + SLACK_MS
    }
}

impl World {
    /// As `Frames::pump`: passes frames that may be sent to the broker.
    pub(crate) fn pump_down(&mut self, replica: usize, node: u32, epoch: u64) {
        let now = self.now;
        let kbit = self.scenario.link.bandwidth_kbit;
        while let Some(session) = &mut self.replicas[replica].sessions[node as usize]
            && let Some((lane, since, frame)) = session.line.poll(now)
        {
            let wait_ms_max = session.line.wait_ms_max(lane, kbit);
            self.check_lane(node, lane, now - since, wait_ms_max);
            self.publish_down(node, epoch, frame);
        }
    }
}
