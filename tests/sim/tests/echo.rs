//! Much both ways at once, over paths that lose whole bursts, between programs that pause.

use std::{collections::VecDeque, time::Duration};

use sim::{LinkConfig, World, WorldConfig, tunnel::Class};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

fn byte(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}

/// What the client sends, the server holds up to 256 KiB of and sends back. Says how long it took,
/// and the longest time in which the client read nothing.
fn echo(link: LinkConfig, class: Class, bytes: u64, seed: u64) -> (Duration, Duration) {
    let mut world = World::new(WorldConfig {
        seed,
        ..WorldConfig::both(link)
    });
    let mut random = Random(seed);
    let (client, server) = world.connect(class).expect("the link lets some through");
    let begun = world.now;
    let mut held = VecDeque::new();
    let mut buffer = vec![0; 64 << 10];
    let (mut written, mut read) = (0u64, 0u64);
    let (mut last, mut longest) = (begun, Duration::ZERO);
    while read < bytes {
        assert!(
            world.now.since(last) < Duration::from_secs(30),
            "seed {seed}: nothing for 30 s, {written} written, {read} read, {} held, {:?} {:?}",
            held.len(),
            world.client.stats(),
            world.server.stats(),
        );
        let now = world.now;
        if random.below(4) > 0 {
            while written < bytes {
                let size = (bytes - written).min(32 << 10);
                let data: Vec<u8> = (written..written + size).map(byte).collect();
                match world.client.write(now, client, &data) {
                    Ok(n) => written += n as u64,
                    Err(_) => break,
                }
            }
        }
        if random.below(4) > 0 {
            while let Ok(n @ 1..) = world.client.read(now, client, &mut buffer) {
                for (at, got) in (read..).zip(&buffer[..n]) {
                    assert_eq!(*got, byte(at), "seed {seed}, at {at}");
                }
                read += n as u64;
                longest = longest.max(now.since(last));
                last = now;
            }
        }
        if random.below(4) > 0 {
            while held.len() < 256 << 10 {
                let Ok(n @ 1..) = world.server.read(now, server, &mut buffer) else {
                    break;
                };
                held.extend(&buffer[..n]);
            }
        }
        if random.below(4) > 0 {
            while !held.is_empty() {
                let Ok(n) = world.server.write(now, server, held.make_contiguous()) else {
                    break;
                };
                held.drain(..n);
            }
        }
        world.run(Duration::from_micros(200 + random.below(5000)));
    }
    (world.now.since(begun), longest)
}

/// A socket on loopback: fast, near, and short of room.
const LOOPBACK: LinkConfig = LinkConfig {
    rate: 1_000_000_000,
    delay: Duration::from_micros(100),
    queue: 200_000,
    ..LinkConfig::GOOD
};

#[test]
fn both_ways() {
    for class in [Class::Bulk, Class::Interactive] {
        for loss in [0, 1, 20, 100] {
            let link = LinkConfig { loss, ..LOOPBACK };
            let runs = (1..=10).map(|seed| echo(link, class, 4 << 20, seed));
            let longest = runs.map(|(_, longest)| longest).max().unwrap_or_default();
            println!("{class:?}, {loss} of a thousand lost: longest pause {longest:?}");
            // Without loss but at a full queue no pause is a time-out of a second; with it one may
            // be, and at a tenth lost a few are, one after the other.
            let bound = match loss {
                0 | 1 => Duration::from_millis(500),
                20 => Duration::from_secs(3),
                _ => Duration::from_secs(15),
            };
            assert!(longest < bound, "{class:?}, {loss}: {longest:?}");
        }
    }
}
