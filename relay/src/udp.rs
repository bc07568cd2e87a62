//! The socket to a gateway: datagrams leave and arrive in batches, one system call for many.
//!
//! Datagrams of one size leave as one GSO send; what the kernel has coalesced arrives as one GRO
//! read, and up to [`SLOTS`] of those in one call. The socket is watched for reading alone:
//! watching it for writing would wake the session after every send.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, RawFd},
    task::{Context, Poll, ready},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, recvmmsg, sendmsg, setsockopt,
        sockopt,
    },
};
use socket2::SockRef;
use tokio::io::{Interest, unix::AsyncFd};

/// Reads in one call.
const SLOTS: usize = 16;
/// A GRO read is at most this long.
const SLOT: usize = 64 * 1024;
/// What one GSO send may hold.
const MAX_SEGMENTS: usize = 64;
const MAX_PAYLOAD: usize = 65_507;
/// What may wait in the kernel for the session to be woken, where the system allows it.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A UDP socket that is connected to a gateway.
pub(crate) struct Udp {
    socket: AsyncFd<UdpSocket>,
    /// Datagrams of this size and more are sent one by one: the kernel has refused their batch.
    gso_below: usize,
}

/// What became of a send.
pub(crate) enum Sent {
    /// All of it left.
    All,
    /// This many datagrams left; the socket has no room for more.
    NoRoom(usize),
    /// This many left; an error that an earlier datagram had caused came in place of the next.
    Earlier(usize),
    /// This many left; the next is refused.
    Refused(usize),
}

impl Udp {
    pub(crate) fn open(gateway: SocketAddr) -> io::Result<Udp> {
        let any = match gateway {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        // Without GRO, or with the system's buffer, datagrams arrive all the same.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        let _ = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
        socket.connect(gateway)?;
        Udp::over(socket)
    }

    fn over(socket: UdpSocket) -> io::Result<Udp> {
        #[expect(
            deprecated,
            reason = "sound here: a socket of std owns its descriptor, and the successor is unsafe"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Udp {
            socket,
            gso_below: usize::MAX,
        })
    }

    /// Sends a batch from its datagram `from` on.
    pub(crate) fn send(&mut self, batch: &Batch, from: usize) -> Sent {
        if batch.count - from > 1 && batch.segment < self.gso_below {
            let segment = batch.segment as u16;
            let slices = [IoSlice::new(&batch.bytes[from * batch.segment..])];
            let control = [ControlMessage::UdpGsoSegments(&segment)];
            let fd = self.socket.get_ref().as_raw_fd();
            match sendmsg::<()>(fd, &slices, &control, MsgFlags::empty(), None) {
                Ok(_) => return Sent::All,
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return Sent::NoRoom(0),
                // Larger than the path takes in one piece, or no GSO at all: one by one.
                Err(Errno::EINVAL | Errno::EMSGSIZE) => self.gso_below = batch.segment,
                Err(Errno::EIO | Errno::EOPNOTSUPP | Errno::ENOPROTOOPT) => self.gso_below = 0,
                Err(error) if is_unreachable(&error.into()) => return Sent::Earlier(0),
                Err(_) => return Sent::Refused(0),
            }
        }
        for (done, datagram) in batch.datagrams().skip(from).enumerate() {
            match self.socket.get_ref().send(datagram) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Sent::NoRoom(done);
                }
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Sent::NoRoom(done);
                }
                Err(error) if is_unreachable(&error) => return Sent::Earlier(done),
                Err(_) => return Sent::Refused(done),
            }
        }
        Sent::All
    }

    /// An error that a datagram of an earlier send has caused. Nothing wakes the session for it.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        self.socket.get_ref().take_error().ok().flatten()
    }

    /// Whether batches leave in one call still.
    pub(crate) fn has_gso(&self) -> bool {
        self.gso_below == usize::MAX
    }

    /// Reads once, as much as the slots hold, and hands out what arrived, slot by slot: the bytes
    /// and the size of the datagrams in them. Ready with true when there may be more; pending
    /// when the socket is empty, and the waker is in place.
    pub(crate) fn poll_receive(
        &self,
        context: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8], usize),
    ) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.socket.poll_read_ready(context))?;
        let fd = self.socket.get_ref().as_raw_fd();
        let slots = SLOTS_OF_THREAD.with_borrow_mut(|buffer| receive(fd, buffer, take));
        match slots {
            // A call that is not full has emptied the socket: what comes later wakes again.
            Ok(slots) if slots < SLOTS => {
                guard.clear_ready();
                Poll::Ready(Ok(()))
            }
            Ok(_) => Poll::Ready(Ok(())),
            Err(Errno::EAGAIN) => {
                guard.clear_ready();
                // Registers the waker.
                match self.socket.poll_read_ready(context) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(_) => Poll::Ready(Ok(())),
                }
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

/// Datagrams of one size, the last of them perhaps shorter.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    segment: usize,
    count: usize,
    ended: bool,
}

impl Batch {
    /// An empty batch in `buffer`.
    pub(crate) fn new(buffer: Vec<u8>) -> Batch {
        Batch {
            bytes: buffer,
            segment: 0,
            count: 0,
            ended: false,
        }
    }

    /// Adds a datagram; false when the batch is to be sent first.
    pub(crate) fn push(&mut self, datagram: &[u8]) -> bool {
        if self.count == 0 {
            self.segment = datagram.len();
        } else if self.ended
            || self.count == MAX_SEGMENTS
            || datagram.len() > self.segment
            || self.bytes.len() + datagram.len() > MAX_PAYLOAD
        {
            return false;
        }
        self.ended = datagram.len() < self.segment;
        self.bytes.extend_from_slice(datagram);
        self.count += 1;
        true
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
        self.ended = false;
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.segment.max(1))
    }

    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

thread_local! {
    /// What a thread reads into. Pages that no datagram has reached cost no memory.
    static SLOTS_OF_THREAD: RefCell<Vec<u8>> = RefCell::new(vec![0; SLOTS * SLOT]);
}

/// Hands out what is read in one call; the number of slots that were filled.
fn receive(fd: RawFd, buffer: &mut [u8], take: &mut dyn FnMut(&[u8], usize)) -> nix::Result<usize> {
    let mut chunks = buffer.chunks_exact_mut(SLOT);
    let mut slices: [[IoSliceMut<'_>; 1]; SLOTS] =
        std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
    // Made anew: the kernel leaves in them how much of the space for control messages was used,
    // and would find no more than that the next time.
    let mut headers = MultiHeaders::<()>::preallocate(SLOTS, Some(cmsg_space!(i32)));
    let flags = MsgFlags::MSG_DONTWAIT;
    let mut count = 0;
    for message in recvmmsg(fd, &mut headers, slices.iter_mut(), flags, None)? {
        count += 1;
        let segment = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let bytes = message.iovs().next().unwrap_or_default();
        take(bytes, segment.unwrap_or(bytes.len()).max(1));
    }
    Ok(count)
}

/// What ICMP, or a route that is missing, makes of a connected UDP socket.
pub(crate) fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn sizes(batch: &Batch) -> Vec<usize> {
        batch.datagrams().map(<[u8]>::len).collect()
    }

    #[test]
    fn a_batch_is_of_one_size_and_an_end() {
        let mut batch = Batch::new(Vec::new());
        assert!(batch.push(&[1; 100]) && batch.push(&[2; 100]));
        assert!(!batch.push(&[3; 101]), "larger");
        assert!(batch.push(&[3; 40]), "the end");
        assert!(
            !batch.push(&[4; 40]) && !batch.push(&[4; 100]),
            "nothing after"
        );
        assert_eq!((sizes(&batch), batch.len()), (vec![100, 100, 40], 3));
        batch.clear();
        let fits = (0..100).take_while(|_| batch.push(&[1; 2048])).count();
        assert_eq!(fits, MAX_PAYLOAD / 2048);
        batch.clear();
        let fits = (0..100).take_while(|_| batch.push(&[1; 32])).count();
        assert_eq!(fits, MAX_SEGMENTS);
    }

    /// Batches leave as they are, and arrive whole, from peers that coalesce and from others.
    #[tokio::test]
    async fn batches_pass_both_ways() {
        let gateway = UdpSocket::bind("127.0.0.1:0").unwrap();
        let timeout = Some(std::time::Duration::from_secs(5));
        gateway.set_read_timeout(timeout).unwrap();
        let mut udp = Udp::open(gateway.local_addr().unwrap()).unwrap();
        let mut batch = Batch::new(Vec::new());
        for mark in 0..30 {
            assert!(batch.push(&[mark; 1400]));
        }
        assert!(batch.push(&[30; 7]));
        assert!(matches!(udp.send(&batch, 0), Sent::All) && udp.has_gso());
        assert!(matches!(udp.send(&batch, 29), Sent::All));
        let mut buffer = [0; 2048];
        let mut client = None;
        for mark in (0..31).chain([29, 30]) {
            let (length, from) = gateway.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (length, buffer[0]),
                (if mark == 30 { 7 } else { 1400 }, mark)
            );
            client = Some(from);
        }

        let client = client.unwrap();
        let mut got = Vec::new();
        // Plain, then coalesced into the same slots, and plain again; an empty one among them.
        gateway.connect(client).unwrap();
        gateway.set_nonblocking(true).unwrap();
        let mut peer = Udp::over(gateway).unwrap();
        for round in 0..3 {
            peer.gso_below = if round == 1 { usize::MAX } else { 0 };
            assert!(matches!(peer.send(&batch, 0), Sent::All));
            peer.socket.get_ref().send(&[]).unwrap();
            while got.len() < 32 * (round + 1) {
                let mut take = |bytes: &[u8], size: usize| {
                    if bytes.is_empty() {
                        got.push((0, 0));
                    }
                    got.extend(bytes.chunks(size).map(|it| (it[0], it.len())));
                };
                poll_fn(|context| udp.poll_receive(context, &mut take))
                    .await
                    .unwrap();
            }
        }
        let one: Vec<(u8, usize)> = (0..30)
            .map(|mark| (mark, 1400))
            .chain([(30, 7), (0, 0)])
            .collect();
        assert_eq!(got, [&one[..], &one, &one].concat());
    }
}
