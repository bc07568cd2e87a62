//! How many connections or sessions are open: in all, per source and per token.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// A bounded number of slots, by whoever takes them: network sources, or token ids.
pub(crate) struct Slots<K: Eq + Hash + Clone = Source> {
    in_all: usize,
    per_holder: usize,
    taken: Mutex<Taken<K>>,
}

struct Taken<K> {
    in_all: usize,
    by_holder: HashMap<K, usize>,
}

/// An IPv4 address or an IPv6 /64: what one customer of a provider gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source(IpAddr);

/// A slot that is taken until it is dropped.
pub(crate) struct Slot<K: Eq + Hash + Clone = Source> {
    slots: Arc<Slots<K>>,
    holder: K,
}

/// What a session holds.
pub(crate) struct SessionSlot {
    pub(crate) _of_source: Slot,
    pub(crate) _of_token: Option<Slot<String>>,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSlot {
    InAll,
    PerSource,
}

impl Slots {
    /// Takes a slot for a client at `address`.
    pub(crate) fn take(self: &Arc<Slots>, address: IpAddr) -> Result<Slot, NoSlot> {
        self.take_for(Source::of(address))
    }
}

impl<K: Eq + Hash + Clone> Slots<K> {
    pub(crate) fn new(in_all: usize, per_holder: usize) -> Arc<Slots<K>> {
        Arc::new(Slots {
            in_all,
            per_holder,
            taken: Mutex::new(Taken {
                in_all: 0,
                by_holder: HashMap::new(),
            }),
        })
    }

    /// Takes a slot for this holder.
    pub(crate) fn take_for(self: &Arc<Slots<K>>, holder: K) -> Result<Slot<K>, NoSlot> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.in_all >= self.in_all {
            return Err(NoSlot::InAll);
        }
        let of_holder = taken.by_holder.get(&holder).copied().unwrap_or_default();
        if of_holder >= self.per_holder {
            return Err(NoSlot::PerSource);
        }
        taken.by_holder.insert(holder.clone(), of_holder + 1);
        taken.in_all += 1;
        Ok(Slot {
            slots: self.clone(),
            holder,
        })
    }
}

impl Source {
    pub(crate) fn of(address: IpAddr) -> Source {
        Source(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
            }
        })
    }
}

impl<K: Eq + Hash + Clone> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut taken = self
            .slots
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taken.in_all -= 1;
        if let Some(of_holder) = taken.by_holder.get_mut(&self.holder) {
            *of_holder -= 1;
            if *of_holder == 0 {
                taken.by_holder.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back() {
        let slots = Slots::<Source>::new(4, 2);
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
        assert_eq!((taken.in_all, taken.by_holder.len()), (0, 0));
    }
}
