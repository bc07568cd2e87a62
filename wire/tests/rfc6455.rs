//! The frame decoder by the sections of RFC 6455: a case is bytes of a client and what comes of
//! them. Every case is read whole, byte by byte, and cut in two at many places.

use proptest::{collection::vec, prelude::*};
use underpass_wire::frame::{self, Decoder, Event, FrameError, Opcode, Peer};

const LIMIT: usize = 65_536;

fn hex(bytes: &[u8]) -> String {
    match bytes.len() {
        0..32 => bytes.iter().map(|it| format!("{it:02x}")).collect(),
        length => format!("{length} bytes"),
    }
}

/// What comes of bytes, in words: an event as `binary 010203`, an error as its variant.
fn read(peer: Peer, chunks: &[&[u8]]) -> Vec<String> {
    let mut decoder = Decoder::new(peer, LIMIT);
    let mut seen = Vec::new();
    for chunk in chunks {
        let mut input = *chunk;
        loop {
            let words = match decoder.decode(&mut input) {
                Ok(Some(Event::Binary(bytes))) => format!("binary {}", hex(bytes)),
                Ok(Some(Event::Text(text))) => format!("text {}", hex(text.as_bytes())),
                Ok(Some(Event::Ping(bytes))) => format!("ping {}", hex(bytes)),
                Ok(Some(Event::Pong(bytes))) => format!("pong {}", hex(bytes)),
                Ok(Some(Event::Close(None, _))) => "close".to_owned(),
                Ok(Some(Event::Close(Some(code), reason))) => format!("close {code} {reason}"),
                Ok(None) => break,
                Err(error) => {
                    seen.push(format!("{error:?}"));
                    return seen;
                }
            };
            seen.push(words.trim().to_owned());
        }
        assert!(input.is_empty());
        decoder.rest();
    }
    seen
}

fn check(section: &str, bytes: &[u8], expect: &[&str]) {
    assert_eq!(read(Peer::Client, &[bytes]), expect, "section {section}");
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    let seen = read(Peer::Client, &single);
    assert_eq!(seen, expect, "section {section}, byte by byte");
    for at in (0..bytes.len()).step_by(1 + bytes.len() / 50) {
        let (first, second) = bytes.split_at(at);
        let seen = read(Peer::Client, &[first, second]);
        assert_eq!(seen, expect, "section {section}, cut at {at}");
    }
}

/// A client's frame: the first byte as given, the length in its shortest form, masked.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let (header, length) = frame::header(Opcode::Binary, payload.len());
    let mut bytes = header[..length].to_vec();
    bytes[0] = first;
    bytes[1] |= 0x80;
    bytes.extend(mask);
    let masked = payload.iter().zip(mask.iter().cycle());
    bytes.extend(masked.map(|(byte, mask)| byte ^ mask));
    bytes
}

fn frames(parts: &[(u8, &[u8])]) -> Vec<u8> {
    let frame = |(first, payload): &(u8, &[u8])| masked(*first, payload);
    parts.iter().flat_map(frame).collect()
}

#[test]
fn section_5_7_examples() {
    let masked = [0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    let text = [&[0x81][..], &masked].concat();
    check("5.7 a masked text message", &text, &["text 48656c6c6f"]);
    let pong = [&[0x8a][..], &masked].concat();
    check("5.7 a masked pong", &pong, &["pong 48656c6c6f"]);
    let server = |bytes: &[u8]| read(Peer::Server, &[bytes]);
    assert_eq!(server(b"\x81\x05Hello"), ["text 48656c6c6f"]);
    assert_eq!(server(b"\x01\x03Hel\x80\x02lo"), ["text 48656c6c6f"]);
    assert_eq!(server(b"\x89\x05Hello"), ["ping 48656c6c6f"]);
    let long = [&[0x82, 0x7e, 1, 0][..], &[7; 256]].concat();
    assert_eq!(server(&long), ["binary 256 bytes"]);
    let longer = [&[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0][..], &[7; 65_536]].concat();
    assert_eq!(server(&longer), ["binary 65536 bytes"]);
}

#[test]
fn section_5_1_masks() {
    check("5.1", &[0x82, 0x01, 7], &["Mask"]);
    check("5.1 empty", &[0x82, 0x00], &["Mask"]);
    check("5.1 control", &[0x89, 0x00], &["Mask"]);
    assert_eq!(read(Peer::Server, &[&masked(0x82, &[7])]), ["Mask"]);
    for mask_and_bytes in [
        [0, 0, 0, 0, 1, 2],
        [255, 255, 0, 0, 254, 253],
        [1, 2, 3, 4, 0, 0],
    ] {
        let bytes = [&[0x82, 0x82][..], &mask_and_bytes].concat();
        check("5.3", &bytes, &["binary 0102"]);
    }
}

#[test]
fn section_5_2_reserved_bits_and_opcodes() {
    for last in [0, 0x80] {
        for opcode in [0, 1, 2, 8, 9, 10] {
            for reserved in 1..8u8 {
                let bytes = masked(last | reserved << 4 | opcode, b"");
                check("5.2 reserved bits", &bytes, &["ReservedBit"]);
            }
        }
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            check("5.2 opcodes", &masked(last | opcode, b""), &["Opcode"]);
            check("5.2 opcodes", &masked(last | opcode, b"x"), &["Opcode"]);
        }
    }
    let after = frames(&[(0x82, b"a"), (0x83, b"")]);
    check("5.2 after a message", &after, &["binary 61", "Opcode"]);
}

#[test]
fn section_5_2_lengths() {
    for length in [
        1, 2, 3, 4, 5, 7, 8, 9, 31, 124, 125, 126, 127, 128, 255, 256, 1000, 65_534, 65_535, 65_536,
    ] {
        let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
        let expect = format!("binary {}", hex(&payload));
        check("5.2", &masked(0x82, &payload), &[&expect]);
    }
    check("5.2 empty", &masked(0x82, b""), &["binary"]);
    let longer: [&[u8]; 6] = [
        &[0xfe, 0, 0],
        &[0xfe, 0, 125],
        &[0xff, 0, 0, 0, 0, 0, 0, 0, 1],
        &[0xff, 0, 0, 0, 0, 0, 0, 255, 255],
        &[0xff, 128, 0, 0, 0, 0, 1, 0, 0],
        &[0xff, 255, 255, 255, 255, 255, 255, 255, 255],
    ];
    for length in longer {
        let bytes = [&[0x82][..], length, &[0; 4]].concat();
        check("5.2 the shortest form", &bytes, &["Length"]);
    }
}

#[test]
fn section_10_4_limits() {
    let claims: [&[u8]; 3] = [
        &[0xff, 0, 0, 0, 0, 0, 1, 0, 1],
        &[0xff, 0, 0, 0, 0, 127, 255, 255, 255],
        &[0xff, 127, 255, 255, 255, 255, 255, 255, 255],
    ];
    for length in claims {
        for opcode in [0x81, 0x82, 0x01, 0x02] {
            let bytes = [&[opcode][..], length, &[0; 4]].concat();
            check("10.4", &bytes, &["TooLarge"]);
        }
    }
    let half = vec![7; 40_000];
    let check = |parts: &[(u8, &[u8])], expect| check("10.4", &frames(parts), &[expect]);
    check(&[(0x02, &half), (0x80, &half)], "TooLarge");
    let rest = &half[..25_536];
    check(
        &[(0x02, &half), (0x00, rest), (0x80, b"")],
        "binary 65536 bytes",
    );
    check(&[(0x02, &half), (0x00, rest), (0x80, b"x")], "TooLarge");
}

#[test]
fn section_5_4_fragments() {
    type Case<'a> = (&'a [(u8, &'a [u8])], &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (&[(0x02, b"a"), (0x80, b"b")], &["binary 6162"]),
        (
            &[(0x02, b"a"), (0x00, b"b"), (0x80, b"c")],
            &["binary 616263"],
        ),
        (&[(0x01, b"a"), (0x80, b"b")], &["text 6162"]),
        (&[(0x02, b""), (0x80, b"")], &["binary"]),
        (&[(0x02, b""), (0x00, b""), (0x80, b"a")], &["binary 61"]),
        (&[(0x02, b"a"), (0x80, b"")], &["binary 61"]),
        (
            &[(0x02, b"a"), (0x89, b"p"), (0x80, b"b")],
            &["ping 70", "binary 6162"],
        ),
        (
            &[(0x02, b"a"), (0x8a, b"p"), (0x80, b"b")],
            &["pong 70", "binary 6162"],
        ),
        (
            &[(0x01, b"a"), (0x89, b""), (0x80, b"")],
            &["ping", "text 61"],
        ),
        (&[(0x02, b"a"), (0x88, b""), (0x80, b"b")], &["close"]),
        (
            &[(0x02, b"a"), (0x80, b"b"), (0x82, b"c")],
            &["binary 6162", "binary 63"],
        ),
        (&[(0x80, b"")], &["NothingToContinue"]),
        (&[(0x00, b"")], &["NothingToContinue"]),
        (&[(0x80, b"abc")], &["NothingToContinue"]),
        (
            &[(0x82, b"a"), (0x80, b"b")],
            &["binary 61", "NothingToContinue"],
        ),
        (&[(0x89, b""), (0x00, b"b")], &["ping", "NothingToContinue"]),
        (
            &[(0x02, b"a"), (0x80, b"b"), (0x80, b"c")],
            &["binary 6162", "NothingToContinue"],
        ),
        (&[(0x02, b"a"), (0x82, b"b")], &["Interleaved"]),
        (&[(0x02, b"a"), (0x02, b"b")], &["Interleaved"]),
        (&[(0x02, b"a"), (0x81, b"b")], &["Interleaved"]),
        (&[(0x01, b"a"), (0x01, b"b")], &["Interleaved"]),
        (
            &[(0x01, b"a"), (0x00, b"b"), (0x82, b"c")],
            &["Interleaved"],
        ),
        (
            &[(0x02, b"a"), (0x89, b""), (0x82, b"c")],
            &["ping", "Interleaved"],
        ),
    ];
    for (parts, expect) in cases {
        check("5.4", &frames(parts), expect);
    }
    let many = [
        masked(0x02, b"x"),
        masked(0x00, b"x").repeat(999),
        masked(0x80, b""),
    ]
    .concat();
    check("5.4 many", &many, &["binary 1000 bytes"]);
}

#[test]
fn section_5_5_control_frames() {
    for (opcode, name) in [(8, "close"), (9, "ping"), (10, "pong")] {
        check(
            "5.5 in fragments",
            &masked(opcode, b""),
            &["ControlFragmented"],
        );
        for length in [126, 127, 1000, 65_536] {
            let long = masked(0x80 | opcode, &vec![b'a'; length]);
            check("5.5 too long", &long, &["ControlTooLong"]);
        }
        check("5.5 empty", &masked(0x80 | opcode, b""), &[name]);
        if opcode != 8 {
            let longest = masked(0x80 | opcode, &[7; 125]);
            check("5.5 longest", &longest, &[&format!("{name} 125 bytes")]);
        }
    }
    let many = frames(&[(0x89, b"1"), (0x89, b"2"), (0x8a, b"3"), (0x82, b"4")]);
    check(
        "5.5.2",
        &many,
        &["ping 31", "ping 32", "pong 33", "binary 34"],
    );
}

#[test]
fn section_5_5_1_close() {
    check("5.5.1 half a code", &masked(0x88, &[3]), &["CloseCode"]);
    check(
        "5.5.1 a reason",
        &masked(0x88, b"\x03\xe8bye"),
        &["close 1000 bye"],
    );
    check("5.5.1 not UTF-8", &masked(0x88, b"\x03\xe8\xff"), &["Utf8"]);
    let longest = [&[3, 232][..], &[b'a'; 123]].concat();
    let expect = format!("close 1000 {}", "a".repeat(123));
    check("5.5.1 longest", &masked(0x88, &longest), &[&expect]);
    let after = frames(&[(0x88, b"\x03\xe8"), (0x82, b"x"), (0x83, b"")]);
    check("5.5.1 nothing after it counts", &after, &["close 1000"]);
}

#[test]
fn section_7_4_close_codes() {
    for code in (1000..=1003)
        .chain(1007..=1014)
        .chain([3000, 3999, 4000, 4999u16])
    {
        let expect = format!("close {code}");
        check("7.4", &masked(0x88, &code.to_be_bytes()), &[&expect]);
    }
    for code in [
        0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 9999, 65_535u16,
    ] {
        check("7.4", &masked(0x88, &code.to_be_bytes()), &["CloseCode"]);
    }
}

#[test]
fn section_8_1_text_is_utf8() {
    for text in [
        "a",
        "é",
        "κόσμε",
        "\u{0}",
        "\u{7ff}",
        "\u{800}",
        "\u{ffff}",
        "\u{10ffff}",
        "🦀",
    ] {
        let expect = format!("text {}", hex(text.as_bytes()));
        check("8.1", &masked(0x81, text.as_bytes()), &[&expect]);
        // A character may be cut by a fragment.
        let (first, second) = text.as_bytes().split_at(text.len() / 2);
        check("8.1", &frames(&[(0x01, first), (0x80, second)]), &[&expect]);
    }
    let broken: [&[u8]; 14] = [
        b"\x80",
        b"\xbf",
        b"\xff",
        b"\xfe",
        b"\xc0\xaf",
        b"\xc1\xbf",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xf0\x80\x80\xaf",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"a\xe2\x82",
        b"\xe2\x28\xa1",
    ];
    for bytes in broken {
        check("8.1", &masked(0x81, bytes), &["Utf8"]);
        let (first, second) = bytes.split_at(bytes.len() / 2);
        check("8.1", &frames(&[(0x01, first), (0x80, second)]), &["Utf8"]);
        let expect = format!("binary {}", hex(bytes));
        check("8.1 is of text alone", &masked(0x82, bytes), &[&expect]);
    }
}

#[test]
fn what_is_claimed_costs_no_memory() {
    let mut decoder = Decoder::new(Peer::Client, LIMIT);
    let mut header = &[0x82, 0xfe, 0xff, 0xff, 0, 0, 0, 0, 1][..];
    assert_eq!(decoder.decode(&mut header), Ok(None));
    assert!(!decoder.is_between_messages());
    assert!(decoder.memory() < 64, "{}", decoder.memory());
    let mut rest = &vec![0; 65_534][..];
    let event = decoder.decode(&mut rest);
    assert!(matches!(event, Ok(Some(Event::Binary(_)))), "{event:?}");
    assert!(decoder.is_between_messages());
    decoder.rest();
    assert_eq!(decoder.memory(), 0);
}

/// A session is lent memory for a turn, and keeps that of an unfinished message alone.
#[test]
fn what_is_lent_is_given_back() {
    let mut decoder = Decoder::new(Peer::Client, LIMIT);
    let message = masked(0x82, &[7; 1000]);
    let (first, second) = message.split_at(500);
    decoder.lend(Vec::with_capacity(4096));
    assert_eq!(decoder.decode(&mut &first[..]), Ok(None));
    assert_eq!(decoder.rest().map(|it| it.capacity()), Some(4096));
    assert_eq!(decoder.memory(), 500 - 8);
    decoder.lend(Vec::with_capacity(4096));
    let event = decoder.decode(&mut &second[..]);
    assert_eq!(event, Ok(Some(Event::Binary(&[7; 1000]))));
    assert_eq!(decoder.rest().map(|it| it.capacity()), Some(4096));
    assert_eq!((decoder.memory(), decoder.rest()), (0, None));
}

#[test]
fn an_error_stays() {
    let mut decoder = Decoder::new(Peer::Client, LIMIT);
    for _ in 0..3 {
        let mut input = &[0x83, 0x80, 0, 0, 0, 0][..];
        assert_eq!(decoder.decode(&mut input), Err(FrameError::Opcode));
        assert!(input.is_empty());
    }
}

#[test]
fn golden_frames() {
    let mut bytes = Vec::new();
    frame::push(&mut bytes, Opcode::Text, b"Hi");
    frame::push(&mut bytes, Opcode::Binary, &[]);
    frame::push_close(&mut bytes, 4023, "restarting");
    assert_eq!(bytes, b"\x81\x02Hi\x82\x00\x88\x0c\x0f\xb7restarting");
    let mut long = Vec::new();
    frame::push_close(&mut long, 1000, &"x".repeat(124));
    assert_eq!(long, [0x88, 2, 3, 232]);
}

proptest! {
    #[test]
    fn what_is_pushed_is_read(
        payloads in vec(vec(any::<u8>(), 0..700), 1..20),
        cut in 1usize..900,
    ) {
        let mut bytes = Vec::new();
        for payload in &payloads {
            frame::push(&mut bytes, Opcode::Binary, payload);
        }
        let mut decoder = Decoder::new(Peer::Server, LIMIT);
        let mut seen = Vec::new();
        for mut chunk in bytes.chunks(cut) {
            while let Some(event) = decoder.decode(&mut chunk).unwrap() {
                let Event::Binary(payload) = event else { panic!("{event:?}") };
                seen.push(payload.to_vec());
            }
        }
        prop_assert_eq!(seen, payloads);
    }

    #[test]
    fn any_bytes_end_alike_however_they_are_cut(
        bytes in vec(prop_oneof![any::<u8>(), Just(0x82u8), Just(0x80u8)], 0..300),
        cut in 1usize..50,
    ) {
        let whole = read(Peer::Client, &[&bytes]);
        let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
        prop_assert_eq!(read(Peer::Client, &chunks), whole);
    }
}
