//! What the kernel says of a TCP connection.

use std::{
    io,
    mem::{offset_of, size_of},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::libc;

use crate::pace::Path;

/// `struct tcp_info` of Linux (`include/uapi/linux/tcp.h`, as of 4.9): libc's ends before what is
/// asked for here. A newer kernel cuts its own to this length, an older one fills less.
#[repr(C)]
#[derive(Default)]
struct TcpInfo {
    states_and_flags: [u8; 8],
    rto_and_ato: [u32; 2],
    snd_mss: u32,
    rcv_mss: u32,
    unacked: u32,
    /// `tcpi_sacked` to `tcpi_rcv_ssthresh`.
    counts_and_ages: [u32; 10],
    /// In microseconds.
    rtt: u32,
    /// `tcpi_rttvar` to `tcpi_total_retrans`.
    estimates: [u32; 8],
    pacing_rates: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segments: [u32; 2],
    notsent_bytes: u32,
    /// In microseconds.
    min_rtt: u32,
}

const _: () = {
    assert!(offset_of!(TcpInfo, rtt) == 68);
    assert!(offset_of!(TcpInfo, bytes_acked) == 120);
    assert!(offset_of!(TcpInfo, min_rtt) == 148);
    assert!(size_of::<TcpInfo>() == 152);
};

/// Asks the kernel; an older one than 4.9 does not know enough.
pub(crate) fn path_of(socket: &impl AsRawFd) -> io::Result<Path> {
    let info = tcp_info(socket)?;
    let micros = |micros: u32| Duration::from_micros(micros.into());
    Ok(Path {
        in_flight: u64::from(info.unacked) * u64::from(info.snd_mss),
        unsent: info.notsent_bytes.into(),
        acknowledged: info.bytes_acked,
        round_trip: micros(info.rtt),
        shortest: micros(info.min_rtt),
    })
}

#[expect(
    unsafe_code,
    reason = "no safe binding asks for more than the beginning of the kernel's answer"
)]
fn tcp_info(socket: &impl AsRawFd) -> io::Result<TcpInfo> {
    let mut info = TcpInfo::default();
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is plain numbers, and the
    // descriptor is open for as long as `socket` is borrowed.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if (length as usize) < size_of::<TcpInfo>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn what_was_written_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(&[7; 10_000]).unwrap();
        far.read_exact(&mut [0; 10_000]).unwrap();
        near.write_all(&[7; 1]).unwrap();
        far.read_exact(&mut [0; 1]).unwrap();
        let path = path_of(&near).unwrap();
        assert!((10_000..=10_002).contains(&path.acknowledged), "{path:?}");
        assert!(path.in_flight + path.unsent < 10_000, "{path:?}");
        assert!(path.shortest > Duration::ZERO && path.shortest <= path.round_trip);
        assert!(path.round_trip < Duration::from_secs(1), "{path:?}");
    }
}
