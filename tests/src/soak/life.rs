//! What clients do, over and over: the polite, the broken, the lost and the hostile.
//!
//! A life ends early when the soak does. It leaves nothing that the relay would wait for: who was
//! cut comes back and says goodbye.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::rustls::ClientConnection;
use wire::{
    CloseCode,
    frame::{self, Opcode},
};

use super::{
    World,
    gateway::{ECHO, FLOOD},
    link::{Ask, Heard, Identity, Link, SOON, request, reset, tcp, tls},
    random::Random,
};

/// A manner of being a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Comes, asks, says goodbye.
    Polite,
    /// Stays, with traffic both ways.
    Carrying,
    /// Is cut off before it has proven anything.
    Cut,
    /// Is cut off and comes back too late.
    Forsaken,
    /// Is cut off and comes back in time.
    Resuming,
    /// Comes back while its old connection seems well.
    Superseding,
    /// Reads nothing while the gateway floods it.
    Slow,
    /// Breaks WebSocket, records, control messages, TLS, or speaks no WireGuard.
    Garbage,
    /// Handshakes of TLS that do not come to their end.
    Handshakes,
    /// Requests that open nothing.
    Requests,
    /// Proves nothing.
    Unproven,
    /// More initiations, and more of everything, than may pass.
    Eager,
}

/// No life takes longer.
const LONGEST: Duration = Duration::from_secs(180);
/// A session waits for so long for a client that was cut off; some more, and it is gone.
const WAITS: Duration = Duration::from_secs(30);
const TOO_LATE: (u64, u64) = (33_000, 36_000);
/// A client that takes nothing is closed after 15 s, and is told so for two.
const STUCK: Duration = Duration::from_secs(21);

impl Life {
    /// Every manner, and how many clients have it.
    pub(super) const ALL: [(Life, usize); 12] = [
        (Life::Polite, 70),
        (Life::Carrying, 90),
        (Life::Cut, 50),
        (Life::Forsaken, 40),
        (Life::Resuming, 60),
        (Life::Superseding, 40),
        (Life::Slow, 20),
        (Life::Garbage, 40),
        (Life::Handshakes, 30),
        (Life::Requests, 10),
        (Life::Unproven, 30),
        (Life::Eager, 20),
    ];

    /// A life for each client.
    pub(super) fn slots() -> Vec<Life> {
        let many = |(life, count): &(Life, usize)| std::iter::repeat_n(*life, *count);
        Life::ALL.iter().flat_map(many).collect()
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Life::Polite => "polite",
            Life::Carrying => "carrying",
            Life::Cut => "cut",
            Life::Forsaken => "forsaken",
            Life::Resuming => "resuming",
            Life::Superseding => "superseding",
            Life::Slow => "slow",
            Life::Garbage => "garbage",
            Life::Handshakes => "handshakes",
            Life::Requests => "requests",
            Life::Unproven => "unproven",
            Life::Eager => "eager",
        }
    }

    /// Leads it again and again until it is all over.
    pub(super) async fn lead(
        self,
        world: Arc<World>,
        slot: usize,
        after: Duration,
        random: Random,
    ) {
        let mut client = Client {
            // Those that hold handshakes up hold up nobody but themselves.
            source: match self {
                Life::Handshakes => 100,
                _ => 1 + (slot % 8) as u8,
            },
            slot,
            world: Arc::clone(&world),
            random,
        };
        let mut over = world.rest(after).await;
        while !over {
            let said = match timeout(LONGEST, client.once(self)).await {
                Ok(said) => said,
                Err(_) => Err("it does not end".to_owned()),
            };
            if let Err(what) = said {
                world.fault(format!("{}: {what}", self.name()));
            }
            world.tally.lives[self as usize].fetch_add(1, Relaxed);
            let pause = client.random.millis(20, 400);
            over = world.rest(pause).await;
        }
    }
}

struct Client {
    world: Arc<World>,
    slot: usize,
    source: u8,
    random: Random,
}

impl Client {
    async fn once(&mut self, life: Life) -> Result<(), String> {
        match life {
            Life::Polite => Box::pin(self.polite()).await,
            Life::Carrying => Box::pin(self.carrying()).await,
            Life::Cut => Box::pin(self.cut()).await,
            Life::Forsaken => Box::pin(self.forsaken()).await,
            Life::Resuming => Box::pin(self.resuming()).await,
            Life::Superseding => Box::pin(self.superseding()).await,
            Life::Slow => Box::pin(self.slow()).await,
            Life::Garbage => Box::pin(self.garbage()).await,
            Life::Handshakes => Box::pin(self.handshakes()).await,
            Life::Requests => Box::pin(self.requests()).await,
            Life::Unproven => Box::pin(self.unproven()).await,
            Life::Eager => Box::pin(self.eager()).await,
        }
    }

    async fn proven(&mut self) -> Result<(Link, Identity), String> {
        let link = Link::proven(&self.world, self.source, &mut self.random).await?;
        Ok((link, Identity::new(&self.world)))
    }

    async fn again(&mut self, resume: &str) -> Result<Link, String> {
        Link::again(&self.world, self.source, &mut self.random, resume).await
    }

    async fn exchange(
        &mut self,
        link: &mut Link,
        identity: &mut Identity,
        rounds: u64,
    ) -> Result<(), String> {
        link.exchange(&self.world, identity, &mut self.random, rounds)
            .await
    }

    async fn polite(&mut self) -> Result<(), String> {
        let (mut link, mut identity) = self.proven().await?;
        let rounds = 1 + self.random.below(3);
        self.exchange(&mut link, &mut identity, rounds).await?;
        link.leave().await
    }

    async fn carrying(&mut self) -> Result<(), String> {
        let (mut link, mut identity) = self.proven().await?;
        for _ in 0..50 + self.random.below(100) {
            self.exchange(&mut link, &mut identity, 1).await?;
            let pause = self.random.millis(20, 100);
            if self.world.rest(pause).await {
                break;
            }
        }
        link.leave().await
    }

    async fn cut(&mut self) -> Result<(), String> {
        // With a token an answer of the gateway would prove it, and it would wait.
        let ask = Ask {
            without_token: true,
            ..Ask::default()
        };
        let mut link = Link::open(&self.world, self.source, &mut self.random, ask).await?;
        if self.random.below(2) == 0 {
            let mut identity = Identity::new(&self.world);
            link.send(&[identity.datagram(100, ECHO)]).await?;
        }
        let pause = self.random.millis(0, 200);
        self.world.rest(pause).await;
        link.cut(&mut self.random).await;
        Ok(())
    }

    async fn forsaken(&mut self) -> Result<(), String> {
        let (mut link, mut identity) = self.proven().await?;
        self.exchange(&mut link, &mut identity, 1).await?;
        let resume = link.resume.clone();
        link.cut(&mut self.random).await;
        let (from, to) = TOO_LATE;
        let pause = self.random.millis(from, to);
        let early = self.world.rest(pause).await;
        let ask = Ask {
            resume: Some(&resume),
            ..Ask::default()
        };
        let link = Link::open(&self.world, self.source, &mut self.random, ask).await?;
        if link.resumed && !early {
            return Err(format!(
                "a session was resumed after more than {} s",
                WAITS.as_secs()
            ));
        }
        link.leave().await
    }

    async fn resuming(&mut self) -> Result<(), String> {
        let (mut link, mut identity) = self.proven().await?;
        for _ in 0..1 + self.random.below(3) {
            self.exchange(&mut link, &mut identity, 2).await?;
            let resume = link.resume.clone();
            link.cut(&mut self.random).await;
            let pause = self.random.millis(0, 1_500);
            let over = self.world.rest(pause).await;
            link = self.again(&resume).await?;
            if over {
                break;
            }
        }
        self.exchange(&mut link, &mut identity, 1).await?;
        link.leave().await
    }

    async fn superseding(&mut self) -> Result<(), String> {
        let (mut old, mut identity) = self.proven().await?;
        self.exchange(&mut old, &mut identity, 1).await?;
        let resume = old.resume.clone();
        let mut link = self.again(&resume).await?;
        if self.random.below(2) == 0 {
            let code = old.ending(SOON).await?;
            if code != Some(CloseCode::Superseded as u16) {
                return Err(format!("who was superseded heard {code:?}"));
            }
        } else {
            // Half open: it neither reads nor says anything.
            let pause = self.random.millis(0, 1_000);
            self.world.rest(pause).await;
        }
        self.exchange(&mut link, &mut identity, 2).await?;
        drop(old);
        link.leave().await
    }

    async fn slow(&mut self) -> Result<(), String> {
        let ask = Ask {
            small: true,
            ..Ask::default()
        };
        let mut link = Link::open(&self.world, self.source, &mut self.random, ask).await?;
        link.prove(&self.world).await?;
        let mut identity = Identity::new(&self.world);
        // A flood that the gateway was there for, from its beginning to its end.
        loop {
            let turn = self.world.gateway.answers();
            if turn.is_some() {
                link.send(&[identity.datagram(200, FLOOD)]).await?;
            }
            if self.world.rest(Duration::from_millis(800)).await {
                break;
            }
            if turn.is_some() && turn == self.world.gateway.answers() {
                break;
            }
        }
        let resume = link.resume.clone();
        let pause = STUCK + self.random.millis(0, 2_000);
        if self.world.rest(pause).await {
            drop(link);
        } else {
            // What the kernel holds is read now, and then there is an end.
            link.ending(SOON).await?;
        }
        let mut link = self.again(&resume).await?;
        self.exchange(&mut link, &mut identity, 1).await?;
        link.leave().await
    }

    async fn garbage(&mut self) -> Result<(), String> {
        let mut link =
            Link::open(&self.world, self.source, &mut self.random, Ask::default()).await?;
        let record = |length: u16, body: &[u8]| [&length.to_be_bytes()[..], body].concat();
        let mut changed = |first: u8| {
            let mut bytes = link.masked(Opcode::Binary, &record(4, b"abcd"));
            bytes[0] = first;
            bytes
        };
        let mut not_masked = Vec::new();
        frame::push(&mut not_masked, Opcode::Binary, &record(4, b"abcd"));
        let case = self.random.below(10);
        let (bytes, code) = match case {
            0 => (not_masked, CloseCode::FrameMalformed),
            1 => (changed(0xc2), CloseCode::FrameMalformed),
            2 => (changed(0x83), CloseCode::FrameMalformed),
            3 => (
                link.masked(Opcode::Text, b"hello?"),
                CloseCode::ControlMalformed,
            ),
            4 => (
                link.masked(Opcode::Text, &[0xff; 10]),
                CloseCode::ControlMalformed,
            ),
            5 => (
                link.masked(Opcode::Binary, &record(9, b"x")),
                CloseCode::RecordMalformed,
            ),
            6 => (
                link.masked(Opcode::Binary, &record(2_049, &[4; 2_049])),
                CloseCode::RecordTooLarge,
            ),
            7 => (
                link.masked(Opcode::Binary, &[0; 70_000]),
                CloseCode::MessageTooLarge,
            ),
            8 => {
                let junk: Vec<u8> = (0..64).flat_map(|_| record(7, b"no peer")).collect();
                (link.masked(Opcode::Binary, &junk), CloseCode::NotWireguard)
            }
            // No TLS: there is nobody to tell.
            _ => {
                let length = 100 + self.random.below(1_000) as u16;
                let noise = self.random.bytes(length.into());
                link.rawest(&[&[23, 3, 3][..], &record(length, &noise)].concat())
                    .await;
                link.ending(SOON).await?;
                return Ok(());
            }
        };
        link.raw(&bytes).await?;
        match link.ending(SOON).await? {
            Some(heard) if heard == code as u16 => Ok(()),
            other => Err(format!(
                "case {case} was closed with {other:?}, not {code:?}"
            )),
        }
    }

    async fn handshakes(&mut self) -> Result<(), String> {
        let failed = |error: io::Error| format!("TCP: {error}");
        let mut tcp = tcp(&self.world, self.source, false).await.map_err(failed)?;
        let mut hello = Vec::new();
        let name = "127.0.0.1".try_into().map_err(|_| "no name")?;
        let mut client = ClientConnection::new(Arc::clone(self.world.tls.config()), name)
            .map_err(|error| error.to_string())?;
        client.write_tls(&mut hello).map_err(failed)?;
        // Half of them do nothing but hold a handshake up for as long as they may.
        let case = match self.slot % 2 {
            0 => 0,
            _ => self.random.below(6),
        };
        let mut heard = Vec::new();
        match case {
            0 => {
                for byte in hello {
                    let pause = self.random.millis(200, 400);
                    let read = timeout(pause, tcp.read_buf(&mut heard)).await;
                    if matches!(read, Ok(Ok(0) | Err(_))) || self.world.is_over() {
                        return Ok(());
                    }
                    let _ = tcp.write_all(&[byte]).await;
                }
                return Err("a handshake may take for ever".to_owned());
            }
            1 => {
                let mut noise = self.random.bytes(500);
                noise[0] = 0xff;
                let _ = tcp.write_all(&noise).await;
            }
            2 => {
                let request = "GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n";
                let _ = tcp.write_all(request.as_bytes()).await;
                let answer = timeout(SOON, tcp.read_to_end(&mut heard)).await;
                let told = heard.starts_with(b"HTTP/1.1 400 ");
                return match answer {
                    Ok(_) if told => Ok(()),
                    other => Err(format!("cleartext was answered by {other:?}")),
                };
            }
            3 => {
                reset(&tcp);
                return Ok(());
            }
            4 => {
                let _ = tcp.write_all(&hello[..hello.len() / 2]).await;
                return Ok(());
            }
            _ => {
                return match tls(&self.world.wary, tcp).await {
                    Err(_) => Ok(()),
                    Ok(_) => Err("a client that trusts nobody trusts the relay".to_owned()),
                };
            }
        }
        match timeout(SOON, tcp.read_to_end(&mut heard)).await {
            Ok(_) => Ok(()),
            Err(_) => Err("noise is listened to".to_owned()),
        }
    }

    async fn requests(&mut self) -> Result<(), String> {
        let tunnel = "/v1/tunnel/local";
        let whole = |host, path, protocols, more| request(host, path, protocols, more);
        let (request, status) = match self.random.below(10) {
            0 => (whole("evil.example", tunnel, "underpass.v1", ""), "421"),
            1 => (
                whole("127.0.0.1", "/v1/tunnel/nowhere", "underpass.v1", ""),
                "404",
            ),
            2 => (whole("127.0.0.1", tunnel, "underpass.v9", ""), "400"),
            3 => {
                let token = "authorization: Bearer x.y\r\n";
                (whole("127.0.0.1", tunnel, "underpass.v1", token), "401")
            }
            4 => {
                let origin = "origin: https://evil.example\r\n";
                (whole("127.0.0.1", tunnel, "underpass.v1", origin), "101")
            }
            5 => (whole("127.0.0.1", "/", "underpass.v1", ""), "404"),
            6 => (
                format!("GET {tunnel} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
                "426",
            ),
            7 => ("\u{1}\u{2} no HTTP\r\n\r\n".to_owned(), "400"),
            // A request that does not come to its end, and none at all.
            8 => (format!("GET {tunnel} HTTP/1.1\r\nhost:"), ""),
            _ => (String::new(), ""),
        };
        let tcp = tcp(&self.world, self.source, false)
            .await
            .map_err(|error| format!("TCP: {error}"))?;
        let mut tls = tls(&self.world.tls, tcp)
            .await
            .map_err(|error| format!("TLS: {error}"))?;
        let _ = tls.write_all(request.as_bytes()).await;
        let _ = tls.flush().await;
        let mut answer = vec![0; 12];
        if status.is_empty() {
            let world = Arc::clone(&self.world);
            tokio::select! {
                read = timeout(SOON, tls.read_exact(&mut answer)) => match read {
                    Ok(_) => return Ok(()),
                    Err(_) => return Err("half a request is waited for".to_owned()),
                },
                _ = world.rest(LONGEST) => return Ok(()),
            }
        }
        let read = timeout(SOON, tls.read_exact(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        match read {
            Ok(Ok(_)) if answer.ends_with(status) => Ok(()),
            other => Err(format!("{answer:?} ({other:?}) for {request:?}")),
        }
    }

    async fn unproven(&mut self) -> Result<(), String> {
        let ask = Ask {
            without_token: true,
            ..Ask::default()
        };
        let mut link = Link::open(&self.world, self.source, &mut self.random, ask).await?;
        let mut identity = Identity::new(&self.world);
        let talks = self.random.below(2) == 0;
        if talks {
            link.send(std::slice::from_ref(&self.world.stranger))
                .await?;
        }
        // Somewhat more than the 30 s that it has.
        for _ in 0..90 {
            if self.world.is_over() {
                return link.leave().await;
            }
            if talks {
                link.send(&[identity.datagram(100, ECHO)]).await?;
            }
            match link.hear(Duration::from_millis(500)).await? {
                Some(Heard::Close(code)) if code == Some(CloseCode::Unproven as u16) => {
                    return Ok(());
                }
                None | Some(Heard::Control(_)) => {}
                Some(other) => return Err(format!("nothing was proven: {other:?}")),
            }
        }
        Err("a session that proves nothing lives on".to_owned())
    }

    async fn eager(&mut self) -> Result<(), String> {
        let (mut link, mut identity) = self.proven().await?;
        if self.random.below(2) == 0 {
            let many = vec![self.world.initiation.clone(); 100];
            link.send(&many).await?;
        } else {
            let many: Vec<Vec<u8>> = (0..2_000).map(|_| identity.datagram(60, ECHO)).collect();
            link.send(&many).await?;
        }
        link.sync().await?;
        self.exchange(&mut link, &mut identity, 2).await?;
        link.leave().await
    }
}
