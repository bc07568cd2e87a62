//! IPv6 packets as far as a router reads them, and the one kind that it writes.

use std::net::Ipv6Addr;

pub(crate) const HEADER: usize = 40;
pub(crate) const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const OPTIONS: u8 = 60;
/// More extension headers than anyone sends.
const MAX_EXTENSIONS: usize = 8;
/// What the gateway's own packets start with.
const HOP_LIMIT: u8 = 64;

/// An IPv6 packet whose version and length were looked at.
#[derive(Clone, Copy)]
pub(crate) struct Ipv6<'a>(&'a [u8]);

impl<'a> Ipv6<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Ipv6<'a>> {
        let header = bytes.first_chunk::<HEADER>()?;
        let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
        (header[0] >> 4 == 6 && payload + HEADER == bytes.len()).then_some(Ipv6(bytes))
    }

    pub(crate) fn source(self) -> Ipv6Addr {
        address(&self.0[8..24])
    }

    pub(crate) fn destination(self) -> Ipv6Addr {
        address(&self.0[24..40])
    }

    pub(crate) fn next_header(self) -> u8 {
        self.0[6]
    }

    pub(crate) fn hop_limit(self) -> u8 {
        self.0[7]
    }

    pub(crate) fn payload(self) -> &'a [u8] {
        &self.0[HEADER..]
    }

    /// Protocol and bytes above the extension headers; `None` when they are cut, too many, or
    /// this is a fragment other than the first.
    pub(crate) fn upper(self) -> Option<(u8, &'a [u8])> {
        let (mut next, mut rest) = (self.next_header(), self.payload());
        for _ in 0..MAX_EXTENSIONS {
            let length = match next {
                HOP_BY_HOP | ROUTING | OPTIONS => 8 + 8 * usize::from(*rest.get(1)?),
                AUTHENTICATION => 8 + 4 * usize::from(*rest.get(1)?),
                FRAGMENT => {
                    let offset = u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]) >> 3;
                    if offset != 0 {
                        return None;
                    }
                    8
                }
                _ => return Some((next, rest)),
            };
            next = *rest.first()?;
            rest = rest.get(length..)?;
        }
        None
    }
}

/// An ICMPv6 packet from the gateway; the checksum of `message` is filled in.
pub(crate) fn icmpv6(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; HEADER + message.len()];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(
        &u16::try_from(message.len())
            .unwrap_or(u16::MAX)
            .to_be_bytes(),
    );
    packet[6] = ICMPV6;
    packet[7] = HOP_LIMIT;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&destination.octets());
    packet[HEADER..].copy_from_slice(message);
    packet[HEADER + 2..][..2].fill(0);
    let sum = checksum(source, destination, &packet[HEADER..]);
    packet[HEADER + 2..][..2].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Takes one from the hop limit.
pub(crate) fn decrement_hop_limit(packet: &mut [u8]) {
    if let Some(limit) = packet.get_mut(7) {
        *limit = limit.saturating_sub(1);
    }
}

/// Internet checksum of ICMPv6 with the pseudo header (RFC 8200 section 8.1); 0 over bytes that
/// hold a right one.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let mut sum = u64::from(ICMPV6) + message.len() as u64;
    for address in [source, destination] {
        sum += address
            .segments()
            .iter()
            .map(|word| u64::from(*word))
            .sum::<u64>();
    }
    let (words, rest) = message.as_chunks::<2>();
    sum += words
        .iter()
        .map(|word| u64::from(u16::from_be_bytes(*word)))
        .sum::<u64>();
    sum += rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn address(bytes: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from(bytes.first_chunk::<16>().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 1, 0, 0, 0, 0, 2);
    const B: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 1, 0, 0, 0, 0, 3);

    #[test]
    fn a_checksum_by_hand() {
        let packet = icmpv6(A, B, &[128, 0, 0xff, 0xff, 0, 1, 0, 2, b'a']);
        let sum: u32 = 2 * 0xfdaa + 1 + 2 + 1 + 3 + 58 + 9 + 0x8000 + 1 + 2 + 0x6100;
        let folded = (sum & 0xffff) + (sum >> 16);
        assert_eq!(packet[42..44], (!(folded as u16)).to_be_bytes());
        assert_eq!(checksum(A, B, &packet[HEADER..]), 0);
    }

    #[test]
    fn a_fragment_shows_its_protocol_once() {
        let mut packet = icmpv6(A, B, &[ICMPV6, 0, 0, 1, 0, 0, 0, 1, 128, 0, 0, 0]);
        packet[6] = FRAGMENT;
        packet[HEADER + 2..][..2].copy_from_slice(&[0, 1]);
        assert_eq!(
            Ipv6::parse(&packet).and_then(Ipv6::upper).map(|u| u.0),
            Some(ICMPV6)
        );
        packet[HEADER + 3] = 8;
        assert!(Ipv6::parse(&packet).and_then(Ipv6::upper).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            next: u8,
            mut bytes in proptest::collection::vec(any::<u8>(), 40..120),
        ) {
            bytes[0] = 0x60;
            bytes[4] = 0;
            bytes[5] = bytes.len() as u8 - 40;
            bytes[6] = next;
            let packet = Ipv6::parse(&bytes).expect("the length is right");
            let _ = packet.upper();
            prop_assert!(Ipv6::parse(&bytes[..bytes.len() - 1]).is_none());
        }
    }
}
