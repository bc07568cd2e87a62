//! Login tokens and sessions: secrets that are kept as hashes, and end.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{Org, OrgId, Store, is_user_name, orgs, time, unix};
use crate::{Error, Secret, secret::hash};

/// How long a login token waits for its use.
const TOKEN_TTL: Duration = Duration::from_secs(600);

/// How long a session holds. Nothing prolongs it.
const SESSION_TTL: Duration = Duration::from_secs(12 * 3600);

/// For a day after its end a token is told apart from one that never was.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// Tokens of one user that wait at once.
const MAX_WAITING: u32 = 100;

/// Tokens of a local user that wait, the newest; each command at the machine may make one.
const MAX_LOCAL_WAITING: u32 = 20;

/// Sessions of one user at once; one more ends the oldest.
const MAX_SESSIONS: u32 = 10_000;

const TOKEN_PREFIX: &str = "uplt_";
const SESSION_PREFIX: &str = "upss_";

/// A login token, to be shown once.
#[derive(Debug, Clone)]
pub struct LoginToken {
    /// The token itself.
    pub token: Secret,
    /// When it stops being accepted.
    pub expires: SystemTime,
}

/// A session that a token was exchanged for.
#[derive(Debug, Clone)]
pub struct Session {
    /// What to send as `Authorization: Bearer`; to be shown once.
    pub bearer: Secret,
    /// Who logged in.
    pub user: String,
    /// The organisations that count the user as a member, by name.
    pub orgs: Vec<String>,
    /// When it ends.
    pub expires: SystemTime,
}

/// Who a session belongs to. Made by [`Store::session`] alone.
#[derive(Debug, Clone)]
pub struct Identity {
    user: String,
    id: i64,
}

impl Identity {
    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }
}

impl Store {
    /// Makes a login token for a user, who becomes known, and a member of the organisation, if that
    /// is news. Whoever may call this may let anybody in.
    ///
    /// # Errors
    /// When the name cannot be a user's, there is no such organisation, or too many tokens wait.
    pub fn create_login_token(
        &self,
        org: OrgId,
        user: &str,
        now: SystemTime,
    ) -> Result<LoginToken, Error> {
        if !is_user_name(user) {
            return Err(Error::NameInvalid("a user"));
        }
        self.write(|tx| {
            orgs::name_of(tx, org)?;
            let id = user_of(tx, user, now)?;
            tx.execute(
                "INSERT INTO members (organisation, user) VALUES (?1, ?2)
                 ON CONFLICT (organisation, user) DO NOTHING",
                params![org, id],
            )?;
            make_token(tx, id, now)
        })
    }

    /// Makes a login token for one who sits at the machine and owns the directory: a user who
    /// becomes known, and a member of every organisation there is, if that is news. It is never
    /// refused for others that wait: when 20 wait, the oldest of this user is dropped. Whoever may
    /// call this may let anybody in, everywhere.
    ///
    /// # Errors
    /// When the name cannot be a user's.
    pub fn create_local_login_token(
        &self,
        user: &str,
        now: SystemTime,
    ) -> Result<LoginToken, Error> {
        if !is_user_name(user) {
            return Err(Error::NameInvalid("a user"));
        }
        self.write(|tx| {
            let id = user_of(tx, user, now)?;
            tx.execute(
                "INSERT INTO members (organisation, user) SELECT id, ?1 FROM organisations
                 WHERE true ON CONFLICT (organisation, user) DO NOTHING",
                [id],
            )?;
            // Of those made in the same second it does not matter which is older.
            tx.execute(
                "DELETE FROM login_tokens WHERE hash IN
                    (SELECT hash FROM login_tokens WHERE user = ?1 AND used IS NULL
                     ORDER BY expires DESC LIMIT -1 OFFSET ?2)",
                params![id, MAX_LOCAL_WAITING - 1],
            )?;
            make_token(tx, id, now)
        })
    }

    /// Makes another login token for one who is logged in, and for nothing more.
    ///
    /// # Errors
    /// When too many tokens wait.
    pub fn create_own_login_token(
        &self,
        identity: &Identity,
        now: SystemTime,
    ) -> Result<LoginToken, Error> {
        self.write(|tx| make_token(tx, identity.id, now))
    }

    /// Exchanges a login token for a session. Of any number of callers with the same token, at the
    /// same moment too, one gets a session.
    ///
    /// # Errors
    /// When the token is unknown, used or expired: three different errors.
    pub fn redeem(&self, token: &str, now: SystemTime) -> Result<Session, Error> {
        let hash = hash(TOKEN_PREFIX, token.trim()).ok_or(Error::TokenUnknown)?;
        // A guess ends here: only who has a token waits for the write lock.
        let sql = "SELECT 1 FROM login_tokens WHERE hash = ?1";
        self.read(|tx| Ok(tx.query_row(sql, [hash], |_| Ok(())).optional()?))?
            .ok_or(Error::TokenUnknown)?;
        self.write(|tx| {
            let spent: Option<i64> = tx
                .query_row(
                    "UPDATE login_tokens SET used = ?2
                     WHERE hash = ?1 AND used IS NULL AND expires > ?2 RETURNING user",
                    params![hash, unix(now)],
                    |row| row.get(0),
                )
                .optional()?;
            let Some(user) = spent else {
                return Err(why_not(tx, &hash)?);
            };
            make_session(tx, user, now)
        })
    }

    /// Who a session belongs to, if it still holds.
    ///
    /// # Errors
    /// When it is unknown or expired.
    pub fn session(&self, bearer: &str, now: SystemTime) -> Result<Identity, Error> {
        let hash = hash(SESSION_PREFIX, bearer).ok_or(Error::SessionUnknown)?;
        self.read(|tx| {
            let found: Option<(Identity, i64)> = tx
                .prepare_cached(
                    "SELECT users.name, users.id, sessions.expires
                     FROM sessions JOIN users ON users.id = sessions.user WHERE sessions.hash = ?1",
                )?
                .query_row([hash], |row| {
                    let identity = Identity {
                        user: row.get(0)?,
                        id: row.get(1)?,
                    };
                    Ok((identity, row.get(2)?))
                })
                .optional()?;
            match found {
                None => Err(Error::SessionUnknown),
                Some((_, expires)) if expires <= unix(now) => Err(Error::SessionExpired),
                Some((identity, _)) => Ok(identity),
            }
        })
    }

    /// Ends a session. One that does not exist has ended.
    ///
    /// # Errors
    /// When the store fails.
    pub fn end_session(&self, bearer: &str) -> Result<(), Error> {
        if let Some(hash) = hash(SESSION_PREFIX, bearer) {
            self.write(|tx| Ok(tx.execute("DELETE FROM sessions WHERE hash = ?1", [hash])?))?;
        }
        Ok(())
    }

    /// The organisations that count a user as a member, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn orgs_of(&self, identity: &Identity) -> Result<Vec<String>, Error> {
        self.read(|tx| names_of_orgs(tx, identity.id))
    }

    /// The organisation of a name, if it counts the user as a member. To all others it does not
    /// exist.
    ///
    /// # Errors
    /// When there is none of that name, or it is not the user's: one error.
    pub fn org_of(&self, identity: &Identity, name: &str) -> Result<Org, Error> {
        let org = self.org(name)?;
        self.read(|tx| {
            let sql = "SELECT 1 FROM members WHERE organisation = ?1 AND user = ?2";
            let member = tx.query_row(sql, params![org.id, identity.id], |_| Ok(()));
            member.optional()?.ok_or(Error::OrgUnknown)
        })?;
        Ok(org)
    }
}

pub(super) fn forget_expired(tx: &Connection, now: SystemTime) -> Result<(), Error> {
    let long_ago = unix(now).saturating_sub_unsigned(REMEMBERED.as_secs());
    tx.execute("DELETE FROM login_tokens WHERE expires <= ?1", [long_ago])?;
    tx.execute("DELETE FROM sessions WHERE expires <= ?1", [long_ago])?;
    Ok(())
}

/// The number of a user, who becomes known if that is news.
fn user_of(tx: &Transaction<'_>, user: &str, now: SystemTime) -> Result<i64, Error> {
    tx.execute(
        "INSERT INTO users (name, created) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING",
        params![user, unix(now)],
    )?;
    let sql = "SELECT id FROM users WHERE name = ?1";
    Ok(tx.query_row(sql, [user], |row| row.get(0))?)
}

fn make_token(tx: &Transaction<'_>, user: i64, now: SystemTime) -> Result<LoginToken, Error> {
    forget_expired(tx, now)?;
    let waiting: u32 = tx.query_row(
        "SELECT count(*) FROM login_tokens WHERE user = ?1 AND used IS NULL AND expires > ?2",
        params![user, unix(now)],
        |row| row.get(0),
    )?;
    if waiting >= MAX_WAITING {
        return Err(Error::TooManyTokens);
    }
    let token = Secret::random(TOKEN_PREFIX)?;
    let expires = unix(now + TOKEN_TTL);
    tx.execute(
        "INSERT INTO login_tokens (hash, user, expires) VALUES (?1, ?2, ?3)",
        params![hash(TOKEN_PREFIX, token.reveal()), user, expires],
    )?;
    Ok(LoginToken {
        token,
        expires: time(expires),
    })
}

fn make_session(tx: &Transaction<'_>, user: i64, now: SystemTime) -> Result<Session, Error> {
    forget_expired(tx, now)?;
    let bearer = Secret::random(SESSION_PREFIX)?;
    let expires = unix(now + SESSION_TTL);
    tx.execute(
        "INSERT INTO sessions (hash, user, expires) VALUES (?1, ?2, ?3)",
        params![hash(SESSION_PREFIX, bearer.reveal()), user, expires],
    )?;
    tx.execute(
        "DELETE FROM sessions WHERE user = ?1 AND hash IN
            (SELECT hash FROM sessions WHERE user = ?1 ORDER BY expires DESC LIMIT -1 OFFSET ?2)",
        params![user, MAX_SESSIONS],
    )?;
    let sql = "SELECT name FROM users WHERE id = ?1";
    Ok(Session {
        bearer,
        user: tx.query_row(sql, [user], |row| row.get(0))?,
        orgs: names_of_orgs(tx, user)?,
        expires: time(expires),
    })
}

/// Why a token was not spent. In the transaction that did not spend it: the answer fits.
fn why_not(tx: &Transaction<'_>, hash: &[u8; 32]) -> Result<Error, Error> {
    let used: Option<bool> = tx
        .query_row(
            "SELECT used IS NOT NULL FROM login_tokens WHERE hash = ?1",
            [hash],
            |row| row.get(0),
        )
        .optional()?;
    Ok(match used {
        None => Error::TokenUnknown,
        Some(true) => Error::TokenUsed,
        Some(false) => Error::TokenExpired,
    })
}

fn names_of_orgs(tx: &Connection, user: i64) -> Result<Vec<String>, Error> {
    let mut statement = tx.prepare_cached(
        "SELECT organisations.name FROM organisations
         JOIN members ON members.organisation = organisations.id
         WHERE members.user = ?1 ORDER BY organisations.name",
    )?;
    let names = statement.query_map([user], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}
