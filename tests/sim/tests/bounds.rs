//! Nothing grows without bound, and nothing that arrives breaks anything.

use std::time::Duration;

use proptest::prelude::*;
use sim::{
    LinkConfig, Side, World, WorldConfig,
    tunnel::{Class, Event, Limits, RecordKind, StreamError},
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_reader_that_does_not_read_closes_the_window() {
    let mut world = World::new(WorldConfig::both(LinkConfig::GOOD));
    let (client, server) = world.connect(Class::Bulk).unwrap();
    let mut written = 0;
    for _ in 0..100 {
        loop {
            match world.server.write(world.now, server, &[7; 100_000]) {
                Ok(n) => written += n,
                Err(error) => break assert_eq!(error, StreamError::WouldBlock),
            }
        }
        world.run(SECOND);
        for side in [Side::Client, Side::Server] {
            let stats = world.tunnel(side).stats();
            assert!(stats.stack.buffered <= Class::Bulk.window(), "{stats:?}");
            assert_eq!(stats.stack.queued_packets, 0);
            assert_eq!(stats.peer.dropped_unread + stats.peer.dropped_waiting, 0);
        }
    }
    // One buffer here, one there, but for what a scaled window cannot express.
    assert!(
        (0..32).contains(&(2 * Class::Bulk.window() - written)),
        "{written}"
    );
    assert!(world.down.stats.sent < 2500, "{:?}", world.down.stats);
    // It wakes up, and everything arrives.
    let (from, to) = ((Side::Server, server), (Side::Client, client));
    let all = u64::try_from(written).unwrap() + 10_000_000;
    assert!(world.transfer(from, to, all, 60 * SECOND).bytes >= all);
}

#[test]
fn a_flood_of_a_thousand_syns_stays_bounded() {
    let limits = Limits {
        streams: 2000,
        memory: 1 << 30,
        ..Limits::default()
    };
    let mut world = World::with_limits(WorldConfig::both(LinkConfig::GOOD), limits);
    let (client, server) = world.connect(Class::Interactive).unwrap();
    world.down.down = true;
    let to = world.server_address();
    for _ in 0..1000 {
        world
            .client
            .connect(world.now, to, Class::Interactive)
            .unwrap();
    }
    world.run(SECOND / 2);
    let stats = world.server.stats().stack;
    assert_eq!((stats.half_open, stats.streams), (64, 65));
    assert_eq!(
        stats.drops.iter().find(|(name, _)| *name == "backlog"),
        Some(("backlog", 936))
    );
    // A stream that stood before is served all the while.
    world.down.down = false;
    let (from, to) = ((Side::Client, client), (Side::Server, server));
    assert_eq!(
        world.transfer(from, to, 1_000_000, 20 * SECOND).bytes,
        1_000_000
    );
}

#[test]
fn datagrams_fit_and_tcp_fills_them() {
    let mut world = World::new(WorldConfig::both(LinkConfig::GOOD));
    let (client, server) = world.connect(Class::Bulk).unwrap();
    let (from, to) = ((Side::Client, client), (Side::Server, server));
    world.transfer(from, to, 1_000_000, 5 * SECOND);
    // 1,420 bytes of packet, 32 of WireGuard.
    assert_eq!(world.up.stats.largest, 1452);
}

#[derive(Debug, Clone)]
enum Op {
    Connect,
    Write(usize, usize),
    Read(usize, usize),
    Close(usize),
    Ping,
    Resolve,
    Initiate,
    Run(u64),
    Sleep(u64),
    Cut(bool, bool),
    Loss(u32),
    Forge(Vec<u8>),
    Mutate(usize, u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Connect),
        (0usize..8, 0usize..100_000).prop_map(|(i, n)| Op::Write(i, n)),
        (0usize..8, 0usize..100_000).prop_map(|(i, n)| Op::Read(i, n)),
        (0usize..8).prop_map(Op::Close),
        Just(Op::Ping),
        Just(Op::Resolve),
        Just(Op::Initiate),
        (0u64..5_000_000).prop_map(Op::Run),
        (0u64..500).prop_map(Op::Sleep),
        any::<(bool, bool)>().prop_map(|(up, down)| Op::Cut(up, down)),
        (0u32..300).prop_map(Op::Loss),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(Op::Forge),
        (0usize..1500, any::<u8>()).prop_map(|(at, to)| Op::Mutate(at, to)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_operations_panics(seed: u64, ops in proptest::collection::vec(op(), 1..40)) {
        let mut world = World::new(WorldConfig { seed, ..WorldConfig::both(LinkConfig::GOOD) });
        let mut streams = Vec::new();
        let mut told = 0;
        for op in ops {
            let now = world.now;
            match op {
                Op::Connect => {
                    let to = world.server_address();
                    let id = world.client.connect(now, to, Class::Interactive).unwrap();
                    streams.push((Side::Client, id));
                }
                Op::Write(i, n) if !streams.is_empty() => {
                    let (side, id) = streams[i % streams.len()];
                    let _ = world.tunnel(side).write(now, id, &vec![1; n]);
                }
                Op::Read(i, n) if !streams.is_empty() => {
                    let (side, id) = streams[i % streams.len()];
                    let _ = world.tunnel(side).read(now, id, &mut vec![1; n]);
                }
                Op::Close(i) if !streams.is_empty() => {
                    let (side, id) = streams[i % streams.len()];
                    world.tunnel(side).close(now, id);
                }
                Op::Write(..) | Op::Read(..) | Op::Close(_) => {}
                Op::Ping => {
                    let to = *world.server_address().ip();
                    world.client.ping(now, to, 56);
                }
                Op::Resolve => {
                    world.client.resolve(now, "web.internal", RecordKind::Aaaa);
                }
                Op::Initiate => world.client.initiate(now),
                Op::Run(micros) => world.run(Duration::from_micros(micros)),
                Op::Sleep(seconds) => world.now += SECOND * u32::try_from(seconds).unwrap(),
                Op::Cut(up, down) => (world.up.down, world.down.down) = (up, down),
                Op::Loss(loss) => {
                    world.up.config.loss = loss;
                    world.down.config.duplicated = loss;
                    world.down.config.reordered = loss;
                }
                Op::Forge(mut bytes) => {
                    if let Some(first) = bytes.first_mut() {
                        *first %= 5;
                    }
                    world.server.handle_datagram(now, &bytes);
                    world.client.handle_datagram(now, &bytes);
                }
                Op::Mutate(at, to) => if let Some(mut datagram) = world.client.poll_transmit(now) {
                    let at = at % datagram.len();
                    datagram[at] = to;
                    world.server.handle_datagram(now, &datagram);
                    datagram.truncate(at);
                    world.server.handle_datagram(now, &datagram);
                },
            }
            for (_, side, event) in &world.events[told..] {
                if let Event::Accepted { stream, .. } = event {
                    streams.push((*side, *stream));
                }
            }
            told = world.events.len();
        }
    }
}
