//! The way out for names that are not ours. A driver: it opens sockets and waits.
//!
//! Each attempt over UDP has a socket of its own, connected, on a port that the system picks at
//! random, and an id of its own; an answer counts when id and question are those that were sent.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::{Forward, Over};

/// How long each attempt over UDP waits. Stub resolvers give up after five seconds.
const UDP_ATTEMPTS: [Duration; 2] = [Duration::from_millis(1500), Duration::from_millis(2000)];

/// How long one exchange over TCP may take, connection included.
const TCP_TIMEOUT: Duration = Duration::from_millis(3000);

/// The largest answer read over UDP: what is offered upstream is less.
const MAX_UDP: usize = 4096;

const HEADER: usize = 12;

/// Asks `upstream` and returns the answer to send back: the server's own, with the asker's id and
/// question, or SERVFAIL when there is no upstream (`None`) or it is silent for too long. Over TCP a truncated answer is asked for again over TCP; over UDP the asker
/// is told that it was truncated.
pub async fn forward(
    upstream: impl Into<Option<SocketAddr>>,
    forward: Forward,
    over: Over,
) -> Vec<u8> {
    let Some(upstream) = upstream.into() else {
        return forward.failed();
    };
    match ask(upstream, &forward, over).await {
        Ok(answer) => forward.passed_on(answer, over),
        Err(error) => {
            tracing::debug!(%upstream, %error, "upstream DNS server does not answer");
            forward.failed()
        }
    }
}

async fn ask(upstream: SocketAddr, forward: &Forward, over: Over) -> io::Result<Vec<u8>> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for wait in UDP_ATTEMPTS {
        let exchange = timeout(wait, ask_udp(upstream, forward)).await;
        match exchange.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(answer) if over == Over::Tcp && is_truncated(&answer) => {
                return timeout(TCP_TIMEOUT, ask_tcp(upstream, forward)).await?;
            }
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask_udp(upstream: SocketAddr, forward: &Forward) -> io::Result<Vec<u8>> {
    let any = if upstream.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    let query = forward.with_fresh_id()?;
    socket.send(&query).await?;
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // Anything else is somebody's guess, or a late answer: it changes nothing.
        if is_answer_to(&query, &buffer[..len]) {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, forward: &Forward) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let query = forward.with_fresh_id()?;
    let mut message = Vec::with_capacity(2 + query.len());
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(&query);
    stream.write_all(&message).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; len.into()];
    stream.read_exact(&mut answer).await?;
    if is_answer_to(&query, &answer) {
        Ok(answer)
    } else {
        Err(io::Error::other("an answer to another question"))
    }
}

impl Forward {
    fn with_fresh_id(&self) -> io::Result<Vec<u8>> {
        let mut query = self.query.clone();
        getrandom::fill(&mut query[..2]).map_err(io::Error::other)?;
        Ok(query)
    }

    /// The server's answer as the asker must see it: own id, own letter case, within its limit.
    fn passed_on(&self, mut answer: Vec<u8>, over: Over) -> Vec<u8> {
        if over == Over::Udp && answer.len() > usize::from(self.udp_limit) {
            const QR_TC: u8 = 0x82;
            return self.without_records([QR_TC | (answer[2] & 0x01), answer[3]]);
        }
        let question = self.question();
        answer[..2].copy_from_slice(&self.id.to_be_bytes());
        answer[HEADER..HEADER + question.len()].copy_from_slice(question);
        answer
    }

    fn failed(&self) -> Vec<u8> {
        const QR: u8 = 0x80;
        const RA_SERVFAIL: u8 = 0x82;
        self.without_records([QR | (self.query[2] & 0x01), RA_SERVFAIL])
    }

    fn without_records(&self, flags: [u8; 2]) -> Vec<u8> {
        let mut answer = self.id.to_be_bytes().to_vec();
        answer.extend_from_slice(&flags);
        answer.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(self.edns)]);
        answer.extend_from_slice(self.question());
        if self.edns {
            // The root, OPT, 1,232 bytes, version 0, no option.
            answer.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
        }
        answer
    }

    fn question(&self) -> &[u8] {
        question(&self.query).unwrap_or_default()
    }
}

fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Whether `answer` is a response with the id and the question of `query`. The question's letters
/// may have changed case on the way: some servers do that.
fn is_answer_to(query: &[u8], answer: &[u8]) -> bool {
    let Some(asked) = question(query) else {
        return false;
    };
    let end = HEADER + asked.len();
    // A name's length bytes are no letters; type and class are compared exactly.
    let (name, kind) = asked.split_at(asked.len() - 4);
    answer.len() >= end
        && answer[..2] == query[..2]
        && answer[2] & 0xf8 == 0x80
        && answer[4..6] == [0, 1]
        && answer[HEADER..end - 4].eq_ignore_ascii_case(name)
        && answer[end - 4..end] == *kind
}

/// The one question of a message: a name without compression, type and class.
fn question(message: &[u8]) -> Option<&[u8]> {
    let mut at = HEADER;
    loop {
        let len = *message.get(at)?;
        at += 1 + usize::from(len);
        match len {
            0 => return message.get(HEADER..at + 4),
            1..=63 => {}
            _ => return None,
        }
    }
}
