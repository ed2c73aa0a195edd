//! The queue of connections before TLS: a fixed number is admitted a second, the others wait, one
//! queue for each network. The networks are served round robin, so a network that opens more connections
//! than all nodes together only delays itself, and a node of another network is next but one.
//!
//! Bound: as many wait as can be admitted within [`WAIT_MS_MAX`]. When all of these places are taken,
//! the longest queue loses its newest connection to a network whose queue stays shorter than that; when
//! no queue is longer by two, the new connection is refused. No queue is ever empty.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use edge_proto::rate_limiter::RateLimiter;

/// Longest wait of a connection before it is admitted, milliseconds: a further one is closed, and
/// its node retries later, each time after a longer and random delay.
pub const WAIT_MS_MAX: u64 = 5_000;

/// The queues; `T` is a connection, and is dropped when that is refused.
pub struct AdmissionQueue<T> {
    rate: RateLimiter,
    places: usize,
    /// By network, with the time of arrival, oldest first.
    queues: BTreeMap<IpAddr, VecDeque<(u64, T)>>,
    /// Networks that have a queue, the next one first.
    order: VecDeque<IpAddr>,
    waiting: usize,
    refused: u64,
}

impl<T> AdmissionQueue<T> {
    /// Admits this many connections a second.
    #[must_use]
    pub fn new(per_s: u32) -> Self {
        let places = u64::from(per_s.max(1)) * WAIT_MS_MAX / 1_000;
        Self {
            rate: RateLimiter::new(per_s),
            places: usize::try_from(places).unwrap_or(usize::MAX),
            queues: BTreeMap::new(),
            order: VecDeque::new(),
            waiting: 0,
            refused: 0,
        }
    }

    /// Adds a connection. Call [`Self::next`] afterwards: it may be admitted at once.
    pub fn enter(&mut self, now: u64, address: IpAddr, connection: T) {
        let network = network(address);
        if self.waiting >= self.places {
            self.refused += 1;
            let own = self.queues.get(&network).map_or(0, VecDeque::len);
            let longest = self.queues.iter().max_by_key(|(_, queue)| queue.len());
            let Some((longest, _)) = longest.filter(|(_, queue)| queue.len() > own + 1) else {
                return;
            };
            let longest = *longest;
            if let Some(queue) = self.queues.get_mut(&longest) {
                queue.pop_back();
                self.waiting -= 1;
            }
        }
        let queue = self.queues.entry(network).or_insert_with(|| {
            self.order.push_back(network);
            VecDeque::new()
        });
        queue.push_back((now, connection));
        self.waiting += 1;
    }

    /// The connection that is admitted now, if there is one.
    pub fn next(&mut self, now: u64) -> Option<T> {
        while self.waiting > 0 && self.rate.wait_ms(now) == 0 {
            let network = self.order.pop_front()?;
            let Some(queue) = self.queues.get_mut(&network) else {
                continue;
            };
            let next = queue.pop_front();
            if queue.is_empty() {
                self.queues.remove(&network);
            } else {
                self.order.push_back(network);
            }
            let Some((arrived, connection)) = next else {
                continue;
            };
            self.waiting -= 1;
            if now.saturating_sub(arrived) > WAIT_MS_MAX {
                self.refused += 1;
                continue;
            }
            self.rate.take(now);
            return Some(connection);
        }
        None
    }

    /// When to call [`Self::next`] again, in milliseconds from now; `None` when none waits.
    #[must_use]
    pub fn wait_ms(&self, now: u64) -> Option<u64> {
        (self.waiting > 0).then(|| self.rate.wait_ms(now))
    }

    /// Number of refused connections since the last call.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }
}

/// The network of an address: a customer of IPv6 has a whole /64.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << 64);
            Ipv6Addr::from_bits(network).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Goal: many connections from one address delay a node of another one by at most one admission.
    /// Method: 10 a second, 1,000 connections a second from one address for a minute, and occasionally a
    /// node.
    #[test]
    fn a_flood_from_one_address_does_not_delay_another() {
        let (mut queue, mut served) = (AdmissionQueue::new(10), Vec::new());
        let flood = address("203.0.113.9");
        for now in 0..60_000_u64 {
            queue.enter(now, flood, (flood, now));
            if now % 3_000 == 1_500 {
                let node = address("198.51.100.7");
                queue.enter(now, node, (node, now));
            }
            while let Some((who, came)) = queue.next(now) {
                served.push((who, now - came));
            }
            assert!(queue.waiting <= queue.places && queue.order.len() == queue.queues.len());
        }
        let nodes: Vec<u64> = served
            .iter()
            .filter(|(who, _)| *who != flood)
            .map(|(_, waited)| *waited)
            .collect();
        assert_eq!(nodes.len(), 20);
        assert!(nodes.iter().all(|waited| *waited <= 200), "{nodes:?}");
        // The many are admitted, too, as far as there is capacity, in their order.
        assert!(
            (590..=620).contains(&served.len()),
            "{} admitted",
            served.len()
        );
        assert!(queue.take_refused() > 50_000);
        assert_eq!(queue.take_refused(), 0);
    }

    /// Goal: many networks of a few nodes each are all served in the order of their arrival.
    #[test]
    fn a_mass_return_is_admitted_in_order_and_nobody_is_refused() {
        let mut queue = AdmissionQueue::new(100);
        for n in 0..400_u32 {
            queue.enter(0, std::net::Ipv4Addr::from_bits(n / 2).into(), n);
        }
        let (mut now, mut served) = (0, Vec::new());
        while let Some(wait) = queue.wait_ms(now) {
            now += wait;
            served.extend(std::iter::from_fn(|| queue.next(now)));
        }
        assert_eq!(served.len(), 400);
        assert!(served[..200].iter().all(|n| n % 2 == 0));
        assert!(now <= 3_100, "{now}");
        assert_eq!(queue.take_refused(), 0);
    }

    /// Goal: connections from very many networks displace none and use bounded memory. Method: a thousand
    /// of them for each admission, with the places taken by nodes of the highest addresses.
    #[test]
    fn a_flood_from_many_networks_takes_no_place_that_is_taken() {
        let mut queue = AdmissionQueue::new(10);
        let place = |n: u32| std::net::Ipv4Addr::from_bits(n).into();
        let nodes: Vec<u32> = (0..50).map(|n| u32::MAX - n).collect();
        for n in &nodes {
            queue.enter(0, place(*n), *n);
        }
        let (mut served, mut flood) = (Vec::new(), 0);
        for now in 0..5_000_u64 {
            for _ in 0..10 {
                flood += 1;
                queue.enter(now, place(flood), flood);
            }
            served.extend(std::iter::from_fn(|| queue.next(now)));
            assert!(queue.waiting <= queue.places && queue.queues.len() == queue.waiting);
            assert_eq!(queue.order.len(), queue.queues.len());
        }
        assert!(nodes.iter().all(|n| served.contains(n)), "{served:?}");
    }

    /// Goal: a connection that waited too long is refused, and uses no admission. Method: no call for a
    /// while.
    #[test]
    fn nobody_is_admitted_after_the_longest_wait() {
        let mut queue = AdmissionQueue::new(1);
        let at = address("192.0.2.1");
        queue.enter(0, at, 'a');
        queue.enter(0, at, 'b');
        assert_eq!(queue.next(0), Some('a'));
        queue.enter(WAIT_MS_MAX, at, 'c');
        assert_eq!(queue.next(WAIT_MS_MAX + 1), Some('c'));
        assert_eq!(queue.take_refused(), 1);
        assert_eq!(queue.wait_ms(WAIT_MS_MAX + 1), None);
    }
}
