//! Handshakes, rekeys, keepalives, and paths that go away.

use std::time::Duration;

use sim::{
    LinkConfig, Side, World, WorldConfig,
    tunnel::{Class, CloseReason, Event, Instant},
};

const SECOND: Duration = Duration::from_secs(1);

/// The client's events with their times, in milliseconds from the beginning; stream and data
/// events left out.
fn timeline(world: &World, begun: Instant) -> String {
    let mut lines = String::new();
    for (at, side, event) in &world.events {
        let data = matches!(event, Event::Readable(_) | Event::Writable(_));
        if *side == Side::Client && !data {
            lines += &format!("{:>6} ms {event:?}\n", at.since(begun).as_millis());
        }
    }
    lines
}

fn sessions(world: &World, side: Side) -> usize {
    let events = world.events_of(side);
    events
        .iter()
        .filter(|event| matches!(event, Event::SessionEstablished { .. }))
        .count()
}

#[test]
fn lost_initiations_are_repeated_soon() {
    let mut world = World::new(WorldConfig::both(LinkConfig::GOOD));
    let begun = world.now;
    world.up.down = true;
    let to = world.server_address();
    let stream = world
        .client
        .connect(world.now, to, Class::Interactive)
        .unwrap();
    world.run(SECOND * 6 / 10);
    world.up.down = false;
    let connected = |world: &World| {
        world
            .events
            .iter()
            .any(|(_, _, event)| *event == Event::Connected(stream))
    };
    assert!(world.run_until(10 * SECOND, connected));
    insta::assert_snapshot!(timeline(&world, begun));
}

#[test]
fn a_handshake_without_an_answer_says_so_and_goes_on() {
    let mut world = World::new(WorldConfig::both(LinkConfig::GOOD));
    let begun = world.now;
    world.up.down = true;
    let to = world.server_address();
    world
        .client
        .connect(world.now, to, Class::Interactive)
        .unwrap();
    world.run(30 * SECOND);
    insta::assert_snapshot!(timeline(&world, begun));
    assert!(world.up.stats.initiations >= 8, "{:?}", world.up.stats);
    // The network is back: so is the tunnel.
    world.up.down = false;
    assert!(world.connect(Class::Interactive).is_some());
}

#[test]
fn a_transfer_goes_on_through_rekeys() {
    let link = LinkConfig {
        rate: 10_000_000,
        queue: 62_500,
        ..LinkConfig::GOOD
    };
    let mut world = World::new(WorldConfig::both(link));
    let (client, server) = world.connect(Class::Bulk).unwrap();
    let mut slowest = u64::MAX;
    for _ in 0..40 {
        let (from, to) = ((Side::Server, server), (Side::Client, client));
        let figures = world.transfer(from, to, u64::MAX, 10 * SECOND);
        slowest = slowest.min(figures.rate());
    }
    assert!(
        sessions(&world, Side::Client) >= 4,
        "{}",
        sessions(&world, Side::Client)
    );
    assert!(
        slowest > 800_000,
        "{slowest} bytes per second in the slowest ten seconds"
    );
    let silent = |event: &Event| matches!(event, Event::PathSilent { .. });
    assert!(!world.events_of(Side::Client).iter().any(silent));
}

#[test]
fn keepalives_keep_an_idle_session() {
    let config = WorldConfig {
        keepalive: Some(15),
        ..WorldConfig::both(LinkConfig::GOOD)
    };
    let mut world = World::new(config);
    let (client, server) = world.connect(Class::Interactive).unwrap();
    world.run(SECOND);
    let before = world.up.stats.sent;
    world.run(600 * SECOND);
    let sent = world.up.stats.sent - before;
    assert!((30..80).contains(&sent), "{sent} datagrams in ten minutes");
    // And the stream is where it was, at the price of one round trip.
    let begun = world.now;
    let (from, to) = ((Side::Client, client), (Side::Server, server));
    assert_eq!(world.transfer(from, to, 5, SECOND).bytes, 5);
    assert!(world.now.since(begun) < SECOND / 10);
}

#[test]
fn an_idle_tunnel_without_keepalive_sleeps() {
    let mut world = World::new(WorldConfig::both(LinkConfig::GOOD));
    world.connect(Class::Interactive).unwrap();
    world.run(600 * SECOND);
    let before = (world.up.stats.sent, world.down.stats.sent);
    world.run(3600 * SECOND);
    assert_eq!((world.up.stats.sent, world.down.stats.sent), before);
}

#[test]
fn a_path_that_falls_silent_is_told_and_a_new_one_is_taken() {
    let mut world = World::new(WorldConfig::both(LinkConfig::GOOD));
    let (client, server) = world.connect(Class::Bulk).unwrap();
    let (from, to) = ((Side::Client, client), (Side::Server, server));
    world.transfer(from, to, u64::MAX, 2 * SECOND);
    let broken = world.now;
    world.events.clear();
    (world.up.down, world.down.down) = (true, true);
    let silent = |world: &World| {
        let client = world
            .events
            .iter()
            .filter(|(_, side, _)| *side == Side::Client);
        client
            .clone()
            .any(|(_, _, event)| matches!(event, Event::PathSilent { .. }))
    };
    assert!(world.run_until(10 * SECOND, silent));
    // From the first packet that was sent after the last answer: here, a retransmission.
    let after = world.now.since(broken);
    assert!((3 * SECOND..SECOND * 9 / 2).contains(&after), "{after:?}");
    // Another path, with other delays; the client begins it with an initiation.
    (world.up.down, world.down.down) = (false, false);
    world.up.config.delay *= 2;
    world.client.initiate(world.now);
    let bytes = world.transfer(from, to, u64::MAX, 10 * SECOND).bytes;
    assert!(bytes > 40_000_000, "{bytes}");
    insta::assert_snapshot!(timeline(&world, broken));
}

#[test]
fn a_machine_that_slept_goes_on() {
    let mut world = World::new(WorldConfig::both(LinkConfig::GOOD));
    let (client, server) = world.connect(Class::Interactive).unwrap();
    let (from, to) = ((Side::Client, client), (Side::Server, server));
    world.transfer(from, to, 1000, SECOND);
    // Both sides: the world's clock jumps, and nobody was asked anything meanwhile.
    world
        .client
        .write(world.now, client, b"last words")
        .unwrap();
    world.now += 8 * 3600 * SECOND;
    world.client.initiate(world.now);
    let begun = world.now;
    assert!(world.transfer(from, to, 1010, 30 * SECOND).bytes >= 1010);
    assert!(
        world.now.since(begun) < 5 * SECOND,
        "{:?}",
        world.now.since(begun)
    );
}

#[test]
fn nobody_listens_and_nobody_is_there() {
    let mut world = World::new(WorldConfig::both(LinkConfig::GOOD));
    let mut to = world.server_address();
    to.set_port(23);
    let refused = world
        .client
        .connect(world.now, to, Class::Interactive)
        .unwrap();
    to.set_ip("fdaa:0:1::99".parse().unwrap());
    let nobody = world
        .client
        .connect(world.now, to, Class::Interactive)
        .unwrap();
    world.run(30 * SECOND);
    let events = world.events_of(Side::Client);
    assert!(
        events.contains(&Event::Closed(refused, CloseReason::Refused)),
        "{events:?}"
    );
    assert!(
        events.contains(&Event::Closed(nobody, CloseReason::NoAnswer)),
        "{events:?}"
    );
}

#[test]
fn a_ping_is_timed_by_the_clock_it_is_given() {
    let mut world = World::new(WorldConfig::both(LinkConfig::GOOD));
    world.connect(Class::Interactive).unwrap();
    let to = *world.server_address().ip();
    let id = world.client.ping(world.now, to, 56);
    world.run(SECOND);
    let rtt = world
        .events_of(Side::Client)
        .iter()
        .find_map(|event| match event {
            Event::Pong { id: of, rtt, .. } if *of == id => Some(*rtt),
            _ => None,
        });
    // Twice 25 ms, and twice the time of 164 bytes at 100 Mbit/s.
    assert_eq!(rtt, Some(Duration::from_micros(50_028)));
}
