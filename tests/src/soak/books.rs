//! What the relay has counted, and what of it has to add up once everybody has gone.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

use super::{link::Tally, process::RelayProcess};

/// A reading of `/metrics`: whole numbers by series, without the prefix.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics(BTreeMap<String, u64>);

const PREFIX: &str = "underpass_relay_";

impl Metrics {
    pub(super) async fn of(relay: &RelayProcess) -> Metrics {
        Metrics::parse(&relay.metrics().await)
    }

    fn parse(text: &str) -> Metrics {
        let series = text.lines().filter_map(|line| {
            let (name, value) = line.strip_prefix(PREFIX)?.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Metrics(series.collect())
    }

    /// A series; 0 when there is none, which [`faults`] finds.
    pub(super) fn get(&self, series: &str) -> u64 {
        self.0.get(series).copied().unwrap_or_default()
    }

    /// The sum of the series of a name whose labels hold this text.
    fn sum(&self, name: &str, label: &str) -> u64 {
        self.0
            .iter()
            .filter(|(series, _)| {
                let labels = series.strip_prefix(name);
                labels.is_some_and(|labels| labels.starts_with('{') && labels.contains(label))
            })
            .map(|(_, value)| value)
            .sum()
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        let counted = self.0.iter().filter(|(_, value)| **value > 0);
        counted
            .map(|(series, value)| (series.clone(), (*value).into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

/// What has to have happened: a soak in which it did not has tested nothing.
const HAPPENED: &[&str] = &[
    "tls_failures_total{reason=\"timeout\"}",
    "tls_failures_total{reason=\"cleartext\"}",
    "tls_failures_total{reason=\"cut\"}",
    "tls_failures_total{reason=\"refused_by_client\"}",
    "tls_failures_total{reason=\"protocol\"}",
    "http_failures_total{reason=\"broken\"}",
    "upgrade_failures_total{reason=\"host\"}",
    "sessions_proven_total",
    "sessions_gone_total{reason=\"left\"}",
    "sessions_gone_total{reason=\"lost\"}",
    "sessions_parked_total",
    "sessions_unclaimed_total",
    "resumes_total{outcome=\"resumed\"}",
    "resumes_total{outcome=\"unknown\"}",
    "sessions_closed_total{reason=\"superseded\"}",
    "sessions_closed_total{reason=\"slow_client\"}",
    "sessions_closed_total{reason=\"unproven\"}",
    "sessions_closed_total{reason=\"not_wireguard\"}",
    "sessions_closed_total{reason=\"frame_malformed\"}",
    "sessions_closed_total{reason=\"record_malformed\"}",
    "sessions_closed_total{reason=\"message_too_large\"}",
    "datagrams_sent_total{direction=\"up\"}",
    "datagrams_sent_total{direction=\"down\"}",
    "datagrams_dropped_total{direction=\"up\",reason=\"not_wireguard\"}",
    "datagrams_dropped_total{direction=\"up\",reason=\"unproven\"}",
    "datagrams_dropped_total{direction=\"up\",reason=\"initiations\"}",
    "datagrams_dropped_total{direction=\"up\",reason=\"rate\"}",
    "datagrams_dropped_total{direction=\"down\",reason=\"empty\"}",
    "datagrams_dropped_total{direction=\"down\",reason=\"too_large\"}",
    "datagrams_dropped_total{direction=\"down\",reason=\"not_wireguard\"}",
    "datagrams_dropped_total{direction=\"down\",reason=\"rate\"}",
    "datagrams_dropped_total{direction=\"down\",reason=\"full\"}",
    "datagrams_dropped_total{direction=\"down\",reason=\"ended\"}",
    "gateway_errors_total",
];

/// What may not have happened.
const NEVER: &[&str] = &[
    "sessions",
    "accept_failures_total",
    "socket_failures_total",
    "notices_dropped_total",
    "datagrams_dropped_total{direction=\"up\",reason=\"send_failed\"}",
];

/// What does not add up.
pub(super) fn faults(before: &Metrics, after: &Metrics, tally: &Tally) -> Vec<String> {
    let mut faults = Vec::new();
    if before.0.is_empty() || after.0.is_empty() {
        faults.push("/metrics said nothing".to_owned());
        return faults;
    }
    let of = |series: &str| after.get(series);
    let sum = |name: &str| after.sum(name, "");
    let mut equal = |what: &str, left: u64, right: u64| {
        if left != right {
            faults.push(format!("{what}: {left} is not {right}"));
        }
    };
    equal(
        "sessions opened are sessions ended",
        of("sessions_opened_total"),
        of("sessions_ended_total"),
    );
    equal(
        "sessions ended have left, were lost or were closed",
        of("sessions_ended_total"),
        sum("sessions_gone_total") + sum("sessions_closed_total"),
    );
    equal(
        "connections accepted were refused, have failed or have shaken hands",
        of("connections_accepted_total"),
        sum("connections_refused_total") + sum("tls_failures_total") + of("tls_handshakes_total"),
    );
    for direction in ["up", "down"] {
        let label = format!("direction=\"{direction}\"");
        equal(
            &format!("datagrams received {direction} were sent or dropped"),
            of(&format!("datagrams_received_total{{{label}}}")),
            of(&format!("datagrams_sent_total{{{label}}}"))
                + after.sum("datagrams_dropped_total", &label),
        );
    }
    equal(
        "datagrams sent down have had a delay",
        of("datagrams_sent_total{direction=\"down\"}"),
        of("queue_delay_seconds_count"),
    );
    // Only proven sessions were superseded.
    equal(
        "sessions resumed were waiting or superseded",
        of("resumes_total{outcome=\"resumed\"}") + of("sessions_unclaimed_total"),
        of("sessions_parked_total") + of("sessions_closed_total{reason=\"superseded\"}"),
    );
    let seen = |count: &std::sync::atomic::AtomicU64| count.load(Relaxed);
    equal(
        "sessions were opened for those who asked",
        of("sessions_opened_total"),
        seen(&tally.requests),
    );
    equal(
        "sessions opened have had a hello",
        of("sessions_opened_total"),
        seen(&tally.hellos),
    );
    equal(
        "sessions resumed have been told so",
        of("resumes_total{outcome=\"resumed\"}"),
        seen(&tally.resumed),
    );
    for series in NEVER {
        equal(series, of(series), 0);
    }
    for series in HAPPENED {
        if of(series) == 0 {
            faults.push(format!("nothing was counted as {series}"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_and_summed() {
        let metrics = Metrics::parse(
            "HTTP/1.1 200 OK\r\n\r\n# HELP underpass_relay_a A.\n\
             underpass_relay_a{direction=\"up\",reason=\"x\"} 3\n\
             underpass_relay_a{direction=\"up\",reason=\"y\"} 4\n\
             underpass_relay_a{direction=\"down\",reason=\"x\"} 5\n\
             underpass_relay_ab{direction=\"up\"} 100\n\
             underpass_relay_sum 0.5\n",
        );
        assert_eq!(metrics.get("a{direction=\"up\",reason=\"y\"}"), 4);
        assert_eq!(metrics.sum("a", "direction=\"up\""), 7);
        assert_eq!(metrics.sum("a", ""), 12);
        assert_eq!(metrics.get("sum"), 0);
    }

    #[test]
    fn what_is_lost_is_found() {
        let tally = Tally::default();
        let with = |lines: &str| {
            let metrics = Metrics::parse(lines);
            faults(&metrics, &metrics, &tally)
        };
        let lost = with(
            "underpass_relay_datagrams_received_total{direction=\"up\"} 10\n\
             underpass_relay_datagrams_sent_total{direction=\"up\"} 7\n\
             underpass_relay_datagrams_dropped_total{direction=\"up\",reason=\"old\"} 2\n",
        );
        let first = "datagrams received up were sent or dropped: 10 is not 9";
        assert!(lost.iter().any(|it| it == first), "{lost:?}");
        assert_eq!(with(""), ["/metrics said nothing"]);
    }
}
