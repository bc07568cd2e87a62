//! A relay on loopback with a fake gateway behind it, and clients for it.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use boringtun::{
    noise::{Tunn, TunnResult},
    x25519,
};
use futures_util::{SinkExt, StreamExt};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};
use tokio_util::sync::CancellationToken;
use underpass_relay::{
    AcceptLimits, Counter, Counters, GatewayTarget, Relay, RelayConfig, router, serve,
    tls::{Certificate, preferred_provider},
    with_flyctl,
};
use wire::{CloseCode, Control, PublicKey, record, subprotocol, token};

pub(crate) type WebSocket = WebSocketStream<TlsStream<TcpStream>>;

/// Longer than anything here takes, shorter than patience.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// Long enough for a datagram over loopback that must not arrive.
pub(crate) const A_WHILE: Duration = Duration::from_millis(150);

pub(crate) const ORIGIN: &str = "https://console.example";

pub(crate) struct Fixture {
    pub(crate) address: SocketAddr,
    pub(crate) gateway: UdpSocket,
    pub(crate) gateway_secret: x25519::StaticSecret,
    pub(crate) counters: Arc<Counters>,
    pub(crate) relay: Relay,
    pub(crate) shutdown: CancellationToken,
    pub(crate) served: tokio::task::JoinHandle<()>,
    pub(crate) config: RelayConfig,
    tls: TlsConnector,
}

pub(crate) async fn fixture() -> Fixture {
    fixture_with(|_, _| {}).await
}

pub(crate) async fn fixture_with(
    change: impl FnOnce(&mut RelayConfig, &mut AcceptLimits),
) -> Fixture {
    fixture_of(axum::Router::new(), change).await
}

/// With more on the same port.
pub(crate) async fn fixture_of(
    app: axum::Router,
    change: impl FnOnce(&mut RelayConfig, &mut AcceptLimits),
) -> Fixture {
    let data = tempfile::tempdir().unwrap();
    let certificate = Certificate::load_or_make(data.path(), &[], now()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.leaf().unwrap().clone()).unwrap();
    let mut fixture = fixture_over(certificate.server_config().unwrap(), app, change).await;
    fixture.tls = connector(roots);
    fixture
}

/// With another identity, that the fixture's own clients do not trust.
pub(crate) async fn fixture_over(
    tls: Arc<rustls::ServerConfig>,
    app: axum::Router,
    change: impl FnOnce(&mut RelayConfig, &mut AcceptLimits),
) -> Fixture {
    let gateway = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let gateway_secret = x25519::StaticSecret::from([3; 32]);
    let mut config = RelayConfig::new();
    config.gateways.insert(
        "gw1".into(),
        GatewayTarget {
            endpoint: gateway.local_addr().unwrap(),
            public_key: public(&gateway_secret),
        },
    );
    config.gateways.insert(
        "gw2".into(),
        GatewayTarget {
            endpoint: "127.0.0.1:9".parse().unwrap(),
            public_key: PublicKey([9; 32]),
        },
    );
    config.token_keys = vec![signer(1).public_key().as_ref().try_into().unwrap()];
    // The clients of a test have one token.
    config.limits.sessions_per_token = 1000;
    config.allowed_origins = vec![ORIGIN.into()];
    config.allowed_hosts = vec!["localhost".into(), "127.0.0.1".into()];
    let mut limits = AcceptLimits::default();
    // And one address.
    limits.connections_per_second_per_source = limits.connections_per_second;
    change(&mut config, &mut limits);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let counters = Arc::new(Counters::new());
    let relay = Relay::new(&config, counters.clone(), shutdown.clone());
    let served = tokio::spawn(serve(
        listener,
        tls,
        with_flyctl(app.merge(router(relay.clone())), relay.clone()),
        limits,
        counters.clone(),
        shutdown.clone(),
    ));

    Fixture {
        address,
        gateway,
        gateway_secret,
        counters,
        relay,
        shutdown,
        served,
        config,
        tls: connector(RootCertStore::empty()),
    }
}

fn connector(roots: RootCertStore) -> TlsConnector {
    let tls = ClientConfig::builder_with_provider(Arc::new(preferred_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(tls))
}

impl Fixture {
    pub(crate) async fn tls(&self) -> TlsStream<TcpStream> {
        self.tls_over(TcpStream::connect(self.address).await.unwrap())
            .await
    }

    pub(crate) async fn tls_over(&self, tcp: TcpStream) -> TlsStream<TcpStream> {
        tcp.set_nodelay(true).unwrap();
        self.tls
            .connect(ServerName::try_from("localhost").unwrap(), tcp)
            .await
            .unwrap()
    }

    /// TLS with whatever certificate is there.
    pub(crate) async fn tls_of_anyone(&self) -> TlsStream<TcpStream> {
        self.tls_offering("localhost", &[]).await.unwrap()
    }

    /// The same for a name, with an offer of protocols.
    pub(crate) async fn tls_offering(
        &self,
        name: &'static str,
        protocols: &[&[u8]],
    ) -> io::Result<TlsStream<TcpStream>> {
        let mut tls = ClientConfig::builder_with_provider(Arc::new(preferred_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        tls.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        TlsConnector::from(Arc::new(tls)).connect(name, tcp).await
    }

    /// The same as [`Fixture::proven`], over that.
    pub(crate) async fn proven_by_anyone(&self) -> (WebSocket, SocketAddr) {
        let url = format!("wss://localhost:{}/v1/tunnel/gw1", self.address.port());
        let mut request = url.into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", subprotocol::V1.parse().unwrap());
        let tls = self.tls_of_anyone().await;
        let mut websocket = self.upgrade(request, tls).await.unwrap();
        control(&mut websocket).await;
        send(&mut websocket, &[&initiation(self.gateway_key())]).await;
        let (_, from) = self.at_gateway().await;
        (websocket, from)
    }

    /// A client that does not trust the certificate.
    pub(crate) async fn refused_by_client(&self) {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let refused = connector(RootCertStore::empty()).connect(name, tcp);
        assert!(refused.await.is_err());
    }

    /// Connects with a valid token in the header, and reads the hello.
    pub(crate) async fn client(&self) -> WebSocket {
        let token = good_token();
        self.open(Dial {
            token: Some(&token),
            ..Dial::default()
        })
        .await
    }

    /// Connects and reads the hello.
    pub(crate) async fn open(&self, dial: Dial<'_>) -> WebSocket {
        let mut websocket = self.dial(dial).await.unwrap();
        let hello = control(&mut websocket).await;
        assert!(
            matches!(hello, Control::Hello { resumed: false, .. }),
            "{hello:?}"
        );
        websocket
    }

    pub(crate) async fn dial(&self, dial: Dial<'_>) -> Result<WebSocket, Error> {
        let url = format!(
            "wss://localhost:{}/v1/tunnel/{}",
            self.address.port(),
            dial.gateway
        );
        let mut request = url.into_client_request().unwrap();
        let headers = request.headers_mut();
        let protocols = subprotocol::offer(dial.page_token, dial.resume).join(", ");
        headers.insert("sec-websocket-protocol", protocols.parse().unwrap());
        if let Some(token) = dial.token {
            headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        if let Some(origin) = dial.origin {
            headers.insert("origin", origin.parse().unwrap());
        }
        self.upgrade(request, self.tls().await).await
    }

    async fn upgrade(
        &self,
        request: http::Request<()>,
        tls: TlsStream<TcpStream>,
    ) -> Result<WebSocket, Error> {
        let (websocket, response) = client_async(request, tls).await?;
        assert_eq!(
            response.headers()["sec-websocket-protocol"],
            subprotocol::V1
        );
        assert!(!response.headers().contains_key("sec-websocket-extensions"));
        Ok(websocket)
    }

    /// Sends bytes over TLS and reads the answer to its end.
    pub(crate) async fn exchange(&self, request: &str) -> String {
        exchange_over(self.tls().await, request).await
    }

    /// A raw WebSocket: upgraded by hand, so that any bytes can follow.
    pub(crate) async fn raw(&self) -> TlsStream<TcpStream> {
        self.upgraded(&[]).await
    }

    /// The same, with a token.
    pub(crate) async fn raw_with_token(&self) -> TlsStream<TcpStream> {
        let token = format!("authorization: Bearer {}", good_token());
        self.upgraded(&[&token]).await
    }

    async fn upgraded(&self, headers: &[&str]) -> TlsStream<TcpStream> {
        let mut tls = self.tls().await;
        let request = upgrade_request("localhost", "gw1", headers);
        tls.write_all(request.as_bytes()).await.unwrap();
        tls.flush().await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(tls.read_u8().await.unwrap());
        }
        assert!(
            answer.starts_with(b"HTTP/1.1 101 "),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        tls
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.counters.get(counter)
    }

    /// Waits until `condition` holds.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Counters) -> bool) {
        let waited = timeout(SOON, async {
            while !condition(&self.counters) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "{what}: {:?}", self.counters);
    }

    /// The next datagram at the gateway.
    pub(crate) async fn at_gateway(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 4096];
        match timeout(SOON, self.gateway.recv_from(&mut buffer)).await {
            Ok(received) => {
                let (length, from) = received.unwrap();
                (buffer[..length].to_vec(), from)
            }
            Err(_) => panic!("no datagram at the gateway: {:?}", self.counters),
        }
    }

    pub(crate) async fn nothing_at_gateway(&self) {
        let mut buffer = [0; 4096];
        let got = timeout(A_WHILE, self.gateway.recv_from(&mut buffer)).await;
        assert!(got.is_err(), "{got:?}");
    }

    /// Opens and proves a session; returns it and its address as the gateway sees it.
    pub(crate) async fn proven(&self) -> (WebSocket, SocketAddr) {
        let mut websocket = self.client().await;
        send(&mut websocket, &[&initiation(self.gateway_key())]).await;
        let (_, from) = self.at_gateway().await;
        (websocket, from)
    }

    pub(crate) fn gateway_key(&self) -> PublicKey {
        public(&self.gateway_secret)
    }

    /// Everything that came in went out or was dropped for a reason.
    pub(crate) fn assert_adds_up(&self) {
        let sum = |counters: &[Counter]| counters.iter().map(|it| self.count(*it)).sum::<u64>();
        use Counter::*;
        assert_eq!(
            self.count(UpDatagrams),
            sum(&[
                UpSent,
                UpNotWireguard,
                UpUnproven,
                UpInitiations,
                UpRate,
                UpFull,
                UpOld,
                UpUnreachable,
                UpSendFailed,
                UpEnded
            ]),
            "{:?}",
            self.counters
        );
        assert_eq!(
            self.count(DownDatagrams),
            sum(&[
                DownSent,
                DownEmpty,
                DownTooLarge,
                DownNotWireguard,
                DownRate,
                DownFull,
                DownOld,
                DownEnded
            ]),
            "{:?}",
            self.counters
        );
    }
}

/// Sends bytes and reads the answer to its end.
pub(crate) async fn exchange_over(mut tls: TlsStream<TcpStream>, request: &str) -> String {
    tls.write_all(request.as_bytes()).await.unwrap();
    tls.flush().await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, tls.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Trusts whoever is there: what is presented is looked at.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = preferred_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What a client connects with.
pub(crate) struct Dial<'a> {
    pub(crate) gateway: &'a str,
    pub(crate) token: Option<&'a str>,
    pub(crate) page_token: Option<&'a str>,
    pub(crate) origin: Option<&'a str>,
    pub(crate) resume: Option<&'a str>,
}

impl Default for Dial<'_> {
    fn default() -> Self {
        Dial {
            gateway: "gw1",
            token: None,
            page_token: None,
            origin: None,
            resume: None,
        }
    }
}

pub(crate) fn upgrade_request(host: &str, gateway: &str, more: &[&str]) -> String {
    let mut request = format!(
        "GET /v1/tunnel/{gateway} HTTP/1.1\r\n\
         host: {host}\r\n\
         connection: keep-alive, Upgrade\r\n\
         upgrade: websocket\r\n\
         sec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-protocol: underpass.v1\r\n"
    );
    for header in more {
        request += &format!("{header}\r\n");
    }
    request + "\r\n"
}

pub(crate) async fn send(websocket: &mut WebSocket, datagrams: &[&[u8]]) {
    let mut message = Vec::new();
    for datagram in datagrams {
        record::push(&mut message, datagram).unwrap();
    }
    websocket.send(Message::binary(message)).await.unwrap();
}

pub(crate) async fn next(websocket: &mut WebSocket) -> Message {
    timeout(SOON, websocket.next())
        .await
        .expect("a message")
        .expect("no end")
        .unwrap()
}

pub(crate) async fn control(websocket: &mut WebSocket) -> Control {
    match next(websocket).await {
        Message::Text(text) => Control::parse(&text).unwrap(),
        other => panic!("no control message: {other:?}"),
    }
}

/// The datagrams of the next binary message.
pub(crate) async fn datagrams(websocket: &mut WebSocket) -> Vec<Vec<u8>> {
    match next(websocket).await {
        Message::Binary(message) => record::records(&message)
            .unwrap()
            .map(<[u8]>::to_vec)
            .collect(),
        other => panic!("no data: {other:?}"),
    }
}

/// Reads to the end, which is to be a `closing` and a close frame of `code`; notices before it
/// are passed over and returned.
pub(crate) async fn closed(websocket: &mut WebSocket, code: CloseCode) -> Vec<Control> {
    let mut before = Vec::new();
    loop {
        match next(websocket).await {
            Message::Text(text) => before.push(Control::parse(&text).unwrap()),
            Message::Close(Some(frame)) => {
                assert_eq!(u16::from(frame.code), code as u16, "{before:?}");
                assert_eq!(frame.reason, code.reason());
                assert_eq!(before.pop(), Some(Control::closing(code)));
                return before;
            }
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Reads frames by hand until the close frame; its code.
pub(crate) async fn raw_close_code(tls: &mut TlsStream<TcpStream>) -> u16 {
    loop {
        let opcode = timeout(SOON, tls.read_u8())
            .await
            .expect("a frame")
            .unwrap()
            & 0x0f;
        let length = match tls.read_u8().await.unwrap() {
            126 => u64::from(tls.read_u16().await.unwrap()),
            127 => tls.read_u64().await.unwrap(),
            short => u64::from(short),
        };
        let mut payload = vec![0; length as usize];
        tls.read_exact(&mut payload).await.unwrap();
        if opcode == 8 {
            return u16::from_be_bytes([payload[0], payload[1]]);
        }
    }
}

/// A masked frame, as a client sends it; the mask is zero.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

pub(crate) fn initiation(to: PublicKey) -> Vec<u8> {
    let mut buffer = [0; 148];
    match peer(&x25519::StaticSecret::from([4; 32]), to)
        .format_handshake_initiation(&mut buffer, true)
    {
        TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn peer(secret: &x25519::StaticSecret, remote: PublicKey) -> Tunn {
    Tunn::new(
        secret.clone(),
        x25519::PublicKey::from(remote.0),
        None,
        None,
        1,
        None,
    )
}

pub(crate) fn public(secret: &x25519::StaticSecret) -> PublicKey {
    PublicKey(x25519::PublicKey::from(secret).to_bytes())
}

/// A datagram with the type and length of WireGuard and nothing else.
pub(crate) fn datagram(kind: u8, length: usize, mark: u8) -> Vec<u8> {
    let mut datagram = vec![mark; length];
    datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
    datagram
}

pub(crate) fn data(mark: u8) -> Vec<u8> {
    datagram(4, 96, mark)
}

pub(crate) fn signer(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

pub(crate) fn good_token() -> String {
    token_of(&signer(1), "gw1", 3600)
}

pub(crate) fn token_of(signer: &Ed25519KeyPair, gateway: &str, lives: i64) -> String {
    token_for(signer, gateway, "test", lives)
}

pub(crate) fn token_for(signer: &Ed25519KeyPair, gateway: &str, id: &str, lives: i64) -> String {
    let now = now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let expires_unix = now.saturating_add_signed(lives);
    let part = token::Claims {
        gateway: gateway.into(),
        expires_unix,
        id: id.into(),
    }
    .encode();
    let signature = signer.sign(&token::signed_bytes(&part));
    token::join(&part, signature.as_ref().try_into().unwrap())
}

#[expect(
    clippy::disallowed_methods,
    reason = "certificates and tokens of the test are of today"
)]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}
