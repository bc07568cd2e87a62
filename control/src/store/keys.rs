//! Private keys in the store: they are read to sign, and no function returns one.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use ssh_key::Certificate;
use zeroize::Zeroizing;

use super::{Instance, OrgId, Store, orgs, time, unix};
use crate::{
    Error, Signer, UserCertificate,
    certificate::{Authority, HOST, MAX_FREE, is_old, new_seed},
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
const MAX_AUTHORITIES: usize = 2;

/// A CA of an organisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityRecord {
    /// What it signs.
    pub kind: AuthorityKind,
    /// The line that trusts it.
    pub public_key: String,
    /// SHA-256 of its key.
    pub fingerprint: String,
    /// When it was made.
    pub created: SystemTime,
    /// Whether it is the one that signs.
    pub signs: bool,
    /// When it signs for the first time.
    pub signs_from: SystemTime,
    /// When all that it signed has ended, and it is told to nobody any more: for one with a
    /// successor.
    pub retires: Option<SystemTime>,
}

impl AuthorityKind {
    /// Both.
    pub const ALL: [AuthorityKind; 2] = [AuthorityKind::User, AuthorityKind::Host];

    /// `user` or `host`.
    pub fn name(self) -> &'static str {
        match self {
            AuthorityKind::User => "user",
            AuthorityKind::Host => "host",
        }
    }

    /// How long until everybody who verifies its signatures knows a new one: an instance asks at
    /// each login; a person's file of known hosts is as old as the certificate beside it, at most.
    fn told_within(self) -> Duration {
        match self {
            AuthorityKind::User => Duration::ZERO,
            AuthorityKind::Host => MAX_FREE,
        }
    }

    /// How long the last of its signatures holds.
    fn signs_for(self) -> Duration {
        match self {
            AuthorityKind::User => MAX_FREE,
            AuthorityKind::Host => HOST,
        }
    }
}

impl Store {
    /// The lines of the organisation's user CAs, the newest first.
    ///
    /// # Errors
    /// When there is no such organisation, or the store fails.
    pub fn user_cas(&self, org: OrgId) -> Result<Vec<String>, Error> {
        self.read(|tx| public_lines(tx, org, AuthorityKind::User))
    }

    /// The lines of the organisation's host CAs, the newest first.
    ///
    /// # Errors
    /// When there is no such organisation, or the store fails.
    pub fn host_cas(&self, org: OrgId) -> Result<Vec<String>, Error> {
        self.read(|tx| public_lines(tx, org, AuthorityKind::Host))
    }

    /// The organisation's CAs, the newest of each kind first, users' before hosts'.
    ///
    /// # Errors
    /// When there is no such organisation, or the store fails.
    pub fn authorities(&self, org: OrgId, now: SystemTime) -> Result<Vec<AuthorityRecord>, Error> {
        self.read(|tx| records(tx, org, now))
    }

    /// Begins a rotation: makes another CA of each of these kinds, and answers with all there are.
    /// Instances ask for users' CAs at each login, so a new one signs at once. A client is told of
    /// hosts' CAs with its lease or certificate alone: a new one signs when the last of those that
    /// do not name it has ended. The CAs of before stay trusted until what they signed has ended.
    ///
    /// # Errors
    /// When there is no such organisation, or an older CA of a kind still waits to be retired.
    pub fn rotate_authorities(
        &self,
        org: OrgId,
        kinds: &[AuthorityKind],
        now: SystemTime,
    ) -> Result<Vec<AuthorityRecord>, Error> {
        self.write(|tx| {
            orgs::name_of(tx, org)?;
            for &kind in kinds {
                if authorities(tx, org, kind)?.len() >= MAX_AUTHORITIES {
                    return Err(Error::RotationUnderWay);
                }
                make_authority(tx, org, kind, now)?;
            }
            records(tx, org, now)
        })
    }

    /// Ends a rotation before its time: the older CA of each of these kinds is told to nobody any
    /// more and its key is deleted. Answers with what is left. Who asks for the lines from then on
    /// refuses what it signed, whatever time that has left.
    ///
    /// # Errors
    /// When there is no such organisation, or it has one CA of each kind: that one signs.
    pub fn retire_authorities(
        &self,
        org: OrgId,
        kinds: &[AuthorityKind],
        now: SystemTime,
    ) -> Result<Vec<AuthorityRecord>, Error> {
        self.write(|tx| {
            orgs::name_of(tx, org)?;
            let mut retired = false;
            for &kind in kinds {
                if authorities(tx, org, kind)?.len() > 1 {
                    forget_oldest(tx, org, kind)?;
                    retired = true;
                }
            }
            if !retired {
                return Err(Error::NoRotation);
            }
            records(tx, org, now)
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
            Ok((name, signing(tx, org, AuthorityKind::User, now)?))
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
        let host = self.read(|tx| Host::read(tx, instance, now))?;
        host.sign(public_key, now)
    }

    /// The next certificate of an instance, when it is time: the one it has nears its end, another
    /// CA signs by now, or the instance has other names. None while the one it has is as good as a
    /// new one.
    ///
    /// # Errors
    /// As [`Store::sign_host_certificate`].
    pub fn renew_host_certificate(
        &self,
        instance: &str,
        held: &Certificate,
        now: SystemTime,
    ) -> Result<Option<Certificate>, Error> {
        let host = self.read(|tx| Host::read(tx, instance, now))?;
        if host.is_served_by(held, now) {
            return Ok(None);
        }
        let key = ssh_key::PublicKey::from(held.public_key().clone());
        host.sign(&key.to_openssh()?, now).map(Some)
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

/// An instance, as its certificate says it.
struct Host {
    org: String,
    id: String,
    names: Vec<String>,
    authority: Authority,
}

impl Host {
    fn read(tx: &Connection, instance: &str, now: SystemTime) -> Result<Host, Error> {
        let instance = orgs::instance_by_id(tx, instance)?;
        Ok(Host {
            org: orgs::name_of(tx, instance.org)?,
            names: host_names(&instance),
            authority: signing(tx, instance.org, AuthorityKind::Host, now)?,
            id: instance.id,
        })
    }

    fn sign(&self, public_key: &str, now: SystemTime) -> Result<Certificate, Error> {
        let (org, id, names) = (&self.org, &self.id, &self.names);
        self.authority.sign_host(org, id, names, public_key, now)
    }

    fn is_served_by(&self, held: &Certificate, now: SystemTime) -> bool {
        self.authority.signed(held) && held.valid_principals() == self.names && !is_old(held, now)
    }
}

/// Every name that `names` answers with this instance's address, and the address.
fn host_names(instance: &Instance) -> Vec<String> {
    let Instance {
        id,
        app,
        region,
        group,
        ..
    } = instance;
    let mut names = vec![
        format!("{id}.vm.{app}.internal"),
        format!("{app}.internal"),
        format!("{region}.{app}.internal"),
        format!("global.{app}.internal"),
        format!("{group}.process.{app}.internal"),
        instance.address.address().to_string(),
    ];
    names.extend((1..=NEAREST).map(|n| format!("top{n}.nearest.of.{app}.internal")));
    names
}

/// `top<N>.nearest.of.<app>.internal` is certified up to this N: who connects to one of many dials
/// a small one.
const NEAREST: u16 = 16;

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

/// Retires every CA whose signatures have all ended.
pub(super) fn retire_ended(tx: &Transaction<'_>, now: SystemTime) -> Result<(), Error> {
    let orgs = "SELECT DISTINCT organisation FROM authorities
        GROUP BY organisation, kind HAVING count(*) > 1";
    let orgs: Vec<OrgId> = {
        let mut statement = tx.prepare_cached(orgs)?;
        let rows = statement.query_map([], |row| row.get(0))?;
        rows.collect::<Result<_, _>>()?
    };
    for org in orgs {
        for record in records(tx, org, now)? {
            if record.retires.is_some_and(|end| end <= now) {
                forget_oldest(tx, org, record.kind)?;
            }
        }
    }
    Ok(())
}

fn forget_oldest(tx: &Transaction<'_>, org: OrgId, kind: AuthorityKind) -> Result<(), Error> {
    tx.execute(
        "DELETE FROM authorities WHERE id =
            (SELECT min(id) FROM authorities WHERE organisation = ?1 AND kind = ?2)",
        params![org, kind.name()],
    )?;
    Ok(())
}

fn signing(
    tx: &Connection,
    org: OrgId,
    kind: AuthorityKind,
    now: SystemTime,
) -> Result<Authority, Error> {
    let mut held = authorities(tx, org, kind)?;
    let at = signing_of(kind, &held, now);
    if held.is_empty() {
        return Err(Error::Internal(format!("no {} CA", kind.name())));
    }
    Ok(held.swap_remove(at).authority)
}

/// Which of these signs: the newest, once who verifies its signatures has had the time to hear of
/// it; the oldest before that.
fn signing_of(kind: AuthorityKind, held: &[Held], now: SystemTime) -> usize {
    let told = |held: &Held| held.created + kind.told_within() <= now;
    held.iter()
        .position(told)
        .unwrap_or(held.len().saturating_sub(1))
}

fn records(tx: &Connection, org: OrgId, now: SystemTime) -> Result<Vec<AuthorityRecord>, Error> {
    let mut records = Vec::new();
    for kind in AuthorityKind::ALL {
        let held = authorities(tx, org, kind)?;
        let signing = signing_of(kind, &held, now);
        let mut successor: Option<&Held> = None;
        for (at, this) in held.iter().enumerate() {
            let next = successor.replace(this);
            let is_first = at + 1 == held.len();
            records.push(AuthorityRecord {
                kind,
                public_key: this.authority.public_line()?,
                fingerprint: this.authority.fingerprint(),
                created: this.created,
                signs: at == signing,
                signs_from: if is_first {
                    this.created
                } else {
                    this.created + kind.told_within()
                },
                retires: next.map(|next| next.created + kind.told_within() + kind.signs_for()),
            });
        }
    }
    Ok(records)
}

pub(super) fn public_lines(
    tx: &Connection,
    org: OrgId,
    kind: AuthorityKind,
) -> Result<Vec<String>, Error> {
    let held = authorities(tx, org, kind)?;
    held.iter()
        .map(|held| held.authority.public_line())
        .collect()
}

/// A CA with its key.
struct Held {
    authority: Authority,
    created: SystemTime,
}

/// The newest first.
fn authorities(tx: &Connection, org: OrgId, kind: AuthorityKind) -> Result<Vec<Held>, Error> {
    let comment = format!("{} {} CA", orgs::name_of(tx, org)?, kind.name());
    let mut statement = tx.prepare_cached(
        "SELECT seed, created FROM authorities WHERE organisation = ?1 AND kind = ?2
         ORDER BY id DESC",
    )?;
    let rows = statement.query_map(params![org, kind.name()], |row| {
        Ok((
            row.get(0).map(Zeroizing::<[u8; 32]>::new)?,
            row.get::<_, i64>(1)?,
        ))
    })?;
    rows.map(|row| {
        let (seed, created) = row?;
        Ok(Held {
            authority: Authority::from_seed(&seed, &comment)?,
            created: time(created),
        })
    })
    .collect()
}
