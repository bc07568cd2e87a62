//! A resolver and a name server of a few lines, each on a stack of its own.

use super::{message::tests::answer, *};
use crate::stack::{Limits, StackConfig};

const A: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 1, 0, 0, 0, 0, 0xa);
const SERVER: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 1, 0, 0, 0, 0, 3);
const TXT: u16 = 16;
const AAAA: u16 = 28;

fn stack(address: Ipv6Addr, seed: u64) -> Stack {
    let limits = Limits::default();
    let config = StackConfig {
        addresses: vec![address],
        mtu: 1420,
        seed,
        any_ip: false,
        limits,
    };
    Stack::new(config, Instant::ZERO)
}

type Answerer = fn(query: &[u8], tcp: bool, nth: usize) -> Vec<Vec<u8>>;

/// Resolves `name` against a server that answers a query with the messages of `answerer`; also
/// how long it took and how many queries the server saw.
fn run(
    name: &str,
    kind: RecordKind,
    answerer: Answerer,
) -> (Result<Answer, ResolveError>, Duration, usize) {
    let (mut client, mut server) = (stack(A, 1), stack(SERVER, 2));
    let mut resolver = Resolver::new(Some(SERVER), 3);
    let socket = server.udp_bind(53).unwrap();
    server.listen(53, 8, Class::Interactive).unwrap();
    let begun = Instant::from_micros(1_000_000);
    let mut now = begun;
    resolver.resolve(now, &mut client, name, kind);
    let mut seen = 0;
    loop {
        if let Some((_, result)) = resolver.poll_result() {
            let mut open = 0;
            while let Some(event) = client.poll_event() {
                open += usize::from(matches!(event, StackEvent::UdpReadable(_)));
            }
            assert_eq!(open, 0, "no event of a closed socket");
            return (result, now.since(begun), seen);
        }
        loop {
            let mut moved = false;
            while let Some(packet) = client.poll_transmit(now) {
                server.handle_packet(now, &packet);
                moved = true;
            }
            while let Some(query) = server.udp_recv(socket) {
                for reply in answerer(&query.payload, false, seen) {
                    let _ = server.udp_send(now, socket, query.remote, &reply);
                }
                seen += 1;
            }
            while let Some(event) = server.poll_event() {
                let StackEvent::Readable(stream) = event else {
                    continue;
                };
                let mut buffer = [0; 1024];
                let Ok(read) = server.read(now, stream, &mut buffer) else {
                    continue;
                };
                if read > 2 {
                    for reply in answerer(&buffer[2..read], true, seen) {
                        let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
                        server.write(now, stream, &length).unwrap();
                        server.write(now, stream, &reply).unwrap();
                    }
                    seen += 1;
                    let _ = server.read(now, stream, &mut buffer);
                }
            }
            while let Some(packet) = server.poll_transmit(now) {
                client.handle_packet(now, &packet);
                moved = true;
            }
            resolver.poll(now, &mut client);
            while client.poll_event().is_some() {}
            if !moved {
                break;
            }
        }
        if !resolver.results.is_empty() {
            continue;
        }
        let due = [
            resolver.poll_timeout(),
            client.poll_timeout(),
            server.poll_timeout(),
        ];
        now = due.into_iter().flatten().min().unwrap().max(now);
        client.handle_timeout(now);
        server.handle_timeout(now);
        resolver.poll(now, &mut client);
    }
}

fn error(answerer: Answerer) -> &'static str {
    run("web.internal", RecordKind::Aaaa, answerer)
        .0
        .unwrap_err()
        .code()
}

#[test]
fn an_address_comes_back_at_once() {
    let (result, took, seen) = run("web.internal", RecordKind::Aaaa, |query, _, _| {
        vec![answer(
            query,
            [0x85, 0x80],
            &[
                (AAAA, A.octets().to_vec()),
                (AAAA, SERVER.octets().to_vec()),
            ],
        )]
    });
    assert_eq!(result, Ok(Answer::Aaaa(vec![A, SERVER])));
    assert_eq!((took, seen), (Duration::ZERO, 1));
}

#[test]
fn a_literal_needs_no_server() {
    let (result, _, seen) = run("fdaa::7", RecordKind::Aaaa, |_, _, _| Vec::new());
    assert_eq!(result, Ok(Answer::Aaaa(vec!["fdaa::7".parse().unwrap()])));
    assert_eq!(seen, 0);
}

#[test]
fn lost_queries_are_repeated_and_given_up() {
    let (result, took, seen) = run(
        "web.internal",
        RecordKind::Aaaa,
        |query, _, nth| match nth {
            0 | 1 => Vec::new(),
            _ => vec![answer(query, [0x85, 0x80], &[(AAAA, A.octets().to_vec())])],
        },
    );
    assert_eq!(result, Ok(Answer::Aaaa(vec![A])));
    assert_eq!((took, seen), (Duration::from_secs(3), 3));
    let (result, took, seen) = run("web.internal", RecordKind::Aaaa, |_, _, _| Vec::new());
    assert_eq!(result, Err(ResolveError::NoAnswer));
    assert_eq!((took, seen), (Duration::from_secs(6), 3));
}

#[test]
fn what_does_not_fit_is_fetched_over_tcp() {
    let (result, _, seen) = run("_apps.internal", RecordKind::Txt, |query, tcp, _| {
        let text = [&[200][..], &[b'x'; 200][..]].concat();
        let records: Vec<_> = (0..100).map(|_| (TXT, text.clone())).collect();
        vec![if tcp {
            answer(query, [0x85, 0x80], &records)
        } else {
            answer(query, [0x87, 0x80], &[])
        }]
    });
    assert_eq!(result, Ok(Answer::Txt(vec!["x".repeat(200); 100])));
    assert_eq!(seen, 2);
}

#[test]
fn each_failure_has_its_code() {
    assert_eq!(
        error(|query, _, _| vec![answer(query, [0x85, 0x83], &[])]),
        "nx_domain"
    );
    assert_eq!(
        error(|query, _, _| vec![answer(query, [0x85, 0x80], &[])]),
        "no_data"
    );
    assert_eq!(
        error(|query, _, _| vec![answer(query, [0x85, 0x82], &[])]),
        "serv_fail"
    );
    assert_eq!(
        error(|query, _, _| vec![answer(query, [0x85, 0x85], &[])]),
        "refused"
    );
    assert_eq!(
        error(|query, _, _| vec![answer(query, [0x85, 0x80], &[(AAAA, vec![1])])]),
        "bad_answer"
    );
    assert_eq!(error(|_, _, _| Vec::new()), "no_answer");
    // Over TCP, silence is silence too.
    assert_eq!(
        error(|query, tcp, _| if tcp {
            Vec::new()
        } else {
            vec![answer(query, [0x87, 0x80], &[])]
        }),
        "no_answer"
    );
    let invalid = run("a..b", RecordKind::Aaaa, |_, _, _| Vec::new());
    assert_eq!(invalid.0, Err(ResolveError::InvalidName));
}

#[test]
fn an_answer_to_another_question_is_not_believed() {
    let (result, took, _) = run("web.internal", RecordKind::Aaaa, |query, _, _| {
        let good = answer(query, [0x85, 0x80], &[(AAAA, A.octets().to_vec())]);
        let mut id = answer(query, [0x85, 0x80], &[(AAAA, SERVER.octets().to_vec())]);
        id[1] ^= 1;
        let mut name = answer(query, [0x85, 0x80], &[(AAAA, SERVER.octets().to_vec())]);
        name[13] = b'v';
        vec![id, name, b"garbage".to_vec(), good]
    });
    assert_eq!((result, took), (Ok(Answer::Aaaa(vec![A])), Duration::ZERO));
}

#[test]
fn a_server_that_is_not_there_is_said_at_once() {
    let (mut client, mut other) = (stack(A, 1), stack(SERVER, 2));
    let mut resolver = Resolver::new(Some(SERVER), 3);
    let now = Instant::from_micros(1);
    resolver.resolve(now, &mut client, "web.internal", RecordKind::Aaaa);
    other.handle_packet(now, &client.poll_transmit(now).unwrap());
    client.handle_packet(now, &other.poll_transmit(now).unwrap());
    resolver.poll(now, &mut client);
    assert_eq!(
        resolver.poll_result().unwrap().1,
        Err(ResolveError::Unreachable)
    );
    let mut nowhere = Resolver::new(None, 3);
    nowhere.resolve(now, &mut client, "web.internal", RecordKind::Aaaa);
    assert_eq!(
        nowhere.poll_result().unwrap().1,
        Err(ResolveError::NoResolver)
    );
}

#[test]
fn queries_are_bounded() {
    let mut client = stack(A, 1);
    let mut resolver = Resolver::new(Some(SERVER), 3);
    for _ in 0..1000 {
        resolver.resolve(Instant::ZERO, &mut client, "web.internal", RecordKind::Aaaa);
    }
    assert_eq!(resolver.queries.len(), MAX_QUERIES);
    assert!(resolver.results.len() <= 2 * MAX_QUERIES);
    assert_eq!(
        resolver.poll_result().unwrap().1.unwrap_err().code(),
        "too_many"
    );
}
