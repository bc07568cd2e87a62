//! End to end: the real binary, real peers, real clients.
//!
//! This library is the bench: network namespaces that are made and removed, a running
//! `underpass up --demo`, and stock programs (wireguard-go, OpenSSH, dig, curl, iperf3) in them.
//! The tests themselves are in `tests/tests`. They know the system from outside alone: its
//! binary, its HTTP API, its wire.

pub mod client;
pub mod clock;
pub mod command;
pub mod emulator;
pub mod firewall;
pub mod namespace;
pub mod pebble;
pub mod peer;
pub mod relay;
pub mod soak;
pub mod system;
pub mod warp;

/// Whether a test that needs root can run. Where it cannot, this says what to type; in CI that is
/// a failure.
///
/// # Panics
/// In CI without root.
pub fn root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let message = "this test makes network namespaces and needs root\n\
                   type: sudo -E env PATH=\"$PATH\" cargo xtask test";
    assert!(std::env::var_os("CI").is_none(), "{message}");
    eprintln!("skipped: {message}");
    false
}

/// A TCP port of loopback that nobody has at this moment, for programs that cannot say which one
/// they took.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its number").port()
}

/// Megabytes of noise, the same at each run.
pub fn noise(megabytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(megabytes << 20);
    while bytes.len() < megabytes << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
