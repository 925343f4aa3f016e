//! Reading and writing weights files of any format.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::common::PICKLE;
use super::tensors::Tensors;
use super::{npz, onnx, safetensors};
use crate::error::{Error, Result};

/// Reads a weights file whose first bytes say that it is an npz, a safetensors file or an ONNX file of the
/// engine. PyTorch's batch counters are left out.
///
/// Errors: a file that cannot be read, of another format, damaged, or with numbers that are not finite.
pub fn load(path: impl AsRef<Path>) -> Result<Tensors> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|e| Error::data(path, format!("cannot open: {e}")))?;
    let mut start = Vec::new();
    file.take(9).read_to_end(&mut start).map_err(|e| Error::data(path, format!("cannot read: {e}")))?;
    match &start[..] {
        // Two bytes are not enough: `PK` may also be the length of a safetensors header.
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => npz::load(path),
        // A safetensors file begins with the length of its header in 8 bytes, then the header, which is
        // JSON.
        [.., b'{'] if start.len() == 9 => safetensors::load(path),
        start if onnx::is_likely(start) => onnx::load(path),
        // A pickle of protocol version 2 or later, which is what PyTorch before 1.6 wrote.
        [0x80, 2..=5, ..] => Err(Error::data(path, PICKLE)),
        other => Err(Error::data(
            path,
            format!("expected an npz, safetensors or ONNX file, found one that begins with {other:02x?}"),
        )),
    }
}

/// Writes `tensors` in the format that the name of `path` asks for: `.npz` or `.safetensors`.
///
/// Errors: a name with another ending, numbers that are not finite, a failed write.
pub fn save(path: impl AsRef<Path>, tensors: &Tensors) -> Result<()> {
    let path = path.as_ref();
    match path.extension().and_then(|e| e.to_str()) {
        Some("npz") => npz::save(path, tensors),
        Some("safetensors") => safetensors::save(path, tensors),
        Some(_) | None => Err(Error::Usage(format!(
            "{}: expected a name that ends in .npz or .safetensors",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_decides_how_a_file_is_read_and_its_name_how_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let mut t = Tensors::new();
        t.insert("b", &[2, 2], vec![1., 2., 3., 4.]).unwrap();
        t.meta.insert("labels".into(), serde_json::json!(["dog"]));
        for name in ["a.npz", "b.safetensors"] {
            save(file(name), &t).unwrap();
            std::fs::rename(file(name), file("moved")).unwrap();
            let back = load(file("moved")).unwrap();
            assert_eq!((back.get("b"), &back.meta), (t.get("b"), &t.meta));
        }
        for name in ["a.pth", "a", ".npz"] {
            let e = save(file(name), &t).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains(".safetensors"), "{e}");
        }
        for (bytes, expected) in [
            (&b""[..], "begins with []"),
            (b"\x80\x02}q\x00", "scripts/torch_to_npz.py"),
            (b"GIF89a", "[47, 49, 46"),
            (b"\x10\0\0\0\0\0\0\0{", "safetensors header"),
            (b"PK\x03\x04", "npz"),
        ] {
            std::fs::write(file("bad"), bytes).unwrap();
            let e = load(file("bad")).unwrap_err();
            assert!(e.exit_code() == 4 && e.to_string().contains(expected), "{e}");
        }
        assert!(load(file("none")).unwrap_err().to_string().contains("cannot open"));
        assert_eq!(load(dir.path()).unwrap_err().exit_code(), 4);
    }
}
