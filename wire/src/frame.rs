//! WebSocket frames (RFC 6455, section 5), without extensions: a decoder that is fed bytes as they
//! come and hands out whole messages, and an encoder of frames that are not masked.
//!
//! The decoder performs no I/O and holds memory for an unfinished message alone. It grows with
//! what has arrived, never with what a header claims.

/// The longest payload of a control frame.
pub const MAX_CONTROL: usize = 125;

/// The longest header of a frame that is not masked.
pub const MAX_HEADER: usize = 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// The rest of a message that other frames began.
    Continuation = 0,
    /// Text, in UTF-8.
    Text = 1,
    /// Any bytes.
    Binary = 2,
    /// The end.
    Close = 8,
    /// To be answered by a pong of the same payload.
    Ping = 9,
    /// An answer.
    Pong = 10,
}

/// Whether the frames that are read are masked: a client's always are, a server's never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The bytes come from a client.
    Client,
    /// The bytes come from a server.
    Server,
}

/// A message, or a control frame between the fragments of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A whole text message.
    Text(&'a str),
    /// A ping.
    Ping(&'a [u8]),
    /// A pong.
    Pong(&'a [u8]),
    /// A close frame: the code, when there is one, and the reason. Nothing that follows counts.
    Close(Option<u16>, &'a str),
}

/// Bytes that are no WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FrameError {
    /// A reserved bit is set, and no extension was agreed on (section 5.2).
    #[error("a reserved bit is set")]
    ReservedBit,
    /// An opcode that the protocol does not have (section 5.2).
    #[error("an unknown opcode")]
    Opcode,
    /// A client's frame that is not masked, or a server's that is (section 5.1).
    #[error("masked where it may not be, or not masked where it must be")]
    Mask,
    /// A length in more bytes than it needs, or with the highest bit set (section 5.2).
    #[error("a length that is not written in its shortest form")]
    Length,
    /// A control frame in fragments (section 5.5).
    #[error("a control frame in fragments")]
    ControlFragmented,
    /// A control frame over 125 bytes (section 5.5).
    #[error("a control frame over 125 bytes")]
    ControlTooLong,
    /// A continuation of nothing (section 5.4).
    #[error("a continuation of nothing")]
    NothingToContinue,
    /// A message that begins inside another (section 5.4).
    #[error("a message inside another")]
    Interleaved,
    /// A message over the limit (section 10.4).
    #[error("a message over the limit")]
    TooLarge,
    /// Text, or the reason of a close frame, that is not UTF-8 (section 8.1).
    #[error("text that is not UTF-8")]
    Utf8,
    /// A close frame of one byte, or with a code that may not be sent (section 7.4).
    #[error("a close frame with no valid code")]
    CloseCode,
}

/// Reads frames.
#[derive(Debug)]
pub struct Decoder {
    peer: Peer,
    /// What text messages hold is not looked at: they are bytes.
    text_is_bytes: bool,
    limit: usize,
    header: [u8; 14],
    header_length: u8,
    frame: Option<Frame>,
    /// The kind of the message that is under way.
    message: Option<Opcode>,
    /// What has arrived of it, unmasked.
    payload: Vec<u8>,
    /// What has arrived of a control frame, unmasked.
    control: Vec<u8>,
    /// The memory of `payload` was lent.
    lent: bool,
    /// The payload was handed out: it goes at the next call.
    done: bool,
    /// A close frame has come, or an error.
    closed: Option<Result<(), FrameError>>,
}

/// A frame whose header is known.
#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: Opcode,
    last: bool,
    rest: usize,
    /// Turned so that it begins at the next byte.
    mask: u32,
}

impl Decoder {
    /// A decoder of messages of at most `limit` bytes.
    pub fn new(peer: Peer, limit: usize) -> Decoder {
        Decoder {
            peer,
            text_is_bytes: false,
            limit,
            header: [0; 14],
            header_length: 0,
            frame: None,
            message: None,
            payload: Vec::new(),
            control: Vec::new(),
            lent: false,
            done: false,
            closed: None,
        }
    }

    /// The same for a peer whose text messages hold any bytes, as flyctl's do: they are handed out
    /// as [`Event::Binary`].
    pub fn of_bytes(peer: Peer, limit: usize) -> Decoder {
        Decoder {
            text_is_bytes: true,
            ..Decoder::new(peer, limit)
        }
    }

    /// Takes bytes from the front of `input` until there is something to hand out, or no byte
    /// more. After an error the same error comes again; after a close frame, nothing.
    ///
    /// # Errors
    /// The peer does not speak WebSocket; nothing more is to be read.
    pub fn decode<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<Event<'a>>, FrameError> {
        if let Some(closed) = self.closed {
            *input = &[];
            return closed.map(|()| None);
        }
        self.forget_done();
        if self.frame.is_none() {
            self.control.clear();
        }
        match self.step(input) {
            Err(error) => {
                self.closed = Some(Err(error));
                *input = &[];
                Err(error)
            }
            Ok(None) => Ok(None),
            Ok(Some(opcode)) => self.event(opcode).inspect_err(|_| *input = &[]),
        }
    }

    /// Lends memory for messages until [`Decoder::rest`] gives it back.
    pub fn lend(&mut self, mut buffer: Vec<u8>) {
        self.forget_done();
        buffer.clear();
        buffer.extend_from_slice(&self.payload);
        self.payload = buffer;
        self.lent = true;
    }

    /// Frees memory that no unfinished message needs, and gives back what was lent.
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        self.forget_done();
        if self.frame.is_none() {
            self.control = Vec::new();
        }
        if std::mem::take(&mut self.lent) {
            let unfinished = self.payload.as_slice().to_vec();
            return Some(std::mem::replace(&mut self.payload, unfinished));
        }
        if self.payload.is_empty() {
            self.payload = Vec::new();
        }
        None
    }

    fn forget_done(&mut self) {
        if std::mem::take(&mut self.done) {
            self.payload.clear();
        }
    }

    /// The bytes that it holds memory for.
    pub fn memory(&self) -> usize {
        self.payload.capacity() + self.control.capacity()
    }

    /// Whether the bytes so far end between two messages.
    pub fn is_between_messages(&self) -> bool {
        self.header_length == 0 && self.frame.is_none() && self.message.is_none()
    }

    /// Reads until a message or a control frame is whole; its opcode.
    fn step(&mut self, input: &mut &[u8]) -> Result<Option<Opcode>, FrameError> {
        loop {
            let frame = match &mut self.frame {
                Some(frame) => frame,
                None => match self.read_header(input)? {
                    Some(frame) => self.frame.insert(frame),
                    None => return Ok(None),
                },
            };
            let taken = frame.rest.min(input.len());
            let (bytes, rest) = input.split_at(taken);
            *input = rest;
            let control = frame.opcode as u8 >= 8;
            let to = if control {
                &mut self.control
            } else {
                &mut self.payload
            };
            let from = to.len();
            to.extend_from_slice(bytes);
            frame.mask = unmask(&mut to[from..], frame.mask);
            frame.rest -= taken;
            if frame.rest > 0 {
                return Ok(None);
            }
            let Frame { opcode, last, .. } = *frame;
            self.frame = None;
            if control {
                return Ok(Some(opcode));
            }
            if last {
                self.done = true;
                return Ok(self.message.take());
            }
        }
    }

    /// Reads a header, or the part of it that is there, and judges it.
    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        loop {
            let have = usize::from(self.header_length);
            if have >= 2 {
                // Judged before the rest of it arrives.
                self.judge([self.header[0], self.header[1]])?;
            }
            let need = match have {
                0 | 1 => 2,
                _ => {
                    let length = match self.header[1] & 0x7f {
                        126 => 4,
                        127 => 10,
                        _ => 2,
                    };
                    length + if self.peer == Peer::Client { 4 } else { 0 }
                }
            };
            if have == need {
                break;
            }
            let taken = (need - have).min(input.len());
            if taken == 0 {
                return Ok(None);
            }
            let (bytes, rest) = input.split_at(taken);
            self.header[have..have + taken].copy_from_slice(bytes);
            self.header_length += taken as u8;
            *input = rest;
        }
        self.header_length = 0;
        let [first, second, header @ ..] = self.header;
        let (length, mask) = match second & 0x7f {
            126 => {
                let length = u16::from_be_bytes([header[0], header[1]]);
                if length < 126 {
                    return Err(FrameError::Length);
                }
                (u64::from(length), &header[2..6])
            }
            127 => {
                let mut long = [0; 8];
                long.copy_from_slice(&header[..8]);
                let length = u64::from_be_bytes(long);
                if length <= 0xffff || length >> 63 != 0 {
                    return Err(FrameError::Length);
                }
                (length, &header[8..12])
            }
            short => (u64::from(short), &header[..4]),
        };
        let opcode = opcode(first).ok_or(FrameError::Opcode)?;
        let mask = match self.peer {
            Peer::Client => u32::from_ne_bytes([mask[0], mask[1], mask[2], mask[3]]),
            Peer::Server => 0,
        };
        let length = usize::try_from(length).map_err(|_| FrameError::TooLarge)?;
        if (opcode as u8) < 8 {
            if length > self.limit.saturating_sub(self.payload.len()) {
                return Err(FrameError::TooLarge);
            }
            if opcode != Opcode::Continuation {
                self.message = Some(opcode);
            }
        }
        Ok(Some(Frame {
            opcode,
            last: first & 0x80 != 0,
            rest: length,
            mask,
        }))
    }

    /// Judges the first two bytes of a frame.
    fn judge(&self, [first, second]: [u8; 2]) -> Result<(), FrameError> {
        if first & 0x70 != 0 {
            return Err(FrameError::ReservedBit);
        }
        let opcode = opcode(first).ok_or(FrameError::Opcode)?;
        if (second & 0x80 != 0) != (self.peer == Peer::Client) {
            return Err(FrameError::Mask);
        }
        match opcode {
            Opcode::Close | Opcode::Ping | Opcode::Pong => {
                if first & 0x80 == 0 {
                    return Err(FrameError::ControlFragmented);
                }
                if usize::from(second & 0x7f) > MAX_CONTROL {
                    return Err(FrameError::ControlTooLong);
                }
            }
            Opcode::Continuation if self.message.is_none() => {
                return Err(FrameError::NothingToContinue);
            }
            Opcode::Text | Opcode::Binary if self.message.is_some() => {
                return Err(FrameError::Interleaved);
            }
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {}
        }
        Ok(())
    }

    fn event(&mut self, opcode: Opcode) -> Result<Option<Event<'_>>, FrameError> {
        let event = match opcode {
            Opcode::Binary | Opcode::Continuation => Ok(Event::Binary(&self.payload)),
            Opcode::Text if self.text_is_bytes => Ok(Event::Binary(&self.payload)),
            Opcode::Text => std::str::from_utf8(&self.payload)
                .map(Event::Text)
                .map_err(|_| FrameError::Utf8),
            Opcode::Ping => Ok(Event::Ping(&self.control)),
            Opcode::Pong => Ok(Event::Pong(&self.control)),
            Opcode::Close => {
                self.closed = Some(Ok(()));
                close(&self.control)
            }
        };
        if let Err(error) = event {
            self.closed = Some(Err(error));
        }
        event.map(Some)
    }
}

/// Appends a frame that is a whole message, not masked.
pub fn push(to: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let (header, length) = header(opcode, payload.len());
    to.extend_from_slice(&header[..length]);
    to.extend_from_slice(payload);
}

/// The header of a frame that is a whole message, not masked, and the header's length.
pub fn header(opcode: Opcode, length: usize) -> ([u8; MAX_HEADER], usize) {
    let mut header = [0; MAX_HEADER];
    header[0] = 0x80 | opcode as u8;
    let end = match length {
        0..126 => {
            header[1] = length as u8;
            2
        }
        126..=0xffff => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = 127;
            header[2..].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    (header, end)
}

/// Appends a close frame. A reason over 123 bytes is left out.
pub fn push_close(to: &mut Vec<u8>, code: u16, reason: &str) {
    let mut payload = Vec::with_capacity(MAX_CONTROL);
    payload.extend_from_slice(&code.to_be_bytes());
    if reason.len() <= MAX_CONTROL - 2 {
        payload.extend_from_slice(reason.as_bytes());
    }
    push(to, Opcode::Close, &payload);
}

fn opcode(first: u8) -> Option<Opcode> {
    Some(match first & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        _ => return None,
    })
}

/// The content of a close frame (section 5.5.1).
fn close(payload: &[u8]) -> Result<Event<'_>, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() {
            Ok(Event::Close(None, ""))
        } else {
            Err(FrameError::CloseCode)
        };
    };
    let code = u16::from_be_bytes(*code);
    // Section 7.4.2, and the codes that were registered since; 1004 to 1006 and 1015 are never
    // on the wire.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FrameError::CloseCode);
    }
    let reason = std::str::from_utf8(reason).map_err(|_| FrameError::Utf8)?;
    Ok(Event::Close(Some(code), reason))
}

/// Unmasks in place; the mask for what follows.
fn unmask(bytes: &mut [u8], mask: u32) -> u32 {
    if mask == 0 {
        return 0;
    }
    let four = mask.to_ne_bytes();
    let wide = u64::from(mask) << 32 | u64::from(mask);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(four.iter().cycle()) {
        *byte ^= mask;
    }
    let mut turned = four;
    turned.rotate_left(rest.len() % 4);
    u32::from_ne_bytes(turned)
}
