//! Ports, identifiers and sequence numbers from one seed.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
};

/// A keyed hash of a counter. Who sees some of its numbers and not the seed cannot tell the next.
#[derive(Clone)]
pub(crate) struct Rng {
    seed: u64,
    counter: u64,
}

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng { seed, counter: 0 }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.counter += 1;
        let mut hasher = DefaultHasher::new();
        (self.seed, self.counter).hash(&mut hasher);
        hasher.finish()
    }

    pub(crate) fn next_u16(&mut self) -> u16 {
        // The low half of a hash is as good as any.
        self.next_u64() as u16
    }

    /// A port of the dynamic range (RFC 6335 section 6).
    pub(crate) fn port(&mut self) -> u16 {
        0xc000 | self.next_u16()
    }
}
