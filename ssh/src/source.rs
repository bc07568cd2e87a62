//! The `source-address` option: a list of addresses and prefixes.

use std::net::IpAddr;

/// A list of prefixes, as in the critical option `source-address`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceAddresses(Vec<(IpAddr, u8)>);

/// The list is empty, an entry is no address or prefix, or a prefix has bits after its mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a list of addresses and prefixes")]
pub struct SourceMalformed;

impl SourceAddresses {
    /// Parses `address[/bits],...` as OpenSSH does: no spaces, no names, no negation, no bits
    /// beyond the mask.
    pub fn parse(text: &str) -> Result<SourceAddresses, SourceMalformed> {
        let entries: Option<Vec<_>> = text.split(',').map(entry).collect();
        entries.map(SourceAddresses).ok_or(SourceMalformed)
    }

    /// Whether the address lies in one of the prefixes. An IPv4 address mapped into IPv6 counts
    /// as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0
            .iter()
            .any(|&(prefix, bits)| match (prefix, address) {
                (IpAddr::V4(prefix), IpAddr::V4(address)) => {
                    let bits = u32::from(bits);
                    masked(prefix.to_bits().into(), bits, 32)
                        == masked(address.to_bits().into(), bits, 32)
                }
                (IpAddr::V6(prefix), IpAddr::V6(address)) => {
                    let bits = u32::from(bits);
                    masked(prefix.to_bits(), bits, 128) == masked(address.to_bits(), bits, 128)
                }
                _ => false,
            })
    }
}

fn entry(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => {
            let plain = !bits.is_empty() && bits.bytes().all(|digit| digit.is_ascii_digit());
            (address, Some(bits.parse::<u8>().ok().filter(|_| plain)?))
        }
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let (number, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let bits = bits.unwrap_or(width);
    let fits = bits <= width && masked(number, u32::from(bits), u32::from(width)) == number;
    fits.then_some((address, bits))
}

fn masked(address: u128, bits: u32, width: u32) -> u128 {
    let host = width - bits;
    address
        .checked_shr(host)
        .unwrap_or(0)
        .checked_shl(host)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let inside = |list: &str, address: &str| {
            SourceAddresses::parse(list)
                .unwrap()
                .contains(address.parse().unwrap())
        };
        assert!(inside("fdaa:0:18::3", "fdaa:0:18::3"));
        assert!(!inside("fdaa:0:18::3", "fdaa:0:18::4"));
        assert!(inside("fdaa:0:18::/48", "fdaa:0:18:ffff::1"));
        assert!(!inside("fdaa:0:18::/48", "fdaa:0:19::1"));
        assert!(inside("10.0.0.0/8,fdaa::/16", "fdaa::1"));
        assert!(inside("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(inside("0.0.0.0/0", "192.0.2.1"));
        assert!(inside("::/0", "fdaa::1"));
        assert!(!inside("::/0", "192.0.2.1"));
        assert!(!inside("0.0.0.0/0", "fdaa::1"));
    }

    #[test]
    fn malformed_lists() {
        for list in [
            "",
            ",",
            "10.0.0.1,",
            ",10.0.0.1",
            "10.0.0.1/33",
            "10.0.0.1/8",
            "fdaa::/129",
            "fdaa::1/48",
            "10.0.0.1 ",
            " 10.0.0.1",
            "!10.0.0.1",
            "10.0.0.*",
            "host",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-8",
            "10.0.0.0/8/8",
            "10.0.0",
            "fdaa::%1",
        ] {
            assert_eq!(
                SourceAddresses::parse(list),
                Err(SourceMalformed),
                "{list:?}"
            );
        }
    }
}
