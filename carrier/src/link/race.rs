//! UDP and the relay's WebSocket, raced: whichever answers carries the datagrams.
//!
//! Each path gets a handshake initiation of its own - the same bytes over both would be a replay -
//! and the first answer wins; the loser's is dropped unread. UDP goes first, the relay is dialled
//! a moment later and only where UDP has not answered. While the relay carries, UDP is asked now
//! and then, and taken when it answers. When data goes unanswered, when the relay's connection is
//! lost and when the machine woke, the race begins again. The WireGuard session and all streams in
//! it live on: the gateway follows the path of the newest authenticated message.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use wire::wireguard::Kind;

use super::{Incoming, Target, UdpLink, WebSocketLink};
use crate::{CarrierError, stats::LinkStats};

/// Two ways to one gateway.
pub(crate) struct RaceLink {
    udp: UdpLink,
    relay: Relay,
    target: Arc<Target>,
    /// Where data goes.
    active: Path,
    /// Whether `active` has answered since the race began.
    decided: bool,
    /// Paths that an initiation is to be asked for.
    wanted: VecDeque<Path>,
    /// Paths of the initiations that the tunnel was asked for and has not given yet.
    asked: VecDeque<Path>,
    /// The sender's index of the last initiations, and where they went: an answer is believed to
    /// be one when it names an initiation that went its way.
    sent: VecDeque<(Path, [u8; 4])>,
    news: VecDeque<Incoming>,
    /// When UDP is tried again while the relay carries, and how long after that again.
    probe: Option<(Instant, Duration)>,
    /// UDP's last silence. A second one soon after means that it answers handshakes and no more.
    silence: Option<Instant>,
    /// Until then UDP is not taken, whatever it answers.
    banned: Option<Instant>,
    /// Dials of the relay that failed in a row.
    failures: u32,
    /// What relay connections counted that are closed.
    past: LinkStats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Udp,
    Relay,
}

enum Relay {
    /// Not needed.
    Idle,
    /// To be dialled then.
    Later(Instant),
    /// The dialler ends when nobody waits for it any more.
    Dialling(oneshot::Receiver<Result<WebSocketLink, CarrierError>>),
    Dialled(Result<WebSocketLink, CarrierError>),
    Open(WebSocketLink),
    /// UDP carries; what is on its way here is still taken until then.
    Lingering(WebSocketLink, Instant),
}

/// How long UDP is alone at first: most networks let it through, and then nobody is dialled.
const HEAD_START: Duration = Duration::from_millis(200);

/// How soon UDP is tried again after the relay has won, and how rarely at last.
const PROBE_FIRST: Duration = Duration::from_secs(5);
const PROBE_LAST: Duration = Duration::from_secs(60);

/// Two silences of UDP within this mean that it carries handshakes and no data.
const SUSPECT: Duration = Duration::from_secs(30);
const BAN: Duration = Duration::from_secs(120);

const LINGER: Duration = Duration::from_secs(10);
const REDIAL_FIRST: Duration = Duration::from_secs(1);
const REDIAL_LAST: Duration = Duration::from_secs(16);

/// Initiations whose answers may still come: the engine itself takes answers to its last two.
const REMEMBERED: usize = 8;

impl RaceLink {
    pub(crate) fn open(
        endpoint: SocketAddr,
        target: Arc<Target>,
    ) -> Result<RaceLink, CarrierError> {
        Ok(RaceLink {
            udp: UdpLink::open(endpoint)?,
            relay: Relay::Later(Instant::now() + HEAD_START),
            target,
            active: Path::Udp,
            decided: false,
            wanted: VecDeque::new(),
            asked: VecDeque::new(),
            sent: VecDeque::new(),
            news: VecDeque::new(),
            probe: None,
            silence: None,
            banned: None,
            failures: 0,
            past: LinkStats::default(),
        })
    }

    /// The path that carries data; both while none has answered.
    pub(crate) fn transport(&self) -> &'static str {
        match self.active {
            Path::Udp => "UDP",
            Path::Relay => "WebSocket",
        }
    }

    pub(crate) async fn ready(&mut self) {
        if !self.news.is_empty() || !self.wanted.is_empty() {
            return;
        }
        let due = self.due();
        let timer = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let relay = async {
            match &mut self.relay {
                Relay::Idle | Relay::Later(_) => std::future::pending().await,
                Relay::Dialling(result) => Some(result.await.unwrap_or(Err(CarrierError::Stopped))),
                Relay::Dialled(_) => None,
                Relay::Open(link) | Relay::Lingering(link, _) => {
                    link.ready().await;
                    None
                }
            }
        };
        let dialled = tokio::select! {
            () = self.udp.ready() => None,
            dialled = relay => dialled,
            () = timer => None,
        };
        if let Some(result) = dialled {
            self.relay = Relay::Dialled(result);
        }
    }

    pub(crate) fn try_recv(&mut self) -> Option<Incoming> {
        self.do_what_is_due();
        loop {
            if let Some(path) = self.wanted.pop_front() {
                self.asked.push_back(path);
                return Some(Incoming::Initiate);
            }
            if let Some(news) = self.news.pop_front() {
                return Some(news);
            }
            let relay = match &mut self.relay {
                Relay::Open(link) | Relay::Lingering(link, _) => link.try_recv(),
                _ => None,
            };
            // The relay first: it has one connection to be taken from, UDP has the kernel's queue.
            let (path, incoming) = match relay {
                Some(incoming) => (Path::Relay, incoming),
                None => (Path::Udp, self.udp.try_recv()?),
            };
            if let Some(incoming) = self.take(path, incoming) {
                return Some(incoming);
            }
        }
    }

    pub(crate) fn has_room(&mut self) -> bool {
        match (self.active, &mut self.relay) {
            (Path::Relay, Relay::Open(link)) => link.has_room(),
            _ => self.udp.has_room(),
        }
    }

    pub(crate) fn send(&mut self, datagram: Vec<u8>) {
        let initiation = Kind::of(&datagram) == Some(Kind::Initiation);
        let path = if initiation {
            let asked = self.asked.pop_front();
            asked.unwrap_or_else(|| self.of_own_accord())
        } else {
            self.active
        };
        let relay = match &mut self.relay {
            Relay::Open(link) | Relay::Lingering(link, _) if path == Path::Relay => Some(link),
            _ => None,
        };
        if initiation && let Some(index) = datagram.first_chunk::<8>() {
            if self.sent.len() == REMEMBERED {
                self.sent.pop_front();
            }
            let [.., a, b, c, d] = *index;
            let went = if relay.is_some() {
                Path::Relay
            } else {
                Path::Udp
            };
            self.sent.push_back((went, [a, b, c, d]));
        }
        match relay {
            Some(link) => link.send(datagram),
            None => self.udp.send(datagram),
        }
    }

    pub(crate) fn flush(&mut self) {
        if let Relay::Open(link) | Relay::Lingering(link, _) = &mut self.relay {
            link.flush();
        }
    }

    /// The tunnel hears nothing, or the network may have changed: the race begins again.
    pub(crate) fn probe(&mut self) {
        let now = Instant::now();
        if self.active == Path::Udp && self.decided {
            let last = self.silence.replace(now);
            if last.is_some_and(|last| now - last < SUSPECT) {
                self.banned = Some(now + BAN);
            }
        }
        self.udp.rebind();
        if let Relay::Open(link) = &mut self.relay {
            link.probe();
        }
        self.begin(now);
    }

    pub(crate) fn stats(&self) -> LinkStats {
        let relay = match &self.relay {
            Relay::Open(link) | Relay::Lingering(link, _) => link.stats(),
            _ => LinkStats::default(),
        };
        self.udp.stats().plus(&relay).plus(&self.past)
    }

    pub(crate) async fn close(self) {
        if let Relay::Open(link) | Relay::Lingering(link, _) = self.relay {
            link.close().await;
        }
    }

    /// Asks both paths; the relay is dialled at once where it is not open.
    fn begin(&mut self, now: Instant) {
        self.decided = false;
        self.want(Path::Udp);
        self.relay = match std::mem::replace(&mut self.relay, Relay::Idle) {
            Relay::Idle | Relay::Later(_) => Relay::Later(now),
            Relay::Lingering(link, _) | Relay::Open(link) => {
                self.want(Path::Relay);
                Relay::Open(link)
            }
            waiting => waiting,
        };
    }

    fn want(&mut self, path: Path) {
        if !self.wanted.contains(&path) {
            self.wanted.push_back(path);
        }
    }

    /// The path of an initiation that the tunnel makes by itself: the one that carries; while none
    /// does, the one that did not get the last.
    fn of_own_accord(&self) -> Path {
        let relay_is_open = matches!(self.relay, Relay::Open(_));
        match self.sent.back() {
            Some((Path::Udp, _)) if !self.decided && relay_is_open => Path::Relay,
            Some((Path::Relay, _)) if !self.decided => Path::Udp,
            _ => self.active,
        }
    }

    fn due(&self) -> Option<Instant> {
        let relay = match &self.relay {
            Relay::Later(at) | Relay::Lingering(_, at) => Some(*at),
            _ => None,
        };
        let probe = self.probe.map(|(at, _)| at);
        [relay, probe].into_iter().flatten().min()
    }

    fn do_what_is_due(&mut self) {
        let due = self.due();
        if due.is_none() && !matches!(self.relay, Relay::Dialled(_)) {
            return;
        }
        let now = Instant::now();
        self.relay = match std::mem::replace(&mut self.relay, Relay::Idle) {
            Relay::Later(at) if at <= now => self.dial(),
            Relay::Lingering(link, at) if at <= now => {
                self.let_go(link);
                Relay::Idle
            }
            Relay::Dialled(Ok(link)) => {
                self.failures = 0;
                Relay::Open(link)
            }
            Relay::Dialled(Err(error)) => {
                self.trouble(&error);
                let wait = REDIAL_FIRST * (1 << self.failures.min(8));
                self.failures += 1;
                Relay::Later(now + wait.min(REDIAL_LAST))
            }
            other => other,
        };
        if let Some((at, after)) = self.probe
            && at <= now
        {
            self.want(Path::Udp);
            self.probe = Some((now + after, (after * 2).min(PROBE_LAST)));
        }
    }

    fn dial(&self) -> Relay {
        let (mut result, waiting) = oneshot::channel();
        let target = Arc::clone(&self.target);
        tokio::spawn(async move {
            tokio::select! {
                opened = Box::pin(WebSocketLink::open(target)) => {
                    // Nobody waits any more: the connection is dropped.
                    let _ = result.send(opened);
                }
                () = result.closed() => {}
            }
        });
        Relay::Dialling(waiting)
    }

    /// Closes a connection with a goodbye, without waiting for it.
    fn let_go(&mut self, link: WebSocketLink) {
        self.past = self.past.plus(&link.stats());
        tokio::spawn(link.close());
    }

    /// What the driver is to know of what a path brings.
    fn take(&mut self, path: Path, incoming: Incoming) -> Option<Incoming> {
        match incoming {
            Incoming::Datagram(datagram) => self
                .hear(path, &datagram)
                .then_some(())
                .map(|()| Incoming::Datagram(datagram)),
            Incoming::Message(message) => {
                let records = wire::record::records(&message).into_iter().flatten();
                let mut heard = Vec::new();
                let mut all = true;
                for record in records {
                    if self.hear(path, record) {
                        heard.push(Bytes::copy_from_slice(record));
                    } else {
                        all = false;
                    }
                }
                if all {
                    return Some(Incoming::Message(message));
                }
                // The loser's answer came together with others: those count one by one.
                for datagram in heard.into_iter().rev() {
                    self.news.push_front(Incoming::Datagram(datagram));
                }
                self.news.pop_front()
            }
            Incoming::Up => {
                if !self.decided || path == self.active {
                    self.want(path);
                }
                (path == Path::Udp || self.active == Path::Relay).then_some(Incoming::Carries)
            }
            Incoming::Down { error, .. } => {
                if self.active == Path::Relay {
                    self.trouble(&error);
                    self.active = Path::Udp;
                    self.decided = false;
                    self.want(Path::Udp);
                    self.news.push_back(Incoming::Switched);
                }
                None
            }
            Incoming::Trouble { .. } if path != self.active && self.decided => None,
            other => Some(other),
        }
    }

    /// Whether the tunnel is to see a datagram of that path; a first answer decides the race.
    fn hear(&mut self, path: Path, datagram: &[u8]) -> bool {
        let kind = Kind::of(datagram);
        let is_answer = kind == Some(Kind::Response);
        // Data before an answer on the path that carried it so far: it is alive.
        let is_life = kind == Some(Kind::Data) && !self.decided && path == self.active;
        if !is_answer && !is_life {
            return true;
        }
        if is_answer {
            let named = datagram.get(8..12);
            let ours = |(on, index): &(Path, [u8; 4])| *on == path && Some(&index[..]) == named;
            let lost = self.decided && self.active == Path::Udp && path == Path::Relay;
            if lost || !self.sent.iter().any(ours) {
                return false;
            }
        }
        let now = Instant::now();
        if path == Path::Udp && self.banned.is_some_and(|until| now < until) {
            // It serves while the relay is not there, and does not keep the relay from coming.
            return !is_answer || !matches!(self.relay, Relay::Open(_));
        }
        self.decide(now, path);
        true
    }

    fn decide(&mut self, now: Instant, path: Path) {
        let changed = self.active != path;
        let was_decided = std::mem::replace(&mut self.decided, true);
        self.active = path;
        if changed {
            self.news.push_back(Incoming::Switched);
        }
        match path {
            Path::Udp => {
                self.probe = None;
                self.relay = match std::mem::replace(&mut self.relay, Relay::Idle) {
                    Relay::Open(link) => Relay::Lingering(link, now + LINGER),
                    Relay::Lingering(link, until) => Relay::Lingering(link, until),
                    _ => Relay::Idle,
                };
            }
            Path::Relay => {
                if !was_decided {
                    let first = self
                        .banned
                        .map_or(now + PROBE_FIRST, |until| until.max(now + PROBE_FIRST));
                    self.probe = Some((first, PROBE_FIRST * 2));
                }
            }
        }
    }

    fn trouble(&mut self, error: &CarrierError) {
        self.news.push_back(Incoming::Trouble {
            code: error.code().to_owned(),
            hint: format!("{error}: {}", error.hint()),
        });
    }
}
