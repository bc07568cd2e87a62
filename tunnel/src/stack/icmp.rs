//! ICMPv6: pings both ways, and what the network says about flows of ours.
//!
//! The TCP engine ignores ICMPv6 errors, so they are read here, before it sees a packet. An error
//! is believed if it quotes a packet of ours that is on its way.

use std::{collections::VecDeque, net::Ipv6Addr, time::Duration};

use super::{
    Drop, FlowKey, Notice, PingError, PingId, Stack, StackError, StackEvent, Unreachable,
    is_unicast,
    packet::{self, Icmp, IcmpError, Ipv6, Quoted, QuotedFlow},
};
use crate::Instant;

/// Pings that wait for an answer, and answers that wait to be told.
pub(super) struct Pings {
    ident: u16,
    sequence: u16,
    waiting: VecDeque<Ping>,
    untold: usize,
}

struct Ping {
    id: PingId,
    to: Ipv6Addr,
    sequence: u16,
    sent: Instant,
}

impl Pings {
    pub(super) fn new(ident: u16) -> Pings {
        Pings {
            ident,
            sequence: 0,
            waiting: VecDeque::new(),
            untold: 0,
        }
    }

    pub(super) fn told(&mut self) {
        self.untold -= 1;
    }

    pub(super) fn poll_timeout(&self, after: Duration) -> Option<Instant> {
        self.waiting.front().map(|ping| ping.sent + after)
    }

    /// The next ping that was waited for in vain.
    pub(super) fn expire(&mut self, now: Instant, after: Duration) -> Option<StackEvent> {
        if self.poll_timeout(after)? > now {
            return None;
        }
        let ping = self.waiting.pop_front()?;
        self.untold += 1;
        Some(StackEvent::PingFailed {
            id: ping.id,
            reason: PingError::NoAnswer(after),
        })
    }

    fn take(&mut self, from: Ipv6Addr, ident: u16, sequence: u16) -> Option<Ping> {
        let matches = |ping: &Ping| ping.to == from && ping.sequence == sequence;
        let at = self
            .waiting
            .iter()
            .position(matches)
            .filter(|_| ident == self.ident)?;
        self.untold += 1;
        self.waiting.remove(at)
    }
}

/// How many ICMPv6 errors may be sent (RFC 4443 section 2.4): ten a second, twenty at once.
pub(super) struct Tokens {
    left: u32,
    filled: Instant,
}

impl Tokens {
    pub(super) fn new(now: Instant) -> Tokens {
        Tokens {
            left: BURST,
            filled: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        while self.left < BURST && now.since(self.filled) >= REFILL {
            self.left += 1;
            self.filled += REFILL;
        }
        if self.left == BURST {
            self.filled = now;
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

impl Stack {
    /// Sends an echo request with `payload` bytes, as many as fit. `Pong` or `PingFailed` follows.
    pub fn ping(&mut self, now: Instant, to: Ipv6Addr, payload: usize) -> PingId {
        let now = self.advance(now);
        let id = PingId(self.fresh_id());
        let pings = &mut self.pings;
        let refused = if !is_unicast(to) {
            Some(StackError::Unaddressable(std::net::SocketAddrV6::new(
                to, 0, 0, 0,
            )))
        } else if self.addresses.is_empty() {
            Some(StackError::NoAddress)
        } else if pings.waiting.len() + pings.untold >= MAX_PINGS || !self.outbox.has_room() {
            Some(StackError::Busy)
        } else {
            None
        };
        if let Some(refused) = refused {
            // Events that nobody polls for are bounded too.
            if pings.untold < 2 * MAX_PINGS {
                pings.untold += 1;
                let reason = PingError::Refused(refused);
                self.notices
                    .push_back(Notice::Ping(StackEvent::PingFailed { id, reason }));
            }
            return id;
        }
        pings.sequence = pings.sequence.wrapping_add(1);
        let (ident, sequence) = (pings.ident, pings.sequence);
        pings.waiting.push_back(Ping {
            id,
            to,
            sequence,
            sent: now,
        });
        let length = payload.min(self.mtu - packet::HEADER - 8);
        let source = self.source_for(to).unwrap_or(Ipv6Addr::UNSPECIFIED);
        self.outbox.push_with(|out| {
            packet::write_echo_request(out, source, to, (ident, sequence), length);
        });
        id
    }

    pub(super) fn handle_icmp(&mut self, now: Instant, packet: &Ipv6<'_>) {
        match packet::parse_icmp(packet) {
            Some(Icmp::EchoRequest(request)) => {
                let (source, destination) = (packet.destination, packet.source);
                self.outbox.push_with(|out| {
                    packet::write_echo_reply(out, source, destination, request);
                });
            }
            Some(Icmp::EchoReply { ident, sequence }) => {
                let Some(ping) = self.pings.take(packet.source, ident, sequence) else {
                    return self.drops.count(Drop::NoSocket);
                };
                let rtt = now.since(ping.sent);
                let event = StackEvent::Pong {
                    id: ping.id,
                    from: packet.source,
                    rtt,
                };
                self.notices.push_back(Notice::Ping(event));
            }
            Some(Icmp::Error { error, quoted }) => self.handle_icmp_error(now, error, &quoted),
            None => self.drops.count(Drop::IcmpIgnored),
        }
    }

    fn handle_icmp_error(&mut self, now: Instant, error: IcmpError, quoted: &Quoted) {
        let why = match error {
            IcmpError::Unreachable { code } => Some(Unreachable::of_code(code)),
            // A loop of routes.
            IcmpError::TimeExceeded => Some(Unreachable::NoRoute),
            IcmpError::TooBig { mtu } => {
                // Below the smallest MTU there is nothing to adjust (RFC 8201 section 4), nor
                // where our packets would fit.
                if usize::try_from(mtu).is_ok_and(|mtu| mtu < packet::MIN_MTU || mtu >= self.mtu) {
                    return self.drops.count(Drop::IcmpIgnored);
                }
                None
            }
            IcmpError::ParameterProblem => return self.drops.count(Drop::IcmpIgnored),
        };
        match (quoted.flow, why) {
            (
                QuotedFlow::Tcp {
                    local,
                    remote,
                    sequence,
                },
                why,
            ) => {
                let key = FlowKey {
                    remote_port: remote,
                    local_port: local,
                    remote: quoted.destination,
                    local: quoted.source,
                };
                let id = self.by_key.get(&key).copied();
                let believed =
                    id.filter(|id| self.flows.get(id).is_some_and(|f| f.is_in_flight(sequence)));
                match (believed, why) {
                    (Some(id), Some(why)) => self.trouble(now, id, why),
                    (Some(id), None) => self.narrow(now, id),
                    (None, _) => self.drops.count(Drop::NoStream),
                }
            }
            (QuotedFlow::Udp { local, remote }, Some(why)) => {
                self.udp_trouble(why, quoted, (local, remote));
            }
            (QuotedFlow::Echo { ident, sequence }, Some(why)) => {
                if let Some(ping) = self.pings.take(quoted.destination, ident, sequence) {
                    let reason = PingError::Unreachable(why);
                    let event = StackEvent::PingFailed {
                        id: ping.id,
                        reason,
                    };
                    self.notices.push_back(Notice::Ping(event));
                }
            }
            (_, None) => self.drops.count(Drop::IcmpIgnored),
        }
    }

    /// Answers a packet with an ICMPv6 error of this type, code and word, unless it is ICMPv6
    /// itself or there were too many.
    pub(super) fn send_icmp_error(
        &mut self,
        now: Instant,
        packet: &Ipv6<'_>,
        error: (u8, u8, u32),
    ) {
        if !self.errors.take(now) {
            return self.drops.count(Drop::IcmpRateLimited);
        }
        let (source, destination) = (packet.destination, packet.source);
        self.outbox.push_with(|out| {
            packet::write_icmp_error(out, source, destination, error, packet.bytes);
        });
    }
}

const BURST: u32 = 20;
const REFILL: Duration = Duration::from_millis(100);
/// Pings that wait at a time.
const MAX_PINGS: usize = 256;
