//! `Tunnel`: connect, resolve, ssh, dial.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    rc::Rc,
};

use js_sys::{Array, Function, Uint8Array};
use send_wrapper::SendWrapper;
use ssh::{
    Dialled,
    client::{HostPolicy, Identity, Options, Pty, Sign, SignFailed, SignFuture, Signer},
    ssh_key::{Certificate, PublicKey},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::Mutex,
};
use tunnel::Class;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

use crate::{
    driver::{Driver, Settings},
    failure::{Failure, words},
    key::{KeyHandle, no_randomness},
    ladder::{Ladder, Rung},
    page,
    session::Session,
    stream::TcpStream,
    surface::{self, DialOptions, SshOptions, TunnelOptions, TunnelStats},
};

/// The tunnel's packets fit every relay and every path.
const MTU: usize = 1420;

/// Keeps the session with relay and gateway from being taken for abandoned.
const KEEPALIVE: u16 = 25;

/// What may be on its way from an instance at one time: enough for a far one, and little enough
/// that Ctrl-C is felt.
const SSH_WINDOW: u32 = 512 * 1024;

/// A WireGuard peer in this page, connected to its gateway.
#[wasm_bindgen]
pub struct Tunnel {
    driver: Driver,
}

#[wasm_bindgen]
impl Tunnel {
    /// Opens the WebSocket and the WireGuard session: two rungs. Rejects with an `UnderpassError`.
    pub async fn connect(options: TunnelOptions) -> Result<Tunnel, JsValue> {
        Ok(connect(&options).await?)
    }

    /// The addresses of a name, asked of the network's DNS server.
    #[wasm_bindgen(unchecked_return_type = "string[]")]
    pub async fn resolve(&self, name: String) -> Result<Array, JsValue> {
        let ladder = Ladder::new(None, None);
        let addresses = ladder.climb(Rung::Dns, self.driver.resolve(&name)).await?;
        Ok(addresses
            .iter()
            .map(|address| JsValue::from(address.to_string()))
            .collect())
    }

    /// Opens a shell, or runs a command, on an instance: the rungs dns, tcp, ssh and pty. The
    /// host must present a certificate for what was dialled.
    pub async fn ssh(&self, options: SshOptions) -> Result<Session, JsValue> {
        Ok(login(&self.driver, &options).await?)
    }

    /// Opens a TCP stream to a name or an address: the rungs dns and tcp.
    pub async fn dial(
        &self,
        host: String,
        port: u16,
        options: Option<DialOptions>,
    ) -> Result<ByteStream, JsValue> {
        let ladder = options.map_or(Ladder::new(None, None), |options| surface::ladder(&options));
        let stream = dial(&self.driver, &ladder, &host, port).await?;
        let (read, write) = tokio::io::split(stream);
        Ok(ByteStream {
            read: Rc::new(Mutex::new(read)),
            write: Rc::new(Mutex::new(write)),
        })
    }

    /// Takes the relay token of a renewed lease: the next WebSocket is opened with it.
    #[wasm_bindgen(js_name = setRelayToken)]
    pub fn set_relay_token(&self, token: String) {
        self.driver.set_token(token);
    }

    /// The network changed, or the clock jumped: handshake now instead of waiting for silence.
    pub fn wake(&self) {
        self.driver.wake();
    }

    /// Counters and moments so far.
    pub fn stats(&self) -> TunnelStats {
        self.driver.stats().unchecked_into()
    }

    /// Ends the tunnel and everything in it.
    pub fn close(&self) {
        self.driver.close();
    }
}

async fn connect(options: &JsValue) -> Result<Tunnel, Failure> {
    let key = page::member(options, "key")
        .unchecked_into::<KeyHandle>()
        .share();
    let key = key.map_err(|_| Failure::bad_argument("key", "a key of generateKey()"))?;
    let gateway = surface::text(options, "gatewayKey", "a WireGuard public key")?;
    let address = surface::text(options, "address", "an IPv6 address")?;
    let address = address
        .split_once('/')
        .map_or(&*address, |(address, _)| address);
    let dns = surface::text(options, "dns", "an IPv6 address")?;
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|_| no_randomness())?;

    let ladder = surface::ladder(options);
    let driver = Driver::start(Settings {
        url: surface::text(options, "relayUrl", "a wss:// address")?,
        token: surface::optional_text(options, "relayToken"),
        config: tunnel::Config {
            private_key: key.private(),
            peer: gateway
                .parse()
                .map_err(|_| Failure::bad_argument("gatewayKey", "a WireGuard public key"))?,
            preshared: None,
            addresses: vec![ipv6(address, "address")?],
            dns: Some(ipv6(&dns, "dns")?),
            mtu: MTU,
            keepalive: Some(KEEPALIVE),
            seed: u64::from_le_bytes(seed),
        },
        on_status: surface::function(options, "onStatus"),
    });
    let tunnel = Tunnel { driver };
    let climbed = async {
        ladder
            .climb(Rung::Websocket, tunnel.driver.opened())
            .await?;
        ladder
            .climb(Rung::Wireguard, tunnel.driver.established())
            .await
    };
    climbed.await?;
    Ok(tunnel)
}

fn ipv6(text: &str, name: &str) -> Result<Ipv6Addr, Failure> {
    text.parse()
        .map_err(|_| Failure::bad_argument(name, "an IPv6 address"))
}

async fn dial(
    driver: &Driver,
    ladder: &Ladder,
    host: &str,
    port: u16,
) -> Result<TcpStream, Failure> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let addresses = match bare.parse::<Ipv6Addr>() {
        Ok(address) => ladder.climb(Rung::Dns, async { Ok(vec![address]) }).await?,
        Err(_) => ladder.climb(Rung::Dns, driver.resolve(host)).await?,
    };
    let connecting = async {
        let mut failure = Failure::new(
            "no_address",
            "The name has no IPv6 address.",
            "Check the name; `<app>.internal` has the addresses of the started instances.",
        );
        for address in addresses.iter().take(4) {
            match driver
                .dial(SocketAddrV6::new(*address, port, 0, 0), Class::Bulk)
                .await
            {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    };
    ladder.climb(Rung::Tcp, connecting).await
}

async fn login(driver: &Driver, options: &JsValue) -> Result<Session, Failure> {
    let host = surface::text(options, "host", "a name or an address")?;
    let port = surface::number(options, "port", 65_535.0).unwrap_or(22.0) as u16;
    let user = surface::text(options, "user", "a login name")?;
    let certificate = surface::text(options, "certificate", "an OpenSSH certificate")?;
    let certificate = Certificate::from_openssh(&certificate)
        .map_err(|_| Failure::bad_argument("certificate", "an OpenSSH certificate, one line"))?;
    let authorities = surface::texts(options, "hostCas")?
        .iter()
        .map(|line| PublicKey::from_openssh(line))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Failure::bad_argument("hostCas", "a list of OpenSSH public keys"))?;
    let sign = surface::function(options, "sign")
        .ok_or_else(|| Failure::bad_argument("sign", "a function"))?;
    let command = surface::optional_text(options, "command");
    let size = |name| surface::number(options, name, 10_000.0).map(|number| number as u32);
    let pty = Pty {
        term: surface::optional_text(options, "term")
            .unwrap_or_else(|| "xterm-256color".to_owned()),
        cols: size("cols").unwrap_or(80),
        rows: size("rows").unwrap_or(24),
    };
    let pty = (page::member(options, "pty") != JsValue::FALSE).then_some(pty);

    let ladder = surface::ladder(options);
    let stream = dial(driver, &ladder, &host, port).await?;
    let identity = Identity {
        certificate,
        signer: Signer::External(Box::new(PageSigner(SendWrapper::new(sign)))),
    };
    let expect = HostPolicy::Certificate {
        dialled: Dialled::parse(&host),
        authorities,
    };
    let window = Options {
        window: SSH_WINDOW,
        ..Options::default()
    };
    let session = ladder
        .climb(Rung::Ssh, async {
            let clock = page::wall_clock;
            Ok(ssh::client::connect_with(stream, &user, identity, expect, clock, window).await?)
        })
        .await?;
    let channel = ladder
        .climb(Rung::Pty, async {
            Ok(match (&command, &pty) {
                (Some(command), pty) => session.exec(command, pty.as_ref(), &[]).await?,
                (None, Some(pty)) => session.open_shell(pty, &[]).await?,
                (None, None) => {
                    return Err(Failure::bad_argument("command", "given where pty is false"));
                }
            })
        })
        .await?;
    Ok(Session::new(session, channel))
}

/// Has the page sign: `sign(data) -> Promise<Uint8Array>`.
struct PageSigner(SendWrapper<Function>);

impl Sign for PageSigner {
    fn sign(&mut self, data: Vec<u8>) -> SignFuture {
        let sign = self.0.clone();
        // `Send` by word alone: there is one thread here.
        Box::pin(SendWrapper::new(async move {
            let refused = |thrown: JsValue| SignFailed(words(&thrown));
            let data = Uint8Array::from(&*data);
            let promise = sign.call1(&JsValue::UNDEFINED, &data).map_err(refused)?;
            let promise = js_sys::Promise::resolve(&promise);
            let signature = JsFuture::from(promise).await.map_err(refused)?;
            let signature: Uint8Array = signature
                .dyn_into()
                .map_err(|_| SignFailed("it gave no Uint8Array".to_owned()))?;
            if signature.length() > 1024 {
                return Err(SignFailed("it gave more than a signature".to_owned()));
            }
            Ok(signature.to_vec())
        }))
    }
}

/// A TCP stream through the tunnel. What is not read stays with the other side.
#[wasm_bindgen]
pub struct ByteStream {
    read: Rc<Mutex<ReadHalf<TcpStream>>>,
    write: Rc<Mutex<WriteHalf<TcpStream>>>,
}

#[wasm_bindgen]
impl ByteStream {
    /// The next bytes, at most `max`; `undefined` at the end.
    #[wasm_bindgen(unchecked_return_type = "Uint8Array | undefined")]
    pub async fn read(&self, max: u32) -> Result<JsValue, JsValue> {
        let mut buffer = vec![0; max.clamp(1, 1 << 20) as usize];
        let length = self
            .read
            .lock()
            .await
            .read(&mut buffer)
            .await
            .map_err(|error| io_failure(&error))?;
        if length == 0 {
            return Ok(JsValue::UNDEFINED);
        }
        buffer.truncate(length);
        Ok(Uint8Array::from(&*buffer).into())
    }

    /// Resolves when all of it is on its way.
    pub async fn write(&self, data: Vec<u8>) -> Result<(), JsValue> {
        Ok(self
            .write
            .lock()
            .await
            .write_all(&data)
            .await
            .map_err(|error| io_failure(&error))?)
    }

    /// Says that no more bytes follow.
    pub async fn close(&self) -> Result<(), JsValue> {
        Ok(self
            .write
            .lock()
            .await
            .shutdown()
            .await
            .map_err(|error| io_failure(&error))?)
    }
}

fn io_failure(error: &std::io::Error) -> Failure {
    Failure::told("stream_ended", &error.to_string(), "connect again")
}
