//! `probe ping ADDRESS [SOURCE]`: one ICMPv6 echo request; succeeds when the reply comes within a
//! second. A machine for tests need not have ping(8).

use std::{
    io::Read,
    net::{Ipv6Addr, SocketAddrV6},
    process::ExitCode,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tests::clock;

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let heard = match *words.as_slice() {
        ["ping", to] => ping(to, None),
        ["ping", to, from] => ping(to, Some(from)),
        _ => {
            eprintln!("usage: probe ping ADDRESS [SOURCE]");
            return ExitCode::from(2);
        }
    };
    match heard {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ping(to: &str, from: Option<&str>) -> std::io::Result<bool> {
    let address = |text: &str| -> std::io::Result<SocketAddrV6> {
        let ip: Ipv6Addr = text.parse().map_err(std::io::Error::other)?;
        Ok(SocketAddrV6::new(ip, 0, 0, 0))
    };
    let to = address(to)?;
    let mut socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    if let Some(from) = from {
        socket.bind(&address(from)?.into())?;
    }
    socket.connect(&to.into())?;
    let id = std::process::id().to_be_bytes();
    // The kernel fills in the checksum.
    let request = [ECHO_REQUEST, 0, 0, 0, id[2], id[3], 0, 1, b'u', b'p'];
    socket.send(&request)?;
    let deadline = clock::now() + Duration::from_secs(1);
    loop {
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [0; 256];
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let received = &buffer[..length];
        if received.first() == Some(&ECHO_REPLY) && received.get(4..) == Some(&request[4..]) {
            return Ok(true);
        }
    }
}
