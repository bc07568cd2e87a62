use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, RootCertStore, SupportedProtocolVersion, version,
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    net::TcpListener,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::tls::{Certificate, preferred_provider};

type Client = tokio_rustls::client::TlsStream<TcpStream>;

async fn pair(version: &'static SupportedProtocolVersion) -> (TlsStream, Client) {
    let (tls, listener, client) = ends(version).await;
    let server = async {
        let (tcp, _) = listener.accept().await.unwrap();
        TlsStream::accept(tcp, tls).await.unwrap()
    };
    tokio::join!(server, client)
}

/// What accepts, and what connects to it.
async fn ends(
    version: &'static SupportedProtocolVersion,
) -> (Arc<ServerConfig>, TcpListener, impl Future<Output = Client>) {
    let data = tempfile::tempdir().unwrap();
    #[expect(clippy::disallowed_methods, reason = "a certificate of today")]
    let now = std::time::SystemTime::now();
    let certificate = Certificate::load_or_make(data.path(), &[], now).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.leaf().unwrap().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::new(preferred_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = async move {
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(client))
            .connect(name, tcp)
            .await
            .unwrap()
    };
    (certificate.server_config().unwrap(), listener, client)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 / 7) as u8).collect()
}

/// Both ways at once, more than any buffer on the way holds, then a farewell.
#[tokio::test]
async fn bytes_pass_both_ways() {
    for version in [&version::TLS12, &version::TLS13] {
        let (server, client) = pair(version).await;
        let (mut from_client, mut to_client) = split(server);
        let (mut from_server, mut to_server) = split(client);
        let all = bytes(3_000_000);
        let up = async {
            for chunk in all.chunks(70_001) {
                to_server.write_all(chunk).await.unwrap();
            }
            to_server.shutdown().await.unwrap();
        };
        let down = async {
            for chunk in all.chunks(99_999) {
                to_client.write_all(chunk).await.unwrap();
            }
            to_client.shutdown().await.unwrap();
        };
        // In pieces that fit nothing.
        let at_server = async {
            let mut got = Vec::new();
            let mut piece = [0; 1013];
            loop {
                let length = from_client.read(&mut piece).await.unwrap();
                if length == 0 {
                    break got;
                }
                got.extend_from_slice(&piece[..length]);
            }
        };
        let at_client = async {
            let mut got = Vec::new();
            from_server.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), (), at_server, at_client) = tokio::join!(up, down, at_server, at_client);
        assert!(at_server == all && at_client == all, "{version:?}");
    }
}

/// Behind what was read, and to the end.
#[tokio::test]
async fn what_is_taken_is_what_was_sent() {
    let (mut server, mut client) = pair(&version::TLS13).await;
    let all = bytes(3_000_000);
    let up = async {
        for chunk in all.chunks(70_001) {
            client.write_all(chunk).await.unwrap();
        }
        client.shutdown().await.unwrap();
    };
    let taken = async {
        let mut got = vec![server.read_u8().await.unwrap()];
        loop {
            let before = got.len();
            let take = &mut |bytes: &[u8]| got.extend_from_slice(bytes);
            let length = poll_fn(|context| server.poll_take(context, take));
            let length = length.await.unwrap();
            assert_eq!(got.len(), before + length);
            if length == 0 {
                break got;
            }
        }
    };
    let ((), taken) = tokio::join!(up, taken);
    assert!(taken == all);
}

/// As ACME servers do: the handshake's last message and the goodbye are read at once.
#[tokio::test]
async fn a_handshake_with_a_goodbye_is_one() {
    let (tls, listener, client) = ends(&version::TLS13).await;
    let server = async {
        let (tcp, _) = listener.accept().await.unwrap();
        TlsStream::accept(tcp, tls).await
    };
    let client = async {
        client.await.shutdown().await.unwrap();
    };
    let (mut server, mut client) = (Box::pin(server), Box::pin(client));
    tokio::select! {
        // First, so that the server does not look between the two.
        biased;
        () = &mut client => {}
        _ = &mut server => panic!("before the client has said all"),
    }
    let mut server = server.await.unwrap();
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn small_and_byte_by_byte() {
    let (mut server, mut client) = pair(&version::TLS13).await;
    for n in 0..50u8 {
        client.write_all(&[n]).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), n);
        server.write_all(&[n]).await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), n);
        // Nothing waits, and nothing is held.
        assert_eq!(server.incoming.capacity(), 0);
        assert!(server.plain.buffer.is_none() && server.outgoing.buffer.is_none());
    }
}

#[tokio::test]
async fn new_keys_are_answered() {
    let (mut server, mut client) = pair(&version::TLS13).await;
    for n in 0..3u8 {
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(&[n]).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), n);
        server.write_all(&[n]).await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), n);
    }
}

/// A handshake message that never becomes whole, in records of one byte.
#[tokio::test]
async fn an_endless_handshake_message_is_ended() {
    let (mut server, client) = pair(&version::TLS13).await;
    let (mut tcp, tls) = client.into_inner();
    let (mut sequence, secrets) = tls.dangerous_extract_secrets().unwrap().tx;
    let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
        panic!("not AES-128-GCM");
    };
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap());
    // A KeyUpdate of 65,535 bytes.
    let message = [24, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat(0));
    let records = message.take(14_000).flat_map(|byte| {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&sequence.to_be_bytes());
        sequence += 1;
        for (at, byte) in nonce.iter_mut().enumerate() {
            *byte ^= iv.as_ref()[at];
        }
        let header = [23, 3, 3, 0, 18];
        let mut content = vec![byte, 22];
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut content)
            .unwrap();
        [&header[..], &content].concat()
    });
    let records: Vec<u8> = records.collect();
    assert!(records.len() > pool::BULK);
    let (half, rest) = records.split_at(pool::READ - 1_000);
    tcp.write_all(half).await.unwrap();
    let mut none = |_: &[u8]| panic!("nothing of it is data");
    while server.incoming.len() < half.len() - 100 {
        poll_fn(|context| {
            let _ = server.poll_take(context, &mut none);
            Poll::Ready(())
        })
        .await;
        tokio::task::yield_now().await;
    }
    tcp.write_all(rest).await.unwrap();
    let error = poll_fn(|context| server.poll_take(context, &mut none)).await;
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidData);
    // And stays so for whoever reads it out or says goodbye.
    let error = server.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    server.shutdown().await.unwrap_err();
}

/// A connection that is cut is no end, and bytes that are no TLS are none either.
#[tokio::test]
async fn what_is_cut_or_garbled_is_an_error() {
    let (mut server, client) = pair(&version::TLS13).await;
    let (tcp, _) = client.into_inner();
    drop(tcp);
    let error = server.read_u8().await.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ),
        "{error}"
    );

    let (mut server, client) = pair(&version::TLS13).await;
    let (mut tcp, _) = client.into_inner();
    tcp.write_all(&[&[23, 3, 3, 0, 40][..], &[7; 40]].concat())
        .await
        .unwrap();
    let error = server.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
}
