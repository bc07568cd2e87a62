//! What becomes due when, for many that each want one moment.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::Hash,
};

use tunnel::Instant;

/// A moment can be brought forward, never put off: whoever is woken too early sets the next one.
pub(crate) struct Timers<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
    set: HashMap<K, Instant>,
}

impl<K: Copy + Eq + Ord + Hash> Timers<K> {
    pub(crate) fn new() -> Timers<K> {
        Timers {
            heap: BinaryHeap::new(),
            set: HashMap::new(),
        }
    }

    pub(crate) fn set(&mut self, key: K, at: Instant) {
        if self.set.get(&key).is_some_and(|set| *set <= at) {
            return;
        }
        self.set.insert(key, at);
        self.heap.push(Reverse((at, key)));
        // What was brought forward leaves a stale moment behind.
        if self.heap.len() > 64 + 4 * self.set.len() {
            let set = &self.set;
            self.heap
                .retain(|Reverse((at, key))| set.get(key) == Some(at));
        }
    }

    pub(crate) fn remove(&mut self, key: K) {
        self.set.remove(&key);
    }

    /// The next one whose time has come; it is not set any more.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        while let Some(Reverse((at, key))) = self.heap.peek().copied() {
            if at > now {
                return None;
            }
            self.heap.pop();
            if self.set.get(&key) == Some(&at) {
                self.set.remove(&key);
                return Some(key);
            }
        }
        None
    }

    /// No later than the next moment that is set.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_counts_and_later_does_not() {
        let at = |seconds: u64| Instant::from_micros(seconds * 1_000_000);
        let mut timers = Timers::new();
        timers.set('a', at(10));
        timers.set('a', at(5));
        timers.set('a', at(20));
        timers.set('b', at(7));
        timers.set('c', at(6));
        timers.remove('c');
        assert_eq!(timers.next(), Some(at(5)));
        assert_eq!(timers.pop_due(at(4)), None);
        assert_eq!(timers.pop_due(at(8)), Some('a'));
        assert_eq!(timers.pop_due(at(8)), Some('b'));
        assert_eq!(timers.pop_due(at(30)), None);
        for n in 0..10_000u64 {
            timers.set('z', at(20_000 - n));
        }
        assert!(timers.heap.len() < 100);
    }
}
