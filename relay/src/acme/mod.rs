//! A certificate from an ACME server (RFC 8555), which asks for a proof on the relay's own port
//! (TLS-ALPN-01, RFC 8737).
//!
//! `schedule` says when one is ordered and is pure, `cache` keeps what outlives a restart, `client`
//! is HTTPS; [`Acme::keep`] drives them. While there is no certificate, handshakes are refused; while
//! there is one, it is presented until another takes its place, whatever the ACME server says.

mod cache;
mod client;
mod schedule;

use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use instant_acme::{
    AccountCredentials, AuthorizationStatus, ChallengeType, ExternalAccountKey, Identifier,
    NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    counters::{Counter, Counters},
    tls::{Identity, TlsError},
};
use cache::{Account, Cache, Issued};
use client::Https;
use schedule::{Failure, Schedule, Validity};

/// What is ordered, from whom, and where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    /// The names of the certificate, in lower case.
    pub domains: Vec<String>,
    /// Where the ACME server may write to: `mailto:` URLs.
    pub contact: Vec<String>,
    /// The ACME server: the URL of its directory.
    pub directory: String,
    /// The roots of the ACME server's own certificate, in PEM; without it the operating system's.
    pub directory_ca: Option<PathBuf>,
    /// A private directory for the account and the certificate.
    pub cache: PathBuf,
    /// What an ACME server wants to know that opens accounts for its customers alone.
    pub external_account: Option<ExternalAccount>,
}

/// An account that somebody has at the ACME server's owner already (RFC 8555, section 7.3.4).
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    /// Its name there.
    pub id: String,
    /// The key of the MAC that proves it.
    pub key: Vec<u8>,
}

/// The key is not shown.
impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalAccount")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Where Let's Encrypt is.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// Files by which no ACME server can be asked.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The file of roots cannot be used.
    #[error("{} cannot be used: {error}; hint: directory_ca holds the ACME server's roots in PEM", file.display())]
    Roots {
        /// Which.
        file: PathBuf,
        /// Why.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The operating system trusts nobody.
    #[error(
        "the operating system has no trusted roots; hint: install its package ca-certificates, or name the ACME server's in directory_ca"
    )]
    NoRoots,
    /// The cache cannot be read.
    #[error(transparent)]
    Cache(#[from] TlsError),
    /// TLS cannot be had.
    #[error("no TLS: {0}; hint: this is a fault of the program")]
    Tls(rustls::Error),
}

/// Orders and renews the certificate of an [`Identity`].
pub struct Acme {
    config: AcmeConfig,
    identity: Arc<Identity>,
    cache: Cache,
    https: Https,
    schedule: Schedule,
    /// Of the certificate that is presented.
    validity: Option<Validity>,
}

/// An order is fulfilled within this time, or it has failed.
const ORDER: Duration = Duration::from_secs(5 * 60);
/// How long an ACME server may take for the proof, and for the certificate.
const STEP: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(2 * 60));
/// How often the clock is looked at: it goes on while a machine sleeps, timers do not.
const LOOK: Duration = Duration::from_secs(10 * 60);

impl Acme {
    /// Reads the cache: a certificate in it that is valid is presented from the start.
    ///
    /// # Errors
    /// When the cache or the roots cannot be read.
    pub fn new(config: AcmeConfig) -> Result<Acme, AcmeError> {
        let now = now();
        let https = Https::new(config.directory_ca.as_deref())?;
        let cache = Cache::new(&config.cache);
        let identity = Identity::awaited();
        let mut schedule = Schedule::at_once(now);
        let issued = cache.issued(&config.directory)?;
        let issued = issued.filter(|issued| issued.validity.covers(now));
        if let Some(issued) = &issued {
            identity.replace(&issued.certificate)?;
            // One without all the names is better than none, for as long as the next takes.
            if issued.names_all(&config.domains) {
                schedule = Schedule::renewing(issued.validity, chance());
            }
        }
        Ok(Acme {
            identity,
            cache,
            https,
            schedule,
            validity: issued.map(|issued| issued.validity),
            config,
        })
    }

    /// What the port presents.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Until `stop`: orders a certificate when it is time. When `ask` says so, an order that was
    /// put off because the last one failed is made at once.
    pub async fn keep(
        mut self,
        ask: Arc<Notify>,
        counters: Arc<Counters>,
        stop: CancellationToken,
    ) {
        if !self.identity.is_ready() {
            tracing::warn!(
                directory = self.config.directory,
                "no certificate yet: TLS handshakes are refused until the ACME server has issued one; \
                 hint: it must reach port 443 of each of the domains, and this machine must reach it"
            );
        }
        loop {
            let wait = self.schedule.due().duration_since(now());
            let wait = wait.unwrap_or_default();
            if !wait.is_zero() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(wait.min(LOOK)) => {}
                    () = ask.notified() => self.schedule.hurry(now()),
                }
                continue;
            }
            let order = Box::pin(timeout(ORDER, self.order()));
            let ordered = tokio::select! {
                () = stop.cancelled() => return,
                ordered = order => ordered,
            };
            self.identity.forget_challenges();
            let outcome = ordered.unwrap_or(Err(OrderError::TooSlow));
            match outcome.and_then(|text| self.present(&text)) {
                Ok(validity) => {
                    counters.count(Counter::CertificateObtained);
                    self.validity = Some(validity);
                    self.schedule = Schedule::renewing(validity, chance());
                }
                Err(error) => {
                    counters.count(Counter::CertificateNotObtained);
                    self.put_off(&error);
                }
            }
        }
    }

    /// Orders a certificate: a PEM text of its key and chain.
    async fn order(&self) -> Result<String, OrderError> {
        let account = self.account().await?;
        let domains = &self.config.domains;
        let identifiers: Vec<Identifier> = domains.iter().cloned().map(Identifier::Dns).collect();
        let order = account.new_order(&NewOrder::new(&identifiers)).await;
        let mut order = match order {
            Err(instant_acme::Error::Api(problem)) if is(&problem, "accountDoesNotExist") => {
                self.keep_account(None)?;
                return Err(OrderError::AccountLost);
            }
            order => order?,
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
            let mut challenge = challenge.ok_or(OrderError::NoChallenge)?;
            let mut digest = [0; 32];
            digest.copy_from_slice(challenge.key_authorization().digest().as_ref());
            let name = challenge.identifier().to_string();
            self.identity.answer_challenge(&name, &digest)?;
            challenge.set_ready().await?;
        }
        match order.poll_ready(&STEP).await {
            Ok(OrderStatus::Ready) => {}
            other => return Err(unproven(&mut order, other.err()).await),
        }
        let key =
            rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(TlsError::Make)?;
        let mut params = rcgen::CertificateParams::new(domains.clone()).map_err(TlsError::Make)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(TlsError::Make)?;
        order.finalize_csr(request.der()).await?;
        let chain = order.poll_certificate(&STEP).await?;
        Ok(key.serialize_pem() + &chain)
    }

    /// The account that is kept, or a new one.
    async fn account(&self) -> Result<instant_acme::Account, OrderError> {
        let builder = instant_acme::Account::builder_with_http(Box::new(self.https.clone()));
        let config = &self.config;
        let contact: Vec<&str> = config.contact.iter().map(String::as_str).collect();
        let kept = self.cache.account(&config.directory)?;
        if let Some((credentials, known)) = kept.and_then(|it| Some((it.credentials?, it.contact)))
        {
            let again = serde_json::to_value(&credentials)?;
            let account = builder.from_credentials(credentials).await?;
            if known != config.contact {
                account.update_contacts(&contact).await?;
                self.keep_account(Some(serde_json::from_value(again)?))?;
            }
            return Ok(account);
        }
        let external = config.external_account.as_ref();
        let external = external.map(|it| ExternalAccountKey::new(it.id.clone(), &it.key));
        let new = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let directory = config.directory.clone();
        let (account, credentials) = builder.create(&new, directory, external.as_ref()).await?;
        self.keep_account(Some(credentials))?;
        Ok(account)
    }

    fn keep_account(&self, credentials: Option<AccountCredentials>) -> Result<(), TlsError> {
        self.cache.keep_account(&Account {
            directory: self.config.directory.clone(),
            contact: self.config.contact.clone(),
            credentials,
        })
    }

    /// Takes what was issued, when it is what was ordered.
    fn present(&self, text: &str) -> Result<Validity, OrderError> {
        let issued = Issued::parse(text.as_bytes()).map_err(OrderError::Unfit)?;
        if !issued.names_all(&self.config.domains) {
            let names: BTreeSet<String> = issued.names;
            return Err(OrderError::Unfit(format!("it names {names:?} alone")));
        }
        if !issued.validity.covers(now()) {
            return Err(OrderError::Unfit("it is not valid at this time".into()));
        }
        self.identity.replace(&issued.certificate)?;
        tracing::info!(fingerprint = %issued.certificate.fingerprint(), "a new certificate");
        if let Err(error) = self.cache.keep_issued(text.as_bytes()) {
            tracing::warn!(%error, "the new certificate is presented, but not kept for the next start");
        }
        Ok(issued.validity)
    }

    fn put_off(&mut self, error: &OrderError) {
        let now = now();
        self.schedule.failed(error.kind(), now, chance());
        let again = self.schedule.due().duration_since(now).unwrap_or_default();
        let valid_for = self.validity.map(|it| it.until.duration_since(now));
        let before = match valid_for {
            None => "there is none to present".to_owned(),
            Some(Ok(time)) => format!("the one before is kept, valid for {}", shown(time)),
            Some(Err(_)) => "the one before is kept, and is no longer valid".to_owned(),
        };
        tracing::warn!(
            "no certificate from {}: {error}; {before}; tried again in {}, or at once on SIGHUP; hint: {}",
            self.config.directory,
            shown(again),
            error.hint()
        );
    }
}

/// Why an order was not fulfilled.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("{0}")]
    Acme(#[from] instant_acme::Error),
    #[error("it could not verify {name}: {problem}")]
    Unproven { name: String, problem: Problem },
    #[error("it offers no TLS-ALPN-01")]
    NoChallenge,
    #[error("it does not know our account any more")]
    AccountLost,
    #[error("it took longer than {} s", ORDER.as_secs())]
    TooSlow,
    #[error("what it issued cannot be used: {0}")]
    Unfit(String),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("the account cannot be kept: {0}")]
    Account(#[from] serde_json::Error),
}

impl OrderError {
    fn kind(&self) -> Failure {
        use instant_acme::Error;
        match self {
            OrderError::AccountLost | OrderError::Tls(_) | OrderError::Account(_) => {
                Failure::Passing
            }
            OrderError::Acme(Error::Api(problem)) => {
                let passing = is(problem, "badNonce") || is(problem, "serverInternal");
                match passing {
                    true => Failure::Passing,
                    false => Failure::Refused,
                }
            }
            OrderError::Acme(Error::Other(_) | Error::Http(_) | Error::Json(_)) => Failure::Passing,
            _ => Failure::Refused,
        }
    }

    fn hint(&self) -> &'static str {
        use instant_acme::Error;
        match self {
            OrderError::Acme(Error::Other(_) | Error::Http(_) | Error::Json(_)) => {
                "check `directory`, `directory_ca` and this machine's way to it"
            }
            OrderError::Unproven { .. } => {
                "port 443 of each of `domains`, as the ACME server sees them, must lead here"
            }
            OrderError::NoChallenge => "choose an ACME server that does, or give files",
            OrderError::AccountLost => "a new account is made",
            OrderError::Unfit(_) => "compare the clocks, and `domains` with what it issues",
            OrderError::Tls(_) | OrderError::Account(_) => "`cache` is to be writable",
            OrderError::Acme(_) | OrderError::TooSlow => {
                "the ACME server has the last word on `domains`, `contact` and its limits"
            }
        }
    }
}

/// Why an order did not become ready: the domain that was not verified, when there is one.
async fn unproven(order: &mut Order, error: Option<instant_acme::Error>) -> OrderError {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else {
            break;
        };
        let problem = state.challenges.iter().find_map(|it| it.error.clone());
        if let Some(problem) = problem {
            return OrderError::Unproven { name, problem };
        }
    }
    OrderError::Acme(error.unwrap_or(instant_acme::Error::Str("it gave the order up")))
}

/// Whether a problem is of a type that RFC 8555, section 6.7, names.
fn is(problem: &Problem, name: &str) -> bool {
    let kind = problem.r#type.as_deref();
    kind.and_then(|kind| kind.strip_prefix("urn:ietf:params:acme:error:")) == Some(name)
}

/// A time as people say it.
fn shown(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[expect(clippy::disallowed_methods, reason = "the driver's clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// Without randomness relays renew at the same time, and that is all.
fn chance() -> u8 {
    let mut byte = [0; 1];
    let _ = getrandom::fill(&mut byte);
    byte[0]
}
