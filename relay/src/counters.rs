//! One counter for every drop, refusal and close, and for what passes. No datagram is dropped
//! without one.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use wire::CloseCode;

macro_rules! counters {
    ($($variant:ident, $name:literal, $doc:literal;)+) => {
        /// What is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Counter {
            $(#[doc = $doc] $variant,)+
        }

        impl Counter {
            /// Every counter.
            pub const ALL: &[Counter] = &[$(Counter::$variant),+];

            /// The stable name.
            pub fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)+ }
            }

            /// What it counts.
            pub fn help(self) -> &'static str {
                match self { $(Counter::$variant => $doc,)+ }
            }
        }
    };
}

counters! {
    // connections
    Accepted, "connections_accepted", "TCP connections accepted.";
    AcceptFailed, "accept_failed", "Accepts that failed, for want of descriptors for example.";
    ConnectionsFull, "connections_full", "Connections dropped at the limit in all.";
    ConnectionsFullSource, "connections_full_source", "Connections dropped at the limit of one source.";
    HandshakesFull, "tls_handshakes_full", "Connections dropped at the limit of TLS handshakes under way.";
    HandshakesFullSource, "tls_handshakes_full_source", "Connections dropped at the limit of TLS handshakes of one source.";
    ConnectionsRate, "connections_rate", "Connections dropped over the rate in all.";
    ConnectionsRateSource, "connections_rate_source", "Connections dropped over the rate of one source.";
    TlsDone, "tls_done", "TLS handshakes that succeeded.";
    TlsCut, "tls_cut", "TLS handshakes that the client left, or whose connection was lost.";
    TlsRefused, "tls_refused", "TLS handshakes that the client refused, for a certificate that it does not trust for example.";
    TlsIncompatible, "tls_incompatible", "TLS handshakes without a version or a cipher in common.";
    TlsFailed, "tls_failed", "TLS handshakes that broke the protocol, or were no TLS.";
    TlsTimeout, "tls_timeout", "TLS handshakes that took too long.";
    TlsNoCertificate, "tls_no_certificate", "TLS handshakes refused because there is no certificate for them: none yet, or a challenge that nobody awaits.";
    ChallengeAnswered, "acme_challenges", "Challenges of an ACME server answered, each a TLS handshake.";
    Cleartext, "tls_cleartext", "Cleartext HTTP on the TLS port.";
    HttpFailed, "http_failed", "HTTP connections that broke off, slow headers included.";
    RequestTimeout, "request_timeout", "Requests that were not answered in time, slow bodies included.";
    CertificateLoaded, "certificate_loaded", "Certificates taken from changed files.";
    CertificateRefused, "certificate_refused", "Changed files that hold no certificate and key that fit; the one before is kept.";
    CertificateObtained, "certificate_obtained", "Certificates that an ACME server issued.";
    CertificateNotObtained, "certificate_not_obtained", "Orders that an ACME server did not fulfil; the certificate before is kept, and the order is repeated.";
    // upgrades
    HostRefused, "host_refused", "Requests with a foreign Host header.";
    NotAnUpgrade, "not_an_upgrade", "Tunnel requests that are no WebSocket upgrade.";
    VersionRefused, "version_refused", "Tunnel requests of another WebSocket version than 13.";
    SubprotocolRefused, "subprotocol_refused", "Tunnel requests that do not offer underpass.v1.";
    UpgradeFailed, "upgrade_failed", "Upgrades whose connection was lost.";
    // sessions
    SessionsOpened, "sessions_opened", "Sessions opened.";
    SessionsEnded, "sessions_ended", "Sessions ended, for whatever reason.";
    SessionsProven, "sessions_proven", "Sessions proven.";
    SessionsLeft, "sessions_left", "Sessions that the client ended.";
    SessionsLost, "sessions_lost", "Sessions whose connection was lost.";
    SessionsParked, "sessions_parked", "Sessions that waited for their client after their connection was lost.";
    SessionsUnclaimed, "sessions_unclaimed", "Sessions that waited, and whose client did not come back in time.";
    SessionsResumed, "sessions_resumed", "Sessions that a client came back to.";
    ResumeUnknown, "resume_unknown", "Resume tokens that resumed nothing: unknown, used, over, or of another client.";
    // what passes
    UpDatagrams, "up_datagrams", "Datagrams received from clients.";
    UpBytes, "up_bytes", "Bytes of datagrams received from clients.";
    UpSent, "up_sent", "Datagrams sent to gateways.";
    DownDatagrams, "down_datagrams", "Datagrams received from gateways.";
    DownBytes, "down_bytes", "Bytes of datagrams received from gateways.";
    DownSent, "down_sent", "Datagrams handed to a client's WebSocket.";
    DownMessages, "down_messages", "Binary messages handed to a client's WebSocket.";
    // drops on the way up
    UpNotWireguard, "up_drop_not_wireguard", "From a client, dropped: not WireGuard in kind and length.";
    UpUnproven, "up_drop_unproven", "From a client, dropped: not before the session is proven.";
    UpInitiations, "up_drop_initiations", "From a client, dropped: handshake initiations over the rate.";
    UpRate, "up_drop_rate", "From a client, dropped: over the rate of its session.";
    UpFull, "up_drop_full", "From a client, dropped: the queue was full; the oldest goes.";
    UpOld, "up_drop_old", "From a client, dropped: waited too long.";
    UpUnreachable, "up_drop_unreachable", "From a client, dropped: the gateway's host refused a datagram before it.";
    UpSendFailed, "up_drop_send_failed", "From a client, dropped: the socket refused it.";
    UpEnded, "up_drop_ended", "From a client, dropped: waiting when the session ended.";
    // drops on the way down
    DownEmpty, "down_drop_empty", "From a gateway, dropped: an empty datagram.";
    DownTooLarge, "down_drop_too_large", "From a gateway, dropped: over the largest record.";
    DownNotWireguard, "down_drop_not_wireguard", "From a gateway, dropped: not WireGuard in kind and length.";
    DownRate, "down_drop_rate", "From a gateway, dropped: over the rate of its session.";
    DownFull, "down_drop_full", "From a gateway, dropped: the queue was full; the oldest goes.";
    DownOld, "down_drop_old", "From a gateway, dropped: waited too long.";
    DownEnded, "down_drop_ended", "From a gateway, dropped: waiting when the session ended.";
    NoticeFull, "notice_drop_full", "Control messages dropped: too many wait for a client.";
    // the gateway's side
    GatewayUnreachable, "gateway_unreachable", "Errors that a gateway's host or the network reported.";
    GsoRefused, "gso_refused", "Sockets whose batches the kernel refused: those datagrams leave one by one.";
    SocketFailed, "socket_failed", "UDP sockets that could not be opened.";
}

/// The counters of one process. Shared by the accept loop and the relay.
pub struct Counters {
    counts: Vec<AtomicU64>,
    closed: Vec<AtomicU64>,
    refused: Vec<AtomicU64>,
    delays: [AtomicU64; DELAYS],
    delay_micros: AtomicU64,
}

/// The upper bounds of the delays that are told apart, in milliseconds; the last class has none.
pub const DELAY_BOUNDS_MS: [u64; DELAYS - 1] = [1, 2, 5, 10, 20, 50, 100, 200];
const DELAYS: usize = 9;

/// How long datagrams waited for their client, gathered without a shared cache line.
#[derive(Debug, Default)]
pub(crate) struct Delays {
    counts: [u64; DELAYS],
    micros: u64,
    any: bool,
}

impl Delays {
    /// Datagrams that did not wait at all.
    pub(crate) fn none(&mut self, datagrams: u64) {
        self.counts[0] += datagrams;
        self.any = true;
    }

    /// A datagram that has waited for `delay`.
    pub(crate) fn one(&mut self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let class = DELAY_BOUNDS_MS
            .iter()
            .position(|bound| micros <= bound * 1000);
        self.counts[class.unwrap_or(DELAYS - 1)] += 1;
        self.micros = self.micros.saturating_add(micros);
        self.any = true;
    }
}

impl Counters {
    /// All at zero.
    pub fn new() -> Counters {
        let zeros = |length| (0..length).map(|_| AtomicU64::new(0)).collect();
        Counters {
            counts: zeros(Counter::ALL.len()),
            closed: zeros(CloseCode::ALL.len()),
            refused: zeros(CloseCode::ALL.len()),
            delays: Default::default(),
            delay_micros: AtomicU64::new(0),
        }
    }

    /// One more.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// `n` more.
    pub fn add(&self, counter: Counter, n: u64) {
        self.counts[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Adds what a session has gathered.
    pub(crate) fn delays(&self, delays: &Delays) {
        if !delays.any {
            return;
        }
        for (count, more) in self.delays.iter().zip(delays.counts) {
            if more > 0 {
                count.fetch_add(more, Ordering::Relaxed);
            }
        }
        if delays.micros > 0 {
            self.delay_micros
                .fetch_add(delays.micros, Ordering::Relaxed);
        }
    }

    /// How many datagrams waited for their client up to each of [`DELAY_BOUNDS_MS`] and no less
    /// than the one before, and the sum of all delays in microseconds.
    pub fn get_delays(&self) -> ([u64; DELAY_BOUNDS_MS.len() + 1], u64) {
        let counts = std::array::from_fn(|class| self.delays[class].load(Ordering::Relaxed));
        (counts, self.delay_micros.load(Ordering::Relaxed))
    }

    /// A session was closed with `code`.
    pub fn closed(&self, code: CloseCode) {
        self.closed[position(code)].fetch_add(1, Ordering::Relaxed);
    }

    /// A session was refused with `code` before it was opened.
    pub fn refused(&self, code: CloseCode) {
        self.refused[position(code)].fetch_add(1, Ordering::Relaxed);
    }

    /// The count of `counter`.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts[counter as usize].load(Ordering::Relaxed)
    }

    /// How many sessions were closed with `code`.
    pub fn get_closed(&self, code: CloseCode) -> u64 {
        self.closed[position(code)].load(Ordering::Relaxed)
    }

    /// How many sessions were refused with `code`.
    pub fn get_refused(&self, code: CloseCode) -> u64 {
        self.refused[position(code)].load(Ordering::Relaxed)
    }

    /// Sessions that are open now.
    pub fn sessions(&self) -> u64 {
        // The end is read first: read the other way round, a session between the two reads would
        // make the difference negative.
        let ended = self.get(Counter::SessionsEnded);
        self.get(Counter::SessionsOpened).saturating_sub(ended)
    }

    /// Every counter by name; closes and refusals as `closed_<reason>` and `refused_<reason>`.
    pub fn snapshot(&self) -> Vec<(String, u64)> {
        let counts = Counter::ALL
            .iter()
            .map(|counter| (counter.name().to_owned(), self.get(*counter)));
        let closed = CloseCode::ALL
            .iter()
            .map(|code| (format!("closed_{}", code.reason()), self.get_closed(*code)));
        let refused = CloseCode::ALL.iter().map(|code| {
            (
                format!("refused_{}", code.reason()),
                self.get_refused(*code),
            )
        });
        counts.chain(closed).chain(refused).collect()
    }
}

impl Default for Counters {
    fn default() -> Counters {
        Counters::new()
    }
}

/// The counters that are not zero.
impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.snapshot().into_iter().filter(|(_, count)| *count > 0))
            .finish()
    }
}

fn position(code: CloseCode) -> usize {
    CloseCode::ALL
        .iter()
        .position(|other| *other == code)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_counts_are_apart() {
        let counters = Counters::new();
        for (n, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, n);
            counters.add(*counter, n as u64 + 1);
        }
        for (n, code) in CloseCode::ALL.iter().enumerate() {
            counters.closed(*code);
            assert_eq!(counters.get_closed(CloseCode::ALL[n]), 1);
            assert_eq!(counters.get_refused(CloseCode::ALL[n]), 0);
        }
        let snapshot = counters.snapshot();
        let names: HashSet<&String> = snapshot.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), Counter::ALL.len() + 2 * CloseCode::ALL.len());
        assert_eq!(snapshot[3], ("connections_full_source".to_owned(), 4));
    }
}
