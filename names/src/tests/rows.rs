//! Every row of the table of names, and what lies between the rows.

use hickory_proto::{
    op::ResponseCode,
    rr::{RData, RecordType},
};

use super::*;

fn table(rows: &[(&str, RecordType)]) -> String {
    rows.iter()
        .map(|(name, kind)| shown(name, *kind) + "\n")
        .collect()
}

#[test]
fn addresses() {
    use RecordType::AAAA;
    insta::assert_snapshot!(table(&[
        ("web.internal.", AAAA),
        ("global.web.internal.", AAAA),
        ("ams.web.internal.", AAAA),
        ("w2.vm.web.internal.", AAAA),
        ("worker.process.web.internal.", AAAA),
        ("top1.nearest.of.web.internal.", AAAA),
        ("top9.nearest.of.web.internal.", AAAA),
        ("laptop._peer.internal.", AAAA),
    ]));
}

#[test]
fn texts() {
    use RecordType::TXT;
    insta::assert_snapshot!(table(&[
        ("regions.web.internal.", TXT),
        ("vms.web.internal.", TXT),
        ("_apps.internal.", TXT),
        ("_peer.internal.", TXT),
        ("_instances.internal.", TXT),
        ("_orgcert.internal.", TXT),
        ("_hostca.internal.", TXT),
    ]));
}

#[test]
fn names_that_exist_and_hold_nothing_of_the_kind() {
    use RecordType::*;
    insta::assert_snapshot!(table(&[
        ("web.internal.", A),
        ("web.internal.", TXT),
        ("_apps.internal.", AAAA),
        ("laptop._peer.internal.", TXT),
        // Stopped: the name is there, the instance is not.
        ("w3.vm.web.internal.", AAAA),
        ("cdg.web.internal.", AAAA),
        ("cron.process.web.internal.", AAAA),
        ("idle.internal.", AAAA),
        ("empty.internal.", AAAA),
        ("regions.idle.internal.", TXT),
        ("vms.empty.internal.", TXT),
        // Others lie below them.
        ("vm.web.internal.", AAAA),
        ("process.web.internal.", AAAA),
        ("of.web.internal.", AAAA),
        ("nearest.of.web.internal.", AAAA),
        ("internal.", AAAA),
    ]));
}

#[test]
fn names_that_do_not_exist() {
    use RecordType::AAAA;
    let names = [
        "nope.internal.",
        "lhr.db.nope.internal.",
        "fra.web.internal.",
        "w9.vm.web.internal.",
        "d1.vm.web.internal.",
        "nope.process.web.internal.",
        "top0.nearest.of.web.internal.",
        "top01.nearest.of.web.internal.",
        "top.nearest.of.web.internal.",
        "top-1.nearest.of.web.internal.",
        "top+1.nearest.of.web.internal.",
        "top99999999999999999999.nearest.of.web.internal.",
        "x.top1.nearest.of.web.internal.",
        "www.web.vm.web.internal.",
        "x.global.web.internal.",
        "nobody._peer.internal.",
        "x.laptop._peer.internal.",
        "x._apps.internal.",
        "_other.internal.",
        "*.internal.",
        "\u{e9}.internal.",
    ];
    for name in names {
        for kind in [AAAA, RecordType::TXT, RecordType::ANY] {
            let answer = ask(&Names::new(Two), &query(name, kind), PEER, Over::Udp);
            assert_eq!(
                answer.metadata.response_code,
                ResponseCode::NXDomain,
                "{name}"
            );
            assert!(answer.answers.is_empty());
            assert_eq!(answer.authorities.len(), 1);
        }
    }
    insta::assert_snapshot!(shown("nope.internal.", AAAA));
}

#[test]
fn letter_case_is_the_askers() {
    insta::assert_snapshot!(table(&[
        ("LhR.wEb.InTeRnAl.", RecordType::AAAA),
        ("_aPPs.INTERNAL.", RecordType::TXT),
        ("NOPE.INTERNAL.", RecordType::AAAA),
    ]));
}

#[test]
fn the_nearest_is_in_the_askers_region() {
    let nearest = "top2.nearest.of.web.internal.";
    let in_london = "fdaa:0:18:2:0:2:1:2";
    insta::assert_snapshot!(shown_from(in_london, nearest, RecordType::AAAA));
}

#[test]
fn any_and_the_apex() {
    insta::assert_snapshot!(table(&[
        ("web.internal.", RecordType::ANY),
        ("internal.", RecordType::ANY),
        ("internal.", RecordType::SOA),
        ("internal.", RecordType::NS),
        ("web.internal.", RecordType::SOA),
    ]));
}

#[test]
fn reverse_names_stay_here() {
    insta::assert_snapshot!(table(&[
        (
            "2.0.0.0.1.0.0.0.1.0.0.0.0.0.0.0.1.0.0.0.8.1.0.0.0.0.0.0.a.a.d.f.ip6.arpa.",
            RecordType::PTR
        ),
        ("9.1.0.0.0.0.0.0.A.A.D.F.IP6.ARPA.", RecordType::PTR),
        ("a.a.d.f.ip6.arpa.", RecordType::SOA),
    ]));
}

#[test]
fn another_network_looks_like_nothing_at_all() {
    // Byte for byte, but for the name that was asked.
    for (theirs, nobodys) in [
        ("secret.internal.", "sEcrex.internal."),
        ("s1.vm.secret.internal.", "s1.vm.secrex.internal."),
        ("ams.secret.internal.", "ams.secrex.internal."),
        ("hidden._peer.internal.", "hiddex._peer.internal."),
    ] {
        for kind in [
            RecordType::AAAA,
            RecordType::TXT,
            RecordType::ANY,
            RecordType::MX,
        ] {
            let theirs = shown(theirs, kind)
                .replace("secret", "#")
                .replace("hidden", "#");
            let nobodys = shown(nobodys, kind)
                .replace("sEcrex", "#")
                .replace("hiddex", "#");
            assert_eq!(theirs, nobodys.replace("secrex", "#"));
        }
    }
    for list in ["_apps", "_peer", "_instances", "_orgcert", "_hostca"] {
        let name = format!("{list}.internal.");
        let ours = shown(&name, RecordType::TXT);
        let theirs = shown_from(STRANGER, &name, RecordType::TXT);
        for word in ["secret", "hidden", "0:19", "OTHER", "s1"] {
            assert!(!ours.contains(word), "{list} tells {word}: {ours}");
        }
        for word in ["web", "laptop", "0:18", "AAAA"] {
            assert!(!theirs.contains(word), "{list} tells {word}: {theirs}");
        }
    }
}

#[test]
fn a_thousand_apps_are_all_listed() {
    struct Thousand;
    impl Directory for Thousand {
        fn view(&self, _: NetworkId) -> Option<Arc<NetworkView>> {
            let name = |n: usize| format!("{n:04}-{}", "x".repeat(58));
            Some(Arc::new(NetworkView {
                apps: (0..1000).map(|n| app(&name(n), &[])).collect(),
                ..NetworkView::default()
            }))
        }
    }
    let names = Names::new(Thousand);
    let asked = query("_apps.internal.", RecordType::TXT);
    let over_udp = ask(&names, &asked, PEER, Over::Udp);
    assert!(over_udp.metadata.truncation && over_udp.answers.is_empty());

    let whole = ask(&names, &asked, PEER, Over::Tcp);
    assert!(!whole.metadata.truncation);
    let [record] = &whole.answers[..] else {
        panic!("one record")
    };
    let RData::TXT(txt) = &record.data else {
        panic!("TXT")
    };
    assert!(txt.txt_data.len() > 250 && txt.txt_data.iter().all(|string| string.len() <= 255));
    let text = String::from_utf8(txt.txt_data.concat()).unwrap();
    assert_eq!(text.split(',').count(), 1000);
    assert_eq!(text.split(',').next_back().unwrap().len(), 63);
}

#[test]
fn more_than_a_message_holds_is_cut_after_a_whole_item() {
    struct Crowd;
    impl Directory for Crowd {
        fn view(&self, _: NetworkId) -> Option<Arc<NetworkView>> {
            let instance = |n: u16| InstanceView {
                id: format!("i{n}"),
                region: "ams".into(),
                address: Ipv6Addr::new(0xfdaa, 0, 0x18, 1, 0, 1, n, 2),
                started: true,
                group: "app".into(),
            };
            Some(Arc::new(NetworkView {
                apps: vec![AppView {
                    name: "web".into(),
                    instances: (0..5000).map(instance).collect(),
                }],
                ..NetworkView::default()
            }))
        }
    }
    let names = Names::new(Crowd);
    let answer = ask(
        &names,
        &query("_instances.internal.", RecordType::TXT),
        PEER,
        Over::Tcp,
    );
    let RData::TXT(txt) = &answer.answers[0].data else {
        panic!("TXT")
    };
    let text = String::from_utf8(txt.txt_data.concat()).unwrap();
    let items: Vec<_> = text.split(';').collect();
    assert!(items.len() > 900 && items.iter().all(|item| item.ends_with("region=ams")));
    let counters = names.counters().snapshot();
    assert!(counters.contains(&("cut", 1)), "{counters:?}");

    let answer = ask(
        &names,
        &query("web.internal.", RecordType::AAAA),
        PEER,
        Over::Tcp,
    );
    assert_eq!(answer.answers.len(), 1024);
}
