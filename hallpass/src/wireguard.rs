//! A WireGuard configuration file, as far as a peer in user space needs it.

use std::net::Ipv6Addr;

use anyhow::{Context, anyhow, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use tunnel::PrivateKey;
use wire::PublicKey;

/// What the file says. Keys that set up an interface of the machine, such as `PostUp`, are not
/// followed.
#[derive(Debug)]
pub(crate) struct Configuration {
    private_key: PrivateKey,
    addresses: Vec<Ipv6Addr>,
    dns: Option<Ipv6Addr>,
    mtu: usize,
    peer: PublicKey,
    preshared: Option<Secret>,
    endpoint: String,
    keepalive: Option<u16>,
}

/// A preshared key, which is not shown.
struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Configuration {
    /// Parses the text. An error names the line's key, never its value.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Configuration> {
        let mut section = "";
        let mut peers = 0;
        let (mut private_key, mut peer, mut preshared, mut endpoint) = (None, None, None, None);
        let (mut addresses, mut dns, mut mtu, mut keepalive) = (Vec::new(), None, MTU, None);
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            if line.starts_with('[') {
                section = line;
                peers += u32::from(section.eq_ignore_ascii_case("[peer]"));
                continue;
            }
            let (key, value) = line
                .split_once('=')
                .context("a line is neither KEY = VALUE nor a section")?;
            let (key, value) = (key.trim(), value.trim());
            let wrong = || anyhow!("{key} is malformed");
            let place = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
            match (place.0.as_str(), place.1.as_str()) {
                ("[interface]", "privatekey") => {
                    private_key = Some(PrivateKey::from_base64(value).with_context(wrong)?);
                }
                ("[interface]", "address") => {
                    for entry in list(value) {
                        let address = entry.split('/').next().unwrap_or_default();
                        addresses.push(address.parse().with_context(wrong)?);
                    }
                }
                // Names among the servers are search domains.
                ("[interface]", "dns") => dns = list(value).find_map(|entry| entry.parse().ok()),
                ("[interface]", "mtu") => {
                    mtu = value.parse().with_context(wrong)?;
                    ensure!((1280..=1500).contains(&mtu), wrong());
                }
                ("[peer]", "publickey") => peer = Some(value.parse().ok().with_context(wrong)?),
                ("[peer]", "presharedkey") => {
                    let bytes = STANDARD
                        .decode(value)
                        .ok()
                        .and_then(|bytes| bytes.try_into().ok());
                    preshared = Some(Secret(bytes.with_context(wrong)?));
                }
                ("[peer]", "endpoint") => endpoint = Some(value.to_owned()),
                ("[peer]", "persistentkeepalive") if value != "off" => {
                    keepalive =
                        Some(value.parse().with_context(wrong)?).filter(|&seconds| seconds > 0);
                }
                _ => {}
            }
        }
        ensure!(peers == 1, "there are {peers} peers, and not one");
        ensure!(!addresses.is_empty(), "there is no Address");
        Ok(Configuration {
            private_key: private_key.context("there is no PrivateKey")?,
            addresses,
            dns,
            mtu,
            peer: peer.context("there is no PublicKey")?,
            preshared,
            endpoint: endpoint.context("there is no Endpoint")?,
            keepalive,
        })
    }

    /// Joins the network, and waits for the first handshake.
    pub(crate) async fn start(self) -> anyhow::Result<carrier::Handle> {
        let endpoint = tokio::net::lookup_host(&self.endpoint)
            .await
            .with_context(|| format!("cannot resolve the endpoint {}", self.endpoint))?
            .next();
        let Some(endpoint) = endpoint else {
            bail!("the endpoint {} has no address", self.endpoint)
        };
        let config = tunnel::Config {
            private_key: self.private_key,
            peer: self.peer,
            preshared: self.preshared.map(|secret| secret.0),
            addresses: self.addresses,
            dns: self.dns,
            mtu: self.mtu,
            keepalive: self.keepalive,
            seed: getrandom::u64().context("no randomness")?,
        };
        let carrier = carrier::start(config, carrier::Transport::Udp { endpoint }).await?;
        carrier
            .ready()
            .await
            .with_context(|| format!("the gateway at {endpoint} does not answer"))?;
        Ok(carrier)
    }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
}

const MTU: usize = 1420;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
# a peer
[Interface]
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
Address = fdaa:0:18:a7b:d6b:0:a:2/120
DNS = fdaa:0:18::3, internal
PostUp = true
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
AllowedIPs = fdaa:0:18::/48
Endpoint = 127.0.0.1:51820 # here
PersistentKeepalive = 15
";

    #[test]
    fn as_in_the_manual() {
        let parsed = Configuration::parse(GOOD).unwrap();
        assert_eq!(
            parsed.addresses,
            ["fdaa:0:18:a7b:d6b:0:a:2".parse::<Ipv6Addr>().unwrap()]
        );
        assert_eq!(parsed.dns, Some("fdaa:0:18::3".parse().unwrap()));
        assert_eq!(
            (parsed.endpoint.as_str(), parsed.keepalive, parsed.mtu),
            ("127.0.0.1:51820", Some(15), 1420)
        );
        assert!(parsed.preshared.is_none());
        assert!(!format!("{parsed:?}").contains("yAnz"));
    }

    #[test]
    fn malformed() {
        for (from, to) in [
            ("PrivateKey = y", "PrivateKey = "),
            ("PrivateKey", "Privat"),
            ("xTIB", "xT"),
            ("fdaa:0:18:a7b:d6b:0:a:2/120", "somewhere"),
            ("Address", "Addresses"),
            ("Endpoint", "End"),
            ("= 15", "= often"),
            ("[Peer]", "[Peer]\n[Peer]"),
            ("PostUp = true", "MTU = 100"),
            ("PostUp = true", "nonsense"),
        ] {
            assert!(
                Configuration::parse(&GOOD.replacen(from, to, 1)).is_err(),
                "{from} -> {to}"
            );
        }
    }
}
