//! Targets over `wire`: frames, records, control messages, offers, tokens, WireGuard kinds, and
//! flyctl's stream.

use underpass_wire::{
    Control, PublicKey, flyctl,
    frame::{Decoder, Event, Peer},
    record,
    subprotocol::{self, Offered},
    token::{self, Claims},
    wireguard::{self, Kind},
};

/// A target: a name, which is that of its corpus too, and what it does with any bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("frame", frame),
    ("record", records),
    ("control", control),
    ("subprotocol", offer),
    ("token", tokens),
    ("wireguard", kinds),
    ("flyctl", stream),
];

/// The first byte says who sends and how the rest is cut; however it is cut, it means the same,
/// and memory grows with what has arrived alone.
pub fn frame(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else {
        return;
    };
    let peer = if how & 1 == 0 {
        Peer::Client
    } else {
        Peer::Server
    };
    let decoder = || {
        if how & 2 == 0 {
            Decoder::new(peer, record::MAX_MESSAGE)
        } else {
            Decoder::of_bytes(peer, record::MAX_MESSAGE)
        }
    };
    let whole = frames(decoder(), bytes, usize::MAX, false);
    let cut = usize::from(how >> 2) + 1;
    assert_eq!(frames(decoder(), bytes, cut, false), whole);
    assert_eq!(frames(decoder(), bytes, cut, true), whole);
}

fn frames(mut decoder: Decoder, bytes: &[u8], cut: usize, lend: bool) -> Vec<String> {
    let mut seen = Vec::new();
    for mut chunk in bytes.chunks(cut.min(bytes.len()).max(1)) {
        if lend {
            // What it held before is of no account.
            decoder.lend(vec![0xa5; 100]);
        }
        loop {
            match decoder.decode(&mut chunk) {
                Ok(Some(event)) => {
                    if let Event::Close(Some(code), _) = event {
                        assert!((1000..5000).contains(&code));
                    }
                    seen.push(format!("{event:?}"));
                }
                Ok(None) => break,
                Err(error) => {
                    seen.push(format!("{error}"));
                    return seen;
                }
            }
        }
        assert!(chunk.is_empty(), "all of it is taken");
        assert_eq!(decoder.rest().is_some(), lend);
        assert!(decoder.memory() <= 2 * bytes.len() + 128);
    }
    seen
}

/// A message of records is what its datagrams make again.
pub fn records(data: &[u8]) {
    let Ok(found) = record::records(data) else {
        return;
    };
    let mut again = Vec::new();
    for datagram in found {
        assert!((1..=record::MAX_RECORD).contains(&datagram.len()));
        assert_eq!(record::push(&mut again, datagram), Ok(()));
    }
    assert_eq!(again, data);
}

/// What is read of a control message is written and read again.
pub fn control(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(control) = Control::parse(text) {
        let again = control.to_text();
        // Escapes may be longer than what they stand for.
        if again.len() <= underpass_wire::control::MAX_CONTROL {
            assert_eq!(Control::parse(&again), Ok(control));
        }
    }
}

/// What is read of an offer is offered and read again.
pub fn offer(data: &[u8]) {
    let Ok(header) = std::str::from_utf8(data) else {
        return;
    };
    let offered = Offered::parse(header);
    let again = subprotocol::offer(offered.bearer.as_deref(), offered.resume.as_deref());
    let again = again.join(",");
    // One that came without the protocol's name is longer with it.
    if again.len() > subprotocol::MAX_OFFER {
        return;
    }
    let again = Offered::parse(&again);
    assert!(again.v1);
    assert_eq!(
        (again.bearer, again.resume),
        (offered.bearer, offered.resume)
    );
}

/// A token's parts make the token again, as far as it is one.
pub fn tokens(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok((part, signature)) = token::split(text) {
        let again = token::join(part, &signature);
        assert_eq!(token::split(&again), Ok((part, signature)));
        if let Ok(claims) = Claims::decode(part) {
            assert_eq!(Claims::decode(&claims.encode()), Ok(claims));
        }
    }
    let _ = Claims::decode(text);
}

/// A kind has its length, and mac1 is of initiations alone.
pub fn kinds(data: &[u8]) {
    match Kind::of(data) {
        Some(Kind::Initiation) => assert_eq!(data.len(), wireguard::INITIATION),
        Some(Kind::Response) => assert_eq!(data.len(), wireguard::RESPONSE),
        Some(Kind::Cookie) => assert_eq!(data.len(), wireguard::COOKIE),
        Some(Kind::Data) => assert!(data.len() >= wireguard::KEEPALIVE),
        None => {}
    }
    if wireguard::mac1_valid(data, &PublicKey([7; 32])) {
        assert_eq!(Kind::of(data), Some(Kind::Initiation));
    }
}

/// The first byte says how the rest is cut; however it is cut, the same datagrams come of it, and
/// what they make again is read as the same.
pub fn stream(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let whole = datagrams(bytes, usize::MAX);
    assert_eq!(datagrams(bytes, usize::from(*cut) + 1), whole);
    let mut again = flyctl::MAGIC.to_vec();
    for datagram in &whole.0 {
        assert!(flyctl::push(&mut again, datagram));
    }
    assert_eq!(datagrams(&again, 700), (whole.0, None));
}

fn datagrams(bytes: &[u8], cut: usize) -> (Vec<Vec<u8>>, Option<flyctl::StreamError>) {
    let mut stream = flyctl::Stream::default();
    let mut seen = Vec::new();
    for mut chunk in bytes.chunks(cut.min(bytes.len()).max(1)) {
        loop {
            match stream.decode(&mut chunk) {
                Ok(Some(flyctl::Event::Datagram(datagram))) => {
                    assert!((1..=record::MAX_RECORD).contains(&datagram.len()));
                    seen.push(datagram.to_vec());
                }
                Ok(Some(flyctl::Event::Keepalive)) => {}
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            }
        }
        assert!(chunk.is_empty(), "all of it is taken");
        stream.rest();
    }
    (seen, None)
}
