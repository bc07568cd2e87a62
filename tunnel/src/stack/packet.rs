//! IPv6, UDP and ICMPv6 in bytes: what the TCP engine does not do for us.
//!
//! Everything here takes hostile bytes and answers `None` when they make no sense. Extension
//! headers are not followed: a network of WireGuard peers sends none.

use std::net::Ipv6Addr;

pub(super) const HEADER: usize = 40;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
const HOP_LIMIT: u8 = 64;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
/// The smallest MTU of IPv6: an ICMPv6 error never exceeds it.
pub(super) const MIN_MTU: usize = 1280;

/// An IPv6 packet, cut to the length that its header claims.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ipv6<'p> {
    pub(super) source: Ipv6Addr,
    pub(super) destination: Ipv6Addr,
    pub(super) next: u8,
    /// Header and payload.
    pub(super) bytes: &'p [u8],
}

impl<'p> Ipv6<'p> {
    pub(super) fn parse(bytes: &'p [u8]) -> Option<Ipv6<'p>> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let length = HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        (header[0] >> 4 == 6 && length <= bytes.len()).then(|| Ipv6 {
            source: address(header, 8),
            destination: address(header, 24),
            next: header[6],
            bytes: &bytes[..length],
        })
    }

    /// The header inside an ICMPv6 error, whose payload may be cut.
    fn parse_quoted(bytes: &'p [u8]) -> Option<Ipv6<'p>> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        (header[0] >> 4 == 6).then(|| Ipv6 {
            source: address(header, 8),
            destination: address(header, 24),
            next: header[6],
            bytes,
        })
    }

    pub(super) fn payload(&self) -> &'p [u8] {
        &self.bytes[HEADER..]
    }

    fn checksum_holds(&self) -> bool {
        checksum(self.source, self.destination, self.next, self.payload()) == 0
    }
}

/// The part of a TCP header that the stack reads before, and after, the engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tcp {
    pub(super) source: u16,
    pub(super) destination: u16,
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) flags: u8,
    /// As written: not scaled.
    pub(super) window: u16,
    /// Sequence numbers used: payload, SYN and FIN.
    pub(super) length: u32,
    /// Header and options.
    offset: usize,
}

/// What a segment of ours puts on the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'p> {
    pub(super) sequence: u32,
    pub(super) end: u32,
    pub(super) flags: u8,
    pub(super) payload: &'p [u8],
}

/// What a segment says of selective acknowledgement (RFC 2018).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sack {
    /// A SYN: its sender would like it.
    pub(super) permitted: bool,
    blocks: [(u32, u32); 4],
    count: usize,
}

impl Sack {
    pub(super) fn parse(packet: &Ipv6<'_>, segment: &Tcp) -> Sack {
        let mut sack = Sack::default();
        let mut options = packet.payload().get(20..segment.offset).unwrap_or_default();
        while let [kind, rest @ ..] = options {
            let (data, after) = match (kind, rest) {
                (0, _) => break,
                (1, _) => (&[][..], rest),
                (_, [length, rest @ ..]) => {
                    let length = usize::from(*length).checked_sub(2);
                    match length.and_then(|length| rest.split_at_checked(length)) {
                        Some(split) => split,
                        None => break,
                    }
                }
                (_, []) => break,
            };
            match kind {
                4 => sack.permitted = true,
                5 => {
                    for block in data.as_chunks::<8>().0.iter().take(4) {
                        sack.blocks[sack.count] = (word(block, 0), word(block, 4));
                        sack.count += 1;
                        if sack.count == 4 {
                            return sack;
                        }
                    }
                }
                _ => {}
            }
            options = after;
        }
        sack
    }

    pub(super) fn blocks(&self) -> &[(u32, u32)] {
        &self.blocks[..self.count]
    }
}

impl Tcp {
    pub(super) fn parse(packet: &Ipv6<'_>) -> Option<Tcp> {
        let bytes = packet.payload();
        let header: &[u8; 20] = bytes.first_chunk()?;
        let offset = usize::from(header[12] >> 4) * 4;
        let payload = bytes.len().checked_sub(offset).filter(|_| offset >= 20)?;
        let flags = header[13];
        let control = u32::from(flags & 1 != 0) + u32::from(flags & 2 != 0);
        Some(Tcp {
            source: u16::from_be_bytes([header[0], header[1]]),
            destination: u16::from_be_bytes([header[2], header[3]]),
            sequence: word(header, 4),
            acknowledged: word(header, 8),
            flags,
            window: half(header, 14),
            length: u32::try_from(payload).ok()? + control,
            offset,
        })
    }

    pub(super) fn segment<'p>(&self, packet: &Ipv6<'p>) -> Segment<'p> {
        Segment {
            sequence: self.sequence,
            end: self.sequence.wrapping_add(self.length),
            flags: self.flags,
            payload: &packet.payload()[self.offset..],
        }
    }

    pub(super) fn syn(&self) -> bool {
        self.flags & 2 != 0
    }

    pub(super) fn rst(&self) -> bool {
        self.flags & 4 != 0
    }

    pub(super) fn fin(&self) -> bool {
        self.flags & 1 != 0
    }

    pub(super) fn ack(&self) -> bool {
        self.flags & 16 != 0
    }

    /// A SYN that opens a connection: no other flag that means anything.
    pub(super) fn opens(&self) -> bool {
        self.flags & 0b1_0111 == 2
    }
}

/// Whether the other side has something to say to a packet of ours as soon as it has it: data, an
/// opening or an end of TCP, an echo request, a DNS query. An acknowledgement wants none.
pub(crate) fn wants_answer(bytes: &[u8]) -> bool {
    let Some(packet) = Ipv6::parse(bytes) else {
        return false;
    };
    let start = packet.payload();
    match packet.next {
        TCP => Tcp::parse(&packet).is_some_and(|segment| segment.length > 0),
        UDP => start.get(2..4) == Some(&53u16.to_be_bytes()),
        ICMPV6 => start.first() == Some(&128),
        _ => false,
    }
}

/// A UDP datagram with a sound checksum: source port, destination port, payload.
pub(super) fn parse_udp<'p>(packet: &Ipv6<'p>) -> Option<(u16, u16, &'p [u8])> {
    let bytes = packet.payload();
    let header: &[u8; UDP_HEADER] = bytes.first_chunk()?;
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let length = usize::from(port(4));
    // IPv6 has no UDP without a checksum (RFC 8200 section 8.1).
    let sound = length >= UDP_HEADER
        && length == bytes.len()
        && port(6) != 0
        && port(2) != 0
        && packet.checksum_holds();
    sound.then(|| (port(0), port(2), &bytes[UDP_HEADER..]))
}

/// Writes a UDP packet into `out`, which is cleared first.
pub(super) fn write_udp(
    out: &mut Vec<u8>,
    (source, source_port): (Ipv6Addr, u16),
    (destination, destination_port): (Ipv6Addr, u16),
    payload: &[u8],
) {
    start(out, source, destination, UDP, UDP_HEADER + payload.len());
    out.extend_from_slice(&source_port.to_be_bytes());
    out.extend_from_slice(&destination_port.to_be_bytes());
    out.extend_from_slice(&length16(UDP_HEADER + payload.len()).to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(payload);
    seal(out, source, destination, UDP, 6);
}

/// An ICMPv6 message that the stack understands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Icmp<'p> {
    EchoRequest(&'p [u8]),
    EchoReply { ident: u16, sequence: u16 },
    Error { error: IcmpError, quoted: Quoted },
}

/// An ICMPv6 error (types 1 to 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IcmpError {
    Unreachable { code: u8 },
    TooBig { mtu: u32 },
    TimeExceeded,
    ParameterProblem,
}

/// The flow whose packet an ICMPv6 error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quoted {
    pub(super) source: Ipv6Addr,
    pub(super) destination: Ipv6Addr,
    pub(super) flow: QuotedFlow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QuotedFlow {
    Tcp {
        local: u16,
        remote: u16,
        sequence: u32,
    },
    Udp {
        local: u16,
        remote: u16,
    },
    Echo {
        ident: u16,
        sequence: u16,
    },
}

pub(super) fn parse_icmp<'p>(packet: &Ipv6<'p>) -> Option<Icmp<'p>> {
    let bytes = packet.payload();
    let header: &[u8; ICMP_HEADER] = bytes.first_chunk()?;
    if !packet.checksum_holds() {
        return None;
    }
    let (ident, sequence) = (half(header, 4), half(header, 6));
    let error = match (header[0], header[1]) {
        (1, code) => IcmpError::Unreachable { code },
        (2, 0) => IcmpError::TooBig {
            mtu: word(header, 4),
        },
        (3, _) => IcmpError::TimeExceeded,
        (4, _) => IcmpError::ParameterProblem,
        (128, 0) => return Some(Icmp::EchoRequest(bytes)),
        (129, 0) => return Some(Icmp::EchoReply { ident, sequence }),
        _ => return None,
    };
    let inner = Ipv6::parse_quoted(&bytes[ICMP_HEADER..])?;
    let start: &[u8; 8] = inner.payload().first_chunk()?;
    let flow = match inner.next {
        TCP => QuotedFlow::Tcp {
            local: half(start, 0),
            remote: half(start, 2),
            sequence: word(start, 4),
        },
        UDP => QuotedFlow::Udp {
            local: half(start, 0),
            remote: half(start, 2),
        },
        ICMPV6 if start[0] == 128 => QuotedFlow::Echo {
            ident: half(start, 4),
            sequence: half(start, 6),
        },
        _ => return None,
    };
    let quoted = Quoted {
        source: inner.source,
        destination: inner.destination,
        flow,
    };
    Some(Icmp::Error { error, quoted })
}

/// Writes the answer to an echo request (its ICMPv6 part, as received) into `out`.
pub(super) fn write_echo_reply(
    out: &mut Vec<u8>,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    request: &[u8],
) {
    start(out, source, destination, ICMPV6, request.len());
    out.extend_from_slice(request);
    out[HEADER] = 129;
    out[HEADER + 2..HEADER + 4].fill(0);
    seal(out, source, destination, ICMPV6, 2);
}

/// Writes an echo request with `length` bytes of payload into `out`.
pub(super) fn write_echo_request(
    out: &mut Vec<u8>,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    (ident, sequence): (u16, u16),
    length: usize,
) {
    start(out, source, destination, ICMPV6, ICMP_HEADER + length);
    out.extend_from_slice(&[128, 0, 0, 0]);
    out.extend_from_slice(&ident.to_be_bytes());
    out.extend_from_slice(&sequence.to_be_bytes());
    out.extend((0..length).map(|byte| byte.to_le_bytes()[0]));
    seal(out, source, destination, ICMPV6, 2);
}

/// Writes an ICMPv6 error of `kind` and `code` that quotes `offending` into `out`.
pub(super) fn write_icmp_error(
    out: &mut Vec<u8>,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    (kind, code, word): (u8, u8, u32),
    offending: &[u8],
) {
    let quoted = &offending[..offending.len().min(MIN_MTU - HEADER - ICMP_HEADER)];
    start(out, source, destination, ICMPV6, ICMP_HEADER + quoted.len());
    out.extend_from_slice(&[kind, code, 0, 0]);
    out.extend_from_slice(&word.to_be_bytes());
    out.extend_from_slice(quoted);
    seal(out, source, destination, ICMPV6, 2);
}

/// Writes a TCP segment without options into `out`.
pub(super) fn write_tcp(
    out: &mut Vec<u8>,
    (source, source_port): (Ipv6Addr, u16),
    (destination, destination_port): (Ipv6Addr, u16),
    (sequence, acknowledged, window): (u32, u32, u16),
    flags: u8,
    payload: &[u8],
) {
    start(out, source, destination, TCP, 20 + payload.len());
    out.extend_from_slice(&source_port.to_be_bytes());
    out.extend_from_slice(&destination_port.to_be_bytes());
    out.extend_from_slice(&sequence.to_be_bytes());
    out.extend_from_slice(&acknowledged.to_be_bytes());
    out.extend_from_slice(&[5 << 4, flags]);
    out.extend_from_slice(&window.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    seal(out, source, destination, TCP, 16);
}

/// The flag of an acknowledgement, for [`write_tcp`].
pub(super) const ACK: u8 = 16;

/// Makes the checksum of a packet that was tampered with right again.
#[cfg(test)]
pub(super) fn reseal(bytes: &mut [u8]) {
    let Some(packet) = Ipv6::parse(bytes) else {
        return;
    };
    let (source, destination, next) = (packet.source, packet.destination, packet.next);
    let at = match next {
        TCP => 16,
        UDP => 6,
        ICMPV6 => 2,
        _ => return,
    };
    let end = packet.bytes.len();
    if end >= HEADER + at + 2 {
        bytes[HEADER + at..HEADER + at + 2].fill(0);
        seal(&mut bytes[..end], source, destination, next, at);
    }
}

fn start(out: &mut Vec<u8>, source: Ipv6Addr, destination: Ipv6Addr, next: u8, length: usize) {
    out.clear();
    out.reserve(HEADER + length);
    out.extend_from_slice(&[0x60, 0, 0, 0]);
    out.extend_from_slice(&length16(length).to_be_bytes());
    out.extend_from_slice(&[next, HOP_LIMIT]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&destination.octets());
}

/// Puts the checksum into the payload, whose checksum field at `at` is zero.
fn seal(out: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr, next: u8, at: usize) {
    let sum = match checksum(source, destination, next, &out[HEADER..]) {
        // UDP writes a zero as its complement, which says the same.
        0 => 0xffff,
        sum => sum,
    };
    out[HEADER + at..HEADER + at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The internet checksum with the pseudo header of IPv6; over sealed bytes it is zero.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> u16 {
    let mut sum = u64::from(next) + payload.len() as u64;
    sum += add(&source.octets()) + add(&destination.octets()) + add(payload);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded above: it fits.
    !(sum as u16)
}

/// The sum of big-endian words, unfolded: a payload of 64 KiB is far from overflow.
fn add(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum: u64 = words
        .iter()
        .map(|w| u64::from(u32::from_be_bytes(*w)))
        .sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

fn address(header: &[u8; HEADER], at: usize) -> Ipv6Addr {
    header[at..]
        .first_chunk::<16>()
        .map_or(Ipv6Addr::UNSPECIFIED, |b| Ipv6Addr::from(*b))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |b| u16::from_be_bytes(*b))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |b| u32::from_be_bytes(*b))
}

/// Packets are bounded by an MTU that fits.
fn length16(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 1, 0, 0, 0, 0, 2);
    const B: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 1, 0, 0, 0, 0, 3);

    #[test]
    fn udp_round_trip_and_a_flipped_bit() {
        let mut out = Vec::new();
        write_udp(&mut out, (A, 1000), (B, 53), b"question");
        let packet = Ipv6::parse(&out).unwrap();
        assert_eq!(parse_udp(&packet), Some((1000, 53, &b"question"[..])));
        for bit in 0..8 * 8 {
            let mut bad = out.clone();
            bad[HEADER + 8 + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_udp(&Ipv6::parse(&bad).unwrap()), None);
        }
    }

    #[test]
    fn an_error_names_the_flow_it_quotes() {
        let mut udp = Vec::new();
        write_udp(&mut udp, (A, 1000), (B, 53), &[7; 1400]);
        let mut out = Vec::new();
        write_icmp_error(&mut out, B, A, (1, 4, 0), &udp);
        assert_eq!(out.len(), MIN_MTU);
        let Some(Icmp::Error { error, quoted }) = parse_icmp(&Ipv6::parse(&out).unwrap()) else {
            panic!("no error")
        };
        assert_eq!(error, IcmpError::Unreachable { code: 4 });
        let flow = QuotedFlow::Udp {
            local: 1000,
            remote: 53,
        };
        assert_eq!(
            quoted,
            Quoted {
                source: A,
                destination: B,
                flow
            }
        );
    }

    #[test]
    fn echo_is_answered_with_what_was_sent() {
        let mut request = Vec::new();
        write_echo_request(&mut request, A, B, (7, 9), 300);
        let packet = Ipv6::parse(&request).unwrap();
        let Some(Icmp::EchoRequest(message)) = parse_icmp(&packet) else {
            panic!("no request")
        };
        let mut reply = Vec::new();
        write_echo_reply(&mut reply, B, A, message);
        assert_eq!(reply[48..], request[48..]);
        let reply = parse_icmp(&Ipv6::parse(&reply).unwrap());
        assert!(matches!(
            reply,
            Some(Icmp::EchoReply {
                ident: 7,
                sequence: 9
            })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), next in 0u8..3) {
            let mut out = Vec::new();
            start(&mut out, A, B, [TCP, UDP, ICMPV6][usize::from(next)], bytes.len());
            out.extend_from_slice(&bytes);
            if bytes.len() > 4 && next == 2 {
                // Sealed, so that the parser gets past the checksum.
                out[HEADER + 2..HEADER + 4].fill(0);
                seal(&mut out, A, B, ICMPV6, 2);
            }
            let packet = Ipv6::parse(&out).unwrap();
            let _ = (Tcp::parse(&packet), parse_udp(&packet), parse_icmp(&packet));
            let _ = Ipv6::parse(&bytes);
        }
    }
}
