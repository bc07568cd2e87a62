//! RFC 6455 over a live TLS connection, in the shape of the Autobahn suite: a table of what a
//! client sends on `underpass.v1` and what it gets, each case naming its section.
//!
//! Text is control on this subprotocol and binary is records, so what passes is seen as a pong of
//! the control channel, or as a datagram that the gateway sends back. The codes of protocol errors
//! are the product's own (section 7.4.2): 4002 text, 4003 sizes, 4004 frames. Text is checked when
//! its message is whole: failing in the middle of one (section 8.1 asks for no moment) is not done.
//!
//! Each case is sent whole, in the smallest pieces that its length allows, and cut in two. The file
//! is long because the table is: what is one table stays in one place.

use std::{fmt, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;
use wire::{
    Control,
    frame::{Decoder, Event, Peer},
    record,
};

use crate::support::*;

/// What comes back.
#[derive(Clone, PartialEq, Eq)]
enum Seen {
    /// A control pong of this number.
    Answer(u64),
    /// A WebSocket pong of this payload.
    Pong(Vec<u8>),
    /// Datagrams, by length and mark, that the gateway has sent back.
    Data(Vec<(usize, u8)>),
    /// A close frame.
    Close(Option<u16>),
    /// The connection ends without one.
    End,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seen::Answer(n) => write!(f, "answer {n}"),
            Seen::Pong(bytes) => write!(f, "pong of {}", bytes.len()),
            Seen::Data(data) => write!(f, "{} datagrams {:?}", data.len(), data.first()),
            Seen::Close(code) => write!(f, "close {code:?}"),
            Seen::End => f.write_str("end"),
        }
    }
}

struct Case {
    section: &'static str,
    what: String,
    bytes: Vec<u8>,
    /// The client ends the connection after its bytes.
    hangs_up: bool,
    expect: Vec<Seen>,
}

const FRAME: u16 = 4004;
const TEXT: u16 = 4002;
const SIZE: u16 = 4003;
const RECORD: u16 = 4000;

/// Frames: the first byte and the payload of each.
type Parts<'a> = Vec<(u8, &'a [u8])>;

#[derive(Default)]
struct Table(Vec<Case>);

impl Table {
    fn case(
        &mut self,
        section: &'static str,
        what: impl Into<String>,
        bytes: Vec<u8>,
        expect: Vec<Seen>,
    ) {
        let what = what.into();
        self.0.push(Case {
            section,
            what,
            bytes,
            hangs_up: false,
            expect,
        });
    }

    fn fails(&mut self, section: &'static str, what: impl Into<String>, bytes: Vec<u8>, code: u16) {
        self.case(section, what, bytes, vec![Seen::Close(Some(code))]);
    }
}

/// A masked frame, with whatever first byte, length in its shortest form, and a mask that is not
/// zero.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(first, payload);
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let at = bytes.len() - payload.len();
    bytes[at - 4..at].copy_from_slice(&mask);
    for (byte, mask) in bytes[at..].iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    bytes
}

fn frames(parts: &[(u8, &[u8])]) -> Vec<u8> {
    parts
        .iter()
        .flat_map(|(first, payload)| masked(*first, payload))
        .collect()
}

/// A control ping that is `length` bytes long, or as long as it is.
fn ask(n: u64, length: usize) -> Vec<u8> {
    let mut text = Control::Ping { n }.to_text().into_bytes();
    text.resize(text.len().max(length), b' ');
    text
}

/// A message of records that is `length` bytes long, and its datagrams.
fn records_of(length: usize, mark: u8) -> (Vec<u8>, Vec<(usize, u8)>) {
    let mut message = Vec::new();
    let mut data = Vec::new();
    while message.len() < length {
        let rest = length - message.len() - record::HEADER;
        // No less than a keepalive may be left over.
        let size = if rest > record::MAX_RECORD {
            record::MAX_RECORD.min(rest - record::HEADER - 32)
        } else {
            rest
        };
        record::push(&mut message, &datagram(4, size, mark)).unwrap();
        data.push((size, mark));
    }
    (message, data)
}

fn table() -> Vec<Case> {
    let mut table = Table::default();
    lengths(&mut table);
    masks(&mut table);
    reserved(&mut table);
    control_frames(&mut table);
    fragments(&mut table);
    text(&mut table);
    closes(&mut table);
    ends(&mut table);
    table.0
}

fn lengths(table: &mut Table) {
    for length in [22, 60, 124, 125, 126, 127, 128, 1_000, 4_095, 4_096] {
        let bytes = masked(0x81, &ask(7, length));
        table.case(
            "5.2",
            format!("text of {length}"),
            bytes,
            vec![Seen::Answer(7)],
        );
    }
    for length in [4_097, 65_535, 65_536] {
        let bytes = masked(0x81, &ask(7, length));
        table.fails("10.4", format!("control text of {length}"), bytes, TEXT);
    }
    for length in [
        34, 35, 36, 37, 41, 124, 125, 126, 127, 128, 255, 256, 2_050, 2_084, 16_384, 65_534,
        65_535, 65_536,
    ] {
        let (message, data) = records_of(length, 5);
        let expect = vec![Seen::Data(data)];
        table.case(
            "5.2",
            format!("binary of {length}"),
            masked(0x82, &message),
            expect,
        );
    }
    table.fails(
        "5.2",
        "empty binary holds no record",
        masked(0x82, b""),
        RECORD,
    );
    table.fails(
        "5.2",
        "empty text holds no control",
        masked(0x81, b""),
        TEXT,
    );
    for length in [65_537, 70_000] {
        let bytes = masked(0x82, &vec![0; length]);
        table.fails("10.4", format!("binary of {length}"), bytes, SIZE);
    }
    for length in [65_537u64, 1 << 31, (1 << 32) - 1, 1 << 32, u64::MAX >> 1] {
        for first in [0x81, 0x82, 0x02] {
            let bytes = [&[first, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat();
            let what = format!("{first:02x} claims {length}");
            table.fails("10.4", what, bytes, SIZE);
        }
    }
    let wide: [(&str, &[u8]); 7] = [
        ("0 in two bytes", &[0xfe, 0, 0]),
        ("1 in two bytes", &[0xfe, 0, 1]),
        ("125 in two bytes", &[0xfe, 0, 125]),
        ("1 in eight bytes", &[0xff, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("65,535 in eight bytes", &[0xff, 0, 0, 0, 0, 0, 0, 255, 255]),
        ("the highest bit set", &[0xff, 128, 0, 0, 0, 0, 1, 0, 0]),
        ("every bit set", &[0xff; 9]),
    ];
    for (what, length) in wide {
        let bytes = [&[0x82][..], length, &[0; 4]].concat();
        table.fails("5.2", what, bytes, FRAME);
    }
}

fn masks(table: &mut Table) {
    for (what, bytes) in [
        ("binary", &[0x82, 3, 0, 1, 4][..]),
        ("empty binary", &[0x82, 0]),
        ("text", b"\x81\x02{}"),
        ("ping", &[0x89, 0]),
        ("pong", &[0x8a, 0]),
        ("close", &[0x88, 2, 3, 232]),
        ("long binary", &[0x82, 126, 1, 0, 0]),
    ] {
        table.fails(
            "5.1",
            format!("{what} without a mask"),
            bytes.to_vec(),
            FRAME,
        );
    }
    let (message, data) = records_of(100, 9);
    for mask in [[0; 4], [255; 4], [1, 2, 3, 4], [0, 0, 0, 1]] {
        let mut bytes = [&[0x82, 0x80 | 100][..], &mask].concat();
        let body = message.iter().zip(mask.iter().cycle());
        bytes.extend(body.map(|(byte, mask)| byte ^ mask));
        let expect = vec![Seen::Data(data.clone())];
        table.case("5.3", format!("mask {mask:02x?}"), bytes, expect);
    }
}

fn reserved(table: &mut Table) {
    let kinds = [
        (0x81, "text"),
        (0x82, "binary"),
        (0x80, "continuation"),
        (0x88, "close"),
        (0x89, "ping"),
        (0x8a, "pong"),
    ];
    for (first, what) in kinds {
        for bit in [0x40, 0x20, 0x10] {
            let bytes = masked(first | bit, b"");
            let what = format!("{what} with reserved bit {bit:02x}");
            table.fails("5.2", what, bytes, FRAME);
        }
    }
    for bits in [0x30, 0x50, 0x60, 0x70] {
        let bytes = masked(0x82 | bits, &records_of(40, 1).0);
        table.fails("5.2", format!("reserved bits {bits:02x}"), bytes, FRAME);
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        for (what, first, payload) in [
            ("empty", 0x80, &b""[..]),
            ("with a payload", 0x80, b"x"),
            ("fragmented", 0, b"x"),
        ] {
            let what = format!("opcode {opcode}, {what}");
            table.fails("5.2", what, masked(first | opcode, payload), FRAME);
        }
    }
    let after = [masked(0x81, &ask(1, 0)), masked(0x83, b"")].concat();
    let expect = vec![Seen::Answer(1), Seen::Close(Some(FRAME))];
    table.case("5.2", "unknown opcode after a good message", after, expect);
    let inside = frames(&[(0x01, b"{"), (0x8b, b""), (0x80, b"}")]);
    table.fails("5.2", "unknown opcode inside a message", inside, FRAME);
}

fn control_frames(table: &mut Table) {
    for length in [0, 1, 2, 8, 64, 124, 125] {
        let payload: Vec<u8> = (0..length).map(|n| 255 - n as u8).collect();
        let bytes = masked(0x89, &payload);
        table.case(
            "5.5.2",
            format!("ping of {length}"),
            bytes,
            vec![Seen::Pong(payload)],
        );
    }
    for length in [126, 127, 200, 65_536] {
        for (first, name) in [(0x88, "close"), (0x89, "ping"), (0x8a, "pong")] {
            let bytes = masked(first, &vec![0; length]);
            table.fails("5.5", format!("{name} of {length}"), bytes, FRAME);
        }
    }
    for (first, name) in [(0x08, "close"), (0x09, "ping"), (0x0a, "pong")] {
        let bytes = frames(&[(first, b""), (0x80, b"")]);
        table.fails("5.5", format!("{name} in fragments"), bytes, FRAME);
    }
    for (what, payload) in [("empty", &b""[..]), ("of some bytes", &[1, 255, 0])] {
        let bytes = [masked(0x8a, payload), masked(0x81, &ask(3, 0))].concat();
        let what = format!("unsolicited pong, {what}");
        table.case("5.5.3", what, bytes, vec![Seen::Answer(3)]);
    }
    let pong_then_ping = frames(&[(0x8a, b"a"), (0x89, b"b"), (0x8a, b"c")]);
    let expect = vec![Seen::Pong(b"b".to_vec())];
    table.case("5.5.3", "pong, ping, pong", pong_then_ping, expect);
    // The newest of several may be answered alone: `Reader` takes them together.
    let many: Vec<u8> = (0..10).flat_map(|n| masked(0x89, &[n])).collect();
    table.case("5.5.3", "ten pings", many, vec![Seen::Pong(vec![9])]);
}

fn fragments(table: &mut Table) {
    let (message, data) = records_of(100, 3);
    let all = || vec![Seen::Data(data.clone())];
    let (a, b) = message.split_at(50);
    let (b, c) = b.split_at(1);
    let pong = |bytes: &[u8]| Seen::Pong(bytes.to_vec());
    let rest = || Seen::Data(data.clone());
    let good: Vec<(&str, Parts<'_>, Vec<Seen>)> = vec![
        ("two fragments", vec![(2, a), (0x80, &message[50..])], all()),
        ("three fragments", vec![(2, a), (0, b), (0x80, c)], all()),
        ("an empty first", vec![(2, b""), (0x80, &message)], all()),
        ("an empty last", vec![(2, &message), (0x80, b"")], all()),
        (
            "an empty middle",
            vec![(2, a), (0, b""), (0x80, &message[50..])],
            all(),
        ),
        (
            "a ping between",
            vec![(2, a), (0x89, b"!"), (0x80, &message[50..])],
            vec![pong(b"!"), rest()],
        ),
        (
            "an empty ping between",
            vec![(2, a), (0x89, b""), (0x80, &message[50..])],
            vec![pong(b""), rest()],
        ),
        (
            "a pong between",
            vec![(2, a), (0x8a, b"!"), (0x80, &message[50..])],
            all(),
        ),
        (
            "a ping between each",
            vec![(2, a), (0x8a, b""), (0, b), (0x8a, b""), (0x80, c)],
            all(),
        ),
        (
            "a close between",
            vec![(2, a), (0x88, b"\x03\xe8"), (0x80, &message[50..])],
            vec![Seen::Close(Some(1000))],
        ),
        (
            "two messages in fragments",
            vec![
                (1, b"{\"type\":\"ping\","),
                (0x80, b"\"n\":4}"),
                (2, a),
                (0x80, &message[50..]),
            ],
            vec![Seen::Answer(4), rest()],
        ),
    ];
    for (what, parts, expect) in good {
        table.case("5.4", what, frames(&parts), expect);
    }
    let single: Vec<u8> = message
        .iter()
        .enumerate()
        .flat_map(|(n, byte)| {
            let first = if n == 0 { 2 } else { 0 };
            let last = if n + 1 == message.len() { 0x80 } else { 0 };
            masked(first | last, &[*byte])
        })
        .collect();
    table.case("5.4", "a hundred fragments of one byte", single, all());
    let (large, many) = records_of(65_536, 8);
    for size in [4_096, 30_000, 65_535] {
        let chunks: Vec<&[u8]> = large.chunks(size).collect();
        let parts: Vec<(u8, &[u8])> = chunks
            .iter()
            .enumerate()
            .map(|(n, chunk)| {
                let first = if n == 0 { 2 } else { 0 };
                let last = if n + 1 == chunks.len() { 0x80 } else { 0 };
                (first | last, *chunk)
            })
            .collect();
        let what = format!("65,536 bytes in fragments of {size}");
        table.case("5.4", what, frames(&parts), vec![Seen::Data(many.clone())]);
    }
    let half = vec![0; 40_000];
    let over = frames(&[(2, &half), (0x80, &half)]);
    table.fails("10.4", "80,000 bytes in two fragments", over, SIZE);
    let over = frames(&[(2, &large), (0, b""), (0x80, b"x")]);
    table.fails("10.4", "65,537 bytes in three fragments", over, SIZE);

    let bad: Vec<(&str, Parts<'_>)> = vec![
        ("a continuation of nothing", vec![(0x80, b"x")]),
        ("an empty continuation of nothing", vec![(0x80, b"")]),
        ("an unfinished continuation of nothing", vec![(0, b"x")]),
        (
            "a continuation after a ping",
            vec![(0x8a, b""), (0x80, b"x")],
        ),
        ("binary inside binary", vec![(2, a), (0x82, a)]),
        ("text inside binary", vec![(2, a), (0x81, b"{}")]),
        ("binary inside text", vec![(1, b"{"), (0x82, a)]),
        ("text inside text", vec![(1, b"{"), (0x81, b"}")]),
        ("a fragment inside a fragment", vec![(1, b"{"), (1, b"}")]),
        (
            "a message after a pong inside one",
            vec![(2, a), (0x8a, b""), (0x82, a)],
        ),
    ];
    for (what, parts) in bad {
        table.fails("5.4", what, frames(&parts), FRAME);
    }
    let after = [
        frames(&[(2, a), (0x80, &message[50..])]),
        masked(0x80, b"x"),
    ]
    .concat();
    // The message has gone up; what comes of it finds no session any more.
    table.fails("5.4", "a continuation after the last", after, FRAME);
}

fn text(table: &mut Table) {
    let control = |inner: &[u8]| [br#"{"type":"ping","n":6,"x":""#, inner, b"\"}"].concat();
    for text in [
        "a",
        "é",
        "κόσμε",
        "\u{7f}",
        "\u{80}",
        "\u{7ff}",
        "\u{800}",
        "\u{d7ff}",
        "\u{e000}",
        "\u{fffd}",
        "\u{ffff}",
        "\u{10000}",
        "\u{10ffff}",
        "🦀🦀",
    ] {
        let message = control(text.as_bytes());
        let what = format!(
            "U+{:04X}",
            u32::from(text.chars().next().unwrap_or_default())
        );
        table.case(
            "8.1",
            what.clone(),
            masked(0x81, &message),
            vec![Seen::Answer(6)],
        );
        let (first, second) = message.split_at(message.len() - 3);
        let cut = frames(&[(1, first), (0x80, second)]);
        table.case(
            "5.6",
            what + ", cut by a fragment",
            cut,
            vec![Seen::Answer(6)],
        );
    }
    let broken: [(&str, &[u8]); 18] = [
        ("a stray continuation byte", b"\x80"),
        ("the last continuation byte", b"\xbf"),
        ("two continuation bytes", b"\x80\xbf"),
        ("fe", b"\xfe"),
        ("ff", b"\xff"),
        ("two bytes, one missing", b"\xc3"),
        ("three bytes, one missing", b"\xe2\x82"),
        ("four bytes, two missing", b"\xf0\x9f"),
        ("overlong /", b"\xc0\xaf"),
        ("overlong / in three", b"\xe0\x80\xaf"),
        ("overlong / in four", b"\xf0\x80\x80\xaf"),
        ("the longest overlong of two", b"\xc1\xbf"),
        ("the first surrogate", b"\xed\xa0\x80"),
        ("the last surrogate", b"\xed\xbf\xbf"),
        ("a pair of surrogates", b"\xed\xa0\x80\xed\xb0\x80"),
        ("over U+10FFFF", b"\xf4\x90\x80\x80"),
        ("five bytes", b"\xf8\x88\x80\x80\x80"),
        ("six bytes", b"\xfc\x84\x80\x80\x80\x80"),
    ];
    for (what, inner) in broken {
        let message = control(inner);
        table.fails("8.1", what, masked(0x81, &message), TEXT);
        let (first, second) = message.split_at(message.len() - 3);
        let cut = frames(&[(1, first), (0x80, second)]);
        table.fails("8.1", format!("{what}, in fragments"), cut, TEXT);
    }
}

fn closes(table: &mut Table) {
    let close = |payload: &[u8]| masked(0x88, payload);
    table.case("5.5.1", "no code", close(b""), vec![Seen::Close(None)]);
    table.fails("5.5.1", "half a code", close(&[3]), FRAME);
    let longest = [&[3, 232][..], &[b'a'; 123]].concat();
    let expect = || vec![Seen::Close(Some(1000))];
    table.case("5.5.1", "the longest reason", close(&longest), expect());
    let crab = [&[3, 232][..], "🦀".as_bytes()].concat();
    table.case("5.5.1", "a reason beyond ASCII", close(&crab), expect());
    table.fails(
        "8.1",
        "a reason that is not UTF-8",
        close(b"\x03\xe8\xff"),
        TEXT,
    );
    table.fails(
        "8.1",
        "a reason cut in a character",
        close(b"\x03\xe8\xe2\x82"),
        TEXT,
    );
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000,
        4999u16,
    ] {
        let bytes = close(&code.to_be_bytes());
        table.case(
            "7.4",
            format!("{code}"),
            bytes,
            vec![Seen::Close(Some(code))],
        );
    }
    for code in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535u16,
    ] {
        table.fails("7.4", format!("{code}"), close(&code.to_be_bytes()), FRAME);
    }
    let (message, _) = records_of(40, 66);
    for (what, after) in [
        ("data", masked(0x82, &message)),
        ("a ping", masked(0x89, b"late")),
        ("a close", close(&1001u16.to_be_bytes())),
        ("nonsense", vec![0xff; 20]),
    ] {
        let bytes = [close(&1000u16.to_be_bytes()), after].concat();
        table.case("5.5.1", format!("{what} after a close"), bytes, expect());
    }
}

/// The connection ends where a frame does not (section 7.1.4: not a clean close).
fn ends(table: &mut Table) {
    let (message, _) = records_of(300, 4);
    let whole = masked(0x82, &message);
    for at in [0, 1, 2, 3, 4, 7, 8, 9, 150, whole.len() - 1] {
        table.0.push(Case {
            section: "7.1.4",
            what: format!("cut after {at} bytes of a frame"),
            bytes: whole[..at].to_vec(),
            hangs_up: true,
            expect: vec![Seen::End],
        });
    }
    table.0.push(Case {
        section: "7.1.4",
        what: "cut between fragments".into(),
        bytes: masked(0x02, &message),
        hangs_up: true,
        expect: vec![Seen::End],
    });
}

/// How a case is cut.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Whole,
    Pieces,
    InTwo,
}

async fn run(fixture: &Fixture, case: &Case, cut: Cut) -> Vec<Seen> {
    let mut tls = fixture.raw_with_token().await;
    let pieces: Vec<&[u8]> = match cut {
        Cut::Whole => vec![&case.bytes],
        Cut::Pieces => case.bytes.chunks(1 + case.bytes.len() / 700).collect(),
        Cut::InTwo => {
            let (first, second) = case.bytes.split_at(case.bytes.len() / 2);
            vec![first, second]
        }
    };
    for piece in pieces {
        // A relay that has failed the connection reads on for a while, and then is gone.
        if tls.write_all(piece).await.is_err() || tls.flush().await.is_err() {
            break;
        }
    }
    if case.hangs_up {
        tls.shutdown().await.unwrap();
    }
    let mut reader = Reader {
        decoder: Decoder::new(Peer::Server, record::MAX_MESSAGE),
        seen: Vec::new(),
        hello: false,
    };
    let closes = matches!(case.expect.last(), Some(Seen::Close(_) | Seen::End));
    if !closes {
        let last = case.expect.last().cloned();
        reader
            .read(&mut tls, |seen| seen.last() == last.as_ref())
            .await;
        tls.write_all(&masked(0x88, &[3, 232])).await.unwrap();
        tls.flush().await.unwrap();
        let whole = |seen: &[Seen]| matches!(seen.last(), Some(Seen::Close(_)));
        reader.read(&mut tls, whole).await;
        if reader.seen.last() == Some(&Seen::Close(Some(1000))) {
            reader.seen.pop();
        }
    }
    reader
        .read(&mut tls, |seen| seen.last() == Some(&Seen::End))
        .await;
    assert!(reader.hello, "{}: no hello", case.what);
    let mut seen = reader.seen;
    if case.expect.last() != Some(&Seen::End) {
        assert_eq!(
            seen.pop(),
            Some(Seen::End),
            "7.1.1: {} stays open",
            case.what
        );
    }
    seen
}

/// Reads what the relay sends: [`Peer::Server`] refuses masks, reserved bits and lengths that are
/// not minimal (sections 5.1 and 5.2, the other way round).
struct Reader {
    decoder: Decoder,
    seen: Vec<Seen>,
    hello: bool,
}

impl Reader {
    async fn read(&mut self, tls: &mut TlsStream<TcpStream>, until: impl Fn(&[Seen]) -> bool) {
        let mut buffer = vec![0; 16 * 1024];
        while !until(&self.seen) {
            let read = timeout(Duration::from_secs(5), tls.read(&mut buffer)).await;
            let Ok(read) = read else {
                // What there is will not do.
                return;
            };
            let Ok(length @ 1..) = read else {
                self.seen.push(Seen::End);
                return;
            };
            let mut bytes = &buffer[..length];
            while let Some(event) = self.decoder.decode(&mut bytes).expect("frames of a server") {
                match event {
                    Event::Text(text) => match Control::parse(text).expect("control") {
                        Control::Hello { .. } => {
                            assert!(!self.hello && self.seen.is_empty());
                            self.hello = true;
                        }
                        Control::Pong { n } => self.seen.push(Seen::Answer(n)),
                        Control::Closing { .. } => {}
                        other => panic!("{other:?}"),
                    },
                    Event::Binary(message) => {
                        let records = record::records(message).expect("records");
                        let data = records.map(|it| (it.len(), it[31]));
                        match self.seen.last_mut() {
                            Some(Seen::Data(before)) => before.extend(data),
                            _ => self.seen.push(Seen::Data(data.collect())),
                        }
                    }
                    // Of several pings the newest may be answered alone (section 5.5.3).
                    Event::Pong(payload) => match self.seen.last_mut() {
                        Some(Seen::Pong(before)) if payload.len() == 1 && before.len() == 1 => {
                            *before = payload.to_vec();
                        }
                        _ => self.seen.push(Seen::Pong(payload.to_vec())),
                    },
                    Event::Ping(_) => panic!("a ping in the first seconds"),
                    Event::Close(code, _) => self.seen.push(Seen::Close(code)),
                }
            }
        }
    }
}

#[tokio::test]
async fn rfc_6455() {
    let fixture = fixture_with(|config, _| {
        // The gateway below answers everything, and 64 datagrams pass before it has.
        config.limits.queue_age = SOON;
    })
    .await;
    let cases = table();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let runs = |large: bool| {
        let cases = cases
            .iter()
            .filter(move |case| (case.bytes.len() > 8_000) == large);
        let runs =
            cases.flat_map(|case| [Cut::Whole, Cut::Pieces, Cut::InTwo].map(|cut| (case, cut)));
        let runs = runs.map(|(case, cut)| {
            let fixture = &fixture;
            async move {
                let seen = run(fixture, case, cut).await;
                let what = format!("section {}: {} ({cut:?})", case.section, case.what);
                (seen != case.expect).then(|| format!("{what}: {seen:?}, not {:?}", case.expect))
            }
        });
        // What the gateway's socket has no room for is lost, as it is everywhere.
        let together = if large { 2 } else { 32 };
        stream::iter(runs)
            .buffer_unordered(together)
            .filter_map(std::future::ready)
    };
    let failed = runs(false).chain(runs(true)).collect::<Vec<String>>();
    let failed = tokio::select! {
        failed = failed => failed,
        () = echo(&fixture) => unreachable!("it answers for ever"),
    };
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
    println!("{} cases of RFC 6455, each sent in three ways", cases.len());
    fixture
        .until("no session", |counters| counters.sessions() == 0)
        .await;
    fixture.assert_adds_up();
}

/// Sends back what is data.
async fn echo(fixture: &Fixture) {
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = fixture.gateway.recv_from(&mut buffer).await.unwrap();
        assert_ne!(buffer[31], 66, "what follows a close is not carried");
        fixture
            .gateway
            .send_to(&buffer[..length], from)
            .await
            .unwrap();
    }
}

/// The opening handshake (section 4.2): what is no upgrade of version 13 gets no WebSocket.
#[tokio::test]
async fn opening_handshakes() {
    let fixture = fixture().await;
    let good = upgrade_request("localhost", "gw1", &[]);
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let cases: Vec<(&str, &str, String, u16)> = vec![
        ("4.2.1 (1)", "POST", good.replace("GET", "POST"), 405),
        (
            "4.2.1 (1)",
            "HTTP/1.0",
            good.replace("HTTP/1.1", "HTTP/1.0"),
            426,
        ),
        (
            "4.2.1 (2)",
            "no Host",
            good.replace("host: localhost\r\n", ""),
            421,
        ),
        (
            "4.2.1 (3)",
            "no Upgrade",
            good.replace("upgrade: websocket\r\n", ""),
            426,
        ),
        (
            "4.2.1 (3)",
            "another Upgrade",
            good.replace("upgrade: websocket", "upgrade: h2c"),
            426,
        ),
        (
            "4.2.1 (4)",
            "no Connection",
            good.replace("keep-alive, Upgrade", "keep-alive"),
            426,
        ),
        ("4.2.1 (5)", "no key", good.replace(key, ""), 426),
        (
            "4.2.1 (5)",
            "two keys",
            good.replace(key, &key.repeat(2)),
            426,
        ),
        (
            "4.2.1 (5)",
            "a short key",
            good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ=="),
            426,
        ),
        (
            "4.2.1 (5)",
            "no base64",
            good.replace("dGhlIHNhbXBsZSBub25jZQ==", "!!!!!!!!!!!!!!!!!!!!!!!!"),
            426,
        ),
        (
            "4.2.1 (5)",
            "18 bytes",
            good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQxy"),
            426,
        ),
        (
            "4.2.1 (6)",
            "no version",
            good.replace("sec-websocket-version: 13\r\n", ""),
            426,
        ),
        (
            "4.4",
            "version 8",
            good.replace("version: 13", "version: 8"),
            426,
        ),
        (
            "4.2.2",
            "no subprotocol of ours",
            good.replace("underpass.v1", "chat"),
            400,
        ),
        (
            "4.2.1",
            "any case",
            good.replace("websocket\r\n", "WebSocket\r\n")
                .replace("Upgrade\r\n", "UPGRADE\r\n"),
            101,
        ),
        (
            "9.1",
            "extensions are declined",
            good.replace(
                "\r\n\r\n",
                "\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n",
            ),
            101,
        ),
        (
            "4.1 (10)",
            "one of several subprotocols",
            good.replace("underpass.v1", "chat, underpass.v1"),
            101,
        ),
    ];
    for (section, what, request, status) in cases {
        let mut tls = fixture.tls().await;
        tls.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = timeout(SOON, tls.read_u8()).await.expect("an answer");
            head.push(byte.unwrap_or_else(|_| panic!("{section} {what}: no answer")));
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let got: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(got, status, "section {section}: {what}: {head}");
        if status == 101 {
            let accept = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n";
            assert!(head.contains(accept), "{head}");
            assert!(!head.contains("extensions"), "section 9.1: {head}");
            assert_eq!(
                head.matches("sec-websocket-protocol: underpass.v1\r\n")
                    .count(),
                1
            );
        }
        if status == 426 {
            assert!(
                head.contains("sec-websocket-version: 13\r\n"),
                "section 4.4: {head}"
            );
        }
    }
    // Frames in the same write as the request are not lost.
    let mut tls = fixture.tls().await;
    let early = [good.as_bytes(), &masked(0x89, b"early")].concat();
    tls.write_all(&early).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\x8a\x05early") {
        answer.push(timeout(SOON, tls.read_u8()).await.unwrap().unwrap());
    }
}
