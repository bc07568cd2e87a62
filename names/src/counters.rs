//! One counter per way that a query can end.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One counter per way that a query can end.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64,)* }

        impl Counters {
            /// Names and values, in a stable order, for a page of metrics.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Names of the zone that have a record of the type asked.
    answered,
    /// Names of the zone without such a record.
    no_data,
    /// Names that the asker's network does not hold.
    nx_domain,
    /// Queries handed out for an upstream server.
    forwarded,
    /// SERVFAIL: as many forwarded queries of the asker's network wait as may.
    forward_network_full,
    /// SERVFAIL: as many forwarded queries wait, of all networks, as may.
    forward_full,
    /// Queries refused: strangers, other classes, zone transfers.
    refused,
    /// Queries with a header and something that is no question behind it.
    malformed,
    /// Operations and EDNS versions that are not spoken here.
    not_implemented,
    /// Answers that did not fit in UDP and send the asker to TCP.
    truncated,
    /// Lists that did not fit in any DNS message and lost their end.
    cut,
    /// Dropped: shorter than a DNS header.
    dropped_too_short,
    /// Dropped: a response, or an answer to nothing.
    dropped_response,
    /// Dropped: the source asks too fast.
    dropped_rate_limited,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
