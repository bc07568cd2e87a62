//! Bad input on the wire: WebSockets that break the protocol, datagrams that are no WireGuard,
//! tokens that open nothing, and networks where something is missing. A session that is well goes
//! on through all of it.

use std::{collections::HashMap, net::SocketAddrV6, time::Duration};

use carrier::{Event, Handle, Trust, tls_config};
use futures_util::{SinkExt, Stream, StreamExt};
use tests::{
    client::{Client, key},
    namespace::Namespace,
    root,
    system::{Setup, System},
    warp::Warp,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::{Error as WsError, Message, client::IntoClientRequest};
use tunnel::{Class, RecordKind};
use wire::{CloseCode, Control, wireguard::Kind};

type WebSocket = tokio_tungstenite::WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

/// Opens a WebSocket to the relay with these headers, as a program that speaks it in its own way.
async fn open(
    system: &System,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<WebSocket, (u16, serde_json::Value)> {
    let tls = tls_config(&Trust::PemFile(system.certificate())).expect("the certificate");
    let authority = system.origin().strip_prefix("https://").expect("https");
    let tcp = TcpStream::connect(authority).await.expect("TCP");
    let name = "127.0.0.1".try_into().expect("a name");
    let tls = tokio_rustls::TlsConnector::from(tls)
        .connect(name, tcp)
        .await
        .expect("TLS");
    let mut request = format!("wss://{authority}{path}")
        .into_client_request()
        .expect("a request");
    let mut headers: HashMap<_, _> = headers.iter().copied().collect();
    headers
        .entry("sec-websocket-protocol")
        .or_insert("underpass.v1");
    for (name, value) in headers {
        if value.is_empty() {
            request.headers_mut().remove(name);
            continue;
        }
        let name = http::HeaderName::try_from(name).expect("a name");
        request
            .headers_mut()
            .insert(name, value.try_into().expect("a value"));
    }
    match tokio_tungstenite::client_async(request, tls).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            Err((
                response.status().as_u16(),
                serde_json::from_slice(&body).unwrap_or_default(),
            ))
        }
        Err(error) => panic!("{error}"),
    }
}

/// Reads to the end: the close code, and the last words before it.
async fn ending(
    socket: &mut (impl Stream<Item = Result<Message, WsError>> + Unpin),
) -> (u16, String) {
    let mut words = String::new();
    let reading = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    if let Ok(Control::Closing { hint, .. }) = Control::parse(text.as_str()) {
                        words = hint;
                    }
                }
                Some(Ok(Message::Close(Some(frame)))) => return u16::from(frame.code),
                Some(Ok(_)) => {}
                other => panic!("no close frame: {other:?}"),
            }
        }
    };
    let code = timeout(Duration::from_secs(45), reading)
        .await
        .expect("a close in time");
    (code, words)
}

/// A session with a shell's worth of traffic, to prove that it goes on.
struct Witness {
    handle: Handle,
    instance: SocketAddrV6,
}

impl Witness {
    async fn new(system: &System, client: &Client) -> Witness {
        let handle = client
            .connect(client.websocket(system))
            .await
            .expect("a tunnel");
        let address = system.instance().1.address.parse().expect("an address");
        Witness {
            handle,
            instance: SocketAddrV6::new(address, 22, 0, 0),
        }
    }

    /// A name, a ping, and the greeting of an SSH server.
    async fn works(&self, system: &System) {
        let name = format!("{}.internal", system.instance().0.name);
        self.handle
            .lookup(&name, RecordKind::Aaaa)
            .await
            .expect("a name");
        self.handle.ping(*self.instance.ip()).await.expect("a ping");
        let mut stream = self
            .handle
            .connect(self.instance, Class::Interactive)
            .await
            .expect("SSH");
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting).await.expect("a greeting");
        assert_eq!(&greeting, b"SSH-2.0-");
        assert!(
            self.handle.stats().link.connects == 1,
            "over the same WebSocket"
        );
    }
}

fn bearer(client: &Client) -> String {
    format!("Bearer {}", client.lease.relay.token)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_protocol_is_closed_with_its_code() {
    let system = System::start();
    let client = Client::lease(&system, &system.session());
    let witness = Witness::new(&system, &client).await;
    let path = "/v1/tunnel/local";
    let token = bearer(&client);
    let with_token = [("authorization", token.as_str())];

    let record = |length: u16, body: &[u8]| [&length.to_be_bytes()[..], body].concat();
    let cases: Vec<(&str, Message, CloseCode)> = vec![
        (
            "a cut record",
            Message::Binary(record(9, b"x").into()),
            CloseCode::RecordMalformed,
        ),
        (
            "an empty record",
            Message::Binary(record(0, b"").into()),
            CloseCode::RecordMalformed,
        ),
        (
            "a record over its cap",
            Message::Binary(record(2_049, &[4; 2_049]).into()),
            CloseCode::RecordTooLarge,
        ),
        (
            "a text that is no control",
            Message::text("hello?"),
            CloseCode::ControlMalformed,
        ),
        (
            "a control without its fields",
            Message::text(r#"{"type":"ping"}"#),
            CloseCode::ControlMalformed,
        ),
        (
            "a text over its cap",
            Message::text(format!(
                r#"{{"type":"ping","n":1,"x":"{}"}}"#,
                "x".repeat(5_000)
            )),
            CloseCode::ControlMalformed,
        ),
        (
            "a message over its cap",
            Message::Binary(vec![0; 70_000].into()),
            CloseCode::MessageTooLarge,
        ),
    ];
    for (what, message, code) in cases {
        let mut socket = open(&system, path, &with_token).await.expect("a session");
        socket.send(message).await.expect("sent");
        let (closed, words) = ending(&mut socket).await;
        assert_eq!(
            closed, code as u16,
            "{what}: closed with {closed}, not {code:?}"
        );
        assert_eq!(words, code.hint(), "{what}");
    }

    // Who may not open one at all, in the words of HTTP, and to a page in a close.
    for (headers, status, code) in [
        (vec![("authorization", "Bearer x.y")], 401, "token_invalid"),
        (vec![("authorization", "Basic x")], 401, "token_invalid"),
        (
            vec![("sec-websocket-protocol", "underpass.v9")],
            400,
            "subprotocol_missing",
        ),
        (vec![("host", "evil.example")], 421, "host_refused"),
    ] {
        let (got, body) = open(&system, path, &headers).await.expect_err(code);
        assert_eq!(
            (got, body["error"]["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
        assert!(
            body["error"]["hint"]
                .as_str()
                .is_some_and(|hint| hint.len() > 5),
            "{body}"
        );
    }
    let (status, body) = open(&system, "/v1/tunnel/nowhere", &with_token)
        .await
        .expect_err("404");
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (404, Some("gateway_unknown")),
        "{body}"
    );
    let foreign = [
        ("origin", "https://evil.example"),
        ("authorization", token.as_str()),
    ];
    let mut socket = open(&system, path, &foreign)
        .await
        .expect("an upgrade, to be told");
    assert_eq!(ending(&mut socket).await.0, CloseCode::OriginRefused as u16);
    let own = [
        ("origin", system.origin()),
        ("authorization", token.as_str()),
    ];
    open(&system, path, &own).await.expect("its own page");

    witness.works(&system).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_carries_no_strangers() {
    let system = System::start();
    let client = Client::lease(&system, &system.session());
    let witness = Witness::new(&system, &client).await;
    let path = "/v1/tunnel/local";
    let token = bearer(&client);
    let push = |datagrams: &[&[u8]]| {
        let mut message = Vec::new();
        for datagram in datagrams {
            wire::record::push(&mut message, datagram).expect("a record");
        }
        Message::Binary(message.into())
    };
    // Well formed, and for another gateway: it is not let out, with a token or without.
    let mut stranger = tunnel::peer::Peer::new(
        tunnel::peer::PeerConfig::client(key(), key().public()),
        tunnel::Instant::ZERO,
    );
    stranger.initiate(tunnel::Instant::ZERO);
    let initiation = stranger.poll_transmit().expect("an initiation");
    assert_eq!(Kind::of(&initiation), Some(Kind::Initiation));
    let junk: &[u8] = b"this is no WireGuard, and this relay is no open UDP proxy";
    let started = Instant::now();
    let endings = [
        (
            vec![("authorization", token.as_str())],
            push(&[&initiation]),
        ),
        (vec![], push(&[&initiation])),
        (
            vec![("authorization", token.as_str())],
            push(&[junk, junk, junk]),
        ),
        (vec![], push(&[junk])),
        (vec![], push(&[&[4; 64]])),
        (
            vec![("authorization", token.as_str())],
            Message::text(r#"{"type":"ping","n":1}"#),
        ),
    ]
    .map(|(headers, message)| {
        let system = &system;
        async move {
            let mut socket = open(system, path, &headers).await.expect("a session");
            socket.send(message).await.expect("sent");
            ending(&mut socket).await.0
        }
    });
    for code in futures_util::future::join_all(endings).await {
        let expected = [CloseCode::Unproven as u16, CloseCode::NotWireguard as u16];
        assert!(expected.contains(&code), "{code}");
    }
    assert!(
        started.elapsed() < Duration::from_secs(40),
        "unproven sessions end"
    );
    witness.works(&system).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_at_the_gateway_changes_nothing() {
    let system = System::start();
    let client = Client::lease(&system, &system.session());
    let witness = Witness::new(&system, &client).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket
        .connect(client.lease.gateway.endpoint)
        .await
        .expect("connected");
    let mut random = 88_172_645_463_325_252_u64;
    for n in 0..20_000_u32 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let length = match n % 8 {
            0 => 148,
            1 => 92,
            2 => 64,
            3 => 32,
            4 => 0,
            5 => 1_452,
            6 => 9_000,
            _ => usize::try_from(random % 300).expect("small"),
        };
        let mut datagram: Vec<u8> = (0..length)
            .map(|i| (random.rotate_left(i as u32 % 64) & 0xff) as u8)
            .collect();
        if let (Some(kind), true) = (datagram.get_mut(..4), n % 3 == 0) {
            kind.copy_from_slice(&[(n % 5) as u8, 0, 0, 0]);
        }
        // What the gateway's full socket refuses is its business.
        let _ = socket.send(&datagram).await;
    }
    let mut answer = [0; 2_048];
    let answered = timeout(Duration::from_millis(500), socket.recv(&mut answer)).await;
    assert!(
        !matches!(answered, Ok(Ok(_))),
        "the gateway answers no stranger"
    );
    witness.works(&system).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_leases_end() {
    let clock = Warp::new();
    let system = Setup {
        clock: Some(&clock),
        ..Setup::default()
    }
    .start();
    let session = system.session();
    let client = Client::lease(&system, &session);
    let other = Client::lease(&system, &session);
    clock.set(11 * 60);
    let error = client
        .connect(client.websocket(&system))
        .await
        .expect_err("an old token");
    assert_eq!(error.code(), "token_expired", "{error}");
    assert!(error.hint().contains("Log in again"), "{}", error.hint());
    // Without a lease the gateway knows nobody: silence, and the carrier says what that means.
    let error = other.connect(other.udp()).await.expect_err("an old lease");
    assert_eq!(error.code(), "handshake_no_answer", "{error}");
    assert!(
        error.hint().contains("does not know this key"),
        "{}",
        error.hint()
    );
    clock.set(0);
    let fresh = Client::lease(&system, &session);
    Witness::new(&system, &fresh).await.works(&system).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_instances_that_are_not_there() {
    let system = System::start();
    let client = Client::lease(&system, &system.session());
    let handle = client.connect(client.udp()).await.expect("a tunnel");
    let (app, instance) = system.instance();
    let address = instance.address.parse().expect("an address");
    let ssh = SocketAddrV6::new(address, 22, 0, 0);

    let error = handle
        .lookup("no-such-app.internal", RecordKind::Aaaa)
        .await
        .expect_err("a name");
    assert_eq!(error.code(), "nx_domain", "{error}");
    assert!(!error.hint().is_empty());
    let nobody = SocketAddrV6::new(address, 23, 0, 0);
    let error = handle
        .connect(nobody, Class::Interactive)
        .await
        .expect_err("a port");
    assert_eq!(error.code(), "refused", "{error}");

    let name = format!("{}.vm.{}.internal", instance.id, app.name);
    let mut open = handle.connect(ssh, Class::Interactive).await.expect("SSH");
    system.underpass(&["instances", "stop", &instance.id]).ok();
    let gone = async {
        while handle.lookup(&name, RecordKind::Aaaa).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(Duration::from_secs(15), gone)
        .await
        .expect("the name of a stopped instance goes");
    let error = handle
        .lookup(&name, RecordKind::Aaaa)
        .await
        .expect_err("a stopped instance");
    assert!(
        ["nx_domain", "no_data"].contains(&error.code()),
        "{error:?}"
    );
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(10), open.read_to_end(&mut rest)).await;
    ended.expect("a session on a stopped instance ends").ok();
    // At first its kernel, so to speak, is still there and refuses; then the machine is gone, and
    // the gateway knows.
    let started = Instant::now();
    let error = loop {
        match handle.connect(ssh, Class::Interactive).await {
            Ok(_) => {}
            Err(error) if error.code() != "refused" => break error,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "it still refuses"
        );
    };
    println!(
        "a stopped instance: {} after {:.1} s: {error}",
        error.code(),
        started.elapsed().as_secs_f64()
    );
    let codes = ["unreachable", "host_unreachable", "no_answer"];
    assert!(codes.contains(&error.code()), "{error:?}");
    assert!(!error.hint().is_empty());

    system.underpass(&["instances", "start", &instance.id]).ok();
    let back = async {
        loop {
            if let Ok(mut stream) = handle.connect(ssh, Class::Interactive).await
                && stream.write_all(b"SSH-2.0-test\r\n").await.is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(Duration::from_secs(30), back)
        .await
        .expect("a started instance answers again");
    handle
        .lookup(&name, RecordKind::Aaaa)
        .await
        .expect("and has its name");
}

/// The gateway's UDP port is dropped, then refused, on the server itself: what a relay without a
/// gateway behind it looks like.
#[test]
fn a_relay_with_no_gateway_behind_it_says_so() {
    if !root() {
        return;
    }
    let server = Namespace::new();
    let system = Setup {
        namespace: Some((&server, "127.0.0.1")),
        ..Setup::default()
    }
    .start();
    let nft = |rule: &str| {
        let script = format!(
            "table inet t {{\n chain c {{\n type filter hook input priority 0\n {rule}\n }}\n}}"
        );
        server
            .run("nft", ["flush ruleset"], Duration::from_secs(10))
            .ok();
        server.run("nft", [&script], Duration::from_secs(10)).ok();
    };
    // The client lives in the namespace too: a thread of this test enters it.
    server.enter(|| {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let session = system.session();
            let client = Client::lease(&system, &session);
            let handle = client
                .connect(client.websocket(&system))
                .await
                .expect("a tunnel");
            nft("udp dport 51820 drop");
            let other = Client::lease(&system, &session);
            let error = other
                .connect(other.websocket(&system))
                .await
                .expect_err("no gateway");
            assert_eq!(error.code(), "handshake_no_answer", "{error}");
            assert!(error.hint().contains("relay works"), "{}", error.hint());
            nft("udp dport 51820 reject");
            let third = Client::lease(&system, &session);
            let carrier = carrier::start(third.config(), third.websocket(&system))
                .await
                .expect("a relay");
            let mut events = carrier.events();
            let told = async {
                loop {
                    if let Ok(Event::Trouble { code, hint }) = events.recv().await {
                        return (code, hint);
                    }
                }
            };
            let (code, hint) = timeout(Duration::from_secs(10), told)
                .await
                .expect("a notice");
            assert_eq!(code, "gateway_unreachable");
            assert!(hint.contains("Check that the gateway runs"), "{hint}");
            let error = carrier.ready().await.expect_err("no gateway");
            assert!(
                error.to_string().contains("does not answer at its address"),
                "{error}"
            );
            server
                .run("nft", ["flush ruleset"], Duration::from_secs(10))
                .ok();
            // The session from before goes on.
            let back = async {
                while handle
                    .ping(system.instance().1.address.parse().expect("an address"))
                    .await
                    .is_err()
                {}
            };
            timeout(Duration::from_secs(30), back)
                .await
                .expect("the tunnel works again");
        });
    });
}
