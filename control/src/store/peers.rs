//! WireGuard peers: a key, a range of its own, and a time after which nobody knows them.

use std::{
    net::Ipv6Addr,
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use sixpn::{Interface, NetworkId, Prefix};
use wire::PublicKey;

use super::{OrgId, Store, label, orgs, time, unix};
use crate::{Error, secret::random};

/// How long a lease holds unless it is renewed.
pub const LEASE_TTL: Duration = Duration::from_secs(600);

/// The most peers of one organisation, permanent ones included.
pub const MAX_PEERS: u32 = 1000;

/// Peers are numbered below this host, instances below another: no range is ever both.
const PEERS: u32 = 1;

/// A peer as it stands after a lease was made or renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The peer's name in `_peer.internal`.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// Its network.
    pub network: NetworkId,
    /// Its address, and the /120 it owns.
    pub address: Interface,
    /// When the lease ends; a permanent peer has no end.
    pub expires: Option<SystemTime>,
}

/// A peer in a list.
pub type PeerRecord = Lease;

/// What holds a WireGuard key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A person's machine, or a page.
    Peer,
    /// An instance of an app.
    Instance,
}

/// Who a WireGuard key belongs to: what a gateway needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHolder {
    /// A peer's name, or an instance's id.
    pub name: String,
    /// Which of the two.
    pub kind: Kind,
    /// Its network.
    pub network: NetworkId,
    /// The range its packets come from: a /120 or a /112.
    pub range: Prefix,
    /// When this stops being true, if ever.
    pub expires: Option<SystemTime>,
}

impl Store {
    /// Makes the holder of a key a peer of the organisation's first network, or renews it. Without
    /// `ttl` the peer is permanent, and stays so whatever is asked later.
    ///
    /// # Errors
    /// When the key is no private key's, or belongs to an instance, to another network or to a peer of
    /// another name, the name is taken or no DNS label, or the organisation has [`MAX_PEERS`].
    pub fn lease_peer(
        &self,
        org: OrgId,
        name: Option<&str>,
        key: PublicKey,
        now: SystemTime,
        ttl: Option<Duration>,
    ) -> Result<Lease, Error> {
        let network = self.read(|tx| orgs::first_network(tx, org))?;
        self.lease_peer_in(network, name, key, now, ttl)
    }

    /// The same in any network.
    ///
    /// # Errors
    /// As [`Store::lease_peer`].
    pub fn lease_peer_in(
        &self,
        network: NetworkId,
        name: Option<&str>,
        key: PublicKey,
        now: SystemTime,
        ttl: Option<Duration>,
    ) -> Result<Lease, Error> {
        if let Some(name) = name {
            label(name, "a peer")?;
        }
        refuse_low_order(key)?;
        let expires = ttl.map(|ttl| unix(now + ttl));
        self.write(|tx| {
            forget_expired(tx, now)?;
            if let Some(held) = peer_by_key(tx, key)? {
                let same_name = name.is_none_or(|name| name == held.name);
                if held.network != network || !same_name {
                    return Err(Error::KeyTaken);
                }
                // Never shorter than it was: a lease is renewed, and permanent stays permanent.
                tx.execute(
                    "UPDATE peers SET expires =
                        CASE WHEN expires IS NULL OR ?2 IS NULL THEN NULL ELSE max(expires, ?2) END
                     WHERE key = ?1",
                    params![key.as_bytes(), expires],
                )?;
            } else {
                refuse_held_key(tx, key)?;
                insert(tx, network, name, key, now, expires)?;
            }
            peer_by_key(tx, key)?.ok_or(Error::PeerUnknown)
        })
    }

    /// The live peers of the organisation's first network, by name.
    ///
    /// # Errors
    /// When there is no such organisation.
    pub fn list_peers(&self, org: OrgId, now: SystemTime) -> Result<Vec<PeerRecord>, Error> {
        self.read(|tx| peers_of(tx, orgs::first_network(tx, org)?, now))
    }

    /// Removes a peer of the organisation's first network; answers with its key, to be revoked.
    ///
    /// # Errors
    /// When there is no live peer of that name.
    pub fn remove_peer(&self, org: OrgId, name: &str, now: SystemTime) -> Result<PublicKey, Error> {
        self.write(|tx| {
            forget_expired(tx, now)?;
            let network = orgs::first_network(tx, org)?;
            let sql = "DELETE FROM peers WHERE network = ?1 AND name = ?2 RETURNING key";
            tx.query_row(sql, params![network.get(), name], |row| {
                row.get(0).map(PublicKey)
            })
            .optional()?
            .ok_or(Error::PeerUnknown)
        })
    }

    /// Who a key belongs to at `now`: a live peer, or an instance, started or not.
    ///
    /// # Errors
    /// When the store fails.
    pub fn peer_by_key(&self, key: PublicKey, now: SystemTime) -> Result<Option<KeyHolder>, Error> {
        self.look_up(|tx| {
            if let Some(peer) = peer_by_key(tx, key)? {
                let live = peer.expires.is_none_or(|expires| expires > now);
                return Ok(live.then(|| KeyHolder {
                    name: peer.name,
                    kind: Kind::Peer,
                    network: peer.network,
                    range: peer.address.prefix(),
                    expires: peer.expires,
                }));
            }
            let instance = orgs::instance_by_key(tx, key)?;
            Ok(instance.map(|instance| KeyHolder {
                name: instance.id,
                kind: Kind::Instance,
                network: instance.network,
                range: instance.address.prefix(),
                expires: None,
            }))
        })
    }

    /// Forgets leases, tokens and sessions that have ended, and CAs whose signatures have all ended.
    /// Correctness does not need it: nothing that has ended is ever given out, and what such a CA
    /// signed holds no more. Answers with how many leases went.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sweep(&self, now: SystemTime) -> Result<usize, Error> {
        self.write(|tx| {
            super::logins::forget_expired(tx, now)?;
            super::keys::retire_ended(tx, now)?;
            forget_expired(tx, now)
        })
    }
}

/// Every number that encodes a point of low order of Curve25519 or of its twist, p being 2^255 - 19:
/// <https://cr.yp.to/ecdh.html#validate>. The top bit is none of the number's (RFC 7748, section 5).
const LOW_ORDER: [[u8; 32]; 7] = [
    // 0
    [0; 32],
    // 1
    encoded(0x01, 0x00, 0x00),
    // Of order 8.
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    // p - 1
    encoded(0xec, 0xff, 0x7f),
    // p, which is 0
    encoded(0xed, 0xff, 0x7f),
    // p + 1, which is 1
    encoded(0xee, 0xff, 0x7f),
];

/// A number by its first byte, all between, and its last.
const fn encoded(first: u8, between: u8, last: u8) -> [u8; 32] {
    let mut bytes = [between; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

/// Refuses keys that no private key has: whatever is shared with one of them, everybody knows.
pub(super) fn refuse_low_order(key: PublicKey) -> Result<(), Error> {
    let mut bytes = *key.as_bytes();
    bytes[31] &= 0x7f;
    if LOW_ORDER.contains(&bytes) {
        Err(Error::PeerKeyInvalid)
    } else {
        Ok(())
    }
}

fn insert(
    tx: &Transaction<'_>,
    network: NetworkId,
    name: Option<&str>,
    key: PublicKey,
    now: SystemTime,
    expires: Option<i64>,
) -> Result<(), Error> {
    let held: u32 = tx.query_row(
        "SELECT count(*) FROM peers JOIN networks ON networks.id = peers.network
             WHERE networks.organisation = (SELECT organisation FROM networks WHERE id = ?1)",
        [network.get()],
        |row| row.get(0),
    )?;
    if held >= MAX_PEERS {
        return Err(Error::TooManyPeers);
    }
    let made_up;
    let name = if let Some(name) = name {
        name
    } else {
        made_up = format!("peer-{:016x}", u64::from_be_bytes(*random::<8>()?));
        &made_up
    };
    let address = sixpn::peer_interface(network, PEERS, random_machine()?);
    let inserted = tx.execute(
        "INSERT INTO peers (network, name, key, address, expires, created)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (network, name) DO NOTHING",
        params![
            network.get(),
            name,
            key.as_bytes(),
            address.address().to_string(),
            expires,
            unix(now)
        ],
    )?;
    if inserted == 0 {
        return Err(Error::NameTaken("a peer"));
    }
    Ok(())
}

/// A number for an address. Drawn rather than counted, so that an address that somebody held, and
/// that certificates may still name, goes to nobody else.
pub(super) fn random_machine() -> Result<u32, Error> {
    Ok(u32::from_be_bytes(*random::<4>()?).max(1))
}

/// A key belongs to one peer or one instance, of one network.
pub(super) fn refuse_held_key(tx: &Connection, key: PublicKey) -> Result<(), Error> {
    let held = peer_by_key(tx, key)?.is_some() || orgs::instance_by_key(tx, key)?.is_some();
    if held { Err(Error::KeyTaken) } else { Ok(()) }
}

pub(super) fn forget_expired(tx: &Connection, now: SystemTime) -> Result<usize, Error> {
    Ok(tx.execute("DELETE FROM peers WHERE expires <= ?1", [unix(now)])?)
}

const SELECT: &str = "SELECT name, key, network, address, expires FROM peers";

pub(super) fn peers_of(
    tx: &Connection,
    network: NetworkId,
    now: SystemTime,
) -> Result<Vec<PeerRecord>, Error> {
    let sql =
        format!("{SELECT} WHERE network = ?1 AND (expires IS NULL OR expires > ?2) ORDER BY name");
    let mut statement = tx.prepare_cached(&sql)?;
    let peers = statement.query_map(params![network.get(), unix(now)], row)?;
    Ok(peers.collect::<Result<_, _>>()?)
}

fn peer_by_key(tx: &Connection, key: PublicKey) -> Result<Option<Lease>, Error> {
    let sql = format!("{SELECT} WHERE key = ?1");
    let found = tx.prepare_cached(&sql)?.query_row([key.as_bytes()], row);
    Ok(found.optional()?)
}

fn row(row: &Row<'_>) -> rusqlite::Result<Lease> {
    let expires: Option<i64> = row.get(4)?;
    Ok(Lease {
        name: row.get(0)?,
        key: PublicKey(row.get(1)?),
        network: orgs::network_at(row, 2)?,
        address: orgs::address_at(row, 3, 120)?,
        expires: expires.map(time),
    })
}

/// Reads a peer's own address as a person or a program may give it: bare, or with its /120.
pub(crate) fn read_address(text: &str) -> Option<Ipv6Addr> {
    match text.split_once('/') {
        None => text.parse().ok(),
        Some((address, "120")) => address.parse().ok(),
        Some(_) => None,
    }
}
