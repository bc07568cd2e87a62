//! What comes before the zone: sizes, EDNS, strangers, junk, too many questions.

use std::num::NonZeroUsize;

use hickory_proto::{
    op::ResponseCode,
    rr::{DNSClass, RecordType},
};
use proptest::prelude::*;

use super::*;
use crate::{DropReason, Rate};

fn names() -> Names<Two> {
    Names::new(Two)
}

fn code(answer: &Message) -> ResponseCode {
    answer.metadata.response_code
}

#[test]
fn udp_answers_fit_what_the_asker_takes_and_1232() {
    struct Thirty;
    impl Directory for Thirty {
        fn view(&self, _: NetworkId) -> Option<Arc<NetworkView>> {
            let ids: Vec<_> = (1..=30)
                .map(|n| (format!("i{n}"), format!("fdaa:0:18:1:0:1:{n}:2")))
                .collect();
            let instances: Vec<_> = ids
                .iter()
                .map(|(id, address)| (id.as_str(), "ams", address.as_str(), true, "app"))
                .collect();
            Some(Arc::new(NetworkView {
                // 30 addresses are about 900 bytes, two apps' worth of `_instances` about 1,600.
                apps: vec![app("web", &instances)],
                ..NetworkView::default()
            }))
        }
    }
    let names = Names::new(Thirty);
    let web = || query("web.internal.", RecordType::AAAA);
    for (query, over, truncated) in [
        (web(), Over::Udp, true),
        (with_edns(web(), 0), Over::Udp, true),
        (with_edns(web(), 512), Over::Udp, true),
        (with_edns(web(), 1232), Over::Udp, false),
        (with_edns(web(), 65535), Over::Udp, false),
        (web(), Over::Tcp, false),
        (
            with_edns(query("_instances.internal.", RecordType::TXT), 65535),
            Over::Udp,
            true,
        ),
        (
            with_edns(query("_instances.internal.", RecordType::TXT), 512),
            Over::Tcp,
            false,
        ),
    ] {
        let answer = ask(&names, &query, PEER, over);
        assert_eq!(answer.metadata.truncation, truncated, "{query}");
        assert_eq!(answer.answers.is_empty(), truncated);
        assert_eq!(answer.queries, query.queries);
        assert_eq!(answer.edns.is_some(), query.edns.is_some());
        if over == Over::Udp {
            let limit = query
                .edns
                .as_ref()
                .map_or(512, Edns::max_payload)
                .clamp(512, 1232);
            assert!(answer.to_vec().unwrap().len() <= limit.into());
        }
    }
}

#[test]
fn edns_is_our_own() {
    let mut asked = with_edns(query("web.internal.", RecordType::AAAA), 4096);
    asked.edns.as_mut().unwrap().set_dnssec_ok(true);
    let answer = ask(&names(), &asked, PEER, Over::Udp);
    let edns = answer.edns.as_ref().unwrap();
    assert_eq!(
        (edns.version(), edns.max_payload(), edns.flags().dnssec_ok),
        (0, 1232, true)
    );
    assert!(edns.options().as_ref().is_empty());

    asked.edns.as_mut().unwrap().set_version(1);
    let answer = ask(&names(), &asked, PEER, Over::Udp);
    assert_eq!(u16::from(code(&answer)), 16, "BADVERS");
    assert_eq!(answer.edns.as_ref().unwrap().version(), 0);
    assert!(answer.answers.is_empty());
}

#[test]
fn strangers_and_other_classes_are_refused() {
    let web = query("web.internal.", RecordType::AAAA);
    for stranger in [
        "::1",
        "2001:db8::1",
        "fdaa::2",
        "fdaa:0:77::2",
        "fdab:0:18::2",
    ] {
        assert_eq!(
            code(&ask(&names(), &web, stranger, Over::Udp)),
            ResponseCode::Refused
        );
        let outside = query("example.com.", RecordType::A);
        assert_eq!(
            code(&ask(&names(), &outside, stranger, Over::Udp)),
            ResponseCode::Refused
        );
    }
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::NONE, DNSClass::ANY] {
        for name in ["web.internal.", "version.bind."] {
            let mut other = query(name, RecordType::TXT);
            other.queries[0].query_class = class;
            assert_eq!(
                code(&ask(&names(), &other, PEER, Over::Udp)),
                ResponseCode::Refused
            );
        }
    }
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        for name in ["internal.", "example.com."] {
            assert_eq!(
                code(&ask(&names(), &query(name, kind), PEER, Over::Tcp)),
                ResponseCode::Refused
            );
        }
    }
}

#[test]
fn a_network_without_anything_has_a_zone() {
    let empty = "fdaa:0:20::2";
    for (list, expected) in [
        ("_apps", ResponseCode::NoError),
        ("web", ResponseCode::NXDomain),
    ] {
        let asked = query(&format!("{list}.internal."), RecordType::TXT);
        let answer = ask(&names(), &asked, empty, Over::Udp);
        assert_eq!(code(&answer), expected);
        assert!(answer.answers.is_empty() && answer.authorities.len() == 1);
    }
}

/// Changes one byte of a good query, and says the code that comes back.
fn damaged(at: usize, byte: u8) -> Reply {
    let mut bytes = query("web.internal.", RecordType::AAAA).to_vec().unwrap();
    bytes[at] = byte;
    ask_bytes(&names(), &bytes, PEER, Over::Udp)
}

fn raw_code(reply: Reply) -> u8 {
    match reply {
        Reply::Answer(bytes) => {
            assert_eq!((bytes[0], bytes[1], bytes[2] & 0x80), (0x12, 0x34, 0x80));
            bytes[3] & 0x0f
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn junk_with_a_header_is_a_format_error() {
    const FORMERR: u8 = 1;
    assert_eq!(raw_code(damaged(5, 0)), FORMERR, "no question");
    assert_eq!(
        raw_code(damaged(5, 2)),
        FORMERR,
        "a question that is not there"
    );
    assert_eq!(raw_code(damaged(4, 0xff)), FORMERR, "65,281 questions");
    assert_eq!(raw_code(damaged(7, 1)), FORMERR, "an answer");
    assert_eq!(raw_code(damaged(9, 1)), FORMERR, "an authority");
    assert_eq!(
        raw_code(damaged(11, 1)),
        FORMERR,
        "an additional record that is not there"
    );
    assert_eq!(raw_code(damaged(12, 0xc0)), FORMERR, "a pointer to nowhere");
    assert_eq!(raw_code(damaged(12, 63)), FORMERR, "a label past the end");

    let mut two = query("web.internal.", RecordType::AAAA);
    two.add_query(two.queries[0].clone());
    assert_eq!(
        code(&ask(&names(), &two, PEER, Over::Udp)),
        ResponseCode::FormErr
    );

    let mut long = query("web.internal.", RecordType::AAAA).to_vec().unwrap();
    long.resize(4097, 0);
    assert_eq!(
        raw_code(ask_bytes(&names(), &long, PEER, Over::Tcp)),
        FORMERR
    );

    for opcode in [1, 2, 4, 5, 6, 15] {
        assert_eq!(raw_code(damaged(2, opcode << 3)), 4, "operation {opcode}");
    }
}

#[test]
fn nothing_is_said_to_a_response_or_a_stump() {
    assert_eq!(damaged(2, 0x81), Reply::Drop(DropReason::Response));
    for len in 0..12 {
        let reply = ask_bytes(&names(), &vec![0; len], PEER, Over::Udp);
        assert_eq!(reply, Reply::Drop(DropReason::TooShort));
    }
}

#[test]
fn a_source_that_asks_too_fast_hears_nothing_and_others_do() {
    let names = Names::with_rate(
        Two,
        Rate {
            per_second: 1,
            burst: 2,
            sources: NonZeroUsize::new(16).unwrap(),
        },
    );
    let bytes = query("web.internal.", RecordType::AAAA).to_vec().unwrap();
    let ask = |source: &str, over, seconds| {
        names.answer(
            &bytes,
            source.parse().unwrap(),
            over,
            Duration::from_secs(seconds),
        )
    };
    for _ in 0..2 {
        assert!(matches!(ask(PEER, Over::Udp, 0), Reply::Answer(_)));
    }
    assert_eq!(
        ask(PEER, Over::Udp, 0),
        Reply::Drop(DropReason::RateLimited)
    );
    assert_eq!(
        raw_code(ask(PEER, Over::Tcp, 0)),
        5,
        "refused, so that a connection goes on"
    );
    assert!(matches!(ask(STRANGER, Over::Udp, 0), Reply::Answer(_)));
    assert!(matches!(ask(PEER, Over::Udp, 1), Reply::Answer(_)));
    let counters = names.counters().snapshot();
    assert!(
        counters.contains(&("dropped_rate_limited", 2)),
        "{counters:?}"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..600), tcp: bool) {
        let over = if tcp { Over::Tcp } else { Over::Udp };
        let reply = ask_bytes(&names(), &bytes, PEER, over);
        if let Reply::Answer(answer) = reply {
            prop_assert!(answer.len() >= 12 && answer[2] & 0x80 != 0);
            prop_assert_eq!(&answer[..2], &bytes[..2]);
        }
    }

    #[test]
    fn any_damage_to_a_query_is_taken(
        name in "([a-z0-9_]{1,12}\\.){0,4}(internal|INTERNAL|a\\.a\\.d\\.f\\.ip6\\.arpa|com)\\.",
        kind: u16,
        payload: u16,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let message = with_edns(query(&name, RecordType::from(kind)), payload);
        let mut bytes = message.to_vec().unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        match ask_bytes(&names(), &bytes, PEER, Over::Udp) {
            Reply::Answer(answer) => prop_assert!(answer.len() <= 1232),
            Reply::Forward(_) | Reply::Drop(_) => {}
        }
    }

    #[test]
    fn the_zone_is_never_forwarded(
        labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6),
        apex in "[iI][nN][tT][eE][rR][nN][aA][lL]",
        kind: u16,
        class: u16,
    ) {
        let mut all: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
        all.push(apex.as_bytes());
        let mut message = query(".", RecordType::from(kind));
        message.queries[0].name = Name::from_labels(all).unwrap();
        message.queries[0].query_class = DNSClass::from(class);
        let reply = ask_bytes(&names(), &message.to_vec().unwrap(), PEER, Over::Udp);
        prop_assert!(!matches!(reply, Reply::Forward(_)));
    }
}
