//! How much a client may send before what it sent is used.
//!
//! The protocol library opens a channel's window again when data arrives, not when somebody has
//! taken it, and blocking its session on a full queue would keep window adjustments from being
//! read: `cat` with much on both pipes would lock up. So nothing here blocks. Data waits in the
//! channel's own queue and is counted, and the one thing that the library asks for after it has
//! opened a window, how far to open the next, is answered here: [`OPEN`] as a rule, [`TRICKLE`]
//! while a channel of this connection has more than [`ENOUGH`] waiting. With a trickle a client
//! sends two bytes and is granted two more, which keeps the question coming; a pause before each
//! keeps it slow. A client that sends more than it was granted is thrown out.
//!
//! The answer holds for the connection, not for the channel: while one channel's program does not
//! read, the others of its connection trickle too once their own windows are used up.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use russh::ChannelId;

/// A channel's window.
pub(crate) const OPEN: u32 = 2 * 1024 * 1024;
/// The least that the library grants again once it is used up.
const TRICKLE: u32 = 2;
/// What may wait before the window is shut to a trickle.
const ENOUGH: u64 = 1024 * 1024;
/// What cannot wait: an open window was granted once before and once after the limit, and half of
/// one between.
const TOO_MUCH: u64 = ENOUGH + 3 * OPEN as u64;
/// The pause before a trickle is granted again.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// What waits on the channels of one connection.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<ChannelId, u64>,
    shut: bool,
}

/// What to do after data arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Go,
    /// Wait for [`PAUSE`] first.
    Pause,
    /// The client does not keep to its window.
    Overrun,
}

impl Intake {
    /// How far to open the next window.
    pub(crate) fn next_window(&self) -> u32 {
        let mut state = self.lock();
        state.shut = state.waiting.values().any(|&waiting| waiting > ENOUGH);
        if state.shut { TRICKLE } else { OPEN }
    }

    pub(crate) fn arrived(&self, channel: ChannelId, bytes: usize) -> Verdict {
        let mut state = self.lock();
        let trickle = state.shut && bytes <= TRICKLE as usize;
        let waiting = state.waiting.entry(channel).or_default();
        *waiting += bytes as u64;
        if trickle {
            Verdict::Pause
        } else if *waiting > TOO_MUCH {
            Verdict::Overrun
        } else {
            Verdict::Go
        }
    }

    pub(crate) fn taken(&self, channel: ChannelId, bytes: usize) {
        if let Some(waiting) = self.lock().waiting.get_mut(&channel) {
            *waiting = waiting.saturating_sub(bytes as u64);
        }
    }

    pub(crate) fn forget(&self, channel: ChannelId) {
        self.lock().waiting.remove(&channel);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The library's side of a window, as its `adjust_window_size` has it.
    struct Window {
        target: u32,
        left: u32,
    }

    impl Window {
        /// A client sends as much as it may, at most this much.
        fn send(&mut self, intake: &Intake, id: ChannelId, most: u32) -> (u32, Verdict) {
            let sent = self.left.min(most);
            self.left -= sent;
            if self.left < self.target / 2 {
                self.left = self.target;
                self.target = intake.next_window();
            }
            (sent, intake.arrived(id, sent as usize))
        }
    }

    fn id() -> ChannelId {
        channel(7)
    }

    pub(crate) fn channel(number: u32) -> ChannelId {
        use ssh_key::encoding::Decode;
        ChannelId::decode(&mut &number.to_be_bytes()[..]).unwrap()
    }

    #[test]
    fn a_program_that_reads_keeps_the_window_open() {
        let intake = Intake::default();
        let mut window = Window {
            target: OPEN,
            left: OPEN,
        };
        for _ in 0..10_000 {
            let (sent, verdict) = window.send(&intake, id(), 32_768);
            assert_eq!((sent, verdict), (32_768, Verdict::Go));
            intake.taken(id(), sent as usize);
        }
    }

    #[test]
    fn one_that_does_not_is_sent_a_trickle_and_then_the_rest() {
        let intake = Intake::default();
        let mut window = Window {
            target: OPEN,
            left: OPEN,
        };
        let mut waiting = 0;
        let mut paused = 0;
        for _ in 0..10_000 {
            let (sent, verdict) = window.send(&intake, id(), 32_768);
            assert!(sent > 0, "the question has to be asked again");
            assert_ne!(verdict, Verdict::Overrun);
            paused += u32::from(verdict == Verdict::Pause);
            waiting += u64::from(sent);
        }
        assert!(paused > 9_000, "{paused}");
        assert!(waiting < ENOUGH + 2 * u64::from(OPEN), "{waiting}");

        // Another channel of the connection trickles too, and is not overrun by it.
        let mut other = Window {
            target: window.target,
            left: OPEN,
        };
        for _ in 0..10_000 {
            let (sent, verdict) = other.send(&intake, channel(8), 32_768);
            assert_ne!(verdict, Verdict::Overrun);
            intake.taken(channel(8), sent as usize);
        }
        assert_eq!(other.target, TRICKLE);

        intake.taken(id(), usize::try_from(waiting).unwrap());
        let opened = (0..4).any(|_| window.send(&intake, id(), 32_768).0 > TRICKLE);
        assert!(opened, "the window opens again");
    }

    #[test]
    fn one_that_does_not_keep_to_its_window() {
        let intake = Intake::default();
        let overrun = (0..1000).position(|_| intake.arrived(id(), 32_768) == Verdict::Overrun);
        assert_eq!(overrun, Some(usize::try_from(TOO_MUCH / 32_768).unwrap()));
        intake.forget(id());
        assert_eq!(intake.arrived(id(), 32_768), Verdict::Go);
    }
}
