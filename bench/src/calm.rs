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
/// How much longer a call may take than the third fastest so far: the fastest may be a stroke of luck.
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
    /// It was not well, and nobody had the patience to wait.
    pub disturbed: bool,
}

impl Host {
    /// The worse of both, figure by figure.
    pub fn worse(self, other: Host) -> Host {
        Host {
            apart_ns: self.apart_ns.max(other.apart_ns),
            call_us: self.call_us.max(other.call_us),
            disturbed: self.disturbed || other.disturbed,
        }
    }
}

/// Makes runs while the host is well, and has only so much patience for all of them together.
pub struct Calm {
    patience: Duration,
    /// The fastest first.
    fastest_us: [f64; 3],
}

impl Calm {
    /// With no patience, the host is taken as it is.
    ///
    /// # Errors
    /// Those of [`look`].
    pub fn new(patience: Duration) -> anyhow::Result<Calm> {
        let looks = if patience.is_zero() { 0 } else { LEARNT };
        let mut calm = Calm {
            patience,
            fastest_us: [f64::INFINITY; 3],
        };
        for _ in 0..looks {
            calm.is_well(look()?);
            thread::sleep(LOOK_AGAIN);
        }
        Ok(calm)
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
            let takes_all = self.patience.is_zero();
            let before = look()?;
            let was_well = self.is_well(before);
            if was_well || takes_all {
                let made = run()?;
                let after = look()?;
                let disturbed = !(was_well & self.is_well(after));
                if !disturbed || takes_all {
                    let host = before.worse(after);
                    return Ok((made, Host { disturbed, ..host }));
                }
            } else {
                thread::sleep(LOOK_AGAIN);
            }
            self.patience = self.patience.saturating_sub(start.elapsed());
        }
    }

    fn is_well(&mut self, host: Host) -> bool {
        let [.., third] = &mut self.fastest_us;
        *third = third.min(host.call_us);
        self.fastest_us.sort_by(f64::total_cmp);
        let [.., third] = self.fastest_us;
        NEAR_NANOS.contains(&host.apart_ns) && host.call_us <= third * SLOWER
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
            disturbed: false,
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
