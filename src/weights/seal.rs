//! A seal: a checksum at the end of a file, for checkpoints, whose damage must be detected before they are
//! used.
//!
//! The seal is the last 20 bytes of a file: `DFKASEAL`, the number of bytes before the seal (8 bytes,
//! little-endian), and the CRC-32C of everything before the checksum itself (4 bytes, little-endian). A
//! sealed npz is still a valid npz, because zip readers search for the directory from the end and skip what
//! follows it.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"DFKASEAL";
const BYTES: usize = 20;

/// Appends a seal to what was written so far. The file is read back for that: a zip writer seeks back to
/// fill in sizes, so a checksum computed while writing would be of other bytes.
pub fn append(w: &mut BufWriter<File>) -> io::Result<()> {
    w.flush()?;
    let mut file = w.get_ref();
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let crc = checksum(&mut file.take(end), end)?;
    let mut seal = [0; BYTES - 4];
    seal[..8].copy_from_slice(MAGIC);
    seal[8..].copy_from_slice(&end.to_le_bytes());
    w.write_all(&seal)?;
    w.write_all(&crc32c::crc32c_append(crc, &seal).to_le_bytes())
}

/// Reads all of `path` and compares it with its seal.
///
/// Errors: a description of what is wrong, for example that the file is cut short.
pub fn check(path: &Path) -> Result<(), String> {
    let cannot = |e: io::Error| format!("cannot read it: {e}");
    let mut file = File::open(path).map_err(cannot)?;
    let bytes = file.metadata().map_err(cannot)?.len();
    let Some(end) = bytes.checked_sub(BYTES as u64) else {
        return Err(format!("it has {bytes} bytes, fewer than its checksum alone takes"));
    };
    let crc = checksum(&mut (&mut file).take(end), end).map_err(cannot)?;
    let mut seal = [0; BYTES];
    file.read_exact(&mut seal).map_err(cannot)?;
    let [magic, length] = [0, 8].map(|at| seal[at..][..8].try_into().unwrap_or([0; 8]));
    if magic != *MAGIC || u64::from_le_bytes(length) != end {
        return Err(format!(
            "its {bytes} bytes do not end in a checksum: it is cut short or was never whole"
        ));
    }
    let found = crc32c::crc32c_append(crc, &seal[..BYTES - 4]);
    let expected = u32::from_le_bytes(seal[BYTES - 4..].try_into().unwrap_or([0; 4]));
    if found != expected {
        return Err(format!("its checksum is {found:08x}, but was {expected:08x} when it was written"));
    }
    Ok(())
}

/// The CRC-32C of exactly `bytes` bytes.
fn checksum(r: &mut impl Read, bytes: u64) -> io::Result<u32> {
    let (mut crc, mut left, mut buffer) = (0, bytes, vec![0; 1 << 20]);
    while left > 0 {
        match r.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                crc = crc32c::crc32c_append(crc, &buffer[..n]);
                left -= n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(crc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::write_atomic;

    #[test]
    fn every_damaged_byte_and_every_cut_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sealed");
        write_atomic(&path, |w| {
            w.write_all(b"some contents")?;
            append(w)
        })
        .unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), 13 + BYTES);
        assert_eq!(check(&path), Ok(()));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            assert!(check(&path).is_err(), "byte {at} changed");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(check(&path).is_err(), "cut to {at} bytes");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(check(&path).is_err(), "a byte more");
        assert!(check(dir.path()).is_err() && check(&dir.path().join("none")).is_err());
    }

    /// The example of 32 zero bytes in RFC 3720, appendix B.4.
    #[test]
    fn the_polynomial_is_that_of_crc_32c() {
        assert_eq!(checksum(&mut &[0u8; 32][..], 32).unwrap(), 0x8a91_36aa);
    }
}
