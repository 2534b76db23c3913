//! How many connections each caller's address holds, over all cores: one address cannot take every connection of the node.
//!
//! Touched when a connection opens and when it closes, never by a request.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A range of addresses: `10.0.0.0/8`, `::1`, ….
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    /// Reads an address, or an address and a prefix length.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(bits), |text| text.parse().ok())?;
        (prefix <= bits).then_some(Self { address, prefix })
    }

    fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros() >= self.prefix
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros() >= self.prefix
            }
            _ => false,
        }
    }
}

/// The connections of the process by address. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Crowd(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    /// Proxies: many callers come from one address.
    trusted: Vec<Network>,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One counted connection; dropping it takes it out of the count.
#[derive(Debug)]
pub struct Place {
    inner: Arc<Inner>,
    /// `None` for an address that is not counted.
    address: Option<IpAddr>,
}

impl Crowd {
    /// - `max`: most connections of one address; IPv6 addresses count by their /64, which is what one customer is given.
    /// - `trusted`: addresses that are not counted.
    pub fn new(max: usize, trusted: Vec<Network>) -> Self {
        Self(Arc::new(Inner {
            max,
            trusted,
            open: Mutex::default(),
        }))
    }

    /// Counts a connection in. `None` when its address has as many as it may.
    pub fn enter(&self, address: IpAddr) -> Option<Place> {
        let inner = self.0.clone();
        let address = address.to_canonical();
        if inner.trusted.iter().any(|network| network.contains(address)) {
            return Some(Place { inner, address: None });
        }
        let address = counted_as(address);
        let is_in = {
            let mut open = inner.open();
            let count = open.entry(address).or_default();
            let is_in = *count < inner.max;
            *count += usize::from(is_in);
            is_in
        };
        is_in.then(|| Place {
            inner,
            address: Some(address),
        })
    }
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner) // counts are whole at every step
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut open = self.inner.open();
        if let Some(count) = open.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&address);
            }
        }
    }
}

fn counted_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_gets_its_share_and_gets_it_back() {
        let crowd = Crowd::new(2, vec![Network::parse("127.0.0.0/8").unwrap()]);
        let held: Vec<_> = (0..2).filter_map(|_| crowd.enter(ip("192.0.2.1"))).collect();
        assert_eq!(held.len(), 2);
        assert!(crowd.enter(ip("192.0.2.1")).is_none());
        assert!(
            crowd.enter(ip("::ffff:192.0.2.1")).is_none(),
            "the same address in IPv6's clothes"
        );
        assert!(
            crowd.enter(ip("192.0.2.2")).is_some(),
            "another address has its own"
        );
        drop(held);
        assert!(crowd.enter(ip("192.0.2.1")).is_some());
        assert!(
            crowd.0.open().is_empty(),
            "nothing is kept for addresses that left"
        );
    }

    #[test]
    fn a_customers_ipv6_addresses_are_one_and_proxies_are_not_counted() {
        let crowd = Crowd::new(1, vec![Network::parse("127.0.0.0/8").unwrap()]);
        let _held = crowd.enter(ip("2001:db8:1:2::1"));
        assert!(crowd.enter(ip("2001:db8:1:2:ffff::2")).is_none());
        assert!(crowd.enter(ip("2001:db8:1:3::1")).is_some());
        let proxied: Vec<_> = (0..5).filter_map(|_| crowd.enter(ip("127.0.0.9"))).collect();
        assert_eq!(proxied.len(), 5);
    }

    #[test]
    fn networks_are_read_and_nonsense_is_not() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("::1", "::1", "::2"),
            ("0.0.0.0/0", "203.0.113.9", "::1"),
        ] {
            let network = Network::parse(text).unwrap();
            assert!(
                network.contains(ip(inside)) && !network.contains(ip(outside)),
                "{text}"
            );
        }
        for text in ["", "10.0.0.0/33", "10.0.0.0/x", "host", "10.0.0.0/"] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }
}
