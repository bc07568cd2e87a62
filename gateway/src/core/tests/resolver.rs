//! The gateway's own addresses: DNS over UDP and TCP, echo, and nothing else.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

use sixpn::INSTANCE_DNS;
use tunnel::stack::{Class, CloseReason, StackEvent, StreamError, StreamId, Unreachable};

use super::bench::*;
use crate::DropReason;

fn server(address: Ipv6Addr) -> SocketAddrV6 {
    SocketAddrV6::new(address, 53, 0, 0)
}

/// Asks over UDP and returns the answers.
fn ask(bench: &mut Bench, id: Id, to: Ipv6Addr, message: &[u8]) -> Vec<(SocketAddrV6, Vec<u8>)> {
    let now = bench.now;
    let stack = &mut bench.get(id).stack;
    let udp = stack.udp_bind(0).expect("a port");
    stack.udp_send(now, udp, server(to), message).expect("sent");
    bench.settle();
    let stack = &mut bench.get(id).stack;
    let answers = std::iter::from_fn(|| stack.udp_recv(udp)).map(|d| (d.remote, d.payload));
    let answers = answers.collect();
    stack.udp_close(udp);
    answers
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = u16::try_from(message.len())
        .expect("short")
        .to_be_bytes()
        .to_vec();
    framed.extend_from_slice(message);
    framed
}

fn connect(bench: &mut Bench, id: Id, to: Ipv6Addr) -> StreamId {
    let now = bench.now;
    let stack = &mut bench.get(id).stack;
    let stream = stack
        .connect(now, server(to), Class::Interactive)
        .expect("a stream");
    bench.settle();
    stream
}

fn write(bench: &mut Bench, id: Id, stream: StreamId, data: &[u8]) {
    let now = bench.now;
    assert_eq!(bench.get(id).stack.write(now, stream, data), Ok(data.len()));
    bench.settle();
}

fn read(bench: &mut Bench, id: Id, stream: StreamId) -> Result<Vec<u8>, StreamError> {
    let now = bench.now;
    let mut buffer = vec![0; 65_536];
    let length = bench.get(id).stack.read(now, stream, &mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

#[test]
fn each_network_sees_its_own_names_at_both_addresses() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connected(1, 1), bench.connected(2, 2));
    for (client, net, other) in [(a, 1, 2), (b, 2, 1)] {
        for to in [network(net).dns(), INSTANCE_DNS] {
            let own = ask(
                &mut bench,
                client,
                to,
                &query(7, &format!("app{net}.internal")),
            );
            assert_eq!(own.len(), 1);
            assert_eq!(
                own[0].0,
                server(to),
                "the answer comes from where it was asked"
            );
            assert_eq!(response(&own[0].1), (7, 0, 1));
            let foreign = ask(
                &mut bench,
                client,
                to,
                &query(8, &format!("app{other}.internal")),
            );
            assert_eq!(response(&foreign[0].1), (8, 3, 0));
            let nowhere = ask(&mut bench, client, to, &query(8, "appX.internal"));
            assert_eq!(response(&nowhere[0].1), (8, 3, 0));
        }
        let elsewhere = ask(
            &mut bench,
            client,
            network(other).dns(),
            &query(9, "x.internal"),
        );
        assert_eq!(elsewhere, [], "the other network's server is not there");
    }
}

#[test]
fn what_names_leaves_unanswered_is_counted() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    assert_eq!(ask(&mut bench, a, INSTANCE_DNS, b"short"), []);
    assert_eq!(bench.dropped(DropReason::DnsUnanswered), 1);
    let forwarded = ask(&mut bench, a, INSTANCE_DNS, &query(1, "example.com"));
    assert_eq!(forwarded[0].1, b"forwarded");
}

#[test]
fn an_answer_that_never_comes_is_given_up() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    bench.hold_dns = true;
    let now = bench.now;
    for _ in 0..300 {
        assert_eq!(
            ask(&mut bench, a, INSTANCE_DNS, &query(1, "app1.internal")),
            []
        );
    }
    assert_eq!(
        bench.dropped(DropReason::DnsFull),
        44,
        "256 of one network wait"
    );
    let held = std::iter::from_fn(|| bench.gateway.poll_dns()).collect::<Vec<_>>();
    assert_eq!(held.len(), 256);
    bench.gateway.handle_timeout(now + Duration::from_secs(10));
    assert_eq!(bench.dropped(DropReason::DnsTimeout), 256);
    bench
        .gateway
        .handle_dns_answer(now, held[0].ticket, Some(b"too late"));
    bench.hold_dns = false;
    assert_eq!(
        ask(&mut bench, a, INSTANCE_DNS, &query(1, "app1.internal")).len(),
        1
    );
}

#[test]
fn a_slow_answer_keeps_no_memory_of_the_quick_ones() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    bench.hold_dns = true;
    ask(&mut bench, a, INSTANCE_DNS, &query(1, "example.com"));
    let slow = bench.gateway.poll_dns().expect("a query");
    bench.hold_dns = false;
    for _ in 0..1000 {
        ask(&mut bench, a, INSTANCE_DNS, &query(1, "app1.internal"));
        assert!(bench.gateway.resolver.deadlines() <= 70);
    }
    let now = bench.now;
    bench.gateway.handle_dns_answer(now, slow.ticket, None);
    assert_eq!(bench.gateway.resolver.deadlines(), 0);
}

#[test]
fn an_answer_that_tcp_cannot_carry_is_counted() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    let stream = connect(&mut bench, a, INSTANCE_DNS);
    bench.hold_dns = true;
    write(&mut bench, a, stream, &framed(&query(1, "app1.internal")));
    let asked = bench.gateway.poll_dns().expect("a query");
    let now = bench.now;
    bench
        .gateway
        .handle_dns_answer(now, asked.ticket, Some(&[0; 65_536]));
    bench.settle();
    assert_eq!(bench.dropped(DropReason::DnsAnswerTooLong), 1);
    assert_eq!(
        read(&mut bench, a, stream),
        Err(StreamError::WouldBlock),
        "the connection stands"
    );
}

#[test]
fn several_queries_on_one_connection() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    let stream = connect(&mut bench, a, network(1).dns());
    let mut queries = framed(&query(1, "app1.internal"));
    queries.extend(framed(&query(2, "app2.internal")));
    let third = framed(&query(3, "app1.internal"));
    queries.extend(&third[..1]);
    write(&mut bench, a, stream, &queries);
    let answers = read(&mut bench, a, stream).expect("answers");
    let first = usize::from(u16::from_be_bytes([answers[0], answers[1]]));
    assert_eq!(response(&answers[2..]), (1, 0, 1));
    assert_eq!(response(&answers[first + 4..]), (2, 3, 0));
    write(&mut bench, a, stream, &third[1..]);
    let answers = read(&mut bench, a, stream).expect("an answer");
    assert_eq!(response(&answers[2..]), (3, 0, 1));

    let now = bench.now;
    bench.get(a).stack.shutdown(now, stream);
    bench.settle();
    assert_eq!(
        read(&mut bench, a, stream),
        Ok(vec![]),
        "the gateway says goodbye too"
    );
}

#[test]
fn a_pipeline_is_read_as_fast_as_it_is_answered() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    let stream = connect(&mut bench, a, INSTANCE_DNS);
    bench.hold_dns = true;
    let mut queries = Vec::new();
    for id in 0..40 {
        queries.extend(framed(&query(id, "app1.internal")));
    }
    write(&mut bench, a, stream, &queries);
    let held = std::iter::from_fn(|| bench.gateway.poll_dns()).collect::<Vec<_>>();
    assert_eq!(held.len(), 16);
    bench.hold_dns = false;
    let now = bench.now;
    for query in held {
        bench
            .gateway
            .handle_dns_answer(now, query.ticket, Some(&query.query));
    }
    bench.settle();
    let mut answers = read(&mut bench, a, stream).expect("answers");
    let mut count = 0;
    while !answers.is_empty() {
        let length = usize::from(u16::from_be_bytes([answers[0], answers[1]]));
        answers.drain(..2 + length);
        count += 1;
    }
    assert_eq!(count, 40);
}

#[test]
fn connections_are_bounded_and_idle_ones_closed() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    let streams: Vec<_> = (0..9)
        .map(|_| connect(&mut bench, a, INSTANCE_DNS))
        .collect();
    assert_eq!(
        bench.dropped(DropReason::DnsConnections),
        1,
        "eight of one source"
    );
    write(
        &mut bench,
        a,
        streams[0],
        &framed(&query(1, "app1.internal")),
    );
    bench.pass(Duration::from_secs(6));
    write(
        &mut bench,
        a,
        streams[0],
        &framed(&query(2, "app1.internal")),
    );
    bench.pass(Duration::from_secs(5));
    assert!(read(&mut bench, a, streams[0]).is_ok());
    assert_eq!(
        read(&mut bench, a, streams[0]),
        Err(StreamError::WouldBlock),
        "still open"
    );
    assert_eq!(read(&mut bench, a, streams[1]), Ok(vec![]), "closed");
    bench.pass(Duration::from_secs(120));
    assert_eq!(
        bench.gateway.resolver.networks(),
        0,
        "an idle network keeps nothing"
    );
}

#[test]
fn a_broken_frame_ends_its_connection_alone() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    for bad in [&[0u8, 0][..], &[0, 11, 1], &[0xff, 0xff, 1]] {
        let (broken, sound) = (
            connect(&mut bench, a, INSTANCE_DNS),
            connect(&mut bench, a, INSTANCE_DNS),
        );
        write(&mut bench, a, broken, bad);
        assert_eq!(
            read(&mut bench, a, broken),
            Err(StreamError::Closed(CloseReason::Reset))
        );
        write(&mut bench, a, sound, &framed(&query(1, "app1.internal")));
        assert!(read(&mut bench, a, sound).is_ok());
        let now = bench.now;
        bench.get(a).stack.close(now, sound);
        bench.settle();
    }
    assert_eq!(bench.dropped(DropReason::DnsConnectionClosed), 3);
}

#[test]
fn echo_is_answered_and_other_ports_are_closed() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    let now = bench.now;
    let stack = &mut bench.get(a).stack;
    let ping = stack.ping(now, network(1).dns(), 56);
    let refused = stack
        .connect(
            now,
            SocketAddrV6::new(INSTANCE_DNS, 80, 0, 0),
            Class::Interactive,
        )
        .expect("a stream");
    let udp = stack.udp_bind(0).expect("a port");
    stack
        .udp_send(
            now,
            udp,
            SocketAddrV6::new(INSTANCE_DNS, 123, 0, 0),
            b"time?",
        )
        .expect("sent");
    bench.settle();
    let stack = &mut bench.get(a).stack;
    let events: Vec<_> = std::iter::from_fn(|| stack.poll_event()).collect();
    assert!(events.contains(&StackEvent::Pong {
        id: ping,
        from: network(1).dns(),
        rtt: Duration::ZERO
    }));
    assert!(events.contains(&StackEvent::Closed(refused, CloseReason::Refused)));
    assert_eq!(
        stack.udp_error(udp).map(|(_, why)| why),
        Some(Unreachable::Port)
    );
}
