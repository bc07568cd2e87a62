//! Where the organisation's user authorities come from, at each login.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use ssh::Trust;
use ssh_key::PublicKey;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The authorities trusted for users, asked for at each login.
pub trait TrustSource: Send + Sync + 'static {
    /// The authorities as of now. An error lets nobody in.
    fn trust(&self) -> TrustFuture<'_>;

    /// The authorities, after a certificate of one that [`TrustSource::trust`] did not name: the
    /// organisation may have made another a moment ago. A source that remembers answers asks anew.
    fn fresh_trust(&self) -> TrustFuture<'_> {
        self.trust()
    }
}

/// The answer of a [`TrustSource`].
pub type TrustFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Trust, TrustUnavailable>> + Send + 'a>>;

/// The authorities cannot be had, and so nobody can log in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the user authorities cannot be had: {reason}")]
pub struct TrustUnavailable {
    /// What went wrong.
    pub reason: String,
}

impl TrustUnavailable {
    fn new(reason: impl Into<String>) -> TrustUnavailable {
        TrustUnavailable {
            reason: reason.into(),
        }
    }
}

/// Parses one authority per line, as `ssh-ed25519 AAAA...`. Empty lines and `#` comments do not
/// count; a line that is no key spoils all, and so does having none.
pub fn parse_authorities<'a>(
    lines: impl IntoIterator<Item = &'a str>,
) -> Result<Trust, TrustUnavailable> {
    let mut keys = Vec::new();
    for line in lines.into_iter().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if keys.len() == AUTHORITIES {
            return Err(TrustUnavailable::new(format!(
                "more than {AUTHORITIES} authorities"
            )));
        }
        let key = PublicKey::from_openssh(line).map_err(|error| {
            TrustUnavailable::new(format!("an entry is no public key ({error})"))
        })?;
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(TrustUnavailable::new("there is none"));
    }
    Ok(Trust::new(keys))
}

/// The authorities in a file, read at each login.
#[derive(Debug)]
pub struct FileTrust {
    path: PathBuf,
}

impl FileTrust {
    /// Reads this file at each login.
    pub fn new(path: impl Into<PathBuf>) -> FileTrust {
        FileTrust { path: path.into() }
    }
}

impl TrustSource for FileTrust {
    fn trust(&self) -> TrustFuture<'_> {
        Box::pin(async {
            let text = tokio::fs::read_to_string(&self.path)
                .await
                .map_err(|error| {
                    TrustUnavailable::new(format!("{}: {error}", self.path.display()))
                })?;
            parse_authorities(text.lines())
        })
    }
}

/// The authorities in the TXT records of `_orgcert.internal`, asked for through the tunnel.
pub struct DnsTrust {
    carrier: carrier::Handle,
}

impl DnsTrust {
    /// Asks through this tunnel.
    pub fn new(carrier: carrier::Handle) -> DnsTrust {
        DnsTrust { carrier }
    }
}

impl TrustSource for DnsTrust {
    fn trust(&self) -> TrustFuture<'_> {
        Box::pin(async {
            let answer = self.carrier.lookup(ORGCERT, tunnel::RecordKind::Txt).await;
            match answer {
                Ok(tunnel::Answer::Txt(lines)) => {
                    parse_authorities(lines.iter().map(String::as_str))
                }
                Ok(_) => Err(TrustUnavailable::new(format!("{ORGCERT} has no text"))),
                Err(error) => Err(TrustUnavailable::new(format!("{ORGCERT}: {error}"))),
            }
        })
    }
}

/// Remembers the answer of another source for a short while. An error is not remembered, and does
/// not revive an older answer.
pub struct Cached<S> {
    source: S,
    keep: Duration,
    answer: Mutex<Option<(Instant, Trust)>>,
}

impl<S: TrustSource> Cached<S> {
    /// Remembers for this long.
    pub fn new(source: S, keep: Duration) -> Cached<S> {
        Cached {
            source,
            keep,
            answer: Mutex::default(),
        }
    }

    /// An answer of at most this age.
    async fn within(&self, age: Duration) -> Result<Trust, TrustUnavailable> {
        // Held over the question: logins at the same time ask once.
        let mut answer = self.answer.lock().await;
        if let Some((at, trust)) = answer.as_ref()
            && at.elapsed() < age
        {
            return Ok(trust.clone());
        }
        *answer = None;
        let trust = self.source.trust().await?;
        *answer = Some((Instant::now(), trust.clone()));
        Ok(trust)
    }
}

impl<S: TrustSource> TrustSource for Cached<S> {
    fn trust(&self) -> TrustFuture<'_> {
        Box::pin(self.within(self.keep))
    }

    /// An answer that was given after this was asked for.
    fn fresh_trust(&self) -> TrustFuture<'_> {
        Box::pin(async {
            let asked = Instant::now();
            // Whoever asks with a certificate that is known does not wait behind this.
            tokio::time::sleep(FRESH).await;
            self.within(asked.elapsed()).await
        })
    }
}

/// Certificates of strangers make a source be asked no more often than this.
const FRESH: Duration = Duration::from_millis(250);
const ORGCERT: &str = "_orgcert.internal";
const AUTHORITIES: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIILh5ZpS8bAHnhCjMmxqYbFZTQzMXoxIIt5LmPgnF4v9 acme";

    #[test]
    fn authorities() {
        assert!(parse_authorities(["", "# two during a rotation", KEY, KEY]).is_ok());
        for bad in [
            vec![],
            vec!["", "#"],
            vec![KEY, "ssh-ed25519 AAAA"],
            vec![KEY; 17],
        ] {
            assert!(parse_authorities(bad).is_err());
        }
    }

    struct Flaky(AtomicU32);

    impl TrustSource for Flaky {
        fn trust(&self) -> TrustFuture<'_> {
            Box::pin(async {
                match self.0.fetch_add(1, Ordering::Relaxed) {
                    1 => Err(TrustUnavailable::new("no answer")),
                    _ => parse_authorities([KEY]),
                }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_not_papered_over() {
        let cached = Cached::new(Flaky(AtomicU32::new(0)), Duration::from_secs(5));
        assert!(cached.trust().await.is_ok());
        assert!(cached.trust().await.is_ok());
        assert_eq!(cached.source.0.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(cached.trust().await.is_err());
        assert!(cached.trust().await.is_ok());
        assert_eq!(cached.source.0.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_make_it_ask_anew_within_bounds() {
        let cached = Arc::new(Cached::new(
            Flaky(AtomicU32::new(2)),
            Duration::from_secs(5),
        ));
        assert!(cached.trust().await.is_ok());
        let strangers: Vec<_> = (0..100)
            .map(|_| {
                let cached = Arc::clone(&cached);
                tokio::spawn(async move { cached.fresh_trust().await.is_ok() })
            })
            .collect();
        for stranger in strangers {
            assert!(stranger.await.unwrap());
        }
        assert_eq!(cached.source.0.load(Ordering::Relaxed), 4);
        assert!(cached.trust().await.is_ok());
        assert_eq!(cached.source.0.load(Ordering::Relaxed), 4);
    }
}
