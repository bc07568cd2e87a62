//! Why a verb of the stack is refused, and why a stream or a ping ends.
//!
//! Each reason has a stable code for machines, a sentence for people, and a hint of what to do.

use std::{fmt, io, net::SocketAddrV6, time::Duration};

use thiserror::Error;

/// What an ICMPv6 "destination unreachable" says (RFC 4443 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unreachable {
    /// Code 0: no route, and any code that nobody has defined.
    NoRoute,
    /// Codes 1, 5 and 6: forbidden by a rule.
    Prohibited,
    /// Codes 2 and 3: the host does not answer; a WireGuard gateway says so of a peer that is
    /// not connected.
    Host,
    /// Code 4: nobody listens on the port.
    Port,
}

impl Unreachable {
    pub(super) fn of_code(code: u8) -> Unreachable {
        match code {
            1 | 5 | 6 => Unreachable::Prohibited,
            2 | 3 => Unreachable::Host,
            4 => Unreachable::Port,
            _ => Unreachable::NoRoute,
        }
    }

    /// It may pass by itself: a stream that is established outlives it for a while.
    pub(super) fn is_soft(self) -> bool {
        matches!(self, Unreachable::NoRoute | Unreachable::Host)
    }
}

/// Why a stream is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both sides said goodbye.
    Finished,
    /// The other side reset the stream.
    Reset,
    /// The other side refused the connection.
    Refused,
    /// Nobody answered the connection request.
    NoAnswer,
    /// The other side fell silent while something was due from it.
    TimedOut,
    /// The network says that there is no way to the other side.
    Unreachable(Unreachable),
}

impl CloseReason {
    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            CloseReason::Finished => "finished",
            CloseReason::Reset => "reset",
            CloseReason::Refused => "refused",
            CloseReason::NoAnswer => "no_answer",
            CloseReason::TimedOut => "timed_out",
            CloseReason::Unreachable(Unreachable::NoRoute) => "unreachable",
            CloseReason::Unreachable(Unreachable::Prohibited) => "prohibited",
            CloseReason::Unreachable(Unreachable::Host) => "host_unreachable",
            CloseReason::Unreachable(Unreachable::Port) => "port_unreachable",
        }
    }

    /// What a person can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            CloseReason::Finished => "nothing is wrong",
            CloseReason::Reset => "the service ended the connection: look at its log",
            CloseReason::Refused => "check the port, and that the service is running",
            CloseReason::NoAnswer => "check that the instance is started, then try again",
            CloseReason::TimedOut => "check your network and the instance, then connect again",
            CloseReason::Unreachable(Unreachable::Prohibited) => {
                "a rule forbids it: check that both sides belong to one network"
            }
            CloseReason::Unreachable(Unreachable::Port) => {
                "check the port, and that the service is running"
            }
            CloseReason::Unreachable(_) => {
                "the instance is not connected: check that it is started"
            }
        }
    }

    /// The nearest kind of `std::io`.
    pub fn kind(self) -> io::ErrorKind {
        match self {
            CloseReason::Finished => io::ErrorKind::NotConnected,
            CloseReason::Reset => io::ErrorKind::ConnectionReset,
            CloseReason::Refused | CloseReason::Unreachable(Unreachable::Port) => {
                io::ErrorKind::ConnectionRefused
            }
            CloseReason::NoAnswer | CloseReason::TimedOut => io::ErrorKind::TimedOut,
            CloseReason::Unreachable(_) => io::ErrorKind::HostUnreachable,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CloseReason::Finished => "the connection is closed",
            CloseReason::Reset => "the other side reset the connection",
            CloseReason::Refused => "the other side refused the connection",
            CloseReason::NoAnswer => "no answer to the connection request",
            CloseReason::TimedOut => "the other side stopped answering",
            CloseReason::Unreachable(Unreachable::NoRoute) => "there is no route to the address",
            CloseReason::Unreachable(Unreachable::Prohibited) => {
                "the network forbids this connection"
            }
            CloseReason::Unreachable(Unreachable::Host) => "the address cannot be reached",
            CloseReason::Unreachable(Unreachable::Port) => "nobody listens on the port",
        })
    }
}

/// A verb that the stack refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StackError {
    /// The buffers of a new stream do not fit.
    #[error(
        "the streams of this tunnel use all of their {limit} bytes of memory; hint: close some"
    )]
    Memory {
        /// [`Limits::memory`](super::Limits::memory).
        limit: usize,
    },
    /// Too many streams.
    #[error("this tunnel has {limit} streams already; hint: close some")]
    TooManyStreams {
        /// [`Limits::streams`](super::Limits::streams).
        limit: usize,
    },
    /// Too many UDP sockets.
    #[error("this tunnel has {limit} UDP sockets already; hint: close some")]
    TooManySockets {
        /// [`Limits::udp_sockets`](super::Limits::udp_sockets).
        limit: usize,
    },
    /// Somebody listens there.
    #[error("port {0} is in use; hint: choose another, or 0 for a free one")]
    PortInUse(u16),
    /// No port is free.
    #[error("no free port is left; hint: close some streams")]
    NoPorts,
    /// Nothing can be sent there.
    #[error("{0} is no address that can be connected to; hint: give a unicast address and a port")]
    Unaddressable(SocketAddrV6),
    /// The stack has no address of its own.
    #[error("the tunnel has no address; hint: configure one")]
    NoAddress,
    /// No such handle, or it was closed.
    #[error("the socket is closed")]
    Unknown,
    /// The datagram does not fit the MTU.
    #[error("a datagram of {size} bytes does not fit; hint: send at most {limit}")]
    TooLong {
        /// Its length.
        size: usize,
        /// The greatest length.
        limit: usize,
    },
    /// Packets wait already, and the link takes none.
    #[error("the link is busy; hint: send again later")]
    Busy,
}

impl StackError {
    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            StackError::Memory { .. } => "out_of_memory",
            StackError::TooManyStreams { .. } => "too_many_streams",
            StackError::TooManySockets { .. } => "too_many_sockets",
            StackError::PortInUse(_) => "port_in_use",
            StackError::NoPorts => "no_ports",
            StackError::Unaddressable(_) => "unaddressable",
            StackError::NoAddress => "no_address",
            StackError::Unknown => "unknown_socket",
            StackError::TooLong { .. } => "too_long",
            StackError::Busy => "busy",
        }
    }
}

/// Why nothing is read from, or written to, a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StreamError {
    /// Not now: an event tells when to try again.
    #[error("nothing to read, or no room to write, for now")]
    WouldBlock,
    /// Our own side of the stream is shut down.
    #[error("the stream was shut down for writing")]
    ShutDown,
    /// The stream is closed.
    #[error("{0}; hint: {hint}", hint = .0.hint())]
    Closed(CloseReason),
    /// No such stream, or its handle was closed.
    #[error("the stream's handle is closed")]
    Unknown,
}

impl StreamError {
    /// The nearest kind of `std::io`.
    pub fn kind(self) -> io::ErrorKind {
        match self {
            StreamError::WouldBlock => io::ErrorKind::WouldBlock,
            StreamError::ShutDown => io::ErrorKind::BrokenPipe,
            StreamError::Closed(reason) => reason.kind(),
            StreamError::Unknown => io::ErrorKind::NotConnected,
        }
    }
}

/// Why a ping has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PingError {
    /// Nothing came back in time.
    #[error("no answer within {} s; hint: check that the instance is started", .0.as_secs())]
    NoAnswer(Duration),
    /// The network says that there is no way.
    #[error("{}; hint: {}", CloseReason::Unreachable(*.0), CloseReason::Unreachable(*.0).hint())]
    Unreachable(Unreachable),
    /// The address cannot be pinged, or too many pings wait.
    #[error("{0}")]
    Refused(StackError),
}

impl PingError {
    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            PingError::NoAnswer(_) => "no_answer",
            PingError::Unreachable(why) => CloseReason::Unreachable(why).code(),
            PingError::Refused(why) => why.code(),
        }
    }
}
