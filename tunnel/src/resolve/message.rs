//! DNS messages: a query in bytes, and an answer that may be hostile.
//!
//! Only what a stub resolver needs: one question of class IN, an EDNS record that asks for answers
//! of up to 1,232 bytes, and the records that answer the question. Names are compared without
//! regard to case. A compressed name may only point backwards, so that no chain is a loop, and
//! may follow [`MAX_POINTERS`] of them; no name is copied before it is known to be of use.

use std::net::Ipv6Addr;

use super::RecordKind;

const HEADER: usize = 12;
const CNAME: u16 = 5;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const IN: u16 = 1;
/// What fits every path (RFC 9715), the tunnel's too.
const UDP_SIZE: u16 = 1232;
const MAX_POINTERS: usize = 16;
/// Aliases followed within one answer.
const MAX_ALIASES: usize = 8;
/// Records read of one answer; TCP has room for thousands.
const MAX_RECORDS: usize = 2048;

/// A name in wire form, without compression.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Name(Vec<u8>);

impl Name {
    /// Reads `a.b.c` or `a.b.c.`: labels of 1 to 63 printable ASCII characters, 253 in all.
    pub(super) fn parse(text: &str) -> Option<Name> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > 253 {
            return None;
        }
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.split('.') {
            let sound = label.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
            let length = u8::try_from(label.len())
                .ok()
                .filter(|length| (1..=63).contains(length));
            wire.push(length.filter(|_| sound)?);
            wire.extend_from_slice(label.as_bytes());
        }
        wire.push(0);
        Some(Name(wire))
    }

    /// Reads a name of a message that starts at `at`; also where it ends there.
    fn read(message: &[u8], at: usize) -> Option<(Name, usize)> {
        let mut wire = Vec::new();
        let (mut here, mut end, mut pointers) = (at, None, 0);
        loop {
            let length = usize::from(*message.get(here)?);
            match length >> 6 {
                0 => {
                    wire.extend_from_slice(message.get(here..=here + length)?);
                    if wire.len() > 255 {
                        return None;
                    }
                    here += 1 + length;
                    if length == 0 {
                        return Some((Name(wire), end.unwrap_or(here)));
                    }
                }
                3 => {
                    let target = (length & 0x3f) << 8 | usize::from(*message.get(here + 1)?);
                    end.get_or_insert(here + 2);
                    pointers += 1;
                    if target >= here || pointers > MAX_POINTERS {
                        return None;
                    }
                    here = target;
                }
                _ => return None,
            }
        }
    }

    /// Where a name that starts at `at` ends, without following it.
    fn skip(message: &[u8], mut at: usize) -> Option<usize> {
        loop {
            let length = usize::from(*message.get(at)?);
            match length >> 6 {
                0 if length == 0 => return Some(at + 1),
                0 => at += 1 + length,
                3 => return (at + 1 < message.len()).then_some(at + 2),
                _ => return None,
            }
        }
    }

    /// Length bytes are below the letters: they compare as they are.
    fn same(&self, other: &Name) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

/// A query for the records of `kind` at `name`.
pub(super) fn query(id: u16, name: &Name, kind: RecordKind) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + name.0.len() + 15);
    out.extend_from_slice(&id.to_be_bytes());
    // Recursion desired; one question, one additional record.
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    out.extend_from_slice(&name.0);
    out.extend_from_slice(&type_of(kind).to_be_bytes());
    out.extend_from_slice(&IN.to_be_bytes());
    out.push(0);
    out.extend_from_slice(&OPT.to_be_bytes());
    out.extend_from_slice(&UDP_SIZE.to_be_bytes());
    out.extend_from_slice(&[0; 6]);
    out
}

/// What a message says to our question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Aaaa(Vec<Ipv6Addr>),
    Txt(Vec<String>),
    /// The name exists, without such records.
    NoData,
    /// More than fits: ask again over TCP.
    Truncated,
    /// A response code that is no success.
    Failed(u8),
    /// It answers our question and makes no sense.
    Malformed,
}

/// Reads a message; `None` when it is no answer to this very question.
pub(super) fn reply(message: &[u8], id: u16, name: &Name, kind: RecordKind) -> Option<Reply> {
    let header: &[u8; HEADER] = message.first_chunk()?;
    let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // A response to a plain query, with one question.
    if half(0) != id || header[2] & 0xf8 != 0x80 || half(4) != 1 {
        return None;
    }
    let (asked, end) = Name::read(message, HEADER)?;
    let question = message.get(end..end + 4)?;
    let kind_and_class = [type_of(kind).to_be_bytes(), IN.to_be_bytes()];
    if !asked.same(name) || question != kind_and_class.as_flattened() {
        return None;
    }
    if header[2] & 2 != 0 {
        return Some(Reply::Truncated);
    }
    match header[3] & 15 {
        0 => {}
        code => return Some(Reply::Failed(code)),
    }
    Some(answers(message, end + 4, half(6).into(), name, kind).unwrap_or(Reply::Malformed))
}

struct Record {
    owner: usize,
    kind: u16,
    data: (usize, usize),
}

fn answers(
    message: &[u8],
    mut at: usize,
    count: usize,
    name: &Name,
    kind: RecordKind,
) -> Option<Reply> {
    if count > MAX_RECORDS {
        return None;
    }
    let mut records = Vec::new();
    for _ in 0..count {
        let owner = at;
        let fixed = Name::skip(message, at)?;
        let &[t0, t1, c0, c1, _, _, _, _, l0, l1] = message.get(fixed..)?.first_chunk::<10>()?;
        let start = fixed + 10;
        at = start + usize::from(u16::from_be_bytes([l0, l1]));
        message.get(start..at)?;
        if u16::from_be_bytes([c0, c1]) == IN {
            let kind = u16::from_be_bytes([t0, t1]);
            records.push(Record {
                owner,
                kind,
                data: (start, at),
            });
        }
    }

    // An alias and what it stands for come in one answer.
    let mut name = name.clone();
    for _ in 0..=MAX_ALIASES {
        let owned = |record: &&Record| {
            Name::read(message, record.owner).is_some_and(|(owner, _)| owner.same(&name))
        };
        let found: Vec<&Record> = records.iter().filter(owned).collect();
        let data = |record: &Record| &message[record.data.0..record.data.1];
        let of_kind = found.iter().filter(|record| record.kind == type_of(kind));
        match kind {
            RecordKind::Aaaa => {
                let addresses: Option<Vec<_>> = of_kind
                    .map(|r| <[u8; 16]>::try_from(data(r)).ok().map(Ipv6Addr::from))
                    .collect();
                match addresses? {
                    none if none.is_empty() => {}
                    addresses => return Some(Reply::Aaaa(addresses)),
                }
            }
            RecordKind::Txt => {
                let texts: Option<Vec<_>> = of_kind.map(|r| text(data(r))).collect();
                match texts? {
                    none if none.is_empty() => {}
                    texts => return Some(Reply::Txt(texts)),
                }
            }
        }
        match found.iter().find(|record| record.kind == CNAME) {
            Some(alias) => name = Name::read(message, alias.data.0)?.0,
            None => return Some(Reply::NoData),
        }
    }
    None
}

/// The strings of a TXT record, joined: a text longer than 255 bytes takes several.
fn text(mut data: &[u8]) -> Option<String> {
    let mut joined = Vec::new();
    while let Some((length, rest)) = data.split_first() {
        let (string, rest) = rest.split_at_checked(usize::from(*length))?;
        joined.extend_from_slice(string);
        data = rest;
    }
    Some(String::from_utf8_lossy(&joined).into_owned())
}

fn type_of(kind: RecordKind) -> u16 {
    match kind {
        RecordKind::Aaaa => AAAA,
        RecordKind::Txt => TXT,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An answer to `query` with these records of kind and data, owned by the question's name.
    pub(crate) fn answer(query: &[u8], flags: [u8; 2], records: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let end = Name::skip(query, HEADER).unwrap() + 4;
        let mut out = query[..end].to_vec();
        out[2..4].copy_from_slice(&flags);
        out[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
        out[8..12].fill(0);
        for (kind, data) in records {
            out.extend_from_slice(&[0xc0, 12]);
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&[0, 1, 0, 0, 0, 5]);
            out.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
            out.extend_from_slice(data);
        }
        out
    }

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn a_query_in_bytes() {
        let query = query(0x1234, &name("web.internal"), RecordKind::Aaaa);
        let hex: String = query.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "123401000001000000000001\
             0377656208696e7465726e616c00001c0001\
             00002904d0000000000000"
        );
    }

    #[test]
    fn names_that_are_none() {
        let long = "a".repeat(64);
        let many = "abc.".repeat(70);
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            " ",
            "a b",
            "é.internal",
            &long,
            &many,
            "a\\b",
        ] {
            assert_eq!(Name::parse(bad), None, "{bad}");
        }
        assert_eq!(name("a.B."), Name(b"\x01a\x01B\0".to_vec()));
    }

    #[test]
    fn answers_are_read_and_others_questions_are_not() {
        let web = name("web.internal");
        let q = query(7, &web, RecordKind::Aaaa);
        let address = Ipv6Addr::new(0xfdaa, 0, 1, 2, 3, 4, 5, 6);
        let records = [(AAAA, address.octets().to_vec()), (TXT, b"\x01x".to_vec())];
        let message = answer(&q, [0x81, 0x80], &records);
        let read = |message: &[u8]| reply(message, 7, &web, RecordKind::Aaaa);
        assert_eq!(read(&message), Some(Reply::Aaaa(vec![address])));
        let upper = name("WEB.internal");
        assert!(
            reply(&message, 7, &upper, RecordKind::Aaaa).is_some(),
            "case does not matter"
        );
        assert_eq!(
            reply(&message, 8, &web, RecordKind::Aaaa),
            None,
            "another id"
        );
        assert_eq!(
            reply(&message, 7, &web, RecordKind::Txt),
            None,
            "another type"
        );
        assert_eq!(
            reply(&message, 7, &name("web2.internal"), RecordKind::Aaaa),
            None
        );
        assert_eq!(read(&q), None, "a query is no answer");
        assert_eq!(read(&answer(&q, [0x83, 0x80], &[])), Some(Reply::Truncated));
        assert_eq!(read(&answer(&q, [0x81, 0x83], &[])), Some(Reply::Failed(3)));
        assert_eq!(
            read(&answer(&q, [0x81, 0x80], &records[1..])),
            Some(Reply::NoData)
        );
        let short = answer(&q, [0x81, 0x80], &[(AAAA, vec![1, 2, 3])]);
        assert_eq!(read(&short), Some(Reply::Malformed));
    }

    #[test]
    fn aliases_are_followed_and_loops_are_not() {
        let web = name("web.internal");
        let q = query(7, &web, RecordKind::Txt);
        let target = name("other.internal");
        let mut message = answer(&q, [0x81, 0x80], &[(CNAME, target.0.clone())]);
        message[7] = 2;
        message.extend_from_slice(&target.0);
        message.extend_from_slice(&[
            0, 16, 0, 1, 0, 0, 0, 5, 0, 7, 2, b'h', b'i', 3, b' ', b'y', b'o',
        ]);
        let read = |message: &[u8]| reply(message, 7, &web, RecordKind::Txt);
        assert_eq!(read(&message), Some(Reply::Txt(vec!["hi yo".to_string()])));
        let circle = answer(&q, [0x81, 0x80], &[(CNAME, vec![0xc0, 12])]);
        assert_eq!(read(&circle), Some(Reply::Malformed));
        // A name that points at itself, and one that points ahead.
        for pointer in [12, 40] {
            let mut message = vec![0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0, 0xc0, pointer];
            message.extend_from_slice(&[0; 60]);
            assert_eq!(read(&message), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let web = name("web.internal");
            let _ = reply(&bytes, 7, &web, RecordKind::Txt);
            let q = query(7, &web, RecordKind::Txt);
            let mut message = answer(&q, [0x81, 0x80], &[]);
            message[7] = 5;
            message.append(&mut bytes);
            prop_assert!(reply(&message, 7, &web, RecordKind::Txt).is_some());
        }

        #[test]
        fn no_change_of_a_real_answer_panics(at in 0usize..200, to in any::<u8>(), cut in 0usize..200) {
            let web = name("web.internal");
            let q = query(7, &web, RecordKind::Txt);
            let records = [(CNAME, vec![3, b'a', b'b', b'c', 0xc0, 16]), (TXT, b"\x03abc\x02de".to_vec())];
            let mut message = answer(&q, [0x81, 0x80], &records);
            let length = message.len();
            message[at % length] = to;
            message.truncate(length - cut % length);
            let _ = reply(&message, 7, &web, RecordKind::Txt);
        }
    }
}
