//! The ICMPv6 errors that a router owes (RFC 4443).

use std::net::Ipv6Addr;

use crate::packet::{self, HEADER, ICMPV6, Ipv6};

const REDIRECT: u8 = 137;
/// An error never exceeds the least MTU of IPv6.
const MAX_ERROR: usize = 1280;

/// What is told to the sender of a packet that goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    NoRoute,
    AddressUnreachable,
    TooBig { mtu: u32 },
    HopLimit,
}

impl Problem {
    fn header(self) -> [u8; 8] {
        let (kind, code, extra) = match self {
            Problem::NoRoute => (1, 0, 0),
            Problem::AddressUnreachable => (1, 3, 0),
            Problem::TooBig { mtu } => (2, 0, mtu),
            Problem::HopLimit => (3, 0, 0),
        };
        let mut header = [kind, code, 0, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&extra.to_be_bytes());
        header
    }
}

/// The error about `packet` from the gateway at `source`; none where RFC 4443 section 2.4 (e)
/// forbids one: about an error, a redirect, a packet from or to more than one, a later fragment.
pub(crate) fn error(problem: Problem, source: Ipv6Addr, packet: &[u8]) -> Option<Vec<u8>> {
    let invoking = Ipv6::parse(packet)?;
    let sender = invoking.source();
    if sender.is_multicast() || sender.is_unspecified() || invoking.destination().is_multicast() {
        return None;
    }
    let (protocol, upper) = invoking.upper()?;
    if protocol == ICMPV6
        && upper
            .first()
            .is_none_or(|kind| *kind < 128 || *kind == REDIRECT)
    {
        return None;
    }
    let mut payload = problem.header().to_vec();
    let room = MAX_ERROR - HEADER - payload.len();
    payload.extend_from_slice(&packet[..packet.len().min(room)]);
    Some(packet::icmpv6(source, sender, &payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 1, 0, 0, 0, 0, 3);
    const ECHO_REQUEST: u8 = 128;
    const PEER: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 1, 0, 1, 0, 1, 2);

    fn icmp(kind: u8, to: Ipv6Addr, len: usize) -> Vec<u8> {
        let mut payload = vec![0; len];
        payload[0] = kind;
        packet::icmpv6(PEER, to, &payload)
    }

    #[test]
    fn an_error_quotes_the_packet_within_the_least_mtu() {
        let big = icmp(ECHO_REQUEST, GATEWAY, 1400);
        let error = error(Problem::TooBig { mtu: 1420 }, GATEWAY, &big).expect("an error");
        assert_eq!(error.len(), 1280);
        let parsed = Ipv6::parse(&error).expect("IPv6");
        assert_eq!((parsed.source(), parsed.destination()), (GATEWAY, PEER));
        assert_eq!(parsed.payload()[..2], [2, 0]);
        assert_eq!(parsed.payload()[4..8], 1420u32.to_be_bytes());
        assert_eq!(parsed.payload()[8..], big[..1232]);
    }

    #[test]
    fn no_error_about_errors_nor_about_what_reaches_many() {
        let multicast = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        for packet in [
            icmp(1, GATEWAY, 60),
            icmp(127, GATEWAY, 60),
            icmp(REDIRECT, GATEWAY, 60),
            icmp(ECHO_REQUEST, multicast, 60),
            packet::icmpv6(multicast, GATEWAY, &[128; 8]),
            packet::icmpv6(Ipv6Addr::UNSPECIFIED, GATEWAY, &[128; 8]),
        ] {
            assert_eq!(error(Problem::NoRoute, GATEWAY, &packet), None);
        }
        assert!(error(Problem::NoRoute, GATEWAY, &icmp(ECHO_REQUEST, GATEWAY, 8)).is_some());
    }
}
