//! flyctl's byte stream: after a magic number, records of a big-endian `u32` length and a
//! datagram, in both directions. Message boundaries mean nothing: a message may hold several
//! records, a record may lie in several messages. A length of zero from the client keeps the
//! connection alive; none is ever sent to it, where it would become an empty datagram.

use crate::record::MAX_RECORD;

/// What a client sends first, and a server never.
pub const MAGIC: [u8; 4] = [0x2f, 0xac, 0xed, 0x77];

/// What a record adds to its datagram.
pub const HEADER: usize = 4;

/// Reads what a client sends. It holds memory for a datagram that has come in part, and grows with
/// what has arrived, never with what a length claims.
#[derive(Debug, Default)]
pub struct Stream {
    begun: bool,
    header: [u8; HEADER],
    header_length: usize,
    /// How long the datagram under way is; none between records.
    length: Option<usize>,
    datagram: Vec<u8>,
    done: bool,
}

/// What comes out of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The client is there.
    Keepalive,
    /// A datagram.
    Datagram(&'a [u8]),
}

/// Bytes that are no stream of flyctl's. Nothing more is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// It does not begin with [`MAGIC`].
    #[error("a stream that does not begin with flyctl's magic number")]
    Magic,
    /// A datagram over the cap.
    #[error("a datagram of {0} bytes")]
    TooLong(u32),
}

impl Stream {
    /// Takes bytes from the front of `input` until there is something to hand out, or no byte
    /// more.
    ///
    /// # Errors
    /// The client does not speak this; what it sends next has no meaning.
    pub fn decode<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<Event<'a>>, StreamError> {
        if std::mem::take(&mut self.done) {
            self.datagram.clear();
        }
        let length = loop {
            if let Some(length) = self.length {
                break length;
            }
            let taken = (HEADER - self.header_length).min(input.len());
            let (bytes, rest) = input.split_at(taken);
            self.header[self.header_length..self.header_length + taken].copy_from_slice(bytes);
            self.header_length += taken;
            *input = rest;
            if !self.begun && !MAGIC.starts_with(&self.header[..self.header_length]) {
                return Err(StreamError::Magic);
            }
            if self.header_length < HEADER {
                return Ok(None);
            }
            self.header_length = 0;
            if !self.begun {
                self.begun = true;
                continue;
            }
            match u32::from_be_bytes(self.header) {
                0 => return Ok(Some(Event::Keepalive)),
                long if long as usize > MAX_RECORD => return Err(StreamError::TooLong(long)),
                length => self.length = Some(length as usize),
            }
        };
        let taken = (length - self.datagram.len()).min(input.len());
        let (bytes, rest) = input.split_at(taken);
        self.datagram.extend_from_slice(bytes);
        *input = rest;
        if self.datagram.len() < length {
            return Ok(None);
        }
        self.length = None;
        self.done = true;
        Ok(Some(Event::Datagram(&self.datagram)))
    }

    /// Gives memory back that no unfinished datagram needs.
    pub fn rest(&mut self) {
        if std::mem::take(&mut self.done) {
            self.datagram.clear();
        }
        if self.datagram.is_empty() {
            self.datagram = Vec::new();
        }
    }
}

/// Appends a datagram for a client; false, and nothing, when it is empty or over the cap.
pub fn push(to: &mut Vec<u8>, datagram: &[u8]) -> bool {
    if datagram.is_empty() || datagram.len() > MAX_RECORD {
        return false;
    }
    to.extend_from_slice(&(datagram.len() as u32).to_be_bytes());
    to.extend_from_slice(datagram);
    true
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What comes of chunks: datagrams, and a keepalive as an empty one.
    fn read(chunks: &[&[u8]]) -> Result<Vec<Vec<u8>>, StreamError> {
        let mut stream = Stream::default();
        let mut seen = Vec::new();
        for chunk in chunks {
            let mut input = *chunk;
            while let Some(event) = stream.decode(&mut input)? {
                seen.push(match event {
                    Event::Keepalive => Vec::new(),
                    Event::Datagram(datagram) => datagram.to_vec(),
                });
            }
            assert!(input.is_empty());
            stream.rest();
        }
        Ok(seen)
    }

    #[test]
    fn golden_bytes() {
        let mut bytes = MAGIC.to_vec();
        assert!(push(&mut bytes, b"ab") && push(&mut bytes, b"c"));
        assert_eq!(bytes, b"\x2f\xac\xed\x77\0\0\0\x02ab\0\0\0\x01c");
        let seen = vec![b"ab".to_vec(), b"c".to_vec()];
        assert_eq!(read(&[&bytes]), Ok(seen.clone()));
        assert_eq!(read(&bytes.chunks(1).collect::<Vec<_>>()), Ok(seen));
        let kept = [&MAGIC[..], &[0; 4], &[0, 0, 0, 1, 7], &[0; 4]].concat();
        assert_eq!(read(&[&kept]), Ok(vec![vec![], vec![7], vec![]]));
    }

    #[test]
    fn what_is_no_stream_ends() {
        for bytes in [&b"GET"[..], b"\x2f\xac\xed\x76", b"\0\0\0\0", b"/x"] {
            assert_eq!(read(&[bytes]), Err(StreamError::Magic), "{bytes:?}");
        }
        let long = [&MAGIC[..], &[0, 0, 8, 1]].concat();
        assert_eq!(read(&[&long]), Err(StreamError::TooLong(2049)));
        let huge = [&MAGIC[..], &[255; 4]].concat();
        assert_eq!(read(&[&huge]), Err(StreamError::TooLong(u32::MAX)));
        let mut to = Vec::new();
        assert!(!push(&mut to, b"") && !push(&mut to, &[0; 2049]) && to.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_pushed_is_read_however_it_is_cut(
            datagrams in vec(vec(any::<u8>(), 1..400), 0..20),
            cut in 1usize..500,
        ) {
            let mut bytes = MAGIC.to_vec();
            for datagram in &datagrams {
                prop_assert!(push(&mut bytes, datagram));
            }
            prop_assert_eq!(read(&bytes.chunks(cut).collect::<Vec<_>>()), Ok(datagrams));
        }
    }
}
