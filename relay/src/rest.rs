//! A rest between two looks at the sockets, for those who choose it.
//!
//! To wake a thread costs ten times what a datagram does. A network card says what has arrived once
//! in 20 to 100 us; a virtual one, or loopback, wakes its reader for every datagram, and 40,000
//! evenly spaced ones cost half a core. A thread that rests for so long after what it did takes
//! what came meanwhile together. What finds it waiting is taken at once: a rest delays nothing but
//! what follows upon something else.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::Duration,
};

/// In microseconds, for all threads: tokio's hooks know no more than that there is a thread.
static REST: AtomicU32 = AtomicU32::new(0);

/// The longest rest: more is felt.
pub const LONGEST_REST: Duration = Duration::from_millis(1);

/// From now on, threads that call [`before_park`] rest for so long, at most [`LONGEST_REST`].
/// The kernel adds its timer slack, 50 us by default.
pub fn set_rest(rest: Duration) {
    let micros = rest.min(LONGEST_REST).as_micros();
    REST.store(u32::try_from(micros).unwrap_or(u32::MAX), Relaxed);
}

/// To be called before a thread looks at its sockets: `tokio::runtime::Builder::on_thread_park`.
pub fn before_park() {
    let micros = REST.load(Relaxed);
    if micros > 0 {
        thread::sleep(Duration::from_micros(micros.into()));
    }
}
