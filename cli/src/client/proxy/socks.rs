//! SOCKS5 (RFC 1928): CONNECT without a login, names resolved inside the network.

use std::{net::Ipv6Addr, time::Duration};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tunnel::Class;

use crate::client::network::{Failure, Network, Stream, explain_at};

/// Whoever connects says what it wants within this time.
const PATIENCE: Duration = Duration::from_secs(10);

const VERSION: u8 = 5;
const NO_LOGIN: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// The answers of RFC 1928.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Answer {
    Granted = 0,
    Failed = 1,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    Refused = 5,
    TimedOut = 6,
    CommandUnknown = 7,
    AddressUnknown = 8,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    host: String,
    port: u16,
}

/// Hears what a connection wants and connects it.
pub(super) async fn accept(
    local: &mut (impl AsyncRead + AsyncWrite + Unpin),
    network: &Network,
) -> anyhow::Result<Stream> {
    let asked = timeout(PATIENCE, request(local)).await;
    let Request { host, port } = asked.context("SOCKS: it says nothing")??;
    match network.connect(&host, port, Class::Bulk).await {
        Ok(remote) => {
            answer(local, Answer::Granted).await?;
            Ok(remote)
        }
        Err(error) => {
            answer(local, of_error(&error)).await?;
            Err(explain_at(&host, &error))
        }
    }
}

fn of_error(error: &Failure) -> Answer {
    match error.code.as_str() {
        "refused" => Answer::Refused,
        "nx_domain" | "no_data" => Answer::HostUnreachable,
        "unreachable" => Answer::NetworkUnreachable,
        "timed_out" | "no_answer" => Answer::TimedOut,
        _ => Answer::Failed,
    }
}

async fn request(local: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> anyhow::Result<Request> {
    let version = local.read_u8().await?;
    ensure!(
        version == VERSION,
        "SOCKS: version {version} is not spoken here\nhint: use socks5h"
    );
    let mut methods = vec![0; local.read_u8().await?.into()];
    local.read_exact(&mut methods).await?;
    if !methods.contains(&NO_LOGIN) {
        local.write_all(&[VERSION, NO_METHOD]).await?;
        bail!("SOCKS: it wants a login\nhint: give the client no user name");
    }
    local.write_all(&[VERSION, NO_LOGIN]).await?;

    let mut head = [0; 4];
    local.read_exact(&mut head).await?;
    let [version, command, _, kind] = head;
    ensure!(version == VERSION, "SOCKS: a broken request");
    let host = match kind {
        3 => {
            let mut name = vec![0; local.read_u8().await?.into()];
            local.read_exact(&mut name).await?;
            String::from_utf8(name).ok()
        }
        4 => {
            let mut address = [0; 16];
            local.read_exact(&mut address).await?;
            Some(Ipv6Addr::from(address).to_string())
        }
        1 => {
            local.read_u32().await?;
            None
        }
        _ => {
            answer(local, Answer::AddressUnknown).await?;
            bail!("SOCKS: an address of unknown kind {kind}");
        }
    };
    let port = local.read_u16().await?;
    if command != CONNECT {
        answer(local, Answer::CommandUnknown).await?;
        bail!("SOCKS: command {command} is not CONNECT\nhint: TCP alone passes");
    }
    let Some(host) = host.filter(|host| is_name(host)) else {
        answer(local, Answer::AddressUnknown).await?;
        bail!(
            "SOCKS: the network has IPv6 addresses alone\nhint: let the proxy resolve names: socks5h"
        );
    };
    Ok(Request { host, port })
}

/// A name goes on to a terminal in an error message: nothing in it is to drive that.
fn is_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic())
}

async fn answer(local: &mut (impl AsyncWrite + Unpin), answer: Answer) -> std::io::Result<()> {
    // The address that the proxy uses is nobody's business.
    let mut reply = [0; 10];
    reply[..4].copy_from_slice(&[VERSION, answer as u8, 0, 1]);
    local.write_all(&reply).await?;
    local.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the other side gets, and what was understood.
    async fn ask(bytes: &[u8]) -> (Result<Request, String>, Vec<u8>) {
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(bytes).await.unwrap();
        theirs.shutdown().await.unwrap();
        let request = request(&mut ours).await.map_err(|error| error.to_string());
        drop(ours);
        let mut reply = Vec::new();
        theirs.read_to_end(&mut reply).await.unwrap();
        (request, reply)
    }

    #[tokio::test]
    async fn a_name_and_an_address_are_understood() {
        let (request, reply) = ask(b"\x05\x01\x00\x05\x01\x00\x03\x0cweb.internal\x00\x50").await;
        let host = "web.internal".to_owned();
        assert_eq!(request, Ok(Request { host, port: 80 }));
        assert_eq!(reply, [5, 0]);
        let mut bytes = b"\x05\x02\x02\x00\x05\x01\x00\x04".to_vec();
        bytes.extend(Ipv6Addr::LOCALHOST.octets());
        bytes.extend([0x01, 0xbb]);
        let (request, _) = ask(&bytes).await;
        let host = "::1".to_owned();
        assert_eq!(request, Ok(Request { host, port: 443 }));
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_answered_by_its_number() {
        let (request, reply) = ask(b"\x05\x01\x02").await;
        assert!(request.unwrap_err().contains("login"));
        assert_eq!(reply, [5, NO_METHOD]);
        for (bytes, number) in [
            (
                &b"\x05\x01\x00\x05\x02\x00\x03\x01a\x00\x50"[..],
                Answer::CommandUnknown,
            ),
            (
                b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
                Answer::AddressUnknown,
            ),
            (b"\x05\x01\x00\x05\x01\x00\x09", Answer::AddressUnknown),
            (
                b"\x05\x01\x00\x05\x01\x00\x03\x02\x1b[\x00\x50",
                Answer::AddressUnknown,
            ),
        ] {
            let (request, reply) = ask(bytes).await;
            request.unwrap_err();
            assert_eq!(reply.get(3), Some(&(number as u8)), "{bytes:?}");
        }
        for cut in [
            &b""[..],
            b"\x04\x01",
            b"\x05\xff\x00",
            b"\x05\x01\x00\x05\x01\x00\x03\xff",
        ] {
            ask(cut).await.0.unwrap_err();
        }
    }
}
