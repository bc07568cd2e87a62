//! Ranges of addresses, and an address within its range.

use std::{fmt, net::Ipv6Addr, str::FromStr};

/// A range of addresses: `fdaa:0:18::/48`. Bits past the length are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: Ipv6Addr,
    len: u8,
}

impl Prefix {
    /// The range of the first `len` bits of an address; a length over 128 means 128.
    pub const fn new(address: Ipv6Addr, len: u8) -> Prefix {
        let len = if len > 128 { 128 } else { len };
        Prefix {
            address: Ipv6Addr::from_bits(address.to_bits() & mask(len)),
            len,
        }
    }

    /// The lowest address of the range.
    pub const fn address(self) -> Ipv6Addr {
        self.address
    }

    /// How many bits are common to the range, 0 to 128.
    #[expect(
        clippy::len_without_is_empty,
        reason = "the field's name for a number of bits"
    )]
    pub const fn len(self) -> u8 {
        self.len
    }

    /// Whether an address lies in the range.
    pub const fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask(self.len) == self.address.to_bits()
    }
}

/// An address together with the range it lies in, as WireGuard's `Address =` wants it:
/// `fdaa:0:18:a7b:d6b:0:a:2/120`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface {
    address: Ipv6Addr,
    len: u8,
}

impl Interface {
    /// An address and the length of its range in bits; a length over 128 means 128.
    pub const fn new(address: Ipv6Addr, len: u8) -> Interface {
        Interface {
            address,
            len: if len > 128 { 128 } else { len },
        }
    }

    /// The address.
    pub const fn address(self) -> Ipv6Addr {
        self.address
    }

    /// The range around the address.
    pub const fn prefix(self) -> Prefix {
        Prefix::new(self.address, self.len)
    }
}

/// The text is not an IPv6 address and a length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an IPv6 range; hint: write it as fdaa:0:18::/48")]
pub struct NotAPrefix;

impl FromStr for Interface {
    type Err = NotAPrefix;

    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let (address, len) = text.split_once('/').ok_or(NotAPrefix)?;
        let address = address.parse().map_err(|_| NotAPrefix)?;
        let len: u8 = len.parse().map_err(|_| NotAPrefix)?;
        if len > 128 {
            return Err(NotAPrefix);
        }
        Ok(Interface { address, len })
    }
}

impl FromStr for Prefix {
    type Err = NotAPrefix;

    /// Refuses a range with bits set past its length: such a text is a slip of the pen.
    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let written: Interface = text.parse()?;
        let prefix = written.prefix();
        if prefix.address == written.address {
            Ok(prefix)
        } else {
            Err(NotAPrefix)
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({self})")
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interface({self})")
    }
}

const fn mask(len: u8) -> u128 {
    if len == 0 {
        0
    } else {
        u128::MAX << (128 - len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_its_range_and_no_more() {
        let prefix: Prefix = "fdaa:0:18::/48".parse().unwrap();
        assert!(prefix.contains("fdaa:0:18:ffff::1".parse().unwrap()));
        assert!(!prefix.contains("fdaa:0:19::1".parse().unwrap()));
        assert!(
            "::/0"
                .parse::<Prefix>()
                .unwrap()
                .contains(Ipv6Addr::LOCALHOST)
        );
    }

    #[test]
    fn text_that_is_no_range_is_refused() {
        for text in [
            "",
            "fdaa::",
            "fdaa::/129",
            "fdaa::/-1",
            "10.0.0.0/8",
            "fdaa::/48/2",
        ] {
            assert_eq!(text.parse::<Interface>(), Err(NotAPrefix), "{text}");
        }
        assert_eq!("fdaa::1/48".parse::<Prefix>(), Err(NotAPrefix));
    }
}
