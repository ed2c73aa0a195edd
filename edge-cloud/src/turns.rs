//! Turns of connections before TLS: so many a second, the others wait, each network in a line of its
//! own. The lines are served in turn, so whoever opens more connections than all nodes together
//! waits for itself, and a node of another network is next but one.
//!
//! Bound: as many wait as have a turn within [`WAIT_MS_MAX`]; when all of these places are taken, the
//! longest line loses its newest to one that is shorter afterwards, too. Of lines of one each none does:
//! whoever comes then is turned away, and no line is ever empty.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use edge_proto::rate_limiter::RateLimiter;

/// A connection waits no longer than this for its turn, milliseconds: a further one is closed, and
/// its node comes back later, each time after a longer and random delay.
pub const WAIT_MS_MAX: u64 = 5_000;

/// The lines; `T` is what is dropped when it is turned away.
pub struct Turns<T> {
    rate: RateLimiter,
    places: usize,
    lines: BTreeMap<IpAddr, VecDeque<(u64, T)>>,
    /// Networks that have a line, the next one first.
    order: VecDeque<IpAddr>,
    waiting: usize,
    turned_away: u64,
}

impl<T> Turns<T> {
    /// So many turns a second.
    #[must_use]
    pub fn new(per_s: u32) -> Self {
        let places = u64::from(per_s.max(1)) * WAIT_MS_MAX / 1_000;
        Self {
            rate: RateLimiter::new(per_s),
            places: usize::try_from(places).unwrap_or(usize::MAX),
            lines: BTreeMap::new(),
            order: VecDeque::new(),
            waiting: 0,
            turned_away: 0,
        }
    }

    /// One more waits. Ask [`Self::next`] afterwards: it may be its turn at once.
    pub fn enter(&mut self, now: u64, address: IpAddr, who: T) {
        let network = network(address);
        if self.waiting >= self.places {
            self.turned_away += 1;
            let own = self.lines.get(&network).map_or(0, VecDeque::len);
            let longest = self.lines.iter().max_by_key(|(_, line)| line.len());
            let Some((longest, _)) = longest.filter(|(_, line)| line.len() > own + 1) else {
                return;
            };
            let longest = *longest;
            if let Some(line) = self.lines.get_mut(&longest) {
                line.pop_back();
                self.waiting -= 1;
            }
        }
        let line = self.lines.entry(network).or_insert_with(|| {
            self.order.push_back(network);
            VecDeque::new()
        });
        line.push_back((now, who));
        self.waiting += 1;
    }

    /// Whose turn it is now, if anybody's.
    pub fn next(&mut self, now: u64) -> Option<T> {
        while self.waiting > 0 && self.rate.wait_ms(now) == 0 {
            let network = self.order.pop_front()?;
            let Some(line) = self.lines.get_mut(&network) else {
                continue;
            };
            let next = line.pop_front();
            if line.is_empty() {
                self.lines.remove(&network);
            } else {
                self.order.push_back(network);
            }
            let Some((came, who)) = next else {
                continue;
            };
            self.waiting -= 1;
            if now.saturating_sub(came) > WAIT_MS_MAX {
                self.turned_away += 1;
                continue;
            }
            self.rate.take(now);
            return Some(who);
        }
        None
    }

    /// When [`Self::next`] is to be asked again, in milliseconds from now; `None` when nobody waits.
    #[must_use]
    pub fn wait_ms(&self, now: u64) -> Option<u64> {
        (self.waiting > 0).then(|| self.rate.wait_ms(now))
    }

    /// How many were turned away since this was last asked.
    pub fn take_turned_away(&mut self) -> u64 {
        std::mem::take(&mut self.turned_away)
    }
}

/// Addresses that count as one: a customer of IPv6 has a whole /64.
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

    /// Goal: a flood from one address costs a node of another one at most a turn. Method: 10 turns a
    /// second, 1,000 connections a second from one address for a minute, and now and then a node.
    #[test]
    fn a_flood_from_one_address_does_not_delay_another() {
        let (mut turns, mut served) = (Turns::new(10), Vec::new());
        let flood = address("203.0.113.9");
        for now in 0..60_000_u64 {
            turns.enter(now, flood, (flood, now));
            if now % 3_000 == 1_500 {
                let node = address("198.51.100.7");
                turns.enter(now, node, (node, now));
            }
            while let Some((who, came)) = turns.next(now) {
                served.push((who, now - came));
            }
            assert!(turns.waiting <= turns.places && turns.order.len() == turns.lines.len());
        }
        let nodes: Vec<u64> = served
            .iter()
            .filter(|(who, _)| *who != flood)
            .map(|(_, waited)| *waited)
            .collect();
        assert_eq!(nodes.len(), 20);
        assert!(nodes.iter().all(|waited| *waited <= 200), "{nodes:?}");
        // The flood is served, too, as far as there are turns, and its first come first.
        assert!(
            (590..=620).contains(&served.len()),
            "{} turns",
            served.len()
        );
        assert!(turns.take_turned_away() > 50_000);
        assert_eq!(turns.take_turned_away(), 0);
    }

    /// Goal: many networks of a few nodes each are all served in the order in which they came.
    #[test]
    fn a_mass_return_is_served_in_order_and_nobody_is_turned_away() {
        let mut turns = Turns::new(100);
        for n in 0..400_u32 {
            turns.enter(0, std::net::Ipv4Addr::from_bits(n / 2).into(), n);
        }
        let (mut now, mut served) = (0, Vec::new());
        while let Some(wait) = turns.wait_ms(now) {
            now += wait;
            served.extend(std::iter::from_fn(|| turns.next(now)));
        }
        assert_eq!(served.len(), 400);
        assert!(served[..200].iter().all(|n| n % 2 == 0));
        assert!(now <= 3_100, "{now}");
        assert_eq!(turns.take_turned_away(), 0);
    }

    /// Goal: a flood from very many networks takes nobody's place and fills no memory. Method: a thousand
    /// of them for each turn, with the places taken by nodes of the highest addresses.
    #[test]
    fn a_flood_from_many_networks_takes_no_place_that_is_taken() {
        let mut turns = Turns::new(10);
        let place = |n: u32| std::net::Ipv4Addr::from_bits(n).into();
        let nodes: Vec<u32> = (0..50).map(|n| u32::MAX - n).collect();
        for n in &nodes {
            turns.enter(0, place(*n), *n);
        }
        let (mut served, mut flood) = (Vec::new(), 0);
        for now in 0..5_000_u64 {
            for _ in 0..10 {
                flood += 1;
                turns.enter(now, place(flood), flood);
            }
            served.extend(std::iter::from_fn(|| turns.next(now)));
            assert!(turns.waiting <= turns.places && turns.lines.len() == turns.waiting);
            assert_eq!(turns.order.len(), turns.lines.len());
        }
        assert!(nodes.iter().all(|n| served.contains(n)), "{served:?}");
    }

    /// Goal: who waited too long is turned away, and costs no turn. Method: nobody asked for a while.
    #[test]
    fn nobody_is_served_after_its_patience() {
        let mut turns = Turns::new(1);
        let at = address("192.0.2.1");
        turns.enter(0, at, 'a');
        turns.enter(0, at, 'b');
        assert_eq!(turns.next(0), Some('a'));
        turns.enter(WAIT_MS_MAX, at, 'c');
        assert_eq!(turns.next(WAIT_MS_MAX + 1), Some('c'));
        assert_eq!(turns.take_turned_away(), 1);
        assert_eq!(turns.wait_ms(WAIT_MS_MAX + 1), None);
    }
}
