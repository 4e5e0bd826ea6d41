//! The numbers of the protocol (xapi-streams.md §3.2). All integers are big-endian.

/// First word of a server's greeting.
pub(crate) const GREETING: &[u8; 8] = b"NBDMAGIC";
/// Second word of the greeting, and first of every option.
pub(crate) const OPTION: &[u8; 8] = b"IHAVEOPT";
/// First word of a reply to an option.
pub(crate) const OPTION_REPLY: u64 = 0x0003_E889_0455_65A9;

/// Handshake flag, both sides: options get replies.
pub(crate) const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag, both sides: no 124 zeros behind the answer to an export name.
pub(crate) const NO_ZEROES: u16 = 2;
/// Length of those zeros, bytes.
pub(crate) const ZEROES: usize = 124;

pub(crate) const OPTION_EXPORT_NAME: u32 = 1;
pub(crate) const OPTION_ABORT: u32 = 2;
pub(crate) const OPTION_STARTTLS: u32 = 5;
/// Option reply: done.
pub(crate) const ACK: u32 = 1;

pub(crate) const REQUEST: u32 = 0x2560_9513;
pub(crate) const REPLY: u32 = 0x6744_6698;
pub(crate) const COMMAND_READ: u16 = 0;
pub(crate) const COMMAND_DISCONNECT: u16 = 2;
/// Bytes of a request; none of ours carries data.
pub(crate) const REQUEST_SIZE: usize = 28;
/// Bytes of a reply in front of its data.
pub(crate) const REPLY_SIZE: usize = 16;

/// A request.
pub(crate) fn request(command: u16, cookie: u64, offset: u64, length: u32) -> [u8; REQUEST_SIZE] {
    let mut bytes = [0; REQUEST_SIZE];
    bytes[..4].copy_from_slice(&REQUEST.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// The head of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    pub error: u32,
    pub cookie: u64,
}

impl Reply {
    /// `None` when it does not begin as a reply does.
    pub fn parse(bytes: &[u8; REPLY_SIZE]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<4>();
        let [magic, error, high, low] = *words else { return None };
        let cookie = u64::from(u32::from_be_bytes(high)) << 32 | u64::from(u32::from_be_bytes(low));
        (u32::from_be_bytes(magic) == REPLY).then_some(Self { error: u32::from_be_bytes(error), cookie })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_request_on_the_wire() {
        let bytes = request(COMMAND_READ, 0x0102_0304_0506_0708, 0x20_0000, 0x1000);
        let expected = [
            [0x25, 0x60, 0x95, 0x13, 0, 0, 0].as_slice(),
            &[0, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0x10, 0],
        ];
        assert_eq!(bytes[..], expected.concat());
    }

    #[test]
    fn a_reply_on_the_wire() {
        let bytes = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(Reply::parse(&bytes), Some(Reply { error: 5, cookie: 0x0102_0304_0506_0708 }));
        assert_eq!(Reply::parse(&[0; 16]), None);
    }
}
