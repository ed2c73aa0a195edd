//! Connections without a session. When all places are taken, a new one replaces another: a client that opens
//! connections and sends nothing must not lock the nodes out. A node that has presented its certificate
//! keeps its place until its session has the connection, and has few of them.
//!
//! Bound: the number of places; [`NODE_PLACES_MAX`] of them for one node.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::transport::admission_queue::network;

/// Places of one node: its link may break several times during an opening.
pub(super) const NODE_PLACES_MAX: usize = 4;

/// The places of all connections without a session; the oldest of the busiest network is replaced.
pub(super) struct Unauthenticated {
    places: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Ordered by age.
    present: BTreeMap<u64, (IpAddr, Arc<Notify>)>,
    /// Of those, the places of nodes that have shown a certificate, the oldest first.
    nodes: BTreeMap<String, VecDeque<u64>>,
}

/// A place; dropping it frees it.
pub(super) struct Place {
    number: u64,
    node: Option<String>,
    wanted: Arc<Notify>,
    unauthenticated: Arc<Unauthenticated>,
}

impl Unauthenticated {
    /// So many places.
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            places,
            state: Mutex::default(),
        })
    }

    /// A place for a connection from `address`. If none is free, the network with most of them loses
    /// its oldest one.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Place {
        let mut state = self.lock();
        while state.present.len() >= self.places {
            let Some(number) = dispensable(&state.present) else {
                break;
            };
            if let Some((_, wanted)) = state.present.remove(&number) {
                wanted.notify_one();
            }
        }
        let number = state.next;
        state.next += 1;
        let wanted = Arc::new(Notify::new());
        let place = (network(address), Arc::clone(&wanted));
        state.present.insert(number, place);
        Place {
            number,
            node: None,
            wanted,
            unauthenticated: Arc::clone(self),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Its connection has presented this node's certificate. The oldest place of a node that has too many is
    /// released.
    pub(super) fn identify(&mut self, node: &str) {
        self.node = Some(node.to_owned());
        let mut state = self.unauthenticated.lock();
        let of_node = state.nodes.entry(node.to_owned()).or_default();
        of_node.push_back(self.number);
        let oldest = match of_node.len() > NODE_PLACES_MAX {
            true => of_node.pop_front(),
            false => None,
        };
        if let Some((_, wanted)) = oldest.and_then(|oldest| state.present.remove(&oldest)) {
            wanted.notify_one();
        }
    }

    /// Returns when another connection has got the place.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.unauthenticated.lock();
        state.present.remove(&self.number);
        let Some(node) = &self.node else {
            return;
        };
        if let Some(of_node) = state.nodes.get_mut(node) {
            of_node.retain(|number| *number != self.number);
            if of_node.is_empty() {
                state.nodes.remove(node);
            }
        }
    }
}

/// The oldest of those from the network that has the most.
fn dispensable(present: &BTreeMap<u64, (IpAddr, Arc<Notify>)>) -> Option<u64> {
    let mut networks: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
    for (number, (network, _)) in present {
        // The first one in the order is the oldest.
        networks.entry(*network).or_insert((0, *number)).0 += 1;
    }
    let most = networks.into_values().max_by_key(|(count, _)| *count);
    most.map(|(_, oldest)| oldest)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_wanted(place: &Place) -> bool {
        tokio::select! {
            biased;
            () = place.wanted() => true,
            () = std::future::ready(()) => false,
        }
    }

    /// Goal: silent connections lock no node out, and a network with few is not affected by one with
    /// many. Method: four places, a node from elsewhere among the connections of one address.
    #[tokio::test]
    async fn the_oldest_of_the_busiest_address_makes_room() {
        let unauthenticated = Unauthenticated::new(4);
        let enter = |address: &str| unauthenticated.enter(address.parse().unwrap());
        let node = enter("10.0.0.1");
        let mut silent: Vec<Place> = (0..3).map(|_| enter("10.0.0.9")).collect();
        for round in 0..8 {
            silent.push(enter("10.0.0.9"));
            assert!(is_wanted(&silent[round]).await, "{round}");
            assert!(!is_wanted(&silent[round + 1]).await, "{round}");
        }
        assert!(!is_wanted(&node).await);
        let other = enter("10.0.0.2");
        assert!(is_wanted(&silent[8]).await);
        assert!(!is_wanted(&node).await && !is_wanted(&other).await);
        // A freed place is free, and a replaced one is freed once.
        drop(silent);
        let all: Vec<Place> = (3..5).map(|n| enter(&format!("10.0.0.{n}"))).collect();
        assert!(!is_wanted(&node).await && !is_wanted(&all[0]).await);
    }

    /// Goal: a node with a valid certificate that opens connections and says nothing holds few places, and
    /// costs no other node one. Method: many connections of one node behind the address of another.
    #[tokio::test]
    async fn a_node_has_few_places_and_loses_its_own_oldest() {
        let unauthenticated = Unauthenticated::new(100);
        let enter = |node: &str| {
            let mut place = unauthenticated.enter("10.0.0.1".parse().unwrap());
            place.identify(node);
            place
        };
        let honest = enter("gate");
        let mut silent: Vec<Place> = (0..NODE_PLACES_MAX).map(|_| enter("evil")).collect();
        for round in 0..8 {
            assert!(!is_wanted(&silent[round]).await, "{round}");
            silent.push(enter("evil"));
            assert!(is_wanted(&silent[round]).await, "{round}");
        }
        assert!(!is_wanted(&honest).await);
        assert_eq!(unauthenticated.lock().present.len(), NODE_PLACES_MAX + 1);
        drop((honest, silent));
        let state = unauthenticated.lock();
        assert!(state.present.is_empty() && state.nodes.is_empty());
    }

    #[tokio::test]
    async fn a_network_of_ipv6_counts_as_one() {
        let unauthenticated = Unauthenticated::new(3);
        let enter = |address: &str| unauthenticated.enter(address.parse().unwrap());
        let node = enter("2001:db8:0:1::1");
        let first = enter("2001:db8:0:2::1");
        let second = enter("2001:db8:0:2::2");
        let third = enter("2001:db8:0:2::3");
        assert!(is_wanted(&first).await);
        for place in [&node, &second, &third] {
            assert!(!is_wanted(place).await);
        }
    }
}
