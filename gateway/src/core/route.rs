//! Where a packet goes. All of isolation is in [`Gateway::route`].

use sixpn::{INSTANCE_DNS, NetworkId};
use tunnel::Instant;

use super::{Gateway, own_address};
use crate::{
    DropReason,
    budget::Rate,
    counters::count,
    icmp::{self, Problem},
    packet::{self, Ipv6},
};

/// ICMPv6 errors that one peer is told.
const ERRORS: Rate = Rate {
    per_second: 10,
    burst: 20,
};

impl Gateway {
    /// Takes a packet that peer `from` sent: checks that it may, and carries it to the peer that
    /// holds its destination, or to the gateway itself. Cryptokey routing both ways is here.
    pub(super) fn route(&mut self, now: Instant, from: u32, mut bytes: Vec<u8>) {
        let Some(sender) = self.table.get(from) else {
            return self.counters.count_drop(DropReason::SenderGone);
        };
        let network = sender.network;
        let Some(packet) = Ipv6::parse(&bytes) else {
            return self.counters.count_drop(DropReason::NotIpv6);
        };
        let (source, destination) = (packet.source(), packet.destination());
        // Its own range, and no other peer's range within it.
        if !sender.grant.range.contains(source) || self.table.route(source) != Some(from) {
            return self.counters.count_drop(DropReason::SpoofedSource);
        }
        if destination.is_multicast() || destination.is_unspecified() || destination.is_loopback() {
            return self.counters.count_drop(DropReason::NotUnicast);
        }
        if destination == own_address(network) || destination == INSTANCE_DNS {
            return self.resolver.handle_packet(now, network, &bytes);
        }
        if NetworkId::of(destination) != Some(network) {
            return self.refuse(
                now,
                from,
                DropReason::OtherNetwork,
                Problem::NoRoute,
                &bytes,
            );
        }
        if packet.hop_limit() <= 1 {
            return self.refuse(now, from, DropReason::HopLimit, Problem::HopLimit, &bytes);
        }
        let unreachable = Problem::AddressUnreachable;
        let Some((to, receiver)) = self
            .table
            .route(destination)
            .and_then(|to| Some((to, self.table.get_mut(to)?)))
        else {
            return self.refuse(now, from, DropReason::NoPeer, unreachable, &bytes);
        };
        if to == from {
            return self.counters.count_drop(DropReason::ToItself);
        }
        if bytes.len() > self.limits.mtu {
            let problem = Problem::TooBig {
                mtu: u32::try_from(self.limits.mtu).unwrap_or(1280),
            };
            return self.refuse(now, from, DropReason::TooBig, problem, &bytes);
        }
        if receiver.down || receiver.endpoint.is_none() {
            return self.refuse(now, from, DropReason::PeerDown, unreachable, &bytes);
        }
        if receiver.asked.is_none() {
            receiver.asked = Some(now);
            receiver.unanswered = Some((from, bytes.clone()));
        }
        packet::decrement_hop_limit(&mut bytes);
        receiver.peer.send_packet(now, &bytes);
        count(&self.counters.packets_forwarded);
        self.touch(to);
    }

    /// Carries a packet of the gateway's own to a peer of `network`.
    pub(super) fn send_local(&mut self, now: Instant, network: NetworkId, bytes: &[u8]) {
        let Some(packet) = Ipv6::parse(bytes) else {
            return self.counters.count_drop(DropReason::NotIpv6);
        };
        let receiver = self.table.route(packet.destination());
        let Some((to, entry)) = receiver.and_then(|to| Some((to, self.table.get_mut(to)?))) else {
            return self.counters.count_drop(DropReason::NoPeer);
        };
        if entry.network != network {
            return self.counters.count_drop(DropReason::OtherNetwork);
        }
        entry.peer.send_packet(now, bytes);
        self.touch(to);
    }

    fn refuse(
        &mut self,
        now: Instant,
        sender: u32,
        reason: DropReason,
        problem: Problem,
        packet: &[u8],
    ) {
        self.counters.count_drop(reason);
        self.tell(now, sender, problem, packet);
    }

    /// Tells a peer what became of its packet, as often as it may be told.
    pub(super) fn tell(&mut self, now: Instant, sender: u32, problem: Problem, packet: &[u8]) {
        let Some(entry) = self.table.get_mut(sender) else {
            return self.counters.count_drop(DropReason::IcmpSuppressed);
        };
        let error = icmp::error(problem, own_address(entry.network), packet)
            .filter(|_| entry.icmp.take(now, ERRORS));
        let Some(error) = error else {
            return self.counters.count_drop(DropReason::IcmpSuppressed);
        };
        entry.peer.send_packet(now, &error);
        count(&self.counters.icmp_errors);
        self.touch(sender);
    }
}
