//! The hash by which a report identifies its input files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// The SHA-256 of a file's bytes as 64 hexadecimal digits.
pub fn sha256(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let cannot = |e: std::io::Error| Error::data(path, format!("cannot read: {e}"));
    let mut file = File::open(path).map_err(cannot)?;
    let (mut hash, mut buf) = (Sha256::new(), vec![0u8; 1 << 16]);
    loop {
        match file.read(&mut buf).map_err(cannot)? {
            0 => break,
            n => hash.update(&buf[..n]),
        }
    }
    Ok(digits(hash))
}

/// A finished hash as 64 hexadecimal digits.
pub fn digits(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_of_a_known_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            sha256(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(sha256(dir.path().join("none")).unwrap_err().exit_code(), 4);
        assert_eq!(sha256(dir.path()).unwrap_err().exit_code(), 4);
    }
}
