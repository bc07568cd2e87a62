//! The peers: by index, by key, by range, and by what becomes due.

use std::{
    collections::HashMap,
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use sixpn::{NetworkId, Prefix};
use tunnel::{Instant, peer::Peer};
use wire::PublicKey;

use crate::{Grant, budget::Bucket, timers::Timers};

/// A peer that never proved itself is forgotten after this time.
pub(crate) const PROVE_WITHIN: Duration = Duration::from_secs(10);
/// A peer without a session is forgotten when it was not heard for this time.
pub(crate) const IDLE: Duration = Duration::from_secs(600);
/// A peer that answers nothing for this time is asked for a handshake.
pub(crate) const SILENCE: Duration = Duration::from_secs(2);
/// ... but not more often than this, as long as it answers those.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(10);

const INDEX_MASK: u32 = 0x00ff_ffff;
/// The lengths of ranges that are owned: peers and instances.
const LENGTHS: [u8; 2] = [120, 112];

/// One peer.
pub(crate) struct Entry {
    pub(crate) peer: Peer,
    pub(crate) grant: Grant,
    pub(crate) network: NetworkId,
    /// Where its last authentic message came from.
    pub(crate) endpoint: Option<SocketAddr>,
    /// It has completed a handshake: it holds its range, and is not forgotten lightly.
    pub(crate) proven: bool,
    /// An initiation of it was answered: whoever sent it, the peer made it once.
    pub(crate) answered: bool,
    pub(crate) installed: Instant,
    pub(crate) renew_at: Option<Instant>,
    /// Since when it owes a sign of life.
    pub(crate) asked: Option<Instant>,
    /// The first packet that it did not answer, and who sent it.
    pub(crate) unanswered: Option<(u32, Vec<u8>)>,
    pub(crate) probed: Option<Instant>,
    /// A handshake with it went unanswered.
    pub(crate) down: bool,
    pub(crate) icmp: Bucket,
    /// Drops of `peer` that are counted already.
    pub(crate) counted_drops: u64,
}

impl Entry {
    pub(crate) fn new(peer: Peer, grant: Grant, network: NetworkId, now: Instant) -> Entry {
        Entry {
            peer,
            grant,
            network,
            endpoint: None,
            proven: false,
            answered: false,
            installed: now,
            renew_at: None,
            asked: None,
            unanswered: None,
            probed: None,
            down: false,
            icmp: Bucket::default(),
            counted_drops: 0,
        }
    }

    /// An authentic message came.
    pub(crate) fn heard(&mut self) {
        self.asked = None;
        self.unanswered = None;
        self.down = false;
    }

    /// When a probe for a sign of life is due.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        if self.down {
            return None;
        }
        let silent = self.asked? + SILENCE;
        Some(
            self.probed
                .map_or(silent, |probed| silent.max(probed + PROBE_EVERY)),
        )
    }

    /// When it is forgotten unless it is heard.
    pub(crate) fn forget_at(&self) -> Instant {
        if self.proven {
            self.peer.stats().last_received.unwrap_or(self.installed) + IDLE
        } else {
            self.installed + PROVE_WITHIN
        }
    }

    fn due(&self) -> Instant {
        [
            self.peer.poll_timeout(),
            self.renew_at,
            self.grant.expires,
            self.probe_at(),
        ]
        .into_iter()
        .flatten()
        .fold(self.forget_at(), Instant::min)
    }
}

/// All peers.
pub(crate) struct Table {
    entries: HashMap<u32, Entry>,
    by_key: HashMap<PublicKey, u32>,
    /// Ranges of proven peers.
    routes: HashMap<Prefix, u32>,
    timers: Timers<u32>,
    next_index: u32,
    unproven: usize,
}

impl Table {
    /// Indices start anywhere: those of a gateway that was restarted are no help in guessing.
    pub(crate) fn new(seed: u64) -> Table {
        Table {
            entries: HashMap::new(),
            by_key: HashMap::new(),
            routes: HashMap::new(),
            timers: Timers::new(),
            next_index: seed as u32,
            unproven: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn unproven(&self) -> usize {
        self.unproven
    }

    pub(crate) fn free_index(&mut self) -> u32 {
        loop {
            self.next_index = self.next_index.wrapping_add(1);
            let index = self.next_index & INDEX_MASK;
            if !self.entries.contains_key(&index) {
                return index;
            }
        }
    }

    pub(crate) fn insert(&mut self, index: u32, entry: Entry) {
        self.by_key.insert(entry.grant.key, index);
        self.entries.insert(index, entry);
        self.unproven += 1;
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<Entry> {
        let entry = self.entries.remove(&index)?;
        self.timers.remove(index);
        self.by_key.remove(&entry.grant.key);
        if self.routes.get(&entry.grant.range) == Some(&index) {
            self.routes.remove(&entry.grant.range);
        }
        if !entry.proven {
            self.unproven -= 1;
        }
        Some(entry)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Entry> {
        self.entries.get(&index)
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(&index)
    }

    pub(crate) fn find(&self, key: &PublicKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// A handshake of this peer is complete: its range is its own, whoever held it before.
    pub(crate) fn prove(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(&index) else {
            return;
        };
        if !entry.proven {
            entry.proven = true;
            self.unproven -= 1;
        }
        self.routes.insert(entry.grant.range, index);
    }

    /// The proven peer that holds an address.
    pub(crate) fn route(&self, address: Ipv6Addr) -> Option<u32> {
        LENGTHS
            .iter()
            .find_map(|len| self.routes.get(&Prefix::new(address, *len)).copied())
    }

    /// Call it after anything was done with a peer.
    pub(crate) fn schedule(&mut self, index: u32) {
        if let Some(entry) = self.entries.get(&index) {
            self.timers.set(index, entry.due());
        }
    }

    /// The next peer whose time has come. It is to be scheduled again.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<u32> {
        self.timers.pop_due(now)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }
}
