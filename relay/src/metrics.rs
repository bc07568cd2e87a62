//! The counters in the text format of Prometheus.
//!
//! Nothing in it names a client, a token or a gateway: the only labels are reasons and directions.
//! For each direction, `datagrams_received` is the sum of `datagrams_sent`, of every
//! `datagrams_dropped`, and of what waits at this moment.

use std::fmt::{Display, Write};

use wire::CloseCode;

use crate::counters::{Counter, Counters, DELAY_BOUNDS_MS};

/// The media type of the format.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What every name begins with.
const PREFIX: &str = "underpass_relay_";

/// Counters that are one figure, taken apart by labels.
struct Family {
    name: &'static str,
    help: &'static str,
    of: &'static [(&'static str, Counter)],
}

const FAMILIES: &[Family] = &[
    Family {
        name: "connections_accepted_total",
        help: "TCP connections accepted.",
        of: &[("", Counter::Accepted)],
    },
    Family {
        name: "accept_failures_total",
        help: "Accepts that failed.",
        of: &[("", Counter::AcceptFailed)],
    },
    Family {
        name: "connections_refused_total",
        help: "Connections closed at once, by the limit that they met.",
        of: &[
            ("reason=\"connections\"", Counter::ConnectionsFull),
            (
                "reason=\"connections_of_source\"",
                Counter::ConnectionsFullSource,
            ),
            ("reason=\"handshakes\"", Counter::HandshakesFull),
            (
                "reason=\"handshakes_of_source\"",
                Counter::HandshakesFullSource,
            ),
            ("reason=\"rate\"", Counter::ConnectionsRate),
            ("reason=\"rate_of_source\"", Counter::ConnectionsRateSource),
        ],
    },
    Family {
        name: "tls_handshakes_total",
        help: "TLS handshakes that succeeded.",
        of: &[("", Counter::TlsDone)],
    },
    Family {
        name: "tls_failures_total",
        help: "TLS handshakes that did not, by reason.",
        of: &[
            ("reason=\"timeout\"", Counter::TlsTimeout),
            ("reason=\"cleartext\"", Counter::Cleartext),
            ("reason=\"cut\"", Counter::TlsCut),
            ("reason=\"refused_by_client\"", Counter::TlsRefused),
            ("reason=\"incompatible\"", Counter::TlsIncompatible),
            ("reason=\"no_certificate\"", Counter::TlsNoCertificate),
            ("reason=\"protocol\"", Counter::TlsFailed),
        ],
    },
    Family {
        name: "certificate_reloads_total",
        help: "Certificate files that changed, by what came of it.",
        of: &[
            ("outcome=\"loaded\"", Counter::CertificateLoaded),
            ("outcome=\"refused\"", Counter::CertificateRefused),
        ],
    },
    Family {
        name: "certificate_orders_total",
        help: "Certificates ordered from an ACME server, by what came of it.",
        of: &[
            ("outcome=\"obtained\"", Counter::CertificateObtained),
            ("outcome=\"failed\"", Counter::CertificateNotObtained),
        ],
    },
    Family {
        name: "acme_challenges_total",
        help: "Challenges of an ACME server answered.",
        of: &[("", Counter::ChallengeAnswered)],
    },
    Family {
        name: "http_failures_total",
        help: "HTTP connections and requests that failed, by reason.",
        of: &[
            ("reason=\"broken\"", Counter::HttpFailed),
            ("reason=\"timeout\"", Counter::RequestTimeout),
        ],
    },
    Family {
        name: "upgrade_failures_total",
        help: "Tunnel requests that became no WebSocket, by reason.",
        of: &[
            ("reason=\"host\"", Counter::HostRefused),
            ("reason=\"not_an_upgrade\"", Counter::NotAnUpgrade),
            ("reason=\"version\"", Counter::VersionRefused),
            ("reason=\"subprotocol\"", Counter::SubprotocolRefused),
            ("reason=\"lost\"", Counter::UpgradeFailed),
        ],
    },
    Family {
        name: "sessions_opened_total",
        help: "Sessions opened.",
        of: &[("", Counter::SessionsOpened)],
    },
    Family {
        name: "sessions_proven_total",
        help: "Sessions that were proven.",
        of: &[("", Counter::SessionsProven)],
    },
    Family {
        name: "sessions_ended_total",
        help: "Sessions that ended, for whatever reason.",
        of: &[("", Counter::SessionsEnded)],
    },
    Family {
        name: "sessions_gone_total",
        help: "Sessions that the client ended, or whose connection was lost.",
        of: &[
            ("reason=\"left\"", Counter::SessionsLeft),
            ("reason=\"lost\"", Counter::SessionsLost),
        ],
    },
    Family {
        name: "sessions_parked_total",
        help: "Sessions that waited for their client after their connection was lost.",
        of: &[("", Counter::SessionsParked)],
    },
    Family {
        name: "sessions_unclaimed_total",
        help: "Sessions that waited, and whose client did not come back in time.",
        of: &[("", Counter::SessionsUnclaimed)],
    },
    Family {
        name: "resumes_total",
        help: "Clients that came back with a resume token.",
        of: &[
            ("outcome=\"resumed\"", Counter::SessionsResumed),
            ("outcome=\"unknown\"", Counter::ResumeUnknown),
        ],
    },
    Family {
        name: "datagrams_received_total",
        help: "Datagrams received: up from clients, down from gateways.",
        of: &[
            ("direction=\"up\"", Counter::UpDatagrams),
            ("direction=\"down\"", Counter::DownDatagrams),
        ],
    },
    Family {
        name: "bytes_received_total",
        help: "Bytes of the datagrams received.",
        of: &[
            ("direction=\"up\"", Counter::UpBytes),
            ("direction=\"down\"", Counter::DownBytes),
        ],
    },
    Family {
        name: "datagrams_sent_total",
        help: "Datagrams sent: up to gateways, down into a client's WebSocket.",
        of: &[
            ("direction=\"up\"", Counter::UpSent),
            ("direction=\"down\"", Counter::DownSent),
        ],
    },
    Family {
        name: "datagrams_dropped_total",
        help: "Datagrams dropped, by reason.",
        of: &[
            (
                "direction=\"up\",reason=\"not_wireguard\"",
                Counter::UpNotWireguard,
            ),
            ("direction=\"up\",reason=\"unproven\"", Counter::UpUnproven),
            (
                "direction=\"up\",reason=\"initiations\"",
                Counter::UpInitiations,
            ),
            ("direction=\"up\",reason=\"rate\"", Counter::UpRate),
            ("direction=\"up\",reason=\"full\"", Counter::UpFull),
            ("direction=\"up\",reason=\"old\"", Counter::UpOld),
            (
                "direction=\"up\",reason=\"unreachable\"",
                Counter::UpUnreachable,
            ),
            (
                "direction=\"up\",reason=\"send_failed\"",
                Counter::UpSendFailed,
            ),
            ("direction=\"up\",reason=\"ended\"", Counter::UpEnded),
            ("direction=\"down\",reason=\"empty\"", Counter::DownEmpty),
            (
                "direction=\"down\",reason=\"too_large\"",
                Counter::DownTooLarge,
            ),
            (
                "direction=\"down\",reason=\"not_wireguard\"",
                Counter::DownNotWireguard,
            ),
            ("direction=\"down\",reason=\"rate\"", Counter::DownRate),
            ("direction=\"down\",reason=\"full\"", Counter::DownFull),
            ("direction=\"down\",reason=\"old\"", Counter::DownOld),
            ("direction=\"down\",reason=\"ended\"", Counter::DownEnded),
        ],
    },
    Family {
        name: "messages_sent_total",
        help: "Binary messages handed to clients' WebSockets.",
        of: &[("", Counter::DownMessages)],
    },
    Family {
        name: "notices_dropped_total",
        help: "Control messages dropped: too many waited for a client.",
        of: &[("", Counter::NoticeFull)],
    },
    Family {
        name: "gateway_errors_total",
        help: "Errors that a gateway's host or the network reported.",
        of: &[("", Counter::GatewayUnreachable)],
    },
    Family {
        name: "gso_refused_total",
        help: "UDP sockets whose batches the kernel refused.",
        of: &[("", Counter::GsoRefused)],
    },
    Family {
        name: "socket_failures_total",
        help: "UDP sockets that could not be opened.",
        of: &[("", Counter::SocketFailed)],
    },
];

/// All of it.
pub fn text(counters: &Counters, draining: bool) -> String {
    let mut text = String::with_capacity(16 * 1024);
    for family in FAMILIES {
        head(&mut text, family.name, "counter", family.help);
        for (labels, counter) in family.of {
            line(&mut text, family.name, labels, counters.get(*counter));
        }
    }
    let name = "sessions_refused_total";
    head(
        &mut text,
        name,
        "counter",
        "Sessions refused before they were opened, by reason.",
    );
    for code in CloseCode::ALL {
        line(&mut text, name, &reason(*code), counters.get_refused(*code));
    }
    let name = "sessions_closed_total";
    head(
        &mut text,
        name,
        "counter",
        "Sessions that the relay closed, by reason.",
    );
    for code in CloseCode::ALL {
        line(&mut text, name, &reason(*code), counters.get_closed(*code));
    }
    head(&mut text, "sessions", "gauge", "Sessions open now.");
    line(&mut text, "sessions", "", counters.sessions());
    head(
        &mut text,
        "draining",
        "gauge",
        "1 while no session is opened any more.",
    );
    line(&mut text, "draining", "", u8::from(draining));
    delays(&mut text, counters);
    process(&mut text);
    text
}

/// The histogram. Delay on the way up is the kernel's: what it does not take at once is rare, and
/// its drops are counted.
fn delays(text: &mut String, counters: &Counters) {
    let name = "queue_delay_seconds";
    let help = "How long datagrams from gateways waited for their client's WebSocket.";
    head(text, name, "histogram", help);
    let (counts, micros) = counters.get_delays();
    let bounds = DELAY_BOUNDS_MS
        .iter()
        .map(|ms| (*ms as f64 / 1000.0).to_string());
    let mut below = 0;
    for (count, bound) in counts.iter().zip(bounds.chain(["+Inf".to_owned()])) {
        below += count;
        line(
            text,
            &format!("{name}_bucket"),
            &format!("le=\"{bound}\""),
            below,
        );
    }
    line(text, &format!("{name}_sum"), "", micros as f64 / 1e6);
    line(text, &format!("{name}_count"), "", below);
}

/// What the kernel says about this process, where it does.
fn process(text: &mut String) {
    let resident = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = resident.and_then(|it| it.split(' ').nth(1)?.parse::<u64>().ok());
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten();
    if let (Some(pages), Some(page)) = (pages, page.and_then(|it| u64::try_from(it).ok())) {
        let _ = write!(
            text,
            "# HELP process_resident_memory_bytes Resident memory.\n\
             # TYPE process_resident_memory_bytes gauge\n\
             process_resident_memory_bytes {}\n",
            pages * page
        );
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        let _ = write!(
            text,
            "# HELP process_open_fds Open descriptors.\n\
             # TYPE process_open_fds gauge\n\
             process_open_fds {}\n",
            descriptors.count()
        );
    }
}

fn reason(code: CloseCode) -> String {
    format!("reason=\"{}\"", code.reason())
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // A String takes whatever is written.
    let _ = write!(
        text,
        "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n"
    );
}

fn line(text: &mut String, name: &str, labels: &str, value: impl Display) {
    let _ = match labels {
        "" => writeln!(text, "{PREFIX}{name} {value}"),
        labels => writeln!(text, "{PREFIX}{name}{{{labels}}} {value}"),
    };
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_counter_is_in_one_place() {
        let shown: Vec<Counter> = FAMILIES
            .iter()
            .flat_map(|family| family.of.iter().map(|(_, counter)| *counter))
            .collect();
        let apart: HashSet<Counter> = shown.iter().copied().collect();
        assert_eq!(shown.len(), apart.len());
        for counter in Counter::ALL {
            assert!(apart.contains(counter), "{counter:?}");
        }
    }

    #[test]
    fn lines_are_of_the_format() {
        let counters = Counters::new();
        counters.add(Counter::UpFull, 3);
        counters.closed(CloseCode::Idle);
        let mut delays = crate::counters::Delays::default();
        delays.none(5);
        delays.one(std::time::Duration::from_millis(7));
        delays.one(std::time::Duration::from_secs(7));
        counters.delays(&delays);
        let text = text(&counters, true);
        for line in [
            "underpass_relay_datagrams_dropped_total{direction=\"up\",reason=\"full\"} 3",
            "underpass_relay_sessions_closed_total{reason=\"idle\"} 1",
            "underpass_relay_draining 1",
            "underpass_relay_queue_delay_seconds_bucket{le=\"0.001\"} 5",
            "underpass_relay_queue_delay_seconds_bucket{le=\"0.01\"} 6",
            "underpass_relay_queue_delay_seconds_bucket{le=\"+Inf\"} 7",
            "underpass_relay_queue_delay_seconds_sum 7.007",
            "underpass_relay_queue_delay_seconds_count 7",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        let mut seen = HashSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(seen.insert(series.to_owned()), "{line}");
        }
        assert!(text.ends_with('\n'));
    }
}
