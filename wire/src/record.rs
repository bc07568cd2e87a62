//! Data messages: a binary WebSocket message is one or more records, each a big-endian `u16`
//! length and one datagram. A record never spans messages.

/// The largest binary message, length prefixes included.
pub const MAX_MESSAGE: usize = 65_536;

/// The largest datagram a record carries.
pub const MAX_RECORD: usize = 2_048;

/// What a record adds to its datagram.
pub const HEADER: usize = 2;

/// Appends `datagram` to `message` as one record. On an error the message is as it was.
///
/// # Errors
/// [`RecordError::Full`] says that this message is to be sent and another begun; the other errors
/// say that the datagram fits no message.
pub fn push(message: &mut Vec<u8>, datagram: &[u8]) -> Result<(), RecordError> {
    let length = check_length(datagram.len())?;
    if message.len() + HEADER + datagram.len() > MAX_MESSAGE {
        return Err(RecordError::Full);
    }
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(datagram);
    Ok(())
}

/// The datagrams of `message`, in order. The whole message is checked before the first datagram
/// is handed out: a message with one bad record has none.
///
/// # Errors
/// Says what is wrong with the message; none of its datagrams is to be used.
pub fn records(message: &[u8]) -> Result<Records<'_>, RecordError> {
    if message.len() > MAX_MESSAGE {
        return Err(RecordError::TooLong {
            length: message.len(),
            limit: MAX_MESSAGE,
        });
    }
    if message.is_empty() {
        return Err(RecordError::NoRecord);
    }
    let mut rest = message;
    while !rest.is_empty() {
        let Some((header, body)) = rest.split_first_chunk::<HEADER>() else {
            return Err(RecordError::Cut);
        };
        let length = usize::from(u16::from_be_bytes(*header));
        check_length(length)?;
        rest = body.get(length..).ok_or(RecordError::Cut)?;
    }
    Ok(Records { rest: message })
}

/// The datagrams of a message that [`records`] has checked.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (header, body) = self.rest.split_first_chunk::<HEADER>()?;
        let (datagram, rest) = body.split_at_checked(usize::from(u16::from_be_bytes(*header)))?;
        self.rest = rest;
        Some(datagram)
    }
}

/// A message or a datagram that the framing refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A record of length zero.
    #[error("a record of length zero")]
    Empty,
    /// A record or a message over its limit.
    #[error("{length} bytes, over the limit of {limit}")]
    TooLong {
        /// What it measures.
        length: usize,
        /// What it may measure.
        limit: usize,
    },
    /// The message ends inside a record.
    #[error("the message ends inside a record")]
    Cut,
    /// A message without a record.
    #[error("a message without a record")]
    NoRecord,
    /// The record does not fit this message any more, but would fit the next.
    #[error("the message is full")]
    Full,
}

fn check_length(length: usize) -> Result<u16, RecordError> {
    match u16::try_from(length) {
        Ok(0) => Err(RecordError::Empty),
        Ok(short) if length <= MAX_RECORD => Ok(short),
        _ => Err(RecordError::TooLong {
            length,
            limit: MAX_RECORD,
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn collect(message: &[u8]) -> Result<Vec<Vec<u8>>, RecordError> {
        Ok(records(message)?.map(<[u8]>::to_vec).collect())
    }

    #[test]
    fn golden_bytes() {
        let mut message = Vec::new();
        push(&mut message, b"a").unwrap();
        push(&mut message, &[0xff; 3]).unwrap();
        let hex: String = message.iter().map(|byte| format!("{byte:02x} ")).collect();
        insta::assert_snapshot!(hex.trim_end(), @"00 01 61 00 03 ff ff ff");
    }

    #[test]
    fn refused_messages() {
        let over = [&[0x08, 0x01][..], &[0; 2049]].concat();
        let good_then_cut = [&[0, 1, b'a'][..], &[0, 2, b'b']].concat();
        let cases: [(&[u8], RecordError); 6] = [
            (&[], RecordError::NoRecord),
            (&[0], RecordError::Cut),
            (&[0, 0], RecordError::Empty),
            (&good_then_cut, RecordError::Cut),
            (
                &over,
                RecordError::TooLong {
                    length: 2049,
                    limit: MAX_RECORD,
                },
            ),
            (
                &[1; MAX_MESSAGE + 1],
                RecordError::TooLong {
                    length: MAX_MESSAGE + 1,
                    limit: MAX_MESSAGE,
                },
            ),
        ];
        for (message, expect) in cases {
            assert_eq!(collect(message), Err(expect));
        }
    }

    #[test]
    fn a_full_message_stays_as_it_was() {
        let mut message = Vec::new();
        while push(&mut message, &[1; MAX_RECORD]).is_ok() {}
        let before = message.len();
        assert!(before <= MAX_MESSAGE && before > MAX_MESSAGE - MAX_RECORD - HEADER);
        assert_eq!(push(&mut message, &[1; MAX_RECORD]), Err(RecordError::Full));
        assert_eq!(push(&mut message, &[]), Err(RecordError::Empty));
        assert_eq!(message.len(), before);
        assert_eq!(
            collect(&message).unwrap().len(),
            before / (MAX_RECORD + HEADER)
        );
    }

    proptest! {
        #[test]
        fn round_trip(datagrams in vec(vec(any::<u8>(), 1..300), 1..100)) {
            let mut message = Vec::new();
            for datagram in &datagrams {
                push(&mut message, datagram).unwrap();
            }
            prop_assert_eq!(collect(&message).unwrap(), datagrams);
        }

        #[test]
        fn any_bytes_parse_to_all_or_nothing(message in vec(prop_oneof![Just(0u8), any::<u8>()], 0..600)) {
            if let Ok(found) = collect(&message) {
                let total: usize = found.iter().map(|datagram| datagram.len() + HEADER).sum();
                prop_assert_eq!(total, message.len());
            }
        }
    }
}
