//! Bytes of a query in, bytes of an answer out.

use std::{
    net::Ipv6Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{AAAA, HINFO, SOA, TXT},
    },
};
use sixpn::NetworkId;

use crate::{
    counters::{Counters, count},
    limit::{Limiter, Rate},
    share::{Full, Share, Shares},
    view::{Directory, NetworkView},
    zone::{self, Found},
};

/// How long an answer may be believed, and how long the absence of one: instances come and go.
const TTL: u32 = 5;

/// The largest UDP answer, whatever the asker offers: the tunnel's packets are 1,420 bytes.
const MAX_UDP: u16 = 1232;

/// The largest UDP answer to an asker that does not speak EDNS.
const PLAIN_UDP: u16 = 512;

/// The longest query that is read: a name, a question and an OPT record fit many times.
const MAX_QUERY: usize = 4096;

const HEADER: usize = 12;

/// The DNS server of every private network, behind one door.
#[derive(Debug)]
pub struct Names<D> {
    directory: D,
    limiter: Mutex<Limiter>,
    shares: Arc<Shares>,
    counters: Counters,
}

/// What a query came over, which bounds its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// At most 1,232 bytes, or 512 to those that do not speak EDNS; TC when there is more.
    Udp,
    /// At most 65,535 bytes, without the length that goes before.
    Tcp,
}

/// What is to be done about a query.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Send these bytes back.
    Answer(Vec<u8>),
    /// Ask an upstream server: [`crate::forward`].
    Forward(Forward),
    /// Send nothing; counted under the reason's name.
    Drop(DropReason),
}

/// Why a query gets no answer at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Shorter than a DNS header: there is no id to answer to.
    TooShort,
    /// A response. Answering one would be the first half of a loop.
    Response,
    /// The source asks too fast.
    RateLimited,
}

impl DropReason {
    /// The stable name, as in a counter.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::TooShort => "too_short",
            DropReason::Response => "response",
            DropReason::RateLimited => "rate_limited",
        }
    }
}

/// A query for a name outside the zone, written anew: one question in the asker's own letter case,
/// none of the asker's EDNS options. Until it is dropped it takes up one of the places that the
/// asker's network has for queries that wait.
#[derive(Debug, PartialEq, Eq)]
pub struct Forward {
    /// The query with id 0.
    pub(crate) query: Vec<u8>,
    /// The asker's id.
    pub(crate) id: u16,
    /// The most that the asker takes over UDP.
    pub(crate) udp_limit: u16,
    /// Whether the asker speaks EDNS.
    pub(crate) edns: bool,
    pub(crate) _share: Share,
}

impl<D: Directory> Names<D> {
    /// A server for the networks of a directory.
    pub fn new(directory: D) -> Names<D> {
        Names::with_rate(directory, Rate::default())
    }

    /// The same with another rate per source.
    pub fn with_rate(directory: D, rate: Rate) -> Names<D> {
        Names {
            directory,
            limiter: Mutex::new(Limiter::new(rate)),
            shares: Arc::default(),
            counters: Counters::default(),
        }
    }

    /// How queries ended so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Answers one query. `source` is the address that the packet came from, already checked
    /// against the range of the peer that sent it; `now` is time since any fixed moment.
    pub fn answer(&self, query: &[u8], source: Ipv6Addr, over: Over, now: Duration) -> Reply {
        let Some(header) = RawHeader::read(query) else {
            count(&self.counters.dropped_too_short);
            return Reply::Drop(DropReason::TooShort);
        };
        if header.is_response() {
            count(&self.counters.dropped_response);
            return Reply::Drop(DropReason::Response);
        }
        let allowed = {
            let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
            limiter.allow(source, now)
        };
        if !allowed {
            count(&self.counters.dropped_rate_limited);
            return match over {
                Over::Udp => Reply::Drop(DropReason::RateLimited),
                // Silence would leave a connection waiting for it.
                Over::Tcp => Reply::Answer(header.error(ResponseCode::Refused)),
            };
        }
        if header.op_code() != OpCode::Query {
            count(&self.counters.not_implemented);
            return Reply::Answer(header.error(ResponseCode::NotImp));
        }
        // One question (RFC 9619) and nothing that only answers carry.
        let well_formed = header.counts() == (1, 0, 0) && query.len() <= MAX_QUERY;
        let Some(request) = well_formed
            .then(|| Message::from_vec(query).ok())
            .flatten()
            .and_then(|message| Request::new(header, message))
        else {
            count(&self.counters.malformed);
            return Reply::Answer(header.error(ResponseCode::FormErr));
        };
        self.answer_request(&request, source, over)
    }

    fn answer_request(&self, request: &Request, source: Ipv6Addr, over: Over) -> Reply {
        let question = &request.question;
        let mut response = request.response();
        let known = NetworkId::of(source)
            .and_then(|network| Some((network, self.directory.view(network)?)));
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            count(&self.counters.not_implemented);
            response.metadata.response_code = ResponseCode::BADVERS;
        } else if let Some((network, view)) = known
            && question.query_class == DNSClass::IN
            && !matches!(question.query_type, RecordType::AXFR | RecordType::IXFR)
        {
            match Zone::of(&question.name) {
                Some(zone) => self.answer_from(&zone, &view, question, source, &mut response),
                None => {
                    match self.shares.take(network) {
                        Ok(share) => {
                            if let Some(forward) = request.forward(share) {
                                count(&self.counters.forwarded);
                                return Reply::Forward(forward);
                            }
                        }
                        Err(Full::Network) => count(&self.counters.forward_network_full),
                        Err(Full::All) => count(&self.counters.forward_full),
                    }
                    response.metadata.response_code = ResponseCode::ServFail;
                }
            }
        } else {
            count(&self.counters.refused);
            response.metadata.response_code = ResponseCode::Refused;
        }
        Reply::Answer(self.encode(&response, request, over))
    }

    fn answer_from(
        &self,
        zone: &Zone,
        view: &NetworkView,
        question: &Query,
        source: Ipv6Addr,
        response: &mut Message,
    ) {
        response.metadata.authoritative = true;
        let soa = || Record::from_rdata(zone.apex.clone(), TTL, RData::SOA(soa(&zone.apex)));
        let found = zone.labels.as_deref().and_then(|labels| {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            if zone.internal {
                zone::lookup(view, source, &labels)
            } else {
                labels.is_empty().then_some(Found::Nothing)
            }
        });
        let Some(found) = found else {
            count(&self.counters.nx_domain);
            response.metadata.response_code = ResponseCode::NXDomain;
            response.add_authority(soa());
            return;
        };
        let record = |data| Record::from_rdata(question.name.clone(), TTL, data);
        let is_apex = zone.labels.as_ref().is_some_and(Vec::is_empty);
        match (question.query_type, found) {
            // RFC 8482: one small record that says there is no more to say.
            (RecordType::ANY, _) => {
                let hinfo = HINFO::new("RFC8482".to_owned(), String::new());
                response.add_answer(record(RData::HINFO(hinfo)));
            }
            (RecordType::SOA, _) if is_apex => {
                response.add_answer(soa());
            }
            (RecordType::AAAA, Found::Addresses(addresses)) => {
                let data = addresses
                    .into_iter()
                    .map(|address| RData::AAAA(AAAA(address)));
                response.add_answers(data.map(record));
            }
            (RecordType::TXT, Found::Texts(texts)) => {
                for text in texts {
                    if text.cut {
                        count(&self.counters.cut);
                    }
                    let strings = text.text.as_bytes().chunks(255).collect();
                    response.add_answer(record(RData::TXT(TXT::from_bytes(strings))));
                }
            }
            _ => {}
        }
        if response.answers.is_empty() {
            count(&self.counters.no_data);
            response.add_authority(soa());
        } else {
            count(&self.counters.answered);
        }
    }

    fn encode(&self, response: &Message, request: &Request, over: Over) -> Vec<u8> {
        let limit = match over {
            Over::Udp => usize::from(request.udp_limit()),
            Over::Tcp => usize::from(u16::MAX),
        };
        let whole = response.to_vec().ok();
        if let Some(bytes) = whole.filter(|bytes| bytes.len() <= limit) {
            return bytes;
        }
        count(&self.counters.truncated);
        // Nothing rather than a part: half of a list of addresses looks like a whole one.
        let truncated = response.truncate().to_vec();
        truncated.unwrap_or_else(|_| request.header.error(ResponseCode::ServFail))
    }
}

/// The first twelve bytes of a message, which even junk has.
#[derive(Clone, Copy)]
struct RawHeader([u8; HEADER]);

impl RawHeader {
    fn read(message: &[u8]) -> Option<RawHeader> {
        message.first_chunk().copied().map(RawHeader)
    }

    fn is_response(self) -> bool {
        self.0[2] & 0x80 != 0
    }

    fn op_code(self) -> OpCode {
        OpCode::from_u8((self.0[2] >> 3) & 0x0f)
    }

    /// Questions, answers, authorities; additional records are free.
    fn counts(self) -> (u16, u16, u16) {
        let count = |at: usize| u16::from_be_bytes([self.0[at], self.0[at + 1]]);
        (count(4), count(6), count(8))
    }

    /// An error without a question, for messages whose question was not read.
    fn error(self, code: ResponseCode) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..2].copy_from_slice(&self.0[..2]);
        // QR, and the asker's own operation and RD.
        bytes[2] = 0x80 | (self.0[2] & 0x79);
        // RA, the code.
        bytes[3] = 0x80 | code.low();
        bytes
    }
}

/// A message that asks one thing.
struct Request {
    header: RawHeader,
    metadata: Metadata,
    question: Query,
    edns: Option<Edns>,
}

impl Request {
    fn new(header: RawHeader, message: Message) -> Option<Request> {
        let [question] = <[Query; 1]>::try_from(message.queries).ok()?;
        Some(Request {
            header,
            metadata: message.metadata,
            question,
            edns: message.edns,
        })
    }

    fn response(&self) -> Message {
        let mut response = Message::new(self.metadata.id, MessageType::Response, OpCode::Query);
        response.metadata = Metadata::response_from_request(&self.metadata);
        response.metadata.recursion_available = true;
        response.add_query(self.question.clone());
        if let Some(asked) = &self.edns {
            response.set_edns(edns(asked));
        }
        response
    }

    fn forward(&self, share: Share) -> Option<Forward> {
        let mut query = Message::new(0, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = self.metadata.recursion_desired;
        query.metadata.checking_disabled = self.metadata.checking_disabled;
        query.metadata.authentic_data = self.metadata.authentic_data;
        query.add_query(self.question.clone());
        if let Some(asked) = &self.edns {
            query.set_edns(edns(asked));
        }
        Some(Forward {
            query: query.to_vec().ok()?,
            id: self.metadata.id,
            udp_limit: self.udp_limit(),
            edns: self.edns.is_some(),
            _share: share,
        })
    }

    fn udp_limit(&self) -> u16 {
        let offered = self.edns.as_ref().map_or(PLAIN_UDP, Edns::max_payload);
        offered.clamp(PLAIN_UDP, MAX_UDP)
    }
}

/// Our own EDNS: version 0, 1,232 bytes, DO as asked, no option.
fn edns(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP);
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    edns
}

/// A zone that is answered here and never forwarded, and the labels of a name below its apex.
struct Zone {
    apex: Name,
    /// `.internal`, or else the reverse zone of `fdaa::/16`, which is empty.
    internal: bool,
    /// From the right, in lower case; none when they are not text, so that no name can match.
    labels: Option<Vec<String>>,
}

/// The reverse zone of `fdaa::/16`: no private address leaves by way of a question about its name.
const REVERSE: [&str; 6] = ["arpa", "ip6", "f", "d", "a", "a"];

impl Zone {
    fn of(name: &Name) -> Option<Zone> {
        let labels: Vec<Vec<u8>> = name.iter().rev().map(<[u8]>::to_ascii_lowercase).collect();
        let below = |apex: &[&str]| {
            let inside = labels.len() >= apex.len()
                && apex.iter().zip(&labels).all(|(a, b)| a.as_bytes() == b);
            inside.then(|| {
                let below = labels[apex.len()..].iter().cloned();
                below.map(String::from_utf8).collect::<Result<_, _>>().ok()
            })
        };
        let zone = |apex: &[&str], internal| {
            let labels = below(apex)?;
            let apex = Name::from_labels(apex.iter().rev().map(|label| label.as_bytes())).ok()?;
            Some(Zone {
                apex,
                internal,
                labels,
            })
        };
        zone(&["internal"], true).or_else(|| zone(&REVERSE, false))
    }
}

fn soa(apex: &Name) -> SOA {
    let below = |label: &str| apex.prepend_label(label).unwrap_or_else(|_| apex.clone());
    let ttl = TTL.cast_signed();
    SOA::new(below("ns"), below("hostmaster"), 1, ttl, ttl, ttl, TTL)
}
