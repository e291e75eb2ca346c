//! Who may come in: connections of one address, and how many in a second.
//!
//! Counting is done when a connection comes and when it goes, never per delivery. Addresses are not
//! remembered: each has a counter in each of two rows, found by a hash with a secret key, and the
//! smaller one counts. So others can only make it count too much, and only who shares both.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counters of a row, 4 bytes each. With 100,000 addresses connected one in a hundred shares both
/// of its counters with others.
const COUNTERS: usize = 1 << 20;

/// What a shard knows of room and limits beyond its own.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    /// Connections by address, of all shards; `None` without a limit.
    pub addresses: Option<Arc<Addresses>>,
    /// Sockets of this shard; 0 if it need not save any.
    pub sockets_max: usize,
}

impl Admission {
    /// True if less than one in `share` of the sockets is free, of which so many are open.
    pub fn is_short(&self, open: usize, share: usize) -> bool {
        let free = self.sockets_max.saturating_sub(open);
        free < self.sockets_max / share
    }
}

/// Connections by address, counted by all shards.
pub struct Addresses {
    /// Two rows.
    counters: Box<[AtomicU32]>,
    most: u32,
    key: RandomState,
}

impl Addresses {
    /// Bytes of all counters.
    pub const BYTES: usize = 2 * COUNTERS * size_of::<AtomicU32>();

    /// No connection yet, at most `most` of one address.
    pub fn new(most: usize) -> Addresses {
        Addresses {
            counters: (0..2 * COUNTERS).map(|_| AtomicU32::new(0)).collect(),
            most: u32::try_from(most).unwrap_or(u32::MAX),
            key: RandomState::new(),
        }
    }

    /// One more connection of this address. True if there are no more than it may have. It is
    /// counted in any case, until it leaves.
    pub fn enter(&self, ip: IpAddr) -> bool {
        let counts = self.of(ip).map(|counter| counter.fetch_add(1, Ordering::Relaxed));
        counts.into_iter().min().is_some_and(|others| others < self.most)
    }

    /// One connection less.
    pub fn leave(&self, ip: IpAddr) {
        for counter in self.of(ip) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The counters of an address.
    fn of(&self, ip: IpAddr) -> [&AtomicU32; 2] {
        let hash = self.key.hash_one(subscriber(ip)) as usize;
        let (first, second) = (hash % COUNTERS, (hash >> 32) % COUNTERS);
        [&self.counters[first], &self.counters[COUNTERS + second]]
    }
}

impl std::fmt::Debug for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Addresses").field("most", &self.most).finish_non_exhaustive()
    }
}

/// What one subscriber of a provider has: an IPv4 address, or 64 bits of IPv6 (RFC 6177).
fn subscriber(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip => ip,
    }
}

/// So many in a second, on average. What is not used is kept for half a second.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When it was last filled, in nanoseconds.
    filled_ns: u64,
    /// A part of one that has come since, in billionths.
    rest: u64,
}

impl Bucket {
    /// The most that is kept of `per_second`.
    pub fn most(per_second: usize) -> usize {
        per_second.div_ceil(2).max(1)
    }

    /// How many more there may be at the time `now_ns`; at most [`Bucket::most`].
    pub fn fill(&mut self, per_second: usize, now_ns: u64) -> usize {
        let passed = u128::from(now_ns.saturating_sub(std::mem::replace(&mut self.filled_ns, now_ns)));
        let come = passed * per_second as u128 + u128::from(self.rest);
        self.rest = (come % 1_000_000_000) as u64;
        usize::try_from(come / 1_000_000_000).unwrap_or(usize::MAX).min(Bucket::most(per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_has_so_many_connections_and_others_have_theirs() {
        let addresses = Addresses::new(2);
        for (one, other) in
            [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8:0:1::1"), ("::ffff:10.0.0.1", "10.0.0.2")]
        {
            let (one, other) = (ip(one), ip(other));
            assert_eq!([(); 3].map(|()| addresses.enter(one)), [true, true, false]);
            assert!(addresses.enter(other), "{other} is another one than {one}");
            addresses.leave(one);
            assert!(!addresses.enter(one), "the one that was too many counts while it is there");
            addresses.leave(one);
            addresses.leave(one);
            assert!(addresses.enter(one), "one place is free");
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_an_address_of_ipv4_has_one_form() {
        let addresses = Addresses::new(1);
        assert!(addresses.enter(ip("2001:db8::1")));
        assert!(!addresses.enter(ip("2001:db8::ffff:1")));
        assert!(addresses.enter(ip("10.0.0.1")));
        assert!(!addresses.enter(ip("::ffff:10.0.0.1")));
    }

    #[test]
    fn a_bucket_gives_its_rate_and_keeps_half_a_second() {
        let mut bucket = Bucket::default();
        let second = 1_000_000_000;
        bucket.fill(10, 1_000 * second);
        let given: usize = (1..=100).map(|at| bucket.fill(10, 1_000 * second + at * second / 100)).sum();
        assert_eq!(given, 10, "in a hundred looks");
        assert_eq!(bucket.fill(10, 2_000 * second), 5);
        assert_eq!((Bucket::most(1), Bucket::most(1_000)), (1, 500));
        assert_eq!(bucket.fill(usize::MAX, u64::MAX), Bucket::most(usize::MAX), "no overflow");
    }

    #[test]
    fn room_is_short_below_a_share_of_it() {
        let admission = Admission { addresses: None, sockets_max: 80 };
        assert!(!admission.is_short(70, 8));
        assert!(admission.is_short(71, 8));
        assert!(!Admission::default().is_short(5, 8), "nobody has said how many there are");
    }
}
