//! Private keys in the store: they are read to sign, and no function returns one.

use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use ssh_key::Certificate;
use zeroize::Zeroizing;

use super::{OrgId, Store, orgs, unix};
use crate::{
    Error, Signer, UserCertificate,
    certificate::{Authority, new_seed},
};

/// What an SSH CA signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityKind {
    /// Certificates of users, which instances trust.
    User,
    /// Certificates of instances, which clients trust.
    Host,
}

/// The CAs of one kind that an organisation has at once: what is told of them in one DNS answer.
const MAX_AUTHORITIES: u32 = 2;

impl AuthorityKind {
    fn name(self) -> &'static str {
        match self {
            AuthorityKind::User => "user",
            AuthorityKind::Host => "host",
        }
    }
}

impl Store {
    /// The lines of the organisation's user CAs, the one that signs first.
    ///
    /// # Errors
    /// When there is no such organisation, or the store fails.
    pub fn user_cas(&self, org: OrgId) -> Result<Vec<String>, Error> {
        self.read(|tx| public_lines(tx, org, AuthorityKind::User))
    }

    /// The lines of the organisation's host CAs, the one that signs first.
    ///
    /// # Errors
    /// When there is no such organisation, or the store fails.
    pub fn host_cas(&self, org: OrgId) -> Result<Vec<String>, Error> {
        self.read(|tx| public_lines(tx, org, AuthorityKind::Host))
    }

    /// Begins a rotation: makes another CA, which signs from now on, and answers with its line. The
    /// one that signed until now stays trusted. Instances ask for the lines at each login; a client
    /// is told them with its next lease or certificate, and refuses the new host CA until then.
    ///
    /// # Errors
    /// When there is no such organisation, or an older CA still waits to be retired.
    pub fn rotate_authority(
        &self,
        org: OrgId,
        kind: AuthorityKind,
        now: SystemTime,
    ) -> Result<String, Error> {
        self.write(|tx| {
            orgs::name_of(tx, org)?;
            if count(tx, org, kind)? >= MAX_AUTHORITIES {
                return Err(Error::RotationUnderWay);
            }
            make_authority(tx, org, kind, now)?;
            signing(tx, org, kind)?.public_line()
        })
    }

    /// Ends a rotation: the oldest CA is told to nobody any more and its key is deleted. Answers with
    /// the line it had. Who asks for the lines from then on refuses what it signed, whatever time
    /// that has left.
    ///
    /// # Errors
    /// When there is no such organisation, or it has one CA of the kind: that one signs.
    pub fn retire_authority(&self, org: OrgId, kind: AuthorityKind) -> Result<String, Error> {
        self.write(|tx| {
            let held = authorities(tx, org, kind)?;
            let [_, .., oldest] = &held[..] else {
                return Err(Error::NoRotation);
            };
            tx.execute(
                "DELETE FROM authorities WHERE id =
                    (SELECT min(id) FROM authorities WHERE organisation = ?1 AND kind = ?2)",
                params![org, kind.name()],
            )?;
            oldest.public_line()
        })
    }

    /// Signs a user's public key. A source must be the own address of a peer of the organisation
    /// that is live at `now`.
    ///
    /// # Errors
    /// When the key, the principals, the time or the source are not to be signed for.
    pub fn sign_user_certificate(
        &self,
        org: OrgId,
        asked: &UserCertificate<'_>,
        now: SystemTime,
    ) -> Result<Certificate, Error> {
        let (name, authority) = self.read(|tx| {
            let name = orgs::name_of(tx, org)?;
            if let Some(source) = asked.source {
                let live = "SELECT 1 FROM peers JOIN networks ON networks.id = peers.network
                     WHERE networks.organisation = ?1 AND peers.address = ?2
                       AND (peers.expires IS NULL OR peers.expires > ?3)";
                tx.query_row(
                    live,
                    params![org, source.to_string(), unix(now)],
                    |_| Ok(()),
                )
                .optional()?
                .ok_or(Error::PeerUnknown)?;
            }
            Ok((name, signing(tx, org, AuthorityKind::User)?))
        })?;
        authority.sign_user(&name, asked, now)
    }

    /// Signs an instance's host key for every name that the instance may be dialled by.
    ///
    /// # Errors
    /// When there is no such instance, or the key is not to be signed.
    pub fn sign_host_certificate(
        &self,
        instance: &str,
        public_key: &str,
        now: SystemTime,
    ) -> Result<Certificate, Error> {
        let (instance, name, authority) = self.read(|tx| {
            let instance = orgs::instance_by_id(tx, instance)?;
            let name = orgs::name_of(tx, instance.org)?;
            let authority = signing(tx, instance.org, AuthorityKind::Host)?;
            Ok((instance, name, authority))
        })?;
        let (id, app, region) = (&instance.id, &instance.app, &instance.region);
        let names = [
            format!("{id}.vm.{app}.internal"),
            format!("{app}.internal"),
            format!("{region}.{app}.internal"),
            instance.address.address().to_string(),
        ];
        authority.sign_host(&name, id, &names, public_key, now)
    }

    /// What signs relay tokens; its key is made when it is first asked for, and kept.
    ///
    /// # Errors
    /// When the store fails.
    pub fn token_signer(&self) -> Result<Signer, Error> {
        let seed = self.write(|tx| {
            let fresh = new_seed()?;
            tx.execute(
                "INSERT INTO secrets (name, value) VALUES ('relay_token', ?1)
                 ON CONFLICT (name) DO NOTHING",
                params![fresh.as_slice()],
            )?;
            let seed = tx.query_row(
                "SELECT value FROM secrets WHERE name = 'relay_token'",
                [],
                |row| row.get(0).map(Zeroizing::<[u8; 32]>::new),
            )?;
            Ok(seed)
        })?;
        Signer::from_seed(&seed)
    }
}

/// Makes both CAs of a new organisation.
pub(super) fn make_authorities(
    tx: &Transaction<'_>,
    org: OrgId,
    now: SystemTime,
) -> Result<(), Error> {
    make_authority(tx, org, AuthorityKind::User, now)?;
    make_authority(tx, org, AuthorityKind::Host, now)
}

fn make_authority(
    tx: &Transaction<'_>,
    org: OrgId,
    kind: AuthorityKind,
    now: SystemTime,
) -> Result<(), Error> {
    let seed = new_seed()?;
    tx.execute(
        "INSERT INTO authorities (organisation, kind, seed, created) VALUES (?1, ?2, ?3, ?4)",
        params![org, kind.name(), seed.as_slice(), unix(now)],
    )?;
    Ok(())
}

fn count(tx: &Connection, org: OrgId, kind: AuthorityKind) -> Result<u32, Error> {
    let sql = "SELECT count(*) FROM authorities WHERE organisation = ?1 AND kind = ?2";
    Ok(tx.query_row(sql, params![org, kind.name()], |row| row.get(0))?)
}

fn signing(tx: &Connection, org: OrgId, kind: AuthorityKind) -> Result<Authority, Error> {
    let newest = authorities(tx, org, kind)?.into_iter().next();
    newest.ok_or_else(|| Error::Internal(format!("no {} CA", kind.name())))
}

pub(super) fn public_lines(
    tx: &Connection,
    org: OrgId,
    kind: AuthorityKind,
) -> Result<Vec<String>, Error> {
    let authorities = authorities(tx, org, kind)?;
    authorities.iter().map(Authority::public_line).collect()
}

fn authorities(tx: &Connection, org: OrgId, kind: AuthorityKind) -> Result<Vec<Authority>, Error> {
    let comment = format!("{} {} CA", orgs::name_of(tx, org)?, kind.name());
    let mut statement = tx.prepare_cached(
        "SELECT seed FROM authorities WHERE organisation = ?1 AND kind = ?2 ORDER BY id DESC",
    )?;
    let seeds = statement.query_map(params![org, kind.name()], |row| {
        row.get(0).map(Zeroizing::<[u8; 32]>::new)
    })?;
    seeds
        .map(|seed| Authority::from_seed(&*seed?, &comment))
        .collect()
}
