//! TFRecord framing: length as `u64`, masked CRC-32C of the length, the bytes, masked CRC-32C of the bytes;
//! all little endian.

use std::io::{self, ErrorKind, Read, Write};

/// Longest record to accept. The longest that a run writes is a picture of less than 1 MB.
const MOST_BYTES: u64 = 64 << 20;

/// TFRecord's masked CRC-32C: a CRC over bytes that themselves contain CRCs would be weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

pub fn write_record(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = (bytes.len() as u64).to_le_bytes();
    to.write_all(&length)?;
    to.write_all(&masked_crc(&length).to_le_bytes())?;
    to.write_all(bytes)?;
    to.write_all(&masked_crc(bytes).to_le_bytes())
}

/// Reads records until one is cut off or does not match a checksum.
pub struct Records<R> {
    from: R,
}

impl<R: Read> Records<R> {
    pub fn new(from: R) -> Self {
        Records { from }
    }

    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(length) = self.checked(8)? else { return Ok(None) };
        let length = length.try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
        if length > MOST_BYTES {
            return Ok(None);
        }
        self.checked(length)
    }

    /// The next `length` bytes; `None` if they or their checksum are cut off, or if the two do not match.
    fn checked(&mut self, length: u64) -> io::Result<Option<Vec<u8>>> {
        // The buffer grows with the bytes read, so that a wrong length allocates nothing.
        let mut bytes = Vec::new();
        (&mut self.from).take(length).read_to_end(&mut bytes)?;
        let mut crc = [0; 4];
        match self.from.read_exact(&mut crc) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        let agrees = bytes.len() as u64 == length && u32::from_le_bytes(crc) == masked_crc(&bytes);
        Ok(agrees.then_some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_tensorflows_bytes() {
        // The first record that TensorFlow writes to an event file (file_version "brain.Event:2" at wall time
        // 0).
        let event = b"\x09\0\0\0\0\0\0\0\0\x1a\x0dbrain.Event:2";
        let mut bytes = Vec::new();
        write_record(&mut bytes, event).unwrap();
        assert_eq!(bytes[..8], [24, 0, 0, 0, 0, 0, 0, 0]);
        // Every event file begins with this masked checksum of the length 24.
        assert_eq!(bytes[8..12], [0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(bytes.len(), 8 + 4 + 24 + 4);
    }

    #[test]
    fn a_damaged_record_ends_the_file() {
        let mut bytes = Vec::new();
        write_record(&mut bytes, b"first").unwrap();
        let one = bytes.len();
        write_record(&mut bytes, b"second").unwrap();
        let all = |bytes: &[u8]| {
            let (mut records, mut out) = (Records::new(bytes), Vec::new());
            while let Some(r) = records.next().unwrap() {
                out.push(r);
            }
            out
        };
        assert_eq!(all(&bytes), [b"first".to_vec(), b"second".to_vec()]);
        for cut in 0..bytes.len() {
            assert_eq!(all(&bytes[..cut]).len(), usize::from(cut >= one), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(all(&damaged).len(), usize::from(at >= one), "damaged at {at}");
        }
        assert!(all(&[0xff; 64]).is_empty());
    }
}
