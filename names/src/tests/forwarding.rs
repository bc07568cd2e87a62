//! The way out, against upstream servers on loopback.

use std::net::SocketAddr;

use hickory_proto::{
    op::ResponseCode,
    rr::{RData, Record, RecordType, rdata::A},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
};

use super::*;
use crate::{Forward, forward};

fn forwarded(asked: &Message) -> Forward {
    match ask_bytes(&Names::new(Two), &asked.to_vec().unwrap(), PEER, Over::Udp) {
        Reply::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

fn outside() -> Message {
    query("eXample.com.", RecordType::A)
}

/// What an upstream server says: the question in lower case and one address per `n`.
fn upstream_answer(asked: &[u8], n: u8) -> Message {
    let asked = Message::from_vec(asked).unwrap();
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    let mut question = asked.queries[0].clone();
    question.name = question.name.to_lowercase();
    for last in 1..=n {
        let data = RData::A(A::new(192, 0, 2, last));
        answer.add_answer(Record::from_rdata(question.name.clone(), 300, data));
    }
    answer.add_query(question);
    answer
}

/// A server that gives `replies` to each question, in turn, over UDP.
async fn udp_upstream(replies: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            for reply in replies(&buffer[..len]) {
                socket.send_to(&reply, from).await.unwrap();
            }
        }
    });
    address
}

fn parsed(bytes: &[u8]) -> Message {
    let answer = Message::from_vec(bytes).unwrap();
    assert_eq!(answer.metadata.id, 0x1234);
    assert_eq!(answer.queries[0].name.to_ascii(), "eXample.com.");
    answer
}

#[tokio::test]
async fn an_answer_comes_back_with_the_askers_id_and_letters() {
    let upstream = udp_upstream(|asked| vec![upstream_answer(asked, 2).to_vec().unwrap()]).await;
    let answer = parsed(&forward(upstream, forwarded(&outside()), Over::Udp).await);
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert_eq!(answer.answers.len(), 2);
}

#[tokio::test]
async fn what_goes_out_is_written_anew() {
    let (send, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let upstream = udp_upstream(move |asked| {
        send.send(asked.to_vec()).unwrap();
        vec![upstream_answer(asked, 1).to_vec().unwrap()]
    })
    .await;
    let mut asked = with_edns(outside(), 65535);
    let subnet = hickory_proto::rr::rdata::opt::EdnsOption::Unknown(65001, vec![7; 20]);
    asked.edns.as_mut().unwrap().options_mut().insert(subnet);
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..8 {
        forward(upstream, forwarded(&asked), Over::Udp).await;
        let sent = Message::from_vec(&seen.recv().await.unwrap()).unwrap();
        ids.insert(sent.metadata.id);
        let edns = sent.edns.as_ref().unwrap();
        assert_eq!(edns.max_payload(), 1232);
        assert!(edns.options().as_ref().is_empty());
        assert_eq!(sent.queries, asked.queries);
    }
    assert!(ids.len() > 4, "ids are not random: {ids:?}");
}

#[tokio::test]
async fn guesses_are_not_believed() {
    let upstream = udp_upstream(|asked| {
        let good = upstream_answer(asked, 1).to_vec().unwrap();
        let mut other_id = upstream_answer(asked, 9).to_vec().unwrap();
        other_id[0] ^= 1;
        let mut other_name = upstream_answer(asked, 9).to_vec().unwrap();
        other_name[14] = b'q';
        let mut other_type = upstream_answer(asked, 9).to_vec().unwrap();
        other_type[12 + 13 + 1] = 28;
        let mut question = upstream_answer(asked, 9).to_vec().unwrap();
        question[2] &= 0x7f;
        vec![
            vec![],
            vec![0; 11],
            good[..20].to_vec(),
            other_id,
            other_name,
            other_type,
            question,
            good,
        ]
    })
    .await;
    let answer = parsed(&forward(upstream, forwarded(&outside()), Over::Udp).await);
    assert_eq!(answer.answers.len(), 1);
}

#[tokio::test]
async fn without_an_upstream_it_is_servfail() {
    for asked in [outside(), with_edns(outside(), 1232)] {
        for over in [Over::Udp, Over::Tcp] {
            let answer = parsed(&forward(None, forwarded(&asked), over).await);
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
            assert_eq!(answer.edns.is_some(), asked.edns.is_some());
            assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
        }
    }
}

#[tokio::test]
async fn a_closed_port_is_servfail_at_once() {
    let closed = {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.local_addr().unwrap()
    };
    let answer = parsed(&forward(closed, forwarded(&outside()), Over::Udp).await);
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_servfail_in_time() {
    let upstream = udp_upstream(|_| Vec::new()).await;
    let before = tokio::time::Instant::now();
    let answer = parsed(&forward(upstream, forwarded(&outside()), Over::Udp).await);
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "{:?}",
        before.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_question_is_asked_again() {
    let count = std::sync::atomic::AtomicU32::new(0);
    let upstream = udp_upstream(move |asked| {
        if count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        vec![upstream_answer(asked, 1).to_vec().unwrap()]
    })
    .await;
    let answer = parsed(&forward(upstream, forwarded(&outside()), Over::Udp).await);
    assert_eq!(answer.answers.len(), 1);
}

#[tokio::test]
async fn truncation_sends_the_asker_to_tcp_and_tcp_upstream() {
    // A port that is free over UDP may be taken over TCP.
    let (upstream, listener) = loop {
        let upstream = udp_upstream(|asked| {
            let mut answer = upstream_answer(asked, 0);
            answer.metadata.truncation = true;
            vec![answer.to_vec().unwrap()]
        })
        .await;
        if let Ok(listener) = TcpListener::bind(upstream).await {
            break (upstream, listener);
        }
    };
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut asked).await.unwrap();
        let answer = upstream_answer(&asked, 200).to_vec().unwrap();
        stream
            .write_u16(answer.len().try_into().unwrap())
            .await
            .unwrap();
        stream.write_all(&answer).await.unwrap();
    });
    let short = parsed(&forward(upstream, forwarded(&outside()), Over::Udp).await);
    assert!(short.metadata.truncation && short.answers.is_empty());
    let whole = parsed(&forward(upstream, forwarded(&outside()), Over::Tcp).await);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 200);
}

#[tokio::test]
async fn more_than_the_asker_takes_is_truncated() {
    let upstream = udp_upstream(|asked| vec![upstream_answer(asked, 50).to_vec().unwrap()]).await;
    for (asked, truncated) in [(outside(), true), (with_edns(outside(), 1232), false)] {
        let bytes = forward(upstream, forwarded(&asked), Over::Udp).await;
        let answer = parsed(&bytes);
        assert_eq!(answer.metadata.truncation, truncated);
        assert_eq!(answer.answers.len(), if truncated { 0 } else { 50 });
        assert_eq!(answer.edns.is_some(), truncated && asked.edns.is_some());
    }
}

#[test]
fn one_network_waits_for_a_share_and_leaves_the_others_theirs() {
    let names = Names::new(Two);
    let asked = outside();
    let mut waiting = Vec::new();
    for _ in 0..300 {
        match ask_bytes(&names, &asked.to_vec().unwrap(), PEER, Over::Udp) {
            Reply::Forward(forward) => waiting.push(forward),
            Reply::Answer(answer) => {
                let answer = parsed(&answer);
                assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
            }
            Reply::Drop(reason) => panic!("{reason:?}"),
        }
    }
    assert_eq!(waiting.len(), 32);
    let counted = |name| {
        let counters = names.counters().snapshot();
        counters.iter().find(|(of, _)| *of == name).unwrap().1
    };
    assert_eq!(counted("forward_network_full"), 268);
    assert_eq!(counted("forwarded"), 32);
    let ask = |source| ask_bytes(&names, &asked.to_vec().unwrap(), source, Over::Tcp);
    let other = ask(STRANGER);
    assert!(matches!(other, Reply::Forward(_)), "{other:?}");
    waiting.pop();
    // Another source: the first one's rate is used up.
    let again = ask("fdaa:0:18:a7b:d6b:0:b:2");
    assert!(matches!(again, Reply::Forward(_)), "{again:?}");
}
