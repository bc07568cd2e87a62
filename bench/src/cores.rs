//! How far apart the two cores are.
//!
//! A virtual machine's cores move between those of its host. At one moment they share a cache, at
//! the next they do not: a line that one has written takes five times as long to the other, and
//! whatever is handed from load to server costs half as much again. That says nothing of a server,
//! so it is measured beside each run, printed with it, and a run is made while they are near.

use std::{
    hint::spin_loop,
    ops::RangeInclusive,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Release},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{LOAD_CORE, SERVER_CORE, pin};

/// A round trip within one cache takes 40 to 100 ns, and between two 200 to 400. A shorter one stays
/// within one core: then they are two threads of it, and have half of it each.
const NEAR_NANOS: RangeInclusive<f64> = 36.0..=150.0;
/// Round trips in one look, a millisecond or two; before them, those that wait for two threads.
const ROUNDS: u64 = 4_000;
const BEFORE: u64 = 500;
/// Between two looks for cores that are near.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Nanoseconds that a cache line takes from one core to the other and back. The server is idle
/// meanwhile.
///
/// # Errors
/// When there are no two cores.
pub fn apart() -> anyhow::Result<f64> {
    #[repr(align(128))]
    struct Line(AtomicU64);
    let line = &Line(AtomicU64::new(0));
    let wait = |value| {
        while line.0.load(Acquire) != value {
            spin_loop();
        }
    };
    // Whoever cannot have its core takes part all the same, or the other waits for ever.
    thread::scope(|scope| {
        let there = scope.spawn(move || {
            let pinned = pin(SERVER_CORE);
            for round in 0..BEFORE + ROUNDS {
                wait(2 * round + 1);
                line.0.store(2 * round + 2, Release);
            }
            pinned
        });
        let here = scope.spawn(move || {
            let pinned = pin(LOAD_CORE);
            let mut start = Instant::now();
            for round in 0..BEFORE + ROUNDS {
                if round == BEFORE {
                    start = Instant::now();
                }
                line.0.store(2 * round + 1, Release);
                wait(2 * round + 2);
            }
            pinned.map(|()| start.elapsed().as_nanos() as f64 / ROUNDS as f64)
        });
        let ended = |_| anyhow::anyhow!("a thread of a measurement ended early");
        there.join().map_err(ended)??;
        here.join().map_err(ended)?
    })
}

/// Makes runs while the cores are near, and has only so much patience for all of them together.
pub struct Near {
    patience: Duration,
}

impl Near {
    /// With no patience, cores are taken as they are.
    pub fn new(patience: Duration) -> Near {
        Near { patience }
    }

    /// Makes one run with cores that are near before and after it; with those that there are when
    /// the patience has come to its end. Says how far apart they were.
    ///
    /// # Errors
    /// Those of `run` and of [`apart`].
    pub fn run<T>(
        &mut self,
        mut run: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, f64)> {
        loop {
            let start = Instant::now();
            let before = apart()?;
            if !NEAR_NANOS.contains(&before) && !self.patience.is_zero() {
                thread::sleep(LOOK_AGAIN.min(self.patience));
                self.patience = self.patience.saturating_sub(start.elapsed());
                continue;
            }
            let made = run()?;
            let after = apart()?;
            let (less, more) = (before.min(after), before.max(after));
            let is_near = NEAR_NANOS.contains(&less) && NEAR_NANOS.contains(&more);
            if is_near || self.patience.is_zero() {
                return Ok((made, more));
            }
            self.patience = self.patience.saturating_sub(start.elapsed());
        }
    }
}
