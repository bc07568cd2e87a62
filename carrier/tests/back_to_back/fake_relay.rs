//! A relay small enough to misbehave in every way.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::{
    Message,
    handshake::server::{ErrorResponse, Request, Response},
    protocol::{CloseFrame, frame::coding::CloseCode as FrameCode},
};
use underpass_carrier::Trust;
use url::Url;
use wire::Control;

/// How the relay treats the next connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Well,
    /// Answers the upgrade with a status and a body.
    Refuse(u16, &'static str),
    /// Opens the WebSocket and closes it with a code, last words before it or not.
    Close(u16, bool),
    /// Accepts TCP and says nothing.
    Silent,
    /// Opens the WebSocket without a subprotocol.
    NoProtocol,
    /// Speaks, after the hello, a message that is no record.
    BadRecord,
    /// Carries datagrams, but answers no ping and reads on.
    Deaf,
}

pub(crate) struct FakeRelay {
    pub(crate) url: Url,
    pub(crate) pin: Trust,
    pub(crate) pem: String,
    manner: Arc<Mutex<Manner>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    kill: watch::Sender<u64>,
    task: JoinHandle<()>,
}

/// What a client asked with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) protocols: String,
}

impl FakeRelay {
    pub(crate) async fn start(gateway: SocketAddr, names: &[&str]) -> FakeRelay {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let digest = ring::digest::digest(&ring::digest::SHA256, made.cert.der());
        let pin = Trust::Fingerprint(digest.as_ref().try_into().unwrap());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let manner = Arc::new(Mutex::new(Manner::Well));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (kill, killed) = watch::channel(0);
        let task = tokio::spawn({
            let (manner, seen) = (manner.clone(), seen.clone());
            async move {
                let mut sessions = JoinSet::new();
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let (manner, seen) = (manner.lock().unwrap().clone(), seen.clone());
                    let (acceptor, mut killed) = (acceptor.clone(), killed.clone());
                    killed.mark_unchanged();
                    sessions.spawn(async move {
                        if manner == Manner::Silent {
                            tokio::time::sleep(Duration::from_secs(600)).await;
                        }
                        // A client that does not trust the certificate goes away here.
                        let Ok(tls) = acceptor.accept(tcp).await else {
                            return;
                        };
                        tokio::select! {
                            () = Box::pin(serve(tls, manner, seen, gateway)) => {}
                            _ = killed.changed() => {}
                        }
                    });
                }
            }
        });
        FakeRelay {
            url: Url::parse(&format!("wss://127.0.0.1:{port}/v1/tunnel/here")).unwrap(),
            pin,
            pem: made.cert.pem(),
            manner,
            seen,
            kill,
            task,
        }
    }

    pub(crate) fn be(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    /// Drops every connection without a goodbye.
    pub(crate) fn kill(&self) {
        self.kill.send_modify(|n| *n += 1);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for FakeRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Tls = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;

async fn serve(tls: Tls, manner: Manner, seen: Arc<Mutex<Vec<Seen>>>, gateway: SocketAddr) {
    let refusal = manner.clone();
    #[expect(
        clippy::result_large_err,
        reason = "the callback's type is tungstenite's"
    )]
    let callback =
        move |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            let text = |name| {
                request
                    .headers()
                    .get(name)
                    .map(|value| value.to_str().unwrap().to_owned())
            };
            seen.lock().unwrap().push(Seen {
                path: request.uri().path().to_owned(),
                authorization: text("authorization"),
                protocols: text("sec-websocket-protocol").unwrap_or_default(),
            });
            if let Manner::Refuse(status, body) = refusal {
                let mut refused = ErrorResponse::new(Some(body.to_owned()));
                *refused.status_mut() = StatusCode::from_u16(status).unwrap();
                refused
                    .headers_mut()
                    .insert("content-length", body.len().into());
                return Err(refused);
            }
            if refusal != Manner::NoProtocol {
                response.headers_mut().insert(
                    "sec-websocket-protocol",
                    wire::subprotocol::V1.parse().unwrap(),
                );
            }
            Ok(response)
        };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(tls, callback).await else {
        return;
    };
    let (mut sink, mut stream) = socket.split();
    if let Manner::Close(code, words) = manner {
        if words {
            let closing = Control::Closing {
                code,
                reason: "too_sunny".into(),
                hint: "wait for clouds".into(),
            };
            sink.send(Message::text(closing.to_text())).await.unwrap();
        }
        let frame = CloseFrame {
            code: FrameCode::from(code),
            reason: "".into(),
        };
        let _ = sink.send(Message::Close(Some(frame))).await;
        while let Some(Ok(_)) = stream.next().await {}
        return;
    }
    let hello = Control::Hello {
        caps: vec![],
        resume: Some("again".into()),
        idle_seconds: 600,
        resumed: false,
    };
    sink.send(Message::text(hello.to_text())).await.unwrap();
    if manner == Manner::BadRecord {
        sink.send(Message::Binary(Bytes::from_static(&[0, 9, 1])))
            .await
            .unwrap();
    }
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let _ = socket2::SockRef::from(&udp).set_recv_buffer_size(4 << 20);
    udp.connect(gateway).await.unwrap();
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            received = udp.recv(&mut buffer) => {
                let Ok(n) = received else { continue };
                let mut message = Vec::new();
                wire::record::push(&mut message, &buffer[..n]).unwrap();
                while let Ok(n) = udp.try_recv(&mut buffer) {
                    if wire::record::push(&mut message, &buffer[..n]).is_err() {
                        break;
                    }
                }
                if sink.send(Message::Binary(message.into())).await.is_err() {
                    return;
                }
            }
            message = stream.next() => match message {
                Some(Ok(Message::Binary(message))) => {
                    for datagram in wire::record::records(&message).unwrap() {
                        let _ = udp.send(datagram).await;
                    }
                }
                Some(Ok(Message::Text(text))) => {
                    if let Ok(Control::Ping { n }) = Control::parse(text.as_str())
                        && manner != Manner::Deaf
                    {
                        sink.send(Message::text(Control::Pong { n }.to_text())).await.unwrap();
                    }
                }
                Some(Ok(_)) => {}
                _ => return,
            }
        }
    }
}
