//! 6PN: the address layout of private networks.
//!
//! ```text
//! fdaa : network id : host : machine : free
//!  16       32         32      32       16     bits
//! ```
//!
//! A network is a /48, an instance owns a /112, a WireGuard peer a /120. Two addresses belong
//! together when their first 48 bits are equal, and by nothing else: no table of names, no
//! organisation is asked. This crate holds arithmetic only; it performs no I/O whatsoever.

mod prefix;

use std::{fmt, net::Ipv6Addr};

pub use prefix::{Interface, NotAPrefix, Prefix};

/// Where an instance finds its DNS server, whatever its network: `fdaa::3`.
///
/// It lies in network 0, which is never allocated.
pub const INSTANCE_DNS: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 3);

/// The first 16 bits of every private network.
const SITE: u128 = 0xfdaa;

/// The number of one private network: 32 bits, never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(u32);

impl NetworkId {
    /// Takes a number as a network, unless it is 0, which holds [`INSTANCE_DNS`] and nobody else.
    pub const fn new(id: u32) -> Option<NetworkId> {
        if id == 0 { None } else { Some(NetworkId(id)) }
    }

    /// The network that an address belongs to; none for addresses outside `fdaa::/16` and for
    /// network 0.
    pub const fn of(address: Ipv6Addr) -> Option<NetworkId> {
        let bits = address.to_bits();
        if bits >> 112 != SITE {
            return None;
        }
        NetworkId::new((bits >> 80) as u32)
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The /48 of this network.
    pub const fn prefix(self) -> Prefix {
        Prefix::new(Ipv6Addr::from_bits(self.bits()), 48)
    }

    /// Where a WireGuard peer of this network finds its DNS server: `<network>::3`.
    pub const fn dns(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.bits() | 3)
    }

    const fn bits(self) -> u128 {
        (SITE << 112) | ((self.0 as u128) << 80)
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkId({})", self.prefix())
    }
}

/// The interface of a WireGuard peer: a /120 whose own address ends in `:2`, as in
/// `fdaa:0:18:a7b:d6b:0:a:2/120`.
///
/// `host` 0 is refused nowhere, but [`NetworkId::dns`] lies there: allocate hosts from 1.
pub const fn peer_interface(network: NetworkId, host: u32, peer: u32) -> Interface {
    interface(network, host, peer, 120)
}

/// The interface of an instance: a /112 whose own address ends in `:2`.
pub const fn instance_interface(network: NetworkId, host: u32, machine: u32) -> Interface {
    interface(network, host, machine, 112)
}

const fn interface(network: NetworkId, host: u32, machine: u32, len: u8) -> Interface {
    let bits = network.bits() | ((host as u128) << 48) | ((machine as u128) << 16) | 2;
    Interface::new(Ipv6Addr::from_bits(bits), len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(id: u32) -> NetworkId {
        NetworkId::new(id).unwrap()
    }

    #[test]
    fn the_addresses_of_the_seeds() {
        let net = network(0x18);
        assert_eq!(
            peer_interface(net, 0x0a7b_0d6b, 0xa).to_string(),
            "fdaa:0:18:a7b:d6b:0:a:2/120"
        );
        assert_eq!(
            instance_interface(net, 0x0a7b_007d, 0xf066_b83b).to_string(),
            "fdaa:0:18:a7b:7d:f066:b83b:2/112"
        );
        assert_eq!(net.dns().to_string(), "fdaa:0:18::3");
        assert_eq!(net.prefix().to_string(), "fdaa:0:18::/48");
    }

    #[test]
    fn network_zero_and_strangers_are_no_network() {
        assert_eq!(NetworkId::new(0), None);
        assert_eq!(NetworkId::of(INSTANCE_DNS), None);
        for stranger in ["::1", "fdab:0:18::1", "2001:db8::1", "::"] {
            assert_eq!(NetworkId::of(stranger.parse().unwrap()), None, "{stranger}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_address_of_a_network_names_it(id in 1..=u32::MAX, host: u32, machine: u32) {
            let net = network(id);
            for interface in [peer_interface(net, host, machine), instance_interface(net, host, machine)] {
                assert_eq!(NetworkId::of(interface.address()), Some(net));
                assert!(net.prefix().contains(interface.address()));
                assert!(interface.prefix().contains(interface.address()));
            }
            assert_eq!(NetworkId::of(net.dns()), Some(net));
        }
    }
}
