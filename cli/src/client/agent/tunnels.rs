//! The tunnels that the agent keeps, who uses them, and how long nobody has.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context;
use carrier::Event;
use http::Method;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;
use tokio::{sync::Notify, time::Instant};
use zeroize::Zeroizing;

use super::protocol::{SystemId, TunnelStatus, Wanted, micros};
use crate::{
    client::{
        args::{OrgArg, Scope, SystemArg},
        network::{Failure, Own, Way},
        ssh::Certified,
    },
    data_dir::DataDirArg,
};

/// Tunnels at once; each holds a lease and keepalives.
const MAX_TUNNELS: usize = 16;

/// Users of a tunnel that certificates are kept for.
const MAX_CERTIFICATES: usize = 16;

/// A certificate that ends sooner is replaced.
const FRESH: u64 = 5 * 60;

/// For how long the only organisation is believed to be the only one.
const ONLY_ORG: Duration = Duration::from_secs(300);

/// All of them.
pub(super) struct Tunnels {
    kept: Mutex<HashMap<u64, Arc<Kept>>>,
    /// Who opens a tunnel is alone with it.
    gates: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while control is asked: of many commands at once, one asks.
    only_orgs: tokio::sync::Mutex<HashMap<SystemId, (String, Instant)>>,
    next: AtomicU64,
    idle: Duration,
    /// When the last tunnel was given up, or the agent started.
    since: Mutex<Instant>,
    /// Somebody has stopped using one.
    changed: Notify,
}

/// What a tunnel is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    system: SystemId,
    org: String,
    way: Way,
}

/// A tunnel, its SSH key, and certificates of that.
pub(super) struct Kept {
    pub(super) id: u64,
    key: Key,
    pub(super) own: Own,
    ssh_key: Ed25519KeyPair,
    certificates: tokio::sync::Mutex<HashMap<String, Certified>>,
    uses: AtomicUsize,
    last_used: Mutex<Instant>,
}

/// Somebody uses a tunnel: it is kept meanwhile.
pub(super) struct Use {
    kept: Arc<Kept>,
    tunnels: Arc<Tunnels>,
}

impl Tunnels {
    pub(super) fn new(idle: Duration) -> Tunnels {
        Tunnels {
            kept: Mutex::default(),
            gates: Mutex::default(),
            only_orgs: tokio::sync::Mutex::default(),
            next: AtomicU64::new(0),
            idle,
            since: Mutex::new(Instant::now()),
            changed: Notify::new(),
        }
    }

    /// The tunnel that is wanted: the one that is kept, or a new one.
    pub(super) async fn open(self: &Arc<Self>, wanted: Wanted) -> anyhow::Result<Use> {
        let org = match wanted.org {
            Some(org) => org,
            None => Box::pin(self.only_org(&wanted.system)).await?,
        };
        let key = Key {
            system: wanted.system,
            org,
            way: wanted.way,
        };
        let gate = {
            let mut gates = lock(&self.gates);
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            Arc::clone(gates.entry(key.clone()).or_default())
        };
        let _alone = gate.lock().await;
        if let Some(kept) = lock(&self.kept).values().find(|kept| kept.key == key) {
            return Ok(self.use_of(kept));
        }
        if lock(&self.kept).len() >= MAX_TUNNELS {
            return Err(busy("tunnels", MAX_TUNNELS).into());
        }
        let id = self.next.fetch_add(1, Relaxed) + 1;
        let lost = {
            let tunnels = Arc::downgrade(self);
            move || forget(&tunnels, id)
        };
        let scope = scope(&key.system, Some(key.org.clone()));
        let own = Box::pin(Own::open(&scope, key.way, lost)).await?;
        let address = own.peer().lease.address()?;
        tracing::info!(tunnel = id, org = key.org, %address, way = ?key.way, "opened");
        tokio::spawn(note_events(id, own.carrier().events()));
        let kept = Arc::new(Kept {
            id,
            key,
            own,
            ssh_key: fresh_ssh_key()?,
            certificates: tokio::sync::Mutex::default(),
            uses: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
        });
        let mut all = lock(&self.kept);
        all.insert(id, Arc::clone(&kept));
        Ok(self.use_of(&kept))
    }

    /// A tunnel that is kept.
    pub(super) fn get(self: &Arc<Self>, id: u64) -> Result<Use, Failure> {
        let all = lock(&self.kept);
        match all.get(&id) {
            Some(kept) => Ok(self.use_of(kept)),
            None => Err(Failure {
                code: super::TUNNEL_GONE.to_owned(),
                message: "the agent does not keep this tunnel any more".to_owned(),
                hint: "run the command again".to_owned(),
            }),
        }
    }

    /// Called with `kept` locked, or before it is there: nobody takes it away meanwhile.
    fn use_of(self: &Arc<Self>, kept: &Arc<Kept>) -> Use {
        kept.uses.fetch_add(1, Relaxed);
        Use {
            kept: Arc::clone(kept),
            tunnels: Arc::clone(self),
        }
    }

    async fn only_org(&self, system: &SystemId) -> anyhow::Result<String> {
        let mut known = self.only_orgs.lock().await;
        known.retain(|_, (_, at)| at.elapsed() < ONLY_ORG);
        if let Some((org, _)) = known.get(system) {
            return Ok(org.clone());
        }
        let (_, org) = Box::pin(scope(system, None).open()).await?;
        known.insert(system.clone(), (org.clone(), Instant::now()));
        Ok(org)
    }

    /// Whether anybody uses any of them.
    pub(super) fn in_use(&self) -> bool {
        let all = lock(&self.kept);
        all.values().any(|kept| kept.uses.load(Relaxed) > 0)
    }

    /// Gives up each tunnel that nobody has used for long; ends when there is none, and there has
    /// been none for long.
    pub(super) async fn reap(self: &Arc<Self>) {
        loop {
            let changed = self.changed.notified();
            let idle = self.take_idle();
            let closing = idle.iter().map(|kept| {
                tracing::info!(tunnel = kept.id, "closed: nobody uses it");
                kept.own.close()
            });
            futures_util::future::join_all(closing).await;
            let due = {
                let all = lock(&self.kept);
                let idle = all.values().filter(|kept| kept.uses.load(Relaxed) == 0);
                let due = idle.map(|kept| *lock(&kept.last_used) + self.idle).min();
                if all.is_empty() {
                    Some(*lock(&self.since) + self.idle)
                } else {
                    due
                }
            };
            if due.is_some_and(|due| due <= Instant::now()) && lock(&self.kept).is_empty() {
                return;
            }
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => {}
                () = changed => {}
            }
        }
    }

    fn take_idle(&self) -> Vec<Arc<Kept>> {
        let mut all = lock(&self.kept);
        let now = Instant::now();
        let is_idle = |kept: &Arc<Kept>| {
            kept.uses.load(Relaxed) == 0 && *lock(&kept.last_used) + self.idle <= now
        };
        let idle: Vec<Arc<Kept>> = all.values().filter(|kept| is_idle(kept)).cloned().collect();
        for kept in &idle {
            all.remove(&kept.id);
            // Nobody has needed the agent since then either.
            *lock(&self.since) = *lock(&kept.last_used);
        }
        idle
    }

    /// Closes all of them and gives the leases back.
    pub(super) async fn close(&self) {
        let all: Vec<Arc<Kept>> = lock(&self.kept).drain().map(|(_, kept)| kept).collect();
        let closing = all.iter().map(|kept| kept.own.close());
        futures_util::future::join_all(closing).await;
    }

    pub(super) fn status(&self) -> Vec<TunnelStatus> {
        let all = lock(&self.kept);
        let mut kept: Vec<&Arc<Kept>> = all.values().collect();
        kept.sort_by_key(|kept| kept.id);
        kept.into_iter().map(|kept| kept.status()).collect()
    }
}

/// The lease is lost: commands that come now get another tunnel.
fn forget(tunnels: &Weak<Tunnels>, id: u64) {
    tracing::warn!(tunnel = id, "closed: its lease is lost");
    if let Some(tunnels) = tunnels.upgrade()
        && lock(&tunnels.kept).remove(&id).is_some()
    {
        *lock(&tunnels.since) = Instant::now();
        tunnels.changed.notify_one();
    }
}

impl Kept {
    pub(super) fn org(&self) -> &str {
        &self.key.org
    }

    /// A certificate of this tunnel's SSH key, for this tunnel's address alone.
    pub(super) async fn certificate(&self, user: &str) -> anyhow::Result<String> {
        // Held while control is asked: two commands at once need one certificate.
        let mut certificates = self.certificates.lock().await;
        let now = unix_now();
        certificates.retain(|_, certified| certified.expires > now + FRESH);
        if let Some(certified) = certificates.get(user) {
            return Ok(certified.certificate.clone());
        }
        let public = self.ssh_key.public_key().as_ref();
        let public = ssh_key::public::Ed25519PublicKey::try_from(public)?;
        let public = ssh_key::PublicKey::from(public).to_openssh()?;
        let peer = self.own.peer();
        let body = json!({
            "public_key": public,
            "peer": peer.lease.address()?,
            "principals": [user],
        });
        let path = format!("/api/v1/orgs/{}/ssh/certificates", peer.org);
        let certified: Certified = peer.api.call(Method::POST, &path, &body).await?;
        let certificate = certified.certificate.clone();
        if certificates.len() < MAX_CERTIFICATES {
            certificates.insert(user.to_owned(), certified);
        }
        Ok(certificate)
    }

    /// Signs with the tunnel's SSH key.
    pub(super) fn sign(&self, data: &[u8]) -> Vec<u8> {
        self.ssh_key.sign(data).as_ref().to_vec()
    }

    fn status(&self) -> TunnelStatus {
        let stats = self.own.carrier().stats();
        let uses = self.uses.load(Relaxed);
        let peer = stats.tunnel.peer;
        TunnelStatus {
            org: self.key.org.clone(),
            system: self.key.system.place(),
            address: self.own.carrier().local_addr(),
            transport: stats.transport.to_owned(),
            rtt_micros: peer.rtt.filter(|_| peer.session).map(micros),
            uses,
            idle: if uses == 0 {
                lock(&self.last_used).elapsed().as_secs()
            } else {
                0
            },
            sent_bytes: stats.link.sent_bytes,
            received_bytes: stats.link.received_bytes,
        }
    }
}

impl std::ops::Deref for Use {
    type Target = Kept;

    fn deref(&self) -> &Kept {
        &self.kept
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        *lock(&self.kept.last_used) = Instant::now();
        if self.kept.uses.fetch_sub(1, Relaxed) == 1 {
            self.tunnels.changed.notify_one();
        }
    }
}

/// Too many of something.
pub(super) fn busy(what: &str, limit: usize) -> Failure {
    Failure {
        code: super::BUSY.to_owned(),
        message: format!("the agent has {limit} {what} already"),
        hint: "underpass agent status lists what it keeps".to_owned(),
    }
}

fn scope(system: &SystemId, org: Option<String>) -> Scope {
    Scope {
        system: SystemArg {
            data_dir: DataDirArg {
                data_dir: system.data_dir.clone(),
            },
            url: system.url.clone(),
        },
        org: OrgArg { org },
    }
}

fn fresh_ssh_key() -> anyhow::Result<Ed25519KeyPair> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).context("no randomness")?;
    Ed25519KeyPair::from_seed_unchecked(seed.as_slice())
        .map_err(|_| anyhow::anyhow!("a key cannot be made"))
}

/// What becomes of a tunnel, for whoever reads the log.
async fn note_events(tunnel: u64, mut events: tokio::sync::broadcast::Receiver<Event>) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match events.recv().await {
            Ok(Event::PathChanged { transport }) => {
                tracing::info!(tunnel, transport, "another path");
            }
            Ok(Event::LinkDown { error, .. }) => tracing::info!(tunnel, %error, "link down"),
            Ok(Event::HandshakeFailed { code, .. }) => tracing::info!(tunnel, code, "no handshake"),
            Ok(Event::Trouble { code, hint }) => tracing::info!(tunnel, code, hint, "trouble"),
            Ok(Event::Woke) => tracing::info!(tunnel, "this machine slept"),
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods, reason = "certificates are of today")]
fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
