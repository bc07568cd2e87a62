//! probe
use wasm_bindgen::prelude::*;

/// probe
#[wasm_bindgen]
#[must_use]
pub fn probe(key: &[u8]) -> usize {
    let mut k = [0u8; 32];
    k.copy_from_slice(key);
    let key = tunnel::PrivateKey::from_bytes(k);
    let remote = wire::PublicKey([9; 32]);
    let mut peer = tunnel::peer::Peer::new(tunnel::peer::PeerConfig::client(key, remote), tunnel::Instant::ZERO);
    peer.initiate(tunnel::Instant::ZERO);
    peer.poll_transmit().map_or(0, |d| d.len())
}
