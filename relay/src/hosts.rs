//! Which `Host` headers are ours. A page of another name that resolves to this address (DNS
//! rebinding) is refused by it.

/// Names and addresses that a request may be for.
#[derive(Debug, Clone, Default)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// From configuration: names, IPv4 addresses, IPv6 addresses with or without brackets. An
    /// entry with a port allows that port alone; one without allows every port.
    pub fn new<S: AsRef<str>>(hosts: impl IntoIterator<Item = S>) -> AllowedHosts {
        let normal = |host: S| {
            let host = host.as_ref().trim().to_ascii_lowercase();
            if host.parse::<std::net::Ipv6Addr>().is_ok() {
                format!("[{host}]")
            } else {
                host
            }
        };
        AllowedHosts(
            hosts
                .into_iter()
                .map(normal)
                .filter(|host| !host.is_empty())
                .collect(),
        )
    }

    /// Whether the value of a `Host` header is allowed.
    pub fn allows(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let name = without_port(&host);
        self.0
            .iter()
            .any(|allowed| *allowed == host || Some(allowed.as_str()) == name)
    }
}

fn without_port(host: &str) -> Option<&str> {
    let (name, port) = match host.rfind(']') {
        Some(bracket) => host.split_at(bracket + 1),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port_is_fine = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()),
    };
    port_is_fine.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let allowed = AllowedHosts::new([
            "localhost",
            "127.0.0.1",
            "::1",
            "Relay.Example",
            "only:444",
            "",
        ]);
        for host in [
            "localhost",
            "LOCALHOST:8443",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8443",
            "relay.example:443",
            "only:444",
        ] {
            assert!(allowed.allows(host), "{host}");
        }
        for host in [
            "",
            ":",
            ":8443",
            "localhost.evil.example",
            "localhost:evil",
            "localhost:8443:1",
            "evil.example#localhost",
            "127.0.0.1.evil.example",
            "::1",
            "[::2]",
            "[::1]x",
            "only",
            "only:443",
            "localhost:123456",
        ] {
            assert!(!allowed.allows(host), "{host}");
        }
        assert!(!AllowedHosts::default().allows("localhost"));
    }
}
