//! The one place of this crate that reads a clock.

use std::time::{Duration, Instant, SystemTime};

/// Monotonic time.
#[expect(clippy::disallowed_methods, reason = "these tests run in real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Seconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "these tests run in real time")]
pub fn unix() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Asks `probe` every 50 ms until it has an answer, for at most `limit`.
///
/// # Panics
/// When the time is up; `what` says what did not happen.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = now() + limit;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(now() < deadline, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}
