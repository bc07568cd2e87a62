//! How many connections or sessions are open, in all and per source.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// A bounded number of slots.
pub(crate) struct Slots {
    in_all: usize,
    per_source: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    in_all: usize,
    by_source: HashMap<Source, usize>,
}

/// An IPv4 address or an IPv6 /64: what one customer of a provider gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Source(IpAddr);

/// A slot that is taken until it is dropped.
pub(crate) struct Slot {
    slots: Arc<Slots>,
    source: Source,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSlot {
    InAll,
    PerSource,
}

impl Slots {
    pub(crate) fn new(in_all: usize, per_source: usize) -> Arc<Slots> {
        Arc::new(Slots {
            in_all,
            per_source,
            taken: Mutex::default(),
        })
    }

    /// Takes a slot for a client at `address`.
    pub(crate) fn take(self: &Arc<Slots>, address: IpAddr) -> Result<Slot, NoSlot> {
        let source = Source::of(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.in_all >= self.in_all {
            return Err(NoSlot::InAll);
        }
        let of_source = taken.by_source.get(&source).copied().unwrap_or_default();
        if of_source >= self.per_source {
            return Err(NoSlot::PerSource);
        }
        taken.by_source.insert(source, of_source + 1);
        taken.in_all += 1;
        Ok(Slot {
            slots: self.clone(),
            source,
        })
    }
}

impl Source {
    fn of(address: IpAddr) -> Source {
        Source(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
            }
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self
            .slots
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taken.in_all -= 1;
        if let Some(of_source) = taken.by_source.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                taken.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back() {
        let slots = Slots::new(4, 2);
        let take = |address: &str| slots.take(address.parse().unwrap());
        let a = take("192.0.2.1").unwrap();
        let mapped = take("::ffff:192.0.2.1").unwrap();
        assert_eq!(take("192.0.2.1").err(), Some(NoSlot::PerSource));
        let b = take("2001:db8::1").unwrap();
        let c = take("2001:db8::ffff:0:1").unwrap();
        assert_eq!(take("192.0.2.2").err(), Some(NoSlot::InAll));
        drop(b);
        let d = take("2001:db8:0:1::1").unwrap();
        drop((a, mapped, c, d));
        let taken = slots.taken.lock().unwrap();
        assert_eq!((taken.in_all, taken.by_source.len()), (0, 0));
    }
}
