//! Runs that a virtual machine's host left alone.
//!
//! The cores of a virtual machine move between those of its host, and share them. At one moment the
//! two have a cache in common, at the next a line that one has written takes five times as long to
//! the other; and while a neighbour has the other half of a core, a system call takes half as much
//! again. Neither says anything of a server. So both are looked at before and after each run, a run
//! counts when they were well, and each measurement says how they were.

use std::{
    hint::spin_loop,
    net::UdpSocket,
    ops::RangeInclusive,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::anyhow;

use crate::{LOAD_CORE, SERVER_CORE, pin};

/// How long a cache line takes from one core to the other and back: within one cache 40 to 100 ns,
/// between two 200 to 400. A shorter time is that of two threads of one core, which have half of it
/// each.
const NEAR_NANOS: RangeInclusive<f64> = 36.0..=150.0;
/// How much longer a call may take than the fastest one so far.
const SLOWER: f64 = 1.08;
/// Round trips of a line in one look, and before them those that wait for both threads.
const LINES: u64 = 4_000;
const BEFORE: u64 = 500;
/// Datagrams that each core sends itself in one look; with the lines, 2 ms.
const CALLS: u32 = 300;
/// Looks from which it is learnt at first what fast is: six seconds.
const LEARNT: usize = 150;
/// Between two looks for a host that is well.
const LOOK_AGAIN: Duration = Duration::from_millis(40);

/// How the host was.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host {
    /// Nanoseconds that a cache line takes from one core to the other and back.
    pub apart_ns: f64,
    /// Microseconds to send a datagram of 1,400 bytes and to receive it, on the slower core.
    pub call_us: f64,
}

impl Host {
    /// The worse of both, figure by figure.
    pub fn worse(self, other: Host) -> Host {
        Host {
            apart_ns: self.apart_ns.max(other.apart_ns),
            call_us: self.call_us.max(other.call_us),
        }
    }
}

/// Makes runs while the host is well, and has only so much patience for all of them together.
pub struct Calm {
    patience: Duration,
    fastest_us: f64,
}

impl Calm {
    /// With no patience, the host is taken as it is.
    ///
    /// # Errors
    /// Those of [`look`].
    pub fn new(patience: Duration) -> anyhow::Result<Calm> {
        let looks = if patience.is_zero() { 0 } else { LEARNT };
        let mut fastest_us = f64::INFINITY;
        for _ in 0..looks {
            fastest_us = fastest_us.min(look()?.call_us);
            thread::sleep(LOOK_AGAIN);
        }
        Ok(Calm {
            patience,
            fastest_us,
        })
    }

    /// Makes a run until one has the host well before and after it, or the patience has come to its
    /// end. Says how the host was, at its worse.
    ///
    /// # Errors
    /// Those of `run` and of [`look`].
    pub fn run<T>(
        &mut self,
        mut run: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Host)> {
        loop {
            let start = Instant::now();
            let before = look()?;
            let takes_all = self.patience.is_zero();
            if takes_all || self.is_well(before) {
                let made = run()?;
                let after = look()?;
                if takes_all || self.is_well(after) {
                    return Ok((made, before.worse(after)));
                }
            } else {
                thread::sleep(LOOK_AGAIN);
            }
            self.patience = self.patience.saturating_sub(start.elapsed());
        }
    }

    fn is_well(&mut self, host: Host) -> bool {
        self.fastest_us = self.fastest_us.min(host.call_us);
        NEAR_NANOS.contains(&host.apart_ns) && host.call_us <= self.fastest_us * SLOWER
    }
}

/// Looks at the host. What is measured is idle meanwhile.
///
/// # Errors
/// When there are no two cores, or no socket.
pub fn look() -> anyhow::Result<Host> {
    let line = &Line(AtomicU64::new(0));
    thread::scope(|scope| {
        let there = scope.spawn(move || {
            let pinned = pin(SERVER_CORE);
            for round in 0..BEFORE + LINES {
                line.wait(2 * round + 1);
                line.0.store(2 * round + 2, Release);
            }
            pinned.and_then(|()| calls())
        });
        let here = scope.spawn(move || {
            // Whoever cannot have its core takes part all the same, or the other waits for ever.
            let pinned = pin(LOAD_CORE);
            let mut start = Instant::now();
            for round in 0..BEFORE + LINES {
                if round == BEFORE {
                    start = Instant::now();
                }
                line.0.store(2 * round + 1, Release);
                line.wait(2 * round + 2);
            }
            let apart_ns = start.elapsed().as_nanos() as f64 / LINES as f64;
            pinned.and_then(|()| Ok((apart_ns, calls()?)))
        });
        let there = joined(there)?;
        let (apart_ns, here) = joined(here)?;
        Ok(Host {
            apart_ns,
            call_us: here.max(there),
        })
    })
}

/// A cache line that goes back and forth.
#[repr(align(128))]
struct Line(AtomicU64);

impl Line {
    fn wait(&self, value: u64) {
        while self.0.load(Relaxed) != value {
            spin_loop();
        }
        self.0.load(Acquire);
    }
}

/// Microseconds that a datagram to oneself takes.
fn calls() -> anyhow::Result<f64> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(socket.local_addr()?)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut datagram = [0; 1_400];
    let start = Instant::now();
    for _ in 0..CALLS {
        socket.send(&datagram)?;
        socket.recv(&mut datagram)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS))
}

fn joined<T>(thread: ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    let panicked = |_| anyhow!("a thread of a look at the host ended early");
    thread.join().map_err(panicked)?
}
