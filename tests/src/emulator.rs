//! A link with a rate, a delay, a queue and a loss, in real time: two TUN devices in two
//! namespaces and a pump between them. It is what `netem` does, where the kernel has no `netem`.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::AsRawFd,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    clock,
    namespace::{Namespace, interface, ip},
};

/// What a link is like, the same both ways.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bits per second.
    pub rate: u64,
    /// Each way.
    pub delay: Duration,
    /// Bytes that wait to be sent; what comes on top is dropped.
    pub queue: u64,
    /// Packets lost of a thousand, at random with a fixed seed, on the way there alone: the
    /// acknowledgements on the way back are spared.
    pub loss_permille: u64,
    /// Bytes of a packet.
    pub mtu: u16,
}

/// A link between two namespaces: fd99::1 on the one side, fd99::2 on the other.
#[derive(Debug)]
pub struct Link {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    counters: [Arc<Counters>; 2],
}

/// What became of the packets of one direction.
#[derive(Debug, Default)]
pub struct Counters {
    /// Delivered.
    pub passed: AtomicU64,
    /// Lost at random.
    pub lost: AtomicU64,
    /// Dropped because the queue was full.
    pub overflowed: AtomicU64,
}

impl Link {
    /// Lays the link.
    ///
    /// # Panics
    /// Without `/dev/net/tun`.
    pub fn new(a: &Namespace, b: &Namespace, shape: Shape) -> Link {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = [(a, 1), (b, 2)].map(|(namespace, host)| {
            let name = interface("t");
            let tun = Arc::new(open(&name));
            ip(["link", "set", &name, "netns", namespace.name()]);
            namespace.ip([
                "-6",
                "addr",
                "add",
                &format!("fd99::{host}/64"),
                "dev",
                &name,
                "nodad",
            ]);
            namespace.ip([
                "link",
                "set",
                &name,
                "mtu",
                &shape.mtu.to_string(),
                "txqueuelen",
                "10000",
                "up",
            ]);
            tun
        });
        let [a, b] = ends;
        let counters: [Arc<Counters>; 2] = Default::default();
        let back = Shape {
            loss_permille: 0,
            ..shape
        };
        let mut threads = pump(&a, &b, shape, &counters[0], &stop);
        threads.extend(pump(&b, &a, back, &counters[1], &stop));
        Link {
            stop,
            threads,
            counters,
        }
    }

    /// The counters of the way from the first namespace to the second.
    pub fn forward(&self) -> &Counters {
        &self.counters[0]
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Packets on their way, in the order of their arrival.
#[derive(Default)]
struct Pipe {
    packets: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    more: Condvar,
}

/// How long a thread waits before it looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);

fn pump(
    from: &Arc<File>,
    to: &Arc<File>,
    shape: Shape,
    counters: &Arc<Counters>,
    stop: &Arc<AtomicBool>,
) -> Vec<JoinHandle<()>> {
    let pipe = Arc::new(Pipe::default());
    let reader = {
        let (pipe, from) = (Arc::clone(&pipe), Arc::clone(from));
        let (counters, stop) = (Arc::clone(counters), Arc::clone(stop));
        thread::spawn(move || take(&from, &pipe, shape, &counters, &stop))
    };
    let writer = {
        let (to, counters, stop) = (Arc::clone(to), Arc::clone(counters), Arc::clone(stop));
        thread::spawn(move || deliver(&to, &pipe, &counters, &stop))
    };
    vec![reader, writer]
}

fn take(from: &File, pipe: &Pipe, shape: Shape, counters: &Counters, stop: &AtomicBool) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut packet = vec![0; 65_536];
    // When the last byte taken so far will have left the queue.
    let mut idle_at = clock::now();
    while !stop.load(Relaxed) {
        let mut fds = [PollFd::new(
            std::os::fd::AsFd::as_fd(from),
            PollFlags::POLLIN,
        )];
        let timeout = PollTimeout::from(u8::try_from(LOOK.as_millis()).unwrap_or(u8::MAX));
        if !matches!(poll(&mut fds, timeout), Ok(1..)) {
            continue;
        }
        let mut from = from;
        while let Ok(length @ 1..) = from.read(&mut packet) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if random % 1_000 < shape.loss_permille {
                counters.lost.fetch_add(1, Relaxed);
                continue;
            }
            let now = clock::now();
            let waiting = idle_at.saturating_duration_since(now);
            if waiting.as_nanos() * u128::from(shape.rate) / 8
                > u128::from(shape.queue) * 1_000_000_000
            {
                counters.overflowed.fetch_add(1, Relaxed);
                continue;
            }
            idle_at = idle_at.max(now)
                + Duration::from_nanos(length as u64 * 8 * 1_000_000_000 / shape.rate);
            let mut packets = pipe.packets.lock().unwrap_or_else(PoisonError::into_inner);
            packets.push_back((idle_at + shape.delay, packet[..length].to_vec()));
            if packets.len() == 1 {
                pipe.more.notify_one();
            }
        }
    }
}

fn deliver(to: &File, pipe: &Pipe, counters: &Counters, stop: &AtomicBool) {
    let mut packets = pipe.packets.lock().unwrap_or_else(PoisonError::into_inner);
    while !stop.load(Relaxed) {
        let Some((due, _)) = packets.front() else {
            let waited = pipe.more.wait_timeout(packets, LOOK);
            (packets, _) = waited.unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let wait = due.saturating_duration_since(clock::now());
        let packet = if wait.is_zero() {
            packets.pop_front()
        } else {
            None
        };
        drop(packets);
        match packet {
            Some((_, packet)) => {
                let mut to = to;
                if to.write_all(&packet).is_ok() {
                    counters.passed.fetch_add(1, Relaxed);
                }
            }
            None => thread::sleep(wait),
        }
        packets = pipe.packets.lock().unwrap_or_else(PoisonError::into_inner);
    }
}

/// Makes a TUN device of that name; it lives as long as the file is open.
fn open(name: &str) -> File {
    nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);

    let mut options = OpenOptions::new();
    options.read(true).write(true);
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open("/dev/net/tun").expect("/dev/net/tun");
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).expect("two bits"),
        },
    };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from.cast_signed();
    }
    #[expect(unsafe_code, reason = "the kernel reads a whole ifreq, which this is")]
    let made = unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) };
    made.expect("a TUN device");
    file
}
