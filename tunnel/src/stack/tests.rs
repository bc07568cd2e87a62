//! Two stacks back to back, in virtual time. One room, though a large one: all cases share the
//! pair and its wire.

use super::{packet, *};
use proptest::prelude::*;

const A: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 1, 0, 0, 0, 0, 0xa);
const B: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 1, 0, 0, 0, 0, 0xb);
const B2: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 3);
const DELAY: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
enum Side {
    A,
    B,
}

impl Side {
    fn other(self) -> Side {
        if self == Side::A { Side::B } else { Side::A }
    }
}

struct Pair {
    a: Stack,
    b: Stack,
    now: Instant,
    wire: BTreeMap<(Instant, u64), (Side, Vec<u8>)>,
    sequence: u64,
    /// Which packets get through, by sender, number and bytes.
    pass: fn(Side, u64, &[u8]) -> bool,
    events: Vec<(Side, StackEvent)>,
    largest: usize,
}

fn stack(addresses: &[Ipv6Addr], seed: u64, limits: Limits) -> Stack {
    let config = StackConfig {
        addresses: addresses.to_vec(),
        mtu: 1420,
        seed,
        any_ip: false,
        limits,
    };
    Stack::new(config, Instant::ZERO)
}

impl Pair {
    fn new() -> Pair {
        Pair::with(Limits::default())
    }

    fn with(limits: Limits) -> Pair {
        Pair {
            a: stack(&[A], 1, limits),
            b: stack(&[B, B2], 2, limits),
            now: Instant::from_micros(1_000_000),
            wire: BTreeMap::new(),
            sequence: 0,
            pass: |_, _, _| true,
            events: Vec::new(),
            largest: 0,
        }
    }

    fn stack(&mut self, side: Side) -> &mut Stack {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    /// Takes what both sides have to say, without time passing.
    fn drain(&mut self) {
        let mut packets = 0;
        for side in [Side::A, Side::B] {
            let now = self.now;
            while let Some(packet) = self.stack(side).poll_transmit(now) {
                self.largest = self.largest.max(packet.len());
                self.sequence += 1;
                packets += 1;
                assert!(
                    packets < 100_000,
                    "a packet that is sent for ever: {packet:02x?}"
                );
                if (self.pass)(side, self.sequence, &packet) {
                    self.wire
                        .insert((now + DELAY, self.sequence), (side, packet));
                }
            }
            while let Some(event) = self.stack(side).poll_event() {
                self.events.push((side, event));
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        let wire = self.wire.first_key_value().map(|((at, _), _)| *at);
        [wire, self.a.poll_timeout(), self.b.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// One step of a driver that wakes for packets and time-outs alone. False when idle.
    fn step(&mut self) -> bool {
        self.drain();
        let Some(next) = self.next() else {
            return false;
        };
        self.now = self.now.max(next);
        while let Some(entry) = self.wire.first_entry()
            && entry.key().0 <= self.now
        {
            let (side, packet) = entry.remove();
            let now = self.now;
            let to = if side == Side::A { Side::B } else { Side::A };
            self.stack(to).handle_packet(now, &packet);
        }
        let now = self.now;
        self.a.handle_timeout(now);
        self.b.handle_timeout(now);
        self.drain();
        true
    }

    /// Goes on for so long, or until nothing is left to do.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        self.drain();
        while self.next().is_some_and(|next| next <= end) {
            self.step();
            steps += 1;
            assert!(steps < 1_000_000, "a driver would spin");
        }
        self.now = end;
    }

    /// A copy of a packet on its way, and its sender.
    fn flying(&self, nth: usize) -> Option<(Side, Vec<u8>)> {
        self.wire.values().nth(nth).cloned()
    }

    fn events(&mut self) -> Vec<(Side, StackEvent)> {
        std::mem::take(&mut self.events)
    }

    /// A stream from A to a listener on B.
    fn connected(&mut self, class: Class) -> (StreamId, StreamId) {
        self.b.listen(80, 8, class).unwrap();
        let client = self
            .a
            .connect(self.now, SocketAddrV6::new(B, 80, 0, 0), class)
            .unwrap();
        self.run(Duration::from_secs(1));
        let events = self.events();
        assert!(
            events.contains(&(Side::A, StackEvent::Connected(client))),
            "{events:?}"
        );
        let server = events.iter().find_map(|(_, event)| match event {
            StackEvent::Accepted { stream, .. } => Some(*stream),
            _ => None,
        });
        (client, server.unwrap())
    }
}

fn second() -> Duration {
    Duration::from_secs(1)
}

#[test]
fn a_stream_is_opened_used_and_closed_by_both() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Interactive);
    let now = pair.now;
    assert_eq!(
        pair.a.peer_addr(client),
        Some(SocketAddrV6::new(B, 80, 0, 0))
    );
    assert_eq!(
        pair.b.local_addr(server),
        Some(SocketAddrV6::new(B, 80, 0, 0))
    );
    let mut buffer = [0; 100];
    assert_eq!(
        pair.b.read(now, server, &mut buffer),
        Err(StreamError::WouldBlock)
    );
    assert_eq!(pair.a.write(now, client, b"hello"), Ok(5));
    pair.run(second());
    assert_eq!(pair.events(), [(Side::B, StackEvent::Readable(server))]);
    assert_eq!(pair.b.read(pair.now, server, &mut buffer), Ok(5));
    assert_eq!(&buffer[..5], b"hello");
    assert_eq!(
        pair.b.read(pair.now, server, &mut buffer),
        Err(StreamError::WouldBlock)
    );

    // Half closed: the other direction goes on.
    pair.a.shutdown(pair.now, client);
    pair.run(second());
    assert_eq!(pair.events(), [(Side::B, StackEvent::Readable(server))]);
    assert_eq!(pair.b.read(pair.now, server, &mut buffer), Ok(0));
    assert_eq!(
        pair.a.write(pair.now, client, b"x"),
        Err(StreamError::ShutDown)
    );
    assert_eq!(pair.b.write(pair.now, server, b"goodbye"), Ok(7));
    pair.b.shutdown(pair.now, server);
    pair.run(second());
    let events = pair.events();
    assert!(events.contains(&(Side::A, StackEvent::Closed(client, CloseReason::Finished))));
    assert!(events.contains(&(Side::B, StackEvent::Closed(server, CloseReason::Finished))));
    // What was received before the end is read after it, however late.
    pair.run(60 * second());
    assert_eq!(pair.a.read(pair.now, client, &mut buffer), Ok(7));
    assert_eq!(pair.a.read(pair.now, client, &mut buffer), Ok(0));
    pair.a.close(pair.now, client);
    pair.b.close(pair.now, server);
    assert_eq!((pair.a.stats().streams, pair.a.stats().memory), (0, 0));
    assert_eq!((pair.b.stats().streams, pair.b.stats().memory), (0, 0));
    assert_eq!(pair.next(), None);
}

#[test]
fn closed_handles_are_reaped_and_a_lost_last_ack_is_repeated() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Bulk);
    pair.a.write(pair.now, client, &[7; 100_000]).unwrap();
    pair.a.close(pair.now, client);
    pair.run(second());
    // B reads everything, then closes; A's acknowledgement of that is lost once.
    let mut buffer = vec![0; 200_000];
    assert_eq!(pair.b.read(pair.now, server, &mut buffer), Ok(100_000));
    assert_eq!(pair.b.read(pair.now, server, &mut buffer), Ok(0));
    pair.b.close(pair.now, server);
    pair.drain();
    pair.pass = |side, _, _| side == Side::B;
    pair.run(DELAY * 2);
    pair.pass = |_, _, _| true;
    assert_eq!(
        pair.a.stats().streams,
        0,
        "the last acknowledgement is sent, A is done"
    );
    assert_eq!(pair.b.stats().streams, 1, "and B does not know");
    pair.run(3 * second());
    assert_eq!(pair.b.stats().streams, 0);
    assert_eq!(
        pair.b.stats().drops.get(Drop::NoStream),
        0,
        "no reset was needed"
    );
    assert_eq!(pair.events().len(), 1, "closed handles have no events");
}

#[test]
fn a_refused_connection_says_so() {
    let mut pair = Pair::new();
    let id = pair
        .a
        .connect(pair.now, SocketAddrV6::new(B, 81, 0, 0), Class::Interactive)
        .unwrap();
    pair.run(second());
    let events = pair.events();
    assert!(events.contains(&(Side::A, StackEvent::Closed(id, CloseReason::Refused))));
    let error = pair.a.write(pair.now, id, b"x");
    assert_eq!(error, Err(StreamError::Closed(CloseReason::Refused)));
    assert_eq!(pair.b.stats().streams, 0);
}

#[test]
fn a_connection_without_an_answer_times_out() {
    let mut pair = Pair::new();
    pair.pass = |_, _, _| false;
    let begun = pair.now;
    let id = pair
        .a
        .connect(pair.now, SocketAddrV6::new(B, 80, 0, 0), Class::Interactive)
        .unwrap();
    while pair.events.is_empty() {
        assert!(pair.step());
    }
    assert_eq!(pair.now.since(begun), Limits::default().connect_timeout);
    let closed = StackEvent::Closed(id, CloseReason::NoAnswer);
    assert!(pair.events().contains(&(Side::A, closed)));
}

#[test]
fn an_unreachable_ends_a_connection_request_at_once() {
    let mut pair = Pair::new();
    let id = pair
        .a
        .connect(pair.now, SocketAddrV6::new(B, 80, 0, 0), Class::Interactive)
        .unwrap();
    let syn = pair.a.poll_transmit(pair.now).unwrap();
    let mut error = Vec::new();
    packet::write_icmp_error(&mut error, B, A, (1, 3, 0), &syn);
    // The same for a flow that does not exist, and for a sequence number never sent: no effect.
    for spoil in [40, 44] {
        let mut wrong = syn.clone();
        wrong[spoil] ^= 0x40;
        let mut error = Vec::new();
        packet::write_icmp_error(&mut error, B, A, (1, 3, 0), &wrong);
        pair.a.handle_packet(pair.now, &error);
        assert_eq!(pair.a.poll_event(), None);
    }
    pair.a.handle_packet(pair.now, &error);
    let reason = CloseReason::Unreachable(Unreachable::Host);
    assert_eq!(pair.a.poll_event(), Some(StackEvent::Readable(id)));
    assert_eq!(pair.a.poll_event(), Some(StackEvent::Closed(id, reason)));
    assert_eq!(reason.code(), "host_unreachable");
}

#[test]
fn an_open_stream_outlives_unreachable_for_a_while() {
    let mut pair = Pair::new();
    let (client, _) = pair.connected(Class::Interactive);
    pair.pass = |_, _, _| false;
    pair.a.write(pair.now, client, b"hello").unwrap();
    let begun = pair.now;
    let segment = pair.a.poll_transmit(pair.now).unwrap();
    let mut error = Vec::new();
    packet::write_icmp_error(&mut error, B, A, (1, 3, 0), &segment);
    while pair.events.is_empty() {
        pair.a.handle_packet(pair.now, &error);
        pair.step();
    }
    let lived = pair.now.since(begun);
    assert!(lived >= 15 * second() && lived < 40 * second(), "{lived:?}");
    let closed = StackEvent::Closed(client, CloseReason::Unreachable(Unreachable::Host));
    assert!(pair.events().contains(&(Side::A, closed)));
}

#[test]
fn packet_too_big_narrows_a_stream_and_those_that_follow() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Bulk);
    // A path of 1,300 bytes that says so.
    pair.pass = |_, _, packet| packet.len() <= 1300;
    pair.a.write(pair.now, client, &[1; 20_000]).unwrap();
    let segment = pair.a.poll_transmit(pair.now).unwrap();
    assert_eq!(segment.len(), 1420, "a full segment fits the MTU exactly");
    let mut error = Vec::new();
    packet::write_icmp_error(&mut error, B2, A, (2, 0, 1300), &segment);
    pair.a.handle_packet(pair.now, &error);
    pair.run(5 * second());
    let mut buffer = vec![0; 100_000];
    assert_eq!(pair.b.read(pair.now, server, &mut buffer), Ok(20_000));
    pair.a
        .connect(pair.now, SocketAddrV6::new(B, 80, 0, 0), Class::Bulk)
        .unwrap();
    let syn = pair.a.poll_transmit(pair.now).unwrap();
    assert_eq!(syn[60..64], [2, 4, 0x04, 0xc4], "MSS 1,220");
}

#[test]
fn a_lost_keystroke_is_repeated_after_two_round_trips() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Interactive);
    let mut buffer = [0; 10];
    for _ in 0..10 {
        pair.a.write(pair.now, client, b"k").unwrap();
        pair.run(second());
        assert_eq!(pair.b.read(pair.now, server, &mut buffer), Ok(1));
        assert!(pair.b.read(pair.now, server, &mut buffer).is_err());
    }
    pair.events();
    pair.pass = |_, _, _| false;
    pair.a.write(pair.now, client, b"k").unwrap();
    pair.drain();
    pair.pass = |_, _, _| true;
    let begun = pair.now;
    while pair.events.is_empty() {
        assert!(pair.step());
    }
    assert_eq!(pair.events(), [(Side::B, StackEvent::Readable(server))]);
    let took = pair.now.since(begun);
    assert!(
        took < second() / 6,
        "{took:?}: the engine alone takes a second"
    );
}

#[test]
fn a_burst_of_losses_is_repaired_without_a_time_out() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Bulk);
    let mut buffer = vec![0; 1 << 20];
    pair.a.write(pair.now, client, &[1; 300_000]).unwrap();
    pair.run(second());
    assert_eq!(pair.b.read(pair.now, server, &mut buffer), Ok(300_000));
    pair.pass = |_, nth, packet| packet.len() < 1000 || !nth.is_multiple_of(10);
    let begun = pair.now;
    let sent = pair.a.stats().tx_packets;
    pair.a.write(pair.now, client, &[2; 300_000]).unwrap();
    let (mut progress, mut at) = (0, begun);
    while pair.b.stats().buffered < 300_000 {
        assert!(pair.step());
        if pair.b.stats().buffered > progress {
            (progress, at) = (pair.b.stats().buffered, pair.now);
        }
        let stall = pair.now.since(at);
        assert!(stall < second() / 5, "{stall:?} at {progress}");
    }
    let sent = pair.a.stats().tx_packets - sent;
    assert!(sent < 221 * 3 / 2, "{sent} packets for 221 segments");
    assert!(pair.now.since(begun) < 2 * second());
}

#[test]
fn packets_that_change_places_are_not_taken_for_lost() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Bulk);
    let mut buffer = vec![0; 1 << 20];
    let mut sent = 0;
    for round in 0..20 {
        sent = pair.a.stats().tx_packets;
        pair.a.write(pair.now, client, &[1; 100_000]).unwrap();
        let end = pair.now + second();
        pair.drain();
        while pair.next().is_some_and(|next| next <= end) {
            // Every seventh packet is overtaken by those of the next two milliseconds.
            pair.drain();
            let late: Vec<_> = pair
                .wire
                .keys()
                .copied()
                .filter(|(_, nth)| nth % 7 == 0)
                .collect();
            for (at, nth) in late {
                if at.since(pair.now) == DELAY {
                    let packet = pair.wire.remove(&(at, nth)).unwrap();
                    pair.wire
                        .insert((at + Duration::from_millis(2), nth + (1 << 40)), packet);
                }
            }
            pair.step();
        }
        pair.now = end;
        assert_eq!(
            pair.b.read(pair.now, server, &mut buffer),
            Ok(100_000),
            "round {round}"
        );
    }
    let again = pair.a.stats().tx_packets - sent - 74;
    assert!(again <= 2, "{again} packets too many in the last round");
}

#[test]
fn a_goodbye_into_a_closed_window_is_said_once() {
    let mut pair = Pair::new();
    let (client, _) = pair.connected(Class::Interactive);
    let (local, remote) = (
        pair.a.local_addr(client).unwrap(),
        pair.a.peer_addr(client).unwrap(),
    );
    pair.a.write(pair.now, client, b"0123456789").unwrap();
    pair.a.shutdown(pair.now, client);
    let segment = pair.a.poll_transmit(pair.now).unwrap();
    let segment = packet::Tcp::parse(&Ipv6::parse(&segment).unwrap()).unwrap();
    // Half of it is acknowledged, then all of it, with a window that stays closed.
    for length in [5, 11] {
        let mut answer = Vec::new();
        let numbers = (segment.acknowledged, segment.sequence + length, 0);
        let (from, to) = ((*remote.ip(), remote.port()), (*local.ip(), local.port()));
        packet::write_tcp(&mut answer, from, to, numbers, packet::ACK, &[]);
        pair.a.handle_packet(pair.now, &answer);
        while pair.a.poll_transmit(pair.now).is_some() {}
    }
    pair.pass = |_, _, _| false;
    let before = pair.a.stats().tx_packets;
    pair.run(600 * second());
    let sent = pair.a.stats().tx_packets - before;
    assert_eq!(
        sent, 0,
        "packets in ten minutes of waiting for the other side's goodbye"
    );
}

#[test]
fn a_nudge_sends_what_a_time_out_would_send_much_later() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Interactive);
    pair.a.write(pair.now, client, b"first").unwrap();
    pair.run(second());
    let mut buffer = [0; 10];
    pair.b.read(pair.now, server, &mut buffer).unwrap();
    pair.pass = |_, _, _| false;
    pair.a.write(pair.now, client, b"second").unwrap();
    pair.run(100 * second());
    pair.pass = |_, _, _| true;
    pair.a.nudge(pair.now);
    pair.run(second() / 10);
    assert_eq!(pair.b.read(pair.now, server, &mut buffer), Ok(6));
}

#[test]
fn who_only_listens_asks_once_and_is_answered() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Bulk);
    assert_eq!((pair.a.lull_at(), pair.b.lull_at()), (None, None));
    pair.b.write(pair.now, server, &[7; 5_000]).unwrap();
    pair.run(second() / 10);
    let mut buffer = [0; 10_000];
    assert_eq!(pair.a.read(pair.now, client, &mut buffer), Ok(5_000));
    assert_eq!(pair.a.ask_in_lull(pair.now), None, "too soon");
    pair.run(second());
    assert!(pair.a.lull_at().is_some_and(|at| at <= pair.now));
    let (asked, heard) = (pair.b.stats().rx_packets, pair.a.stats().rx_packets);
    let since = pair.a.ask_in_lull(pair.now).unwrap();
    assert!(pair.now.since(since) >= second());
    pair.run(second() / 10);
    assert_eq!(pair.b.stats().rx_packets, asked + 1);
    assert_eq!(pair.a.stats().rx_packets, heard + 1, "the answer");
    // Neither the question nor its answer brings another.
    assert_eq!((pair.a.lull_at(), pair.b.lull_at()), (None, None));
    assert_eq!(
        pair.b.read(pair.now, server, &mut buffer),
        Err(StreamError::WouldBlock)
    );
    pair.a.write(pair.now, client, b"still").unwrap();
    pair.b.write(pair.now, server, b"there").unwrap();
    pair.run(second() / 10);
    assert_eq!(pair.a.read(pair.now, client, &mut buffer), Ok(5));
    assert_eq!(pair.b.read(pair.now, server, &mut buffer), Ok(5));
}

#[test]
fn a_new_path_is_told_to_the_side_that_waits() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Bulk);
    pair.b.write(pair.now, server, &[7; 500]).unwrap();
    pair.run(second());
    pair.pass = |_, _, _| false;
    pair.b.write(pair.now, server, &[8; 500]).unwrap();
    pair.run(100 * second());
    pair.pass = |_, _, _| true;
    let heard = pair.b.stats().rx_packets;
    // The client has nothing on its way, and the server does not know that the path is back.
    pair.a.path_changed(pair.now);
    pair.run(second() / 20);
    assert!(pair.b.stats().rx_packets > heard);
    let mut buffer = [0; 10_000];
    assert_eq!(pair.a.read(pair.now, client, &mut buffer), Ok(1_000));
}

#[test]
fn a_slow_reader_closes_the_window_and_wakes_when_it_opens() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Interactive);
    let mut written = 0;
    for _ in 0..100 {
        match pair.a.write(pair.now, client, &[9; 10_000]) {
            Ok(n) => written += n,
            Err(error) => assert_eq!(error, StreamError::WouldBlock),
        }
        pair.run(second());
    }
    assert_eq!(
        written,
        2 * Class::Interactive.window(),
        "one buffer here, one there"
    );
    assert_eq!(pair.b.stats().buffered, Class::Interactive.window());
    // An hour later - the window was probed all the while - everything is still there.
    pair.run(3600 * second());
    let tried = pair.a.stats().tx_packets;
    assert!(tried < 300, "{tried} packets");
    pair.events();
    let mut told = Vec::new();
    let mut read = 0;
    let mut buffer = [0; 4096];
    while read < written {
        match pair.b.read(pair.now, server, &mut buffer) {
            Ok(n) => read += n,
            Err(error) => {
                assert_eq!(error, StreamError::WouldBlock);
                // A driver that waits for the event alone gets it.
                while !pair
                    .events
                    .contains(&(Side::B, StackEvent::Readable(server)))
                {
                    assert!(pair.step(), "stalled after {read} of {written}");
                }
                told.append(&mut pair.events);
            }
        }
    }
    pair.run(second());
    told.append(&mut pair.events);
    assert!(told.contains(&(Side::A, StackEvent::Writable(client))));
}

#[test]
fn a_link_that_takes_nothing_makes_writers_block() {
    let mut pair = Pair::new();
    let (client, _) = pair.connected(Class::Bulk);
    let mut written = 0;
    while let Ok(n) = pair.a.write(pair.now, client, &[0; 65_536]) {
        written += n;
    }
    // Nobody polls for packets: nothing piles up anywhere but in the send buffer.
    for _ in 0..1000 {
        pair.now += second() / 10;
        pair.a.handle_timeout(pair.now);
        for port in 0..10 {
            let to = SocketAddrV6::new(B, 1000 + port, 0, 0);
            let _ = pair.a.connect(pair.now, to, Class::Interactive);
        }
        pair.a.ping(pair.now, B, 1000);
    }
    let stats = pair.a.stats();
    assert_eq!(written, Class::Bulk.window());
    assert!(
        stats.queued_packets <= Limits::default().packets,
        "{stats:?}"
    );
    assert!(
        stats.memory <= Limits::default().memory && stats.streams <= 1024,
        "{stats:?}"
    );
}

#[test]
fn memory_and_streams_are_bounded_with_a_clear_error() {
    let limits = Limits {
        memory: 7 << 20,
        streams: 30,
        ..Limits::default()
    };
    let mut stack = stack(&[A], 1, limits);
    let mut connect = |class| stack.connect(Instant::ZERO, SocketAddrV6::new(B, 80, 0, 0), class);
    connect(Class::Bulk).unwrap();
    connect(Class::Bulk).unwrap();
    let refused = connect(Class::Bulk).unwrap_err();
    assert_eq!(refused, StackError::Memory { limit: 7 << 20 });
    insta::assert_snapshot!(refused, @"the streams of this tunnel use all of their 7340032 bytes of memory; hint: close some");
    for _ in 0..5 {
        connect(Class::Interactive).unwrap();
    }
    assert_eq!(
        connect(Class::Interactive).unwrap_err().code(),
        "out_of_memory"
    );
}

#[test]
fn a_flood_of_half_open_streams_is_bounded_and_passes() {
    let mut pair = Pair::new();
    pair.b.listen(22, 64, Class::Bulk).unwrap();
    // A never answers a SYN|ACK: its own stack never sees one.
    pair.pass = |side, _, _| side == Side::A;
    let limits = Limits {
        memory: 1 << 30,
        ..Limits::default()
    };
    pair.a = stack(&[A], 3, limits);
    let to = SocketAddrV6::new(B, 22, 0, 0);
    for _ in 0..1000 {
        pair.a.connect(pair.now, to, Class::Interactive).unwrap();
    }
    pair.run(second() / 2);
    let stats = pair.b.stats();
    assert_eq!((stats.half_open, stats.streams), (64, 64));
    assert_eq!(stats.drops.get(Drop::Backlog), 936);
    assert_eq!(stats.memory, 64 * 3 * Class::Bulk.window());
    // Ten seconds after the last SYN they are gone.
    pair.a = stack(&[A], 4, limits);
    pair.run(10 * second());
    let stats = pair.b.stats();
    assert_eq!((stats.half_open, stats.streams, stats.memory), (0, 0, 0));
    assert_eq!(stats.drops.get(Drop::HalfOpenExpired), 64);
    pair.pass = |_, _, _| true;
    pair.a.connect(pair.now, to, Class::Interactive).unwrap();
    pair.run(second());
    assert_eq!(pair.b.stats().streams, 1);
}

#[test]
fn data_for_a_closed_handle_is_answered_by_a_reset() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Interactive);
    pair.b.close(pair.now, server);
    pair.run(second());
    pair.a.write(pair.now, client, b"anybody?").unwrap();
    pair.run(second());
    assert!(
        pair.events()
            .contains(&(Side::A, StackEvent::Closed(client, CloseReason::Reset)))
    );
    assert_eq!(pair.b.stats().streams, 0);
}

#[test]
fn a_stream_ends_when_the_other_side_falls_silent_but_not_while_the_machine_sleeps() {
    let mut pair = Pair::new();
    let (client, server) = pair.connected(Class::Interactive);
    let minute = 60 * second();
    pair.a
        .set_timeout(pair.now, client, Some(2 * minute))
        .unwrap();
    // An idle stream owes nothing.
    pair.run(60 * minute);
    assert_eq!(pair.events(), []);
    pair.pass = |_, _, _| false;
    pair.a.write(pair.now, client, b"hello").unwrap();
    pair.run(minute / 2);
    // The lid is closed for a night, and the network is back a little after it is opened.
    pair.now += 600 * minute;
    pair.run(minute / 4);
    pair.pass = |_, _, _| true;
    pair.run(2 * minute);
    let arrived = (Side::B, StackEvent::Readable(server));
    assert_eq!(
        pair.events(),
        [arrived],
        "the text arrived and the stream stands"
    );
    pair.pass = |_, _, _| false;
    pair.a.write(pair.now, client, b"hello").unwrap();
    pair.run(3 * minute);
    let closed = StackEvent::Closed(client, CloseReason::TimedOut);
    assert!(pair.events().contains(&(Side::A, closed)));
}

#[test]
fn keep_alive_notices_a_peer_that_is_gone() {
    let mut pair = Pair::new();
    let (client, _) = pair.connected(Class::Interactive);
    pair.a
        .set_keep_alive(pair.now, client, Some(10 * second()))
        .unwrap();
    pair.a
        .set_timeout(pair.now, client, Some(35 * second()))
        .unwrap();
    pair.run(600 * second());
    assert_eq!(pair.events(), [], "probes are answered");
    pair.pass = |_, _, _| false;
    pair.run(60 * second());
    let closed = StackEvent::Closed(client, CloseReason::TimedOut);
    assert!(pair.events().contains(&(Side::A, closed)));
}

#[test]
fn udp_goes_both_ways_from_the_address_that_was_asked() {
    let mut pair = Pair::new();
    let server = pair.b.udp_bind(53).unwrap();
    assert_eq!(pair.b.udp_bind(53), Err(StackError::PortInUse(53)));
    let client = pair.a.udp_bind(0).unwrap();
    for address in [B, B2] {
        let to = SocketAddrV6::new(address, 53, 0, 0);
        pair.a.udp_send(pair.now, client, to, b"question").unwrap();
        pair.run(second());
        assert_eq!(pair.events(), [(Side::B, StackEvent::UdpReadable(server))]);
        let asked = pair.b.udp_recv(server).unwrap();
        assert_eq!(
            (asked.local, &asked.payload[..]),
            (address, &b"question"[..])
        );
        assert_eq!(pair.b.udp_recv(server), None);
        pair.b
            .udp_send_from(pair.now, server, asked.local, asked.remote, b"answer")
            .unwrap();
        pair.run(second());
        let answer = pair.a.udp_recv(client).unwrap();
        assert_eq!((answer.remote, &answer.payload[..]), (to, &b"answer"[..]));
        assert_eq!(pair.a.udp_recv(client), None);
        pair.events();
    }
    // A port where nobody listens, and a datagram that does not fit.
    let to = SocketAddrV6::new(B, 54, 0, 0);
    pair.a.udp_send(pair.now, client, to, b"hello?").unwrap();
    pair.run(second());
    assert_eq!(pair.a.udp_error(client), Some((to, Unreachable::Port)));
    let too_long = pair.a.udp_send(pair.now, client, to, &[0; 1373]);
    assert_eq!(
        too_long,
        Err(StackError::TooLong {
            size: 1373,
            limit: 1372
        })
    );
    // A reader that does not read.
    for _ in 0..1000 {
        pair.a
            .udp_send(pair.now, client, SocketAddrV6::new(B, 53, 0, 0), &[0; 1000])
            .unwrap();
        pair.run(second() / 100);
    }
    let stats = pair.b.stats();
    assert!(stats.drops.get(Drop::UdpQueueFull) > 700, "{stats:?}");
    pair.b.udp_close(server);
    assert_eq!(pair.b.udp_recv(server), None);
}

#[test]
fn pings_are_answered_timed_and_given_up() {
    let mut pair = Pair::new();
    let id = pair.a.ping(pair.now, B, 10_000);
    pair.run(second());
    assert_eq!(pair.largest, 1420, "as much payload as fits");
    let pong = StackEvent::Pong {
        id,
        from: B,
        rtt: 2 * DELAY,
    };
    assert_eq!(pair.events(), [(Side::A, pong)]);
    pair.pass = |_, _, _| false;
    let id = pair.a.ping(pair.now, B, 56);
    pair.run(10 * second());
    let reason = PingError::NoAnswer(5 * second());
    assert_eq!(
        pair.events(),
        [(Side::A, StackEvent::PingFailed { id, reason })]
    );
    for _ in 0..10_000 {
        pair.a.ping(pair.now, B, 0);
    }
    pair.now += 60 * second();
    pair.a.handle_timeout(pair.now);
    let told = std::iter::from_fn(|| pair.a.poll_event()).count();
    assert!(told <= 1024, "{told} events wait");
}

#[test]
fn hundreds_of_streams_share_the_link_fairly() {
    let mut pair = Pair::new();
    pair.b.listen(80, 512, Class::Interactive).unwrap();
    let to = SocketAddrV6::new(B, 80, 0, 0);
    let streams: Vec<_> = (0..400)
        .map(|_| pair.a.connect(pair.now, to, Class::Interactive).unwrap())
        .collect();
    pair.run(second());
    pair.events();
    for id in &streams {
        assert_eq!(pair.a.write(pair.now, *id, &[1; 3000]), Ok(3000));
    }
    // One packet of each before the second of any.
    let mut ports = Vec::new();
    for _ in 0..400 {
        let packet = pair.a.poll_transmit(pair.now).unwrap();
        ports.push([packet[40], packet[41]]);
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 400);
}

#[test]
fn packets_for_others_and_from_nobody_are_dropped_by_name() {
    let mut a = stack(&[A], 1, Limits::default());
    let mut other = Vec::new();
    packet::write_udp(&mut other, (B, 1), (B2, 2), b"");
    a.handle_packet(Instant::ZERO, &other);
    packet::write_udp(&mut other, (Ipv6Addr::LOCALHOST, 1), (A, 2), b"");
    a.handle_packet(Instant::ZERO, &other);
    a.handle_packet(Instant::ZERO, &[0x45; 40]);
    packet::write_udp(&mut other, (B, 1), (A, 2), b"");
    other[6] = 0;
    a.handle_packet(Instant::ZERO, &other);
    let drops: Vec<_> = a.stats().drops.iter().filter(|(_, n)| *n > 0).collect();
    let expected = [
        ("malformed", 1),
        ("bad_source", 1),
        ("not_ours", 1),
        ("unknown_header", 1),
    ];
    assert_eq!(drops, expected);
    let problem = a.poll_transmit(Instant::ZERO).unwrap();
    assert_eq!(
        problem[40..48],
        [4, 1, problem[42], problem[43], 0, 0, 0, 6]
    );
}

/// What may happen to a pair of stacks.
#[derive(Debug, Clone)]
enum Op {
    Connect(bool),
    Write(usize, usize),
    Read(usize, usize),
    Shutdown(usize),
    Close(usize),
    Abort(usize),
    KeepAlive(usize),
    Run(u64),
    Mutate(usize, u16, u8),
    Truncate(usize, u16),
    Lose(usize),
    Nudge,
    Ping,
    Udp,
    Quote(usize, u8, u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => any::<bool>().prop_map(Op::Connect),
        1 => (0usize..8, 0usize..100_000).prop_map(|(i, n)| Op::Write(i, n)),
        1 => (0usize..8, 0usize..100_000).prop_map(|(i, n)| Op::Read(i, n)),
        1 => (0usize..8).prop_map(Op::Shutdown),
        1 => (0usize..8).prop_map(Op::Close),
        1 => (0usize..8).prop_map(Op::Abort),
        1 => (0usize..8).prop_map(Op::KeepAlive),
        4 => (0u64..100_000).prop_map(Op::Run),
        1 => (0u64..3_000_000).prop_map(Op::Run),
        // Mostly in the header and the options.
        4 => (0usize..9, prop_oneof![3 => 0u16..40, 1 => any::<u16>()], any::<u8>())
            .prop_map(|(nth, at, to)| Op::Mutate(nth, at, to)),
        1 => (0usize..9, any::<u16>()).prop_map(|(nth, to)| Op::Truncate(nth, to)),
        3 => (0usize..9).prop_map(Op::Lose),
        1 => Just(Op::Nudge),
        1 => Just(Op::Ping),
        1 => Just(Op::Udp),
        1 => (0usize..9, 1u8..5, 0u8..8).prop_map(|(nth, kind, code)| Op::Quote(nth, kind, code)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_sequence_of_operations_panics(ops in proptest::collection::vec(op(), 1..60)) {
        let mut pair = Pair::new();
        let (client, server) = pair.connected(Class::Interactive);
        let socket = pair.a.udp_bind(0).unwrap();
        let mut streams = vec![(Side::A, client), (Side::B, server)];
        for op in ops {
            let now = pair.now;
            let pick = |i: usize| (!streams.is_empty()).then(|| streams[i % streams.len()]);
            match op {
                Op::Connect(listening) => {
                    let to = SocketAddrV6::new(B, if listening { 80 } else { 81 }, 0, 0);
                    let id = pair.a.connect(now, to, Class::Interactive).unwrap();
                    streams.push((Side::A, id));
                }
                Op::Write(i, n) => if let Some((side, id)) = pick(i) {
                    let _ = pair.stack(side).write(now, id, &vec![1; n]);
                },
                Op::Read(i, n) => if let Some((side, id)) = pick(i) {
                    let _ = pair.stack(side).read(now, id, &mut vec![1; n]);
                },
                Op::Shutdown(i) => if let Some((side, id)) = pick(i) {
                    pair.stack(side).shutdown(now, id);
                },
                Op::Close(i) => if let Some((side, id)) = pick(i) {
                    pair.stack(side).close(now, id);
                },
                Op::Abort(i) => if let Some((side, id)) = pick(i) {
                    pair.stack(side).abort(now, id);
                },
                Op::KeepAlive(i) => if let Some((side, id)) = pick(i) {
                    let _ = pair.stack(side).set_keep_alive(now, id, Some(second()));
                },
                Op::Run(micros) => pair.run(Duration::from_micros(micros)),
                Op::Mutate(nth, at, to) => {
                    // A packet on its way, once more with one byte changed and a right checksum.
                    if let Some((side, mut packet)) = pair.flying(nth) {
                        let at = 40 + usize::from(at) % (packet.len() - 40);
                        packet[at] = to;
                        packet::reseal(&mut packet);
                        pair.stack(side.other()).handle_packet(now, &packet);
                    }
                }
                Op::Truncate(nth, to) => if let Some((side, mut packet)) = pair.flying(nth) {
                    packet.truncate(usize::from(to) % packet.len());
                    pair.stack(side.other()).handle_packet(now, &packet);
                },
                Op::Lose(nth) => if let Some(key) = pair.wire.keys().nth(nth).copied() {
                    pair.wire.remove(&key);
                },
                Op::Ping => { pair.a.ping(now, B, 56); }
                Op::Udp => {
                    let _ = pair.a.udp_send(now, socket, SocketAddrV6::new(B, 9, 0, 0), b"x");
                }
                Op::Quote(nth, kind, code) => if let Some((side, packet)) = pair.flying(nth) {
                    let (from, to) = if side == Side::A { (B, A) } else { (A, B) };
                    let mut error = Vec::new();
                    packet::write_icmp_error(&mut error, from, to, (kind, code, 1300), &packet);
                    pair.stack(side).handle_packet(now, &error);
                },
                Op::Nudge => pair.a.nudge(now),
            }
            pair.drain();
            for (side, event) in pair.events() {
                if let StackEvent::Accepted { stream, .. } = event {
                    streams.push((side, stream));
                }
            }
        }
        // Whatever happened, handles that are closed are reaped in the end.
        for (side, id) in streams {
            let now = pair.now;
            pair.stack(side).close(now, id);
        }
        pair.run(Duration::from_secs(1000));
        for event in pair.events() {
            if let (side, StackEvent::Accepted { stream, .. }) = event {
                let now = pair.now;
                pair.stack(side).close(now, stream);
            }
        }
        pair.run(Duration::from_secs(1000));
        prop_assert_eq!((pair.a.stats().streams, pair.a.stats().memory), (0, 0));
        prop_assert_eq!((pair.b.stats().streams, pair.b.stats().memory), (0, 0));
    }

    #[test]
    fn no_bytes_panic_a_stack(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        next in prop_oneof![Just(6u8), Just(17), Just(58), any::<u8>()],
        port in prop_oneof![Just(80u16), any::<u16>()],
    ) {
        let mut pair = Pair::new();
        let (client, _) = pair.connected(Class::Interactive);
        pair.a.write(pair.now, client, b"on its way").unwrap();
        let peer = pair.a.local_addr(client).unwrap();
        let mut packet = Vec::new();
        packet::write_udp(&mut packet, (A, peer.port()), (B, port), &bytes);
        packet[6] = next;
        if next == 6 && bytes.len() > 16 {
            packet[44..44 + bytes.len()].copy_from_slice(&bytes);
            packet[52] = 5 << 4 | packet[52] & 0x7f;
        }
        if next == 58 && bytes.len() > 16 {
            packet[40..40 + bytes.len()].copy_from_slice(&bytes);
            packet[40] = [1, 2, 3, 4, 128, 129, 135][usize::from(bytes[0]) % 7];
        }
        packet::reseal(&mut packet);
        pair.b.handle_packet(pair.now, &packet);
        pair.b.handle_packet(pair.now, &bytes);
        pair.run(Duration::from_secs(5));
    }
}
