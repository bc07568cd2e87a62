//! Rules of the store, in memory and in a file.

mod files;
mod leases;
mod logins;
mod orgs;
mod rotation;

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt, sync::Arc};

use names::NetworkView;
use sixpn::NetworkId;
use wire::PublicKey;

use super::*;
use crate::Secret;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn numbered_key(n: u32) -> PublicKey {
    let mut bytes = [0xee; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PublicKey(bytes)
}

/// A store with the organisations `acme` and `rival`.
fn two() -> (Store, Org, Org) {
    let store = Store::open_in_memory().unwrap();
    let acme = store.create_org("acme", at(0)).unwrap();
    let rival = store.create_org("rival", at(0)).unwrap();
    (store, acme, rival)
}

#[track_caller]
fn refused<T: fmt::Debug>(result: Result<T, Error>, code: &str) {
    assert_eq!(result.unwrap_err().code(), code);
}
