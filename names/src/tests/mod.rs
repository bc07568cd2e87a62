//! Through the public door: bytes in, bytes out.

mod door;
mod forwarding;
mod rows;

use std::{net::Ipv6Addr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use sixpn::NetworkId;

use crate::{AppView, Directory, InstanceView, Names, NetworkView, Over, PeerView, Reply};

/// A peer of network 0x18.
const PEER: &str = "fdaa:0:18:a7b:d6b:0:a:2";
/// A peer of network 0x19.
const STRANGER: &str = "fdaa:0:19:a7b:d6b:0:a:2";

/// Two networks: 0x18 with two apps, and 0x19 with one of another name.
struct Two;

impl Directory for Two {
    fn view(&self, network: NetworkId) -> Option<Arc<NetworkView>> {
        match network.get() {
            0x18 => Some(Arc::new(acme())),
            0x19 => Some(Arc::new(NetworkView {
                apps: vec![app(
                    "secret",
                    &[("s1", "ams", "fdaa:0:19:1::2", true, "app")],
                )],
                peers: vec![peer("hidden", STRANGER)],
                user_cas: vec!["ssh-ed25519 OTHERUSER other".into()],
                host_cas: vec!["ssh-ed25519 OTHERHOST other".into()],
            })),
            0x20 => Some(Arc::new(NetworkView::default())),
            _ => None,
        }
    }
}

fn acme() -> NetworkView {
    NetworkView {
        apps: vec![
            app(
                "web",
                &[
                    ("w1", "ams", "fdaa:0:18:1:0:1:1:2", true, "app"),
                    ("w2", "lhr", "fdaa:0:18:2:0:1:2:2", true, "worker"),
                    ("w3", "ams", "fdaa:0:18:1:0:1:3:2", false, "app"),
                    ("w4", "ams", "fdaa:0:18:1:0:1:4:2", true, "worker"),
                    ("w5", "cdg", "fdaa:0:18:3:0:1:5:2", false, "cron"),
                ],
            ),
            app("db", &[("d1", "lhr", "fdaa:0:18:2:0:2:1:2", true, "app")]),
            app(
                "idle",
                &[("i1", "lhr", "fdaa:0:18:2:0:3:1:2", false, "app")],
            ),
            app("empty", &[]),
        ],
        peers: vec![
            peer("laptop", PEER),
            peer("phone", "fdaa:0:18:a7b:d6b:0:b:2"),
        ],
        user_cas: vec![
            "ssh-ed25519 AAAAUSER1 acme".into(),
            "ssh-ed25519 AAAAUSER2 acme".into(),
        ],
        host_cas: vec!["ssh-ed25519 AAAAHOST acme".into()],
    }
}

fn app(name: &str, instances: &[(&str, &str, &str, bool, &str)]) -> AppView {
    let instances = instances
        .iter()
        .map(|&(id, region, address, started, group)| InstanceView {
            id: id.into(),
            region: region.into(),
            address: address.parse().unwrap(),
            started,
            group: group.into(),
        });
    AppView {
        name: name.into(),
        instances: instances.collect(),
    }
}

fn peer(name: &str, address: &str) -> PeerView {
    PeerView {
        name: name.into(),
        address: address.parse().unwrap(),
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    // Labels as bytes: what a hostile asker writes is not always a host name.
    let labels = name.split('.').filter(|label| !label.is_empty());
    let name = Name::from_labels(labels.map(str::as_bytes)).unwrap();
    message.add_query(Query::query(name, kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn ask_bytes<D: Directory>(names: &Names<D>, bytes: &[u8], source: &str, over: Over) -> Reply {
    names.answer(
        bytes,
        source.parse::<Ipv6Addr>().unwrap(),
        over,
        Duration::ZERO,
    )
}

fn ask<D: Directory>(names: &Names<D>, query: &Message, source: &str, over: Over) -> Message {
    match ask_bytes(names, &query.to_vec().unwrap(), source, over) {
        Reply::Answer(bytes) => {
            let answer = Message::from_vec(&bytes).unwrap();
            assert_eq!(answer.metadata.id, query.metadata.id);
            assert_eq!(answer.metadata.message_type, MessageType::Response);
            answer
        }
        other => panic!("{other:?}"),
    }
}

/// The answer of network 0x18, as a person would read it.
fn shown(name: &str, kind: RecordType) -> String {
    shown_from(PEER, name, kind)
}

fn shown_from(source: &str, name: &str, kind: RecordType) -> String {
    show(&ask(
        &Names::new(Two),
        &query(name, kind),
        source,
        Over::Udp,
    ))
}

fn show(answer: &Message) -> String {
    let mut out = format!("{:?}", answer.metadata.response_code);
    let flags = [
        (answer.metadata.authoritative, " aa"),
        (answer.metadata.truncation, " tc"),
        (answer.metadata.recursion_desired, " rd"),
        (answer.metadata.recursion_available, " ra"),
    ];
    for (_, flag) in flags.iter().filter(|(set, _)| *set) {
        out.push_str(flag);
    }
    for question in &answer.queries {
        out.push_str(&format!("\n?  {question}"));
    }
    for record in &answer.answers {
        out.push_str(&format!("\n=  {record}"));
    }
    for record in &answer.authorities {
        out.push_str(&format!("\n+  {record}"));
    }
    out.push('\n');
    out
}
