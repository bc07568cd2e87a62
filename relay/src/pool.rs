//! Buffers that a thread's sessions share: a session needs one while it is awake and none while
//! it waits. And a TCP stream that reads through them.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The size of a read: what a pooled buffer holds at least.
pub(crate) const READ: usize = 64 * 1024;
/// Buffers that a thread keeps.
const KEPT: usize = 8;
/// A buffer that has grown beyond this is not kept.
const LARGEST: usize = 3 * READ;

thread_local! {
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub(crate) fn take() -> Vec<u8> {
    POOL.with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| Vec::with_capacity(READ))
}

/// Gives a buffer back.
pub(crate) fn give(mut buffer: Vec<u8>) {
    if !(READ..=LARGEST).contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
    POOL.with_borrow_mut(|pool| {
        if pool.len() < KEPT {
            pool.push(buffer);
        }
    });
}

thread_local! {
    static READS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer to read into, [`READ`] bytes long; what it holds is of no account.
pub(crate) fn take_read() -> Box<[u8]> {
    READS
        .with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| vec![0; READ].into())
}

/// Gives a read buffer back.
pub(crate) fn give_read(buffer: Box<[u8]>) {
    READS.with_borrow_mut(|reads| {
        if reads.len() < KEPT {
            reads.push(buffer);
        }
    });
}

/// A TCP stream that is read in large pieces. TLS above it asks for 4 KB at a time; a system call
/// for each would cost more than the decryption.
pub(crate) struct Pooled {
    tcp: TcpStream,
    /// Read from the socket and not asked for yet; no memory while there is nothing.
    ahead: Option<Box<[u8]>>,
    at: usize,
    end: usize,
}

impl Pooled {
    pub(crate) fn new(tcp: TcpStream) -> Pooled {
        Pooled {
            tcp,
            ahead: None,
            at: 0,
            end: 0,
        }
    }
}

impl AsyncRead for Pooled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let ahead = match &this.ahead {
            Some(ahead) => ahead,
            None => {
                let mut ahead = take_read();
                let mut read = ReadBuf::new(&mut ahead);
                let result = Pin::new(&mut this.tcp).poll_read(context, &mut read);
                this.at = 0;
                this.end = read.filled().len();
                if !matches!(result, Poll::Ready(Ok(()))) || this.end == 0 {
                    give_read(ahead);
                    return result;
                }
                this.ahead.insert(ahead)
            }
        };
        let length = buffer.remaining().min(this.end - this.at);
        buffer.put_slice(&ahead[this.at..this.at + length]);
        this.at += length;
        if this.at == this.end
            && let Some(ahead) = this.ahead.take()
        {
            give_read(ahead);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pooled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
