//! What is counted: every refusal has a name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Counts since the start, by name.
#[derive(Debug, Default)]
pub struct Counters {
    logins: AtomicU64,
    channels: AtomicU64,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    /// Logins that succeeded.
    pub fn logins(&self) -> u64 {
        self.logins.load(Ordering::Relaxed)
    }

    /// Channels that were opened.
    pub fn channels(&self) -> u64 {
        self.channels.load(Ordering::Relaxed)
    }

    /// Refusals by their stable name: a reason of [`ssh::Denied`], or one of this server.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How often something was refused for this reason.
    pub fn refused_for(&self, code: &str) -> u64 {
        self.refusals().get(code).copied().unwrap_or(0)
    }

    pub(crate) fn login(&self) {
        self.logins.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn channel(&self) {
        self.channels.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refuse(&self, code: &'static str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(code).or_default() += 1;
    }
}
