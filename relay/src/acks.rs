//! When what a client sends is acknowledged.
//!
//! As soon as a reader has read all there is, Linux acknowledges it with a segment of its own,
//! unless it takes the connection for a dialogue, in which an answer is about to carry the
//! acknowledgement. Where many clients send, each read finds one record, and those segments were a
//! quarter of what a datagram cost. In a dialogue one acknowledgement serves two segments, as
//! RFC 5681 (section 4.2) recommends, and one segment alone waits up to 40 ms for another. So a
//! connection whose records follow each other closely is declared a dialogue (`TCP_QUICKACK`), and
//! when nothing has followed for some milliseconds what waits is acknowledged: a client that keeps
//! small segments back until then (RFC 896) is not held up for longer by what was declared. What
//! Linux takes for a dialogue by itself, since the relay answers, stays as it is.

use std::time::Duration;

/// An acknowledgement waits no longer for another segment.
const LATEST: Duration = Duration::from_millis(5);
/// So many reads in a row, each within [`LATEST`] of the last, are no accident.
const CLOSE: u32 = 8;
/// After so many more it is declared again: what arrives twice, or with a mark of congestion, ends a
/// dialogue, and the kernel does not say so.
const AGAIN: u32 = 256;

/// When what one connection reads is acknowledged. Time counts from any moment.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    last_read: Option<Duration>,
    /// Reads in a row that followed the last closely, fewer than [`CLOSE`] and [`AGAIN`] together.
    close: u32,
    may_wait: bool,
}

impl Acks {
    /// Something has been read; says whether the kernel is to be told, now, that an
    /// acknowledgement may wait for another segment.
    #[must_use]
    pub(crate) fn handle_read(&mut self, now: Duration) -> bool {
        let last = self.last_read.replace(now);
        let follows = last.is_some_and(|last| now.saturating_sub(last) < LATEST);
        self.close = if follows { self.close + 1 } else { 0 };
        if self.close == CLOSE + AGAIN {
            self.close = CLOSE;
        }
        let tell = self.close == CLOSE;
        self.may_wait |= tell;
        tell
    }

    /// When nothing has followed for too long.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        let last = self.last_read.filter(|_| self.may_wait)?;
        Some(last + LATEST)
    }

    /// Says whether the kernel is to be told, now, to acknowledge what waits, and what follows when
    /// it is read.
    #[must_use]
    pub(crate) fn handle_timeout(&mut self, now: Duration) -> bool {
        let ends = self.poll_timeout().is_some_and(|at| now >= at);
        self.may_wait &= !ends;
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn the_kernel_is_told_now_and_then_while_reads_are_close() {
        let mut acks = Acks::default();
        let told = (0..600).filter(|at| acks.handle_read(4 * *at * MILLISECOND));
        assert_eq!(told.collect::<Vec<u32>>(), [8, 264, 520]);
    }

    /// As of a thread that had no time: it reads before it looks at the time.
    #[test]
    fn a_late_read_is_not_taken_for_the_end() {
        let mut acks = Acks::default();
        let told = (0..10).find(|at| acks.handle_read(*at * MILLISECOND));
        assert_eq!(told, Some(8));
        assert!(!acks.handle_read(30 * MILLISECOND));
        assert!(!acks.handle_timeout(30 * MILLISECOND));
        assert_eq!(acks.poll_timeout(), Some(35 * MILLISECOND));
    }

    #[test]
    fn what_waits_is_acknowledged_when_nothing_follows() {
        let mut acks = Acks::default();
        for at in 0..8 {
            assert!(!acks.handle_read(at * MILLISECOND));
            assert_eq!(acks.poll_timeout(), None);
        }
        assert!(acks.handle_read(8 * MILLISECOND));
        assert_eq!(acks.poll_timeout(), Some(13 * MILLISECOND));
        assert!(!acks.handle_read(12 * MILLISECOND));
        assert!(!acks.handle_timeout(16 * MILLISECOND));
        assert!(acks.handle_timeout(17 * MILLISECOND));
        assert_eq!(acks.poll_timeout(), None);
        assert!(!acks.handle_timeout(90 * MILLISECOND));
        // And it takes as many reads as at first.
        let told = (100..).find(|at| acks.handle_read(*at * MILLISECOND));
        assert_eq!(told, Some(108));
    }

    #[test]
    fn who_speaks_now_and_then_never_waits() {
        let mut acks = Acks::default();
        for at in 0..100 {
            assert!(!acks.handle_read(5 * at * MILLISECOND));
            assert!(!acks.handle_timeout(5 * at * MILLISECOND));
        }
    }
}
