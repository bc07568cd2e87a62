//! Bytes through a local port for a while, as fast as they go or at a rate: how many arrived, whether
//! each was the one that was sent, and what each process spent on them.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{cpu_nanos, instance};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the instance.
    Down,
    /// To the instance.
    Up,
}

impl Direction {
    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Down => "down",
            Direction::Up => "up",
        }
    }
}

/// What a window of time showed.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Of payload, where they arrived.
    pub bytes_per_second: f64,
    /// CPU time per such byte, one figure for each process asked about.
    pub nanos_per_byte: Vec<f64>,
    /// No byte was missing, and the flow did not stand still.
    pub intact: bool,
}

/// A flow of bytes that shows where one is missing: words that count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pattern {
    position: u64,
}

impl Pattern {
    /// The next bytes.
    pub fn fill(&mut self, piece: &mut [u8]) {
        for byte in piece {
            *byte = Pattern::at(self.position);
            self.position += 1;
        }
    }

    /// Whether these are the next bytes.
    pub fn follows(&mut self, piece: &[u8]) -> bool {
        let start = self.position;
        self.position += piece.len() as u64;
        (start..)
            .zip(piece)
            .all(|(at, byte)| *byte == Pattern::at(at))
    }

    fn at(position: u64) -> u8 {
        (position / 8)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_be_bytes()[(position % 8) as usize]
    }
}

/// So many bytes in a second, in steps of a few milliseconds.
#[derive(Debug)]
pub struct Pace {
    rate: u64,
    started: Instant,
    sent: u64,
}

impl Pace {
    /// How long to wait when nothing is due.
    pub const TICK: Duration = Duration::from_millis(2);

    /// Begins now; 0 is without a limit.
    pub fn new(rate: u64) -> Pace {
        Pace {
            rate,
            started: Instant::now(),
            sent: 0,
        }
    }

    /// How many of `room` are due.
    pub fn due(&mut self, room: usize) -> usize {
        if self.rate == 0 {
            return room;
        }
        let by_now = (self.started.elapsed().as_secs_f64() * self.rate as f64) as u64;
        let due = room.min(by_now.saturating_sub(self.sent) as usize);
        self.sent += due as u64;
        due
    }
}

/// Until windows have opened and queues are full.
const WARM: Duration = Duration::from_millis(700);

/// A flow that has not begun by then does not; one that stands for as long has ended.
const BEGIN: Duration = Duration::from_secs(5);

/// Runs one flow through `port` and looks at `processes` for `window`.
///
/// # Errors
/// When a process is gone.
pub fn measure(
    port: SocketAddr,
    direction: Direction,
    rate: u64,
    window: Duration,
    processes: &[u32],
) -> anyhow::Result<Sample> {
    let mut stream = TcpStream::connect(port)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(BEGIN))?;
    stream.set_write_timeout(Some(BEGIN))?;
    let arrived = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    let mut hello = vec![match direction {
        Direction::Down => instance::DOWN,
        Direction::Up => instance::UP,
    }];
    hello.extend(rate.to_be_bytes());
    stream.write_all(&hello)?;
    let (mut from, count) = (stream.try_clone()?, arrived.clone());
    match direction {
        Direction::Down => threads.push(thread::spawn(move || {
            let (mut piece, mut pattern) = (vec![0; 256 * 1024], Pattern::default());
            while let Ok(n @ 1..) = from.read(&mut piece) {
                if !pattern.follows(&piece[..n]) {
                    return;
                }
                count.fetch_add(n as u64, Relaxed);
            }
        })),
        Direction::Up => {
            threads.push(thread::spawn(move || {
                let mut report = [0; 8];
                while from.read_exact(&mut report).is_ok() {
                    count.store(u64::from_be_bytes(report), Relaxed);
                }
            }));
            let (mut to, stop) = (stream.try_clone()?, stop.clone());
            threads.push(thread::spawn(move || {
                let (mut piece, mut pattern) = (vec![0; 64 * 1024], Pattern::default());
                let mut pace = Pace::new(rate);
                while !stop.load(Relaxed) {
                    let due = pace.due(piece.len());
                    if due == 0 {
                        thread::sleep(Pace::TICK);
                        continue;
                    }
                    pattern.fill(&mut piece[..due]);
                    if to.write_all(&piece[..due]).is_err() {
                        return;
                    }
                }
            }));
        }
    }
    let started = Instant::now();
    while arrived.load(Relaxed) == 0 && started.elapsed() < BEGIN {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(WARM);
    let look = || -> anyhow::Result<(Instant, u64, Vec<u64>)> {
        let spent: anyhow::Result<Vec<u64>> = processes.iter().map(|pid| cpu_nanos(*pid)).collect();
        Ok((Instant::now(), arrived.load(Relaxed), spent?))
    };
    let before = look()?;
    thread::sleep(window);
    let after = look()?;
    // One that has broken off says nothing more.
    thread::sleep(Duration::from_millis(200));
    let intact = arrived.load(Relaxed) > after.1 && after.1 > before.1;
    stop.store(true, Relaxed);
    stream.shutdown(Shutdown::Both)?;
    for thread in threads {
        let _ = thread.join();
    }
    let bytes = (after.1 - before.1) as f64;
    let spent = after.2.iter().zip(&before.2);
    Ok(Sample {
        bytes_per_second: bytes / (after.0 - before.0).as_secs_f64(),
        nanos_per_byte: spent
            .map(|(a, b)| (a - b) as f64 / bytes.max(1.0))
            .collect(),
        intact,
    })
}
