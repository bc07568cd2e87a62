//! A stub resolver for names inside the tunnel: `AAAA` and `TXT`, UDP first, TCP when the answer
//! does not fit.
//!
//! [`Resolver`] performs no I/O and keeps no cache: an instance that moved is found where it is
//! now. Each query has a UDP port and an identifier of its own, both random; answers are believed
//! when they come from the server's address and port and repeat identifier and question. A query
//! is sent at 0, 1 and 3 seconds and fails after 6; one over TCP gets 5 seconds more.

mod message;

use std::{
    collections::VecDeque,
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

use thiserror::Error;

use crate::{
    Instant,
    rng::Rng,
    stack::{Class, CloseReason, Stack, StackError, StackEvent, StreamError, StreamId, UdpId},
};
use message::{Name, Reply};

/// Which records are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// IPv6 addresses.
    Aaaa,
    /// Texts.
    Txt,
}

/// What a name has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its addresses, at least one, in the order of the answer.
    Aaaa(Vec<Ipv6Addr>),
    /// Its texts, one per record.
    Txt(Vec<String>),
}

/// A query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(u64);

/// Why a name has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// No such name.
    #[error("no such name; hint: check its spelling, and that the app exists in this network")]
    NxDomain,
    /// The name exists, without such records.
    #[error("the name has no such records; hint: check that an instance of it is started")]
    NoData,
    /// The server could not find out.
    #[error("the name server failed; hint: try again, and look at the gateway's log")]
    ServFail,
    /// The server will not say.
    #[error("the name server refused to answer; hint: try again in a while")]
    Refused,
    /// The server answers, and the answer makes no sense.
    #[error("the name server's answer is broken; hint: update the gateway")]
    BadAnswer,
    /// The server does not answer.
    #[error("the name server does not answer; hint: check the tunnel's connection")]
    NoAnswer,
    /// The server cannot be reached.
    #[error("the name server cannot be reached; hint: check the tunnel's configuration")]
    Unreachable,
    /// This is no name.
    #[error("this is no host name; hint: labels of 1 to 63 characters, joined by dots")]
    InvalidName,
    /// The tunnel has no name server.
    #[error("the tunnel has no name server; hint: configure its DNS address")]
    NoResolver,
    /// Too many queries wait.
    #[error("too many queries wait for an answer; hint: ask fewer at a time")]
    TooMany,
    /// The stack has no room for the query.
    #[error("{0}")]
    Stack(StackError),
}

impl ResolveError {
    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            ResolveError::NxDomain => "nx_domain",
            ResolveError::NoData => "no_data",
            ResolveError::ServFail => "serv_fail",
            ResolveError::Refused => "refused",
            ResolveError::BadAnswer => "bad_answer",
            ResolveError::NoAnswer => "no_answer",
            ResolveError::Unreachable => "unreachable",
            ResolveError::InvalidName => "invalid_name",
            ResolveError::NoResolver => "no_resolver",
            ResolveError::TooMany => "too_many",
            ResolveError::Stack(why) => why.code(),
        }
    }
}

/// Queries that wait, and results that wait to be told.
pub(crate) struct Resolver {
    server: Option<SocketAddrV6>,
    queries: Vec<Query>,
    results: VecDeque<(QueryId, Result<Answer, ResolveError>)>,
    next_id: u64,
    rng: Rng,
    /// Messages that came to a query's port and were no answer to it.
    pub(crate) strange: u64,
}

struct Query {
    id: QueryId,
    identifier: u16,
    name: Name,
    kind: RecordKind,
    phase: Phase,
    /// When the next attempt is due, or the last is given up.
    due: Instant,
}

enum Phase {
    Udp {
        socket: UdpId,
        attempts: usize,
    },
    Tcp {
        stream: StreamId,
        sent: usize,
        received: Vec<u8>,
    },
}

impl Resolver {
    pub(crate) fn new(server: Option<Ipv6Addr>, seed: u64) -> Resolver {
        Resolver {
            server: server.map(|address| SocketAddrV6::new(address, 53, 0, 0)),
            queries: Vec::new(),
            results: VecDeque::new(),
            next_id: 0,
            rng: Rng::new(seed),
            strange: 0,
        }
    }

    pub(crate) fn resolve(
        &mut self,
        now: Instant,
        stack: &mut Stack,
        name: &str,
        kind: RecordKind,
    ) -> QueryId {
        self.next_id += 1;
        let id = QueryId(self.next_id);
        let literal = name.parse().ok().filter(|_| kind == RecordKind::Aaaa);
        let begun = match literal {
            Some(address) => {
                self.tell(id, Ok(Answer::Aaaa(vec![address])));
                return id;
            }
            None => self.begin(now, stack, id, name, kind),
        };
        match begun {
            Ok(query) => self.queries.push(query),
            Err(error) => self.tell(id, Err(error)),
        }
        id
    }

    fn begin(
        &mut self,
        now: Instant,
        stack: &mut Stack,
        id: QueryId,
        name: &str,
        kind: RecordKind,
    ) -> Result<Query, ResolveError> {
        let server = self.server.ok_or(ResolveError::NoResolver)?;
        let name = Name::parse(name).ok_or(ResolveError::InvalidName)?;
        if self.queries.len() + self.results.len() >= MAX_QUERIES {
            return Err(ResolveError::TooMany);
        }
        let identifier = self.rng.next_u16();
        let socket = stack.udp_bind(0).map_err(ResolveError::Stack)?;
        let question = message::query(identifier, &name, kind);
        // A busy link is as good as a lost packet.
        let _ = stack.udp_send(now, socket, server, &question);
        let phase = Phase::Udp {
            socket,
            attempts: 1,
        };
        Ok(Query {
            id,
            identifier,
            name,
            kind,
            phase,
            due: now + ATTEMPTS[0],
        })
    }

    /// Whether this event is of a socket of the resolver's own.
    pub(crate) fn owns(&self, event: &StackEvent) -> bool {
        self.queries
            .iter()
            .any(|query| match (&query.phase, event) {
                (Phase::Udp { socket, .. }, StackEvent::UdpReadable(id)) => socket == id,
                (
                    Phase::Tcp { stream, .. },
                    StackEvent::Connected(id)
                    | StackEvent::Readable(id)
                    | StackEvent::Writable(id)
                    | StackEvent::Closed(id, _),
                ) => stream == id,
                _ => false,
            })
    }

    /// Looks at what arrived and at the clock.
    pub(crate) fn poll(&mut self, now: Instant, stack: &mut Stack) {
        let Some(server) = self.server else { return };
        let mut at = 0;
        while at < self.queries.len() {
            match self.queries[at].poll(now, stack, server, &mut self.strange) {
                None => at += 1,
                Some(result) => {
                    let query = self.queries.swap_remove(at);
                    query.phase.close(now, stack);
                    self.tell(query.id, result);
                }
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.queries.iter().map(|query| query.due).min()
    }

    pub(crate) fn poll_result(&mut self) -> Option<(QueryId, Result<Answer, ResolveError>)> {
        self.results.pop_front()
    }

    /// Results that nobody polls for are bounded, too.
    fn tell(&mut self, id: QueryId, result: Result<Answer, ResolveError>) {
        if self.results.len() >= 2 * MAX_QUERIES {
            self.results.pop_front();
        }
        self.results.push_back((id, result));
    }
}

impl Query {
    fn poll(
        &mut self,
        now: Instant,
        stack: &mut Stack,
        server: SocketAddrV6,
        strange: &mut u64,
    ) -> Option<Result<Answer, ResolveError>> {
        match &mut self.phase {
            Phase::Udp { socket, attempts } => {
                let socket = *socket;
                while let Some(datagram) = stack.udp_recv(socket) {
                    let reply = (datagram.remote == server).then_some(&datagram.payload[..]);
                    let reply = reply
                        .and_then(|m| message::reply(m, self.identifier, &self.name, self.kind));
                    match reply {
                        None => *strange += 1,
                        Some(Reply::Truncated) => return self.go_over_tcp(now, stack, server),
                        Some(reply) => return Some(result(reply)),
                    }
                }
                if stack.udp_error(socket).is_some() {
                    return Some(Err(ResolveError::Unreachable));
                }
                if now >= self.due {
                    let wait = ATTEMPTS.get(*attempts);
                    let Some(wait) = wait else {
                        return Some(Err(ResolveError::NoAnswer));
                    };
                    *attempts += 1;
                    self.due = now + *wait;
                    let question = message::query(self.identifier, &self.name, self.kind);
                    let _ = stack.udp_send(now, socket, server, &question);
                }
                None
            }
            Phase::Tcp { .. } => match self.poll_tcp(now, stack) {
                None if now >= self.due => Some(Err(ResolveError::NoAnswer)),
                other => other,
            },
        }
    }

    fn go_over_tcp(
        &mut self,
        now: Instant,
        stack: &mut Stack,
        server: SocketAddrV6,
    ) -> Option<Result<Answer, ResolveError>> {
        let stream = match stack.connect(now, server, Class::Interactive) {
            Ok(stream) => stream,
            Err(error) => return Some(Err(ResolveError::Stack(error))),
        };
        let phase = Phase::Tcp {
            stream,
            sent: 0,
            received: Vec::new(),
        };
        std::mem::replace(&mut self.phase, phase).close(now, stack);
        self.due = now + TCP_LIMIT;
        None
    }

    fn poll_tcp(
        &mut self,
        now: Instant,
        stack: &mut Stack,
    ) -> Option<Result<Answer, ResolveError>> {
        let Phase::Tcp {
            stream,
            sent,
            received,
        } = &mut self.phase
        else {
            return None;
        };
        let question = message::query(self.identifier, &self.name, self.kind);
        let mut request = u16::try_from(question.len())
            .unwrap_or(0)
            .to_be_bytes()
            .to_vec();
        request.extend_from_slice(&question);
        if *sent < request.len() {
            match stack.write(now, *stream, &request[*sent..]) {
                Ok(written) => *sent += written,
                Err(StreamError::WouldBlock) => return None,
                Err(error) => return Some(Err(failed(error))),
            }
        }
        let mut buffer = [0; 4096];
        loop {
            if let Some((length, message)) = received.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(*length));
                if let Some(message) = message.get(..length) {
                    let reply = message::reply(message, self.identifier, &self.name, self.kind);
                    return Some(result(reply.unwrap_or(Reply::Malformed)));
                }
            }
            match stack.read(now, *stream, &mut buffer) {
                Ok(0) => return Some(Err(ResolveError::BadAnswer)),
                // Bounded by the length's two bytes, checked above before the next read.
                Ok(read) => received.extend_from_slice(&buffer[..read]),
                Err(StreamError::WouldBlock) => return None,
                Err(error) => return Some(Err(failed(error))),
            }
        }
    }
}

impl Phase {
    fn close(self, now: Instant, stack: &mut Stack) {
        match self {
            Phase::Udp { socket, .. } => stack.udp_close(socket),
            Phase::Tcp { stream, .. } => stack.close(now, stream),
        }
    }
}

fn result(reply: Reply) -> Result<Answer, ResolveError> {
    match reply {
        Reply::Aaaa(addresses) => Ok(Answer::Aaaa(addresses)),
        Reply::Txt(texts) => Ok(Answer::Txt(texts)),
        Reply::NoData => Err(ResolveError::NoData),
        Reply::Failed(3) => Err(ResolveError::NxDomain),
        Reply::Failed(5) => Err(ResolveError::Refused),
        Reply::Failed(_) => Err(ResolveError::ServFail),
        // Over TCP nothing is too long.
        Reply::Truncated | Reply::Malformed => Err(ResolveError::BadAnswer),
    }
}

fn failed(error: StreamError) -> ResolveError {
    match error {
        StreamError::Closed(CloseReason::NoAnswer | CloseReason::TimedOut) => {
            ResolveError::NoAnswer
        }
        StreamError::Closed(CloseReason::Refused | CloseReason::Unreachable(_)) => {
            ResolveError::Unreachable
        }
        _ => ResolveError::BadAnswer,
    }
}

/// How long each attempt over UDP waits.
const ATTEMPTS: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(3),
];
const TCP_LIMIT: Duration = Duration::from_secs(5);
/// Queries that wait at a time, and results that nobody took.
const MAX_QUERIES: usize = 128;

#[cfg(test)]
mod tests;
