//! Reads the IDX format of MNIST and similar data sets, plain or gzipped.
//!
//! A file has two zero bytes, a type code, the number of dimensions, each dimension as a big-endian u32,
//! then the elements. Only elements of type unsigned byte are read; images and class numbers have that type.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::weights::refuse_pipe;

/// An array of unsigned bytes in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct Idx {
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// The most elements that are read: twenty times the largest MNIST-like file. A header that claims more is
/// refused before anything is allocated.
const MAX_BYTES: u64 = 1 << 30;

/// Reads the file `path`. A gzip stream is recognised by its first bytes, not by the name.
///
/// Errors: another format or element type, too few or too many elements, damage.
pub fn read(path: impl AsRef<Path>) -> Result<Idx> {
    let path = path.as_ref();
    let cannot = |e| Error::data(path, format!("cannot read: {e}"));
    refuse_pipe(path)?;
    let mut file = BufReader::new(File::open(path).map_err(cannot)?);
    let gzipped = file.fill_buf().map_err(cannot)?.starts_with(&[0x1f, 0x8b]);
    let parsed = if gzipped { parse(&mut MultiGzDecoder::new(file)) } else { parse(&mut file) };
    parsed.map_err(|m| Error::data(path, m))
}

fn parse(r: &mut dyn Read) -> std::result::Result<Idx, String> {
    let mut magic = [0u8; 4];
    r.read_exact(&mut magic).map_err(|e| format!("expected an IDX header: {e}"))?;
    let [0, 0, kind, dims] = magic else {
        return Err(format!("expected an IDX file (two zero bytes first), found {magic:02x?}"));
    };
    if kind != 0x08 {
        let name = match kind {
            0x09 => "int8",
            0x0b => "int16",
            0x0c => "int32",
            0x0d => "float32",
            0x0e => "float64",
            _ => "an unknown type",
        };
        return Err(format!("expected elements of type uint8 (0x08), found {name} ({kind:#04x})"));
    }
    let mut shape = vec![];
    // Dimensions of 0 are left out of the product, so that a shape without elements cannot overflow either,
    // in whatever order a caller multiplies it.
    let (mut bytes, mut is_empty) = (1u64, false);
    for _ in 0..dims {
        let mut d = [0u8; 4];
        r.read_exact(&mut d).map_err(|e| format!("expected {dims} dimensions: {e}"))?;
        let d = u32::from_be_bytes(d);
        shape.push(d as usize);
        is_empty |= d == 0;
        bytes = bytes.saturating_mul(u64::from(d.max(1)));
    }
    if bytes > MAX_BYTES {
        return Err(format!("expected at most {MAX_BYTES} elements, found shape {shape:?}"));
    }
    let bytes = if is_empty { 0 } else { bytes };
    // Reading one byte past the end detects surplus data, and makes the gzip decoder verify the checksum.
    let mut data = vec![];
    r.take(bytes + 1).read_to_end(&mut data).map_err(|e| {
        format!("expected {bytes} elements for shape {shape:?}, found damage after {}: {e}", data.len())
    })?;
    match (data.len() as u64).cmp(&bytes) {
        std::cmp::Ordering::Equal => Ok(Idx { shape, data }),
        std::cmp::Ordering::Less => {
            Err(format!("expected {bytes} elements for shape {shape:?}, found only {}", data.len()))
        }
        std::cmp::Ordering::Greater => {
            Err(format!("expected {bytes} elements for shape {shape:?}, found more"))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    pub fn encode(shape: &[u32], data: &[u8]) -> Vec<u8> {
        let mut v = vec![0, 0, 8, shape.len() as u8];
        v.extend(shape.iter().flat_map(|d| d.to_be_bytes()));
        v.extend(data);
        v
    }

    pub fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut e = GzEncoder::new(vec![], Compression::default());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Idx> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path())
    }

    #[test]
    fn reads_plain_and_gzipped_files() {
        let plain = encode(&[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        let expected = Idx { shape: vec![2, 1, 3], data: vec![1, 2, 3, 4, 5, 6] };
        assert_eq!(read_bytes(&plain).unwrap(), expected);
        assert_eq!(read_bytes(&gzip(&plain)).unwrap(), expected);
        assert_eq!(read_bytes(&encode(&[0], &[])).unwrap().data, Vec::<u8>::new());
    }

    #[test]
    fn malformed_files_are_refused() {
        let good = encode(&[4], &[1, 2, 3, 4]);
        let mut float = good.clone();
        float[2] = 0x0d;
        let mut checksum = gzip(&good);
        let at = checksum.len() - 8;
        checksum[at] ^= 1;
        for (bytes, why) in [
            (vec![], "expected an IDX header"),
            (b"PNG!".to_vec(), "two zero bytes"),
            (float, "uint8 (0x08), found float32 (0x0d)"),
            (vec![0, 0, 8, 2, 0, 0, 0, 1], "expected 2 dimensions"),
            (good[..7].to_vec(), "expected 1 dimensions"),
            (good[..10].to_vec(), "expected 4 elements for shape [4], found only 2"),
            ([good.clone(), vec![0]].concat(), "found more"),
            (encode(&[u32::MAX, u32::MAX, u32::MAX], &[]), "at most 1073741824"),
            (encode(&[1 << 29], &[1, 2]), "found only 2"),
            (encode(&[u32::MAX, u32::MAX, u32::MAX, 0], &[]), "at most 1073741824"),
            (checksum, "found damage after"),
            (gzip(&good)[..20].to_vec(), ""),
        ] {
            let e = read_bytes(&bytes).unwrap_err();
            assert!(e.exit_code() == 4 && e.to_string().contains(why), "{why}: {e}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path().join("none")).unwrap_err().exit_code(), 4);
        assert_eq!(read(dir.path()).unwrap_err().exit_code(), 4);
    }

    #[test]
    fn truncated_and_damaged_gzip_never_panics() {
        let whole = gzip(&encode(&[30, 10], &(0..300).map(|i| (i * 7 % 251) as u8).collect::<Vec<_>>()));
        let mut refused = 0;
        for end in 0..whole.len() {
            refused += parse(&mut MultiGzDecoder::new(&whole[..end])).is_err() as usize;
            let mut flipped = whole.clone();
            flipped[end] ^= 1 << (end % 8);
            let _ = parse(&mut MultiGzDecoder::new(&flipped[..]));
        }
        assert_eq!(refused, whole.len());
    }
}
