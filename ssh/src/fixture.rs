//! Certificates for the tests of this crate.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ssh_key::certificate::{Builder, CertType};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{Certificate, PrivateKey, PublicKey};

pub(crate) const NOW: u64 = 1_700_000_000;

pub(crate) fn key(seed: u8) -> PrivateKey {
    let pair = Ed25519Keypair::from_seed(&[seed; 32]);
    PrivateKey::new(KeypairData::Ed25519(pair), "").unwrap()
}

pub(crate) fn public(seed: u8) -> PublicKey {
    key(seed).public_key().clone()
}

pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A certificate for key 1 signed by key 2, of a minute ago and valid for an hour.
pub(crate) fn certificate(
    kind: CertType,
    principals: &[&str],
    change: impl FnOnce(&mut Builder),
) -> Certificate {
    certificate_over(kind, principals, NOW - 60..NOW + 3600, change)
}

pub(crate) fn certificate_over(
    kind: CertType,
    principals: &[&str],
    valid: std::ops::Range<u64>,
    change: impl FnOnce(&mut Builder),
) -> Certificate {
    let mut builder = Builder::new(
        vec![7; 16],
        public(1).key_data().clone(),
        valid.start,
        valid.end,
    )
    .unwrap();
    builder
        .serial(9)
        .unwrap()
        .cert_type(kind)
        .unwrap()
        .key_id("org=acme;user=mia")
        .unwrap();
    if principals.is_empty() {
        builder.all_principals_valid().unwrap();
    }
    for principal in principals {
        builder.valid_principal(*principal).unwrap();
    }
    change(&mut builder);
    builder.sign(&key(2)).unwrap()
}
