//! Buffers that a thread's sessions share: a session needs one while it is awake and none while
//! it waits.

use std::cell::RefCell;

/// The size of a buffer: 64 KB, and what TLS adds to so much.
pub(crate) const READ: usize = 65 * 1024;
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

/// What a session reads at once of a client that sends much. The kernel acknowledges what has been
/// read with each call, and over loopback sends what waits for that within it.
pub(crate) const BULK: usize = 4 * READ;

thread_local! {
    static BULK_OF_THREAD: RefCell<Option<Box<[u8]>>> = const { RefCell::new(None) };
}

/// A buffer to read into, [`BULK`] bytes long; what it holds is of no account.
pub(crate) fn take_bulk() -> Box<[u8]> {
    let kept = BULK_OF_THREAD.with_borrow_mut(Option::take);
    kept.unwrap_or_else(|| vec![0; BULK].into())
}

/// Gives it back. A thread keeps one: no session holds one while another is awake.
pub(crate) fn give_bulk(buffer: Box<[u8]>) {
    BULK_OF_THREAD.set(Some(buffer));
}
