//! The relay's configuration: what is written, and what it means.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use relay::{
    AcceptLimits, AcmeConfig, CertificateFiles, GatewayTarget, Limits, RelayConfig,
    acme::{ExternalAccount, LETS_ENCRYPT},
    rest::{LONGEST_REST, USUAL_REST},
};
use serde::Deserialize;
use wire::PublicKey;

/// What it means.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) listen: SocketAddr,
    pub(super) metrics_listen: Option<SocketAddr>,
    pub(super) tls: Tls,
    pub(super) rest: Duration,
    pub(super) relay: RelayConfig,
    pub(super) accept: AcceptLimits,
}

/// Where the certificate is from.
#[derive(Debug)]
pub(super) enum Tls {
    Files(CertificateFiles),
    /// And where the key of an external account is.
    Acme(AcmeConfig, Option<PathBuf>),
}

/// A listener that is given up takes no new connection for so long before it is closed: what was
/// being made is made.
pub(super) const HAND_OVER: Duration = Duration::from_millis(300);
/// Sessions leave over this time.
const DRAIN: Duration = Duration::from_secs(5);
const SHOWN: &str = "hint: `underpass relay --help` shows a configuration";

/// The configuration as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    listen: SocketAddr,
    metrics_listen: Option<SocketAddr>,
    hosts: Vec<String>,
    #[serde(default)]
    origins: Vec<String>,
    #[serde(default)]
    token_keys: Vec<String>,
    flyctl_gateway: Option<String>,
    drain_seconds: Option<u64>,
    rest_micros: Option<u64>,
    tls: WrittenTls,
    gateways: HashMap<String, WrittenGateway>,
    #[serde(default)]
    limits: WrittenLimits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTls {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    acme: Option<WrittenAcme>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAcme {
    domains: Vec<String>,
    #[serde(default)]
    contact: OneOrMore,
    directory: Option<String>,
    directory_ca: Option<PathBuf>,
    cache: PathBuf,
    external_account: Option<WrittenExternalAccount>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Default for OneOrMore {
    fn default() -> OneOrMore {
        OneOrMore::More(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenExternalAccount {
    id: String,
    key_file: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGateway {
    endpoint: SocketAddr,
    public_key: PublicKey,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLimits {
    sessions: Option<usize>,
    sessions_per_source: Option<usize>,
    sessions_per_token: Option<usize>,
    connections_per_second: Option<u32>,
    connections_per_second_per_source: Option<u32>,
    bytes_per_second: Option<u32>,
    datagrams_per_second: Option<u32>,
    idle_seconds: Option<u64>,
}

impl WrittenTls {
    fn meaning(self) -> anyhow::Result<Tls> {
        let acme = match (self.certificate, self.key, self.acme) {
            (Some(chain), Some(key), None) => {
                return Ok(Tls::Files(CertificateFiles { chain, key }));
            }
            (None, None, Some(acme)) => acme,
            (None, None, None) => bail!(
                "it has no certificate\nhint: [tls] with certificate and key, or [tls.acme] with domains and cache"
            ),
            (_, _, Some(_)) => bail!(
                "it has two certificates, one in files and one from an ACME server\nhint: [tls] with certificate and key, or [tls.acme], not both"
            ),
            _ => bail!(
                "half of a certificate is missing\nhint: [tls] names both certificate and key"
            ),
        };
        let domains: Vec<String> = acme
            .domains
            .iter()
            .map(|domain| domain.to_ascii_lowercase())
            .collect();
        ensure!(
            (1..=MOST_DOMAINS).contains(&domains.len()),
            "[tls.acme] names {} domains\nhint: domains = [\"relay.example.com\"], up to {MOST_DOMAINS} of them",
            domains.len()
        );
        for domain in &domains {
            ensure!(
                is_name(domain),
                "no certificate can be proven here for {domain:?}\nhint: a name in ASCII, no address and no wildcard"
            );
        }
        let contact = match acme.contact {
            OneOrMore::One(contact) => vec![contact],
            OneOrMore::More(contact) => contact,
        };
        for address in &contact {
            ensure!(
                address.starts_with("mailto:") && address.contains('@'),
                "{address:?} is no contact\nhint: contact = \"mailto:ops@example.com\""
            );
        }
        let directory = acme.directory.unwrap_or_else(|| LETS_ENCRYPT.to_owned());
        let url: Option<url::Url> = directory.parse().ok();
        ensure!(
            url.is_some_and(|url| url.scheme() == "https" && url.has_host()),
            "{directory:?} is no ACME server\nhint: directory = \"https://...\", the URL of its directory"
        );
        let (external_account, key_file) = match acme.external_account {
            Some(WrittenExternalAccount { id, key_file }) => {
                let key = Vec::new();
                (Some(ExternalAccount { id, key }), Some(key_file))
            }
            None => (None, None),
        };
        let config = AcmeConfig {
            domains,
            contact,
            directory,
            directory_ca: acme.directory_ca,
            cache: acme.cache,
            external_account,
        };
        Ok(Tls::Acme(config, key_file))
    }
}

/// What Let's Encrypt allows in one certificate.
const MOST_DOMAINS: usize = 100;

fn is_name(domain: &str) -> bool {
    let is_label = |label: &str| {
        let plain = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == '_';
        (1..=63).contains(&label.len()) && label.chars().all(plain)
    };
    let is_address = domain.parse::<IpAddr>().is_ok();
    domain.len() <= 253 && domain.split('.').all(is_label) && !is_address
}

impl Config {
    pub(super) fn load(file: &Path) -> anyhow::Result<Config> {
        let text = fs::read_to_string(file)
            .map_err(|error| anyhow!("cannot read {}: {error}\n{SHOWN}", file.display()))?;
        Config::parse(&text).with_context(|| file.display().to_string())
    }

    fn parse(text: &str) -> anyhow::Result<Config> {
        let written: Written = toml::from_str(text).map_err(|error| anyhow!("{error}{SHOWN}"))?;
        ensure!(
            !written.gateways.is_empty(),
            "it serves no gateway\nhint: add [gateways.NAME] with endpoint and public_key"
        );
        ensure!(
            !written.hosts.is_empty(),
            "it answers under no name\nhint: hosts = [\"relay.example.com\"]"
        );
        for name in written.gateways.keys() {
            let plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
            ensure!(
                !name.is_empty() && name.chars().all(plain),
                "{name:?} cannot stand in a URL\nhint: letters, digits, and - _ ."
            );
        }
        if let Some(name) = &written.flyctl_gateway {
            ensure!(
                written.gateways.contains_key(name),
                "flyctl_gateway names {name}, which is no gateway here\nhint: one of [gateways.NAME]"
            );
        }
        let gateway = |(name, it): (String, WrittenGateway)| {
            let target = GatewayTarget {
                endpoint: it.endpoint,
                public_key: it.public_key,
            };
            (name, target)
        };
        let mut relay = RelayConfig {
            gateways: written.gateways.into_iter().map(gateway).collect(),
            flyctl_gateway: written.flyctl_gateway,
            token_keys: written
                .token_keys
                .iter()
                .map(|key| token_key(key))
                .collect::<anyhow::Result<_>>()?,
            allowed_origins: written.origins,
            allowed_hosts: written.hosts,
            ..RelayConfig::new()
        };
        let rest = written
            .rest_micros
            .map_or(USUAL_REST, Duration::from_micros);
        ensure!(
            rest <= LONGEST_REST,
            "rest_micros = {} would be felt\nhint: at most {}; {} without it, and 0 for none",
            rest.as_micros(),
            LONGEST_REST.as_micros(),
            USUAL_REST.as_micros()
        );
        let of = &written.limits;
        let usual = Limits::default();
        relay.limits = Limits {
            sessions: of.sessions.unwrap_or(usual.sessions),
            sessions_per_source: of.sessions_per_source.unwrap_or(usual.sessions_per_source),
            sessions_per_token: of.sessions_per_token.unwrap_or(usual.sessions_per_token),
            bytes_per_second: of.bytes_per_second,
            datagrams_per_second: of.datagrams_per_second,
            idle: of.idle_seconds.map_or(usual.idle, Duration::from_secs),
            drain: written.drain_seconds.map_or(DRAIN, Duration::from_secs),
            ..usual
        };
        let accept = AcceptLimits {
            hand_over: HAND_OVER,
            ..accept_limits(of, &relay.limits)?
        };
        Ok(Config {
            listen: written.listen,
            metrics_listen: written.metrics_listen,
            tls: written.tls.meaning()?,
            rest,
            relay,
            accept,
        })
    }
}

/// What may connect, for so many sessions.
fn accept_limits(written: &WrittenLimits, limits: &Limits) -> anyhow::Result<AcceptLimits> {
    let usual = AcceptLimits::default();
    let (sessions, of_source) = (limits.sessions, limits.sessions_per_source);
    // All of them are back within five seconds.
    let in_a_second = |sessions: usize| u32::try_from(sessions / 5).unwrap_or(u32::MAX);
    let rate = |name: &str, written: Option<u32>, usual: u32, sessions: usize| {
        ensure!(
            written != Some(0),
            "{name} = 0 lets nobody in\nhint: leave it out for the default"
        );
        Ok(written.unwrap_or_else(|| usual.max(in_a_second(sessions))))
    };
    Ok(AcceptLimits {
        // Every session may have a connection, and some are on their way.
        connections: sessions + sessions / 5,
        connections_per_source: of_source.saturating_mul(2),
        connections_per_second: rate(
            "connections_per_second",
            written.connections_per_second,
            usual.connections_per_second,
            sessions,
        )?,
        connections_per_second_per_source: rate(
            "connections_per_second_per_source",
            written.connections_per_second_per_source,
            usual.connections_per_second_per_source,
            of_source,
        )?,
        // Where one source may have every session, a load balancer for example, it may also have
        // every handshake.
        handshakes_per_source: match of_source >= sessions {
            true => usual.handshakes,
            false => usual.handshakes_per_source,
        },
        ..usual
    })
}

fn token_key(text: &str) -> anyhow::Result<[u8; 32]> {
    let bytes = STANDARD.decode(text).ok();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .with_context(|| {
            format!("{text:?} is no token key\nhint: `relay_token_key` of `underpass up --json`")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        listen = "127.0.0.1:443"
        hosts = ["relay.example.com"]
        token_keys = ["AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="]
        drain_seconds = 2
        rest_micros = 50
        [tls]
        certificate = "chain.pem"
        key = "key.pem"
        [gateways.local]
        endpoint = "192.0.2.1:51820"
        public_key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="
        [limits]
        sessions_per_token = 3
    "#;

    #[test]
    fn a_configuration_is_read() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.relay.token_keys, [[1; 32]]);
        let gateway = &config.relay.gateways["local"];
        assert_eq!(gateway.public_key, PublicKey([7; 32]));
        let limits = config.relay.limits;
        assert_eq!(
            (limits.sessions_per_token, limits.drain),
            (3, Duration::from_secs(2))
        );
        assert_eq!(limits.sessions, Limits::default().sessions);
        assert_eq!(config.metrics_listen, None);
        assert_eq!(config.rest, Duration::from_micros(50));
    }

    #[test]
    fn limits_of_what_connects_follow_those_of_sessions() {
        let accept = |limits: &str| {
            let text = GOOD.replace("sessions_per_token = 3", limits);
            let accept = Config::parse(&text).unwrap().accept;
            assert_eq!(accept.hand_over, HAND_OVER);
            [
                accept.connections as u32,
                accept.connections_per_source as u32,
                accept.connections_per_second,
                accept.connections_per_second_per_source,
                accept.handshakes_per_source as u32,
            ]
        };
        assert_eq!(accept(""), [12_000, 2_000, 2_000, 200, 128]);
        // Behind a load balancer.
        let all = "sessions = 20000\nsessions_per_source = 20000";
        assert_eq!(accept(all), [24_000, 40_000, 4_000, 4_000, 512]);
        let written = "connections_per_second = 50\nconnections_per_second_per_source = 5";
        assert_eq!(accept(written), [12_000, 2_000, 50, 5, 128]);
    }

    const FILES: &str = "certificate = \"chain.pem\"\n        key = \"key.pem\"";

    fn with_acme(more: &str) -> String {
        let acme = "[tls.acme]\n        cache = \"/var/lib/underpass/acme\"";
        GOOD.replace(FILES, &format!("{acme}\n        {more}"))
    }

    #[test]
    fn a_certificate_can_be_ordered() {
        let text = with_acme("domains = [\"Relay.example.com\"]");
        let Tls::Acme(acme, None) = Config::parse(&text).unwrap().tls else {
            panic!("files")
        };
        assert_eq!(acme.domains, ["relay.example.com"]);
        assert_eq!(acme.directory, LETS_ENCRYPT);
        assert_eq!((acme.contact.len(), acme.directory_ca), (0, None));

        let text = with_acme(
            "domains = [\"a.example\", \"b.example\"]
            contact = \"mailto:ops@example.com\"
            directory = \"https://127.0.0.1:14000/dir\"
            directory_ca = \"roots.pem\"
            external_account = { id = \"kid-1\", key_file = \"mac.key\" }",
        );
        let Tls::Acme(acme, Some(key_file)) = Config::parse(&text).unwrap().tls else {
            panic!("files, or no key")
        };
        assert_eq!(acme.contact, ["mailto:ops@example.com"]);
        assert_eq!(acme.external_account.unwrap().id, "kid-1");
        assert_eq!(key_file, Path::new("mac.key"));
        let many = text.replace(
            "\"mailto:ops@example.com\"",
            "[\"mailto:a@example.com\", \"mailto:b@example.com\"]",
        );
        let Tls::Acme(acme, _) = Config::parse(&many).unwrap().tls else {
            panic!("files")
        };
        assert_eq!(acme.contact.len(), 2);
    }

    #[test]
    fn one_certificate_and_no_other() {
        let acme = with_acme("domains = [\"relay.example.com\"]");
        let both = acme.replace("[tls.acme]", &format!("{FILES}\n[tls.acme]"));
        let one_and_half = acme.replace("[tls.acme]", "key = \"key.pem\"\n[tls.acme]");
        for (text, says) in [
            (both, "two certificates"),
            (one_and_half, "two certificates"),
            (GOOD.replace(FILES, ""), "no certificate"),
            (GOOD.replace("key = \"key.pem\"", ""), "half"),
        ] {
            let error = format!("{:#}", Config::parse(&text).unwrap_err());
            assert!(
                error.contains(says) && error.contains("hint: [tls]"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_order_that_nobody_can_fulfil_is_refused_with_a_hint() {
        for more in [
            "",
            "domains = []",
            "domains = [\"*.example.com\"]",
            "domains = [\"192.0.2.1\"]",
            "domains = [\"::1\"]",
            "domains = [\"a..example\"]",
            "domains = [\"relay.example.com:443\"]",
            "domains = [\"relay.example.com\"]\ncontact = \"ops@example.com\"",
            "domains = [\"relay.example.com\"]\ndirectory = \"http://acme.example\"",
            "domains = [\"relay.example.com\"]\ndirectory = \"acme.example\"",
            "domains = [\"relay.example.com\"]\nexternal_account = { id = \"a\" }",
            "domain = [\"relay.example.com\"]",
        ] {
            let error = format!("{:#}", Config::parse(&with_acme(more)).unwrap_err());
            assert!(error.contains("hint: "), "{more}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_hint() {
        for (from, to) in [
            ("hosts = [\"relay.example.com\"]", "hosts = []"),
            ("AQEBAQEB", "AQE"),
            ("[gateways.local]", "[gateways.\"a/b\"]"),
            ("drain_seconds = 2", "drain_second = 2"),
            ("192.0.2.1:51820", "gateway.example"),
            ("drain_seconds = 2", "flyctl_gateway = \"other\""),
            ("listen = ", "listens = "),
            ("drain_seconds = 2", "rest_micros = 1001"),
            ("sessions_per_token = 3", "connections_per_second = 0"),
            (
                "sessions_per_token = 3",
                "connections_per_second_per_source = 0",
            ),
            ("sessions_per_token = 3", "connections_per_second = -1"),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD);
            let error = format!("{:#}", Config::parse(&text).unwrap_err());
            assert!(error.contains("hint: "), "{to}: {error}");
        }
    }
}
