//! Reading and writing weights files of any format.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::common::refuse_pipe;
use super::foreign;
use super::tensors::Tensors;
use super::{npz, onnx, safetensors, shards};
use crate::error::{Error, Result};

/// Reads a weights file whose first bytes say that it is an npz, a safetensors file, an index of safetensors
/// files or an ONNX file of the engine. PyTorch's batch counters are left out. Tensors that are not of finite
/// floats are errors only for a model that needs them (see [`Tensors::unread`]).
///
/// Errors: a file that cannot be read, of another format, or damaged.
pub fn load(path: impl AsRef<Path>) -> Result<Tensors> {
    let path = path.as_ref();
    let start = head(path)?;
    match &start[..] {
        // Two bytes are not enough: `PK` may also be the length of a safetensors header.
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => npz::load_floats(path),
        start if foreign::is_json(start) => shards::load(path),
        // This comes before the other formats, because the length of a safetensors header may begin with the bytes of one
        // of them.
        start if foreign::is_safetensors(start) => safetensors::load_floats(path),
        start if onnx::is_likely(start) => onnx::load(path),
        other => Err(Error::data(path, foreign::refusal(other))),
    }
}

/// All files that [`load`] reads for `path`: the file itself, and where it is an index, the files that it
/// lists. An index that cannot be read counts as one file.
pub fn files(path: &Path) -> Vec<PathBuf> {
    let listed =
        head(path).ok().filter(|start| foreign::is_json(start)).and_then(|_| shards::files(path).ok());
    listed.unwrap_or_else(|| vec![path.to_path_buf()])
}

fn head(path: &Path) -> Result<Vec<u8>> {
    refuse_pipe(path)?;
    let file = File::open(path).map_err(|e| Error::data(path, format!("cannot open: {e}")))?;
    let mut start = Vec::new();
    file.take(foreign::HEAD)
        .read_to_end(&mut start)
        .map_err(|e| Error::data(path, format!("cannot read: {e}")))?;
    Ok(start)
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
            (&b""[..], "found an empty file"),
            (b"\x80\x02}q\x00", "scripts/torch_to_npz.py"),
            (b"GIF89a", "found a GIF image"),
            (b"weights", "one that begins with [77, 65"),
            (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
            (b"{\"a\": 1}", "found JSON text without a `weight_map`"),
            (b"{\"weight_map\": 3}", "invalid type"),
            (b"\x10\0\0\0\0\0\0\0{", "safetensors header"),
            (b"PK\x03\x04", "found a zip that ends early"),
        ] {
            std::fs::write(file("bad"), bytes).unwrap();
            let e = load(file("bad")).unwrap_err();
            assert!(e.exit_code() == 4 && e.to_string().contains(expected), "{e}");
        }
        assert!(load(file("none")).unwrap_err().to_string().contains("cannot open"));
        assert_eq!(load(dir.path()).unwrap_err().exit_code(), 4);
    }

    /// Two shards `a.safetensors` and `sub/b.safetensors` in a folder, and the index `i.json` with this text.
    fn sharded(index: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for (name, file) in [("x", "a.safetensors"), ("y", "sub/b.safetensors")] {
            let mut t = Tensors::new();
            t.insert(name, &[1], vec![3.0]).unwrap();
            t.meta.insert("labels".into(), serde_json::json!(["dog"]));
            save(dir.path().join(file), &t).unwrap();
        }
        std::fs::write(dir.path().join("i.json"), index).unwrap();
        dir
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let whole = r#"{"metadata": {"total_size": 8}, "weight_map": {"y": "sub/b.safetensors", "x": "a.safetensors",
                        "bn1.num_batches_tracked": "a.safetensors"}}"#;
        let dir = sharded(whole);
        let t = load(dir.path().join("i.json")).unwrap();
        assert_eq!(t.iter().map(|(n, _)| n).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(t.meta["labels"], serde_json::json!(["dog"]));
        let named = ["i.json", "a.safetensors", "sub/b.safetensors"].map(|n| dir.path().join(n));
        assert_eq!(files(&named[0]), named);
        assert_eq!(files(&named[1]), named[1..2]);
        std::fs::write(&named[2], "version https://git-lfs.github.com/spec/v1\n").unwrap();
        let e = load(&named[0]).unwrap_err().to_string();
        assert!(e.contains("sub/b.safetensors: expected a safetensors file, found a Git LFS pointer"), "{e}");
    }

    #[test]
    fn an_index_that_does_not_fit_its_shards_is_refused() {
        let (a, b) = ("a.safetensors", "sub/b.safetensors");
        for (map, expected) in [
            (
                format!(r#""x": "{a}", "y": "none.safetensors""#),
                "none.safetensors: cannot open this shard of",
            ),
            (format!(r#""x": "{a}", "y": "{b}", "z": "{a}""#), r#"array "z": expected it in a.safetensors"#),
            (format!(r#""x": "{a}", "y": "{a}""#), r#"array "y": expected it in a.safetensors"#),
            (format!(r#""x": "{b}", "y": "{b}""#), r#"array "x": expected it in sub/b.safetensors"#),
            (format!(r#""x": "{a}", "x": "{b}", "y": "{b}""#), "x is listed in a.safetensors and in sub/b"),
            (format!(r#""y": "{b}", "z": "{a}""#), r#"array "x": the index"#),
            (r#""x": "../a.safetensors""#.into(), "expected a file in the folder of the index"),
            (r#""x": "/a.safetensors""#.into(), "expected a file in the folder of the index"),
            (r#""x": """#.into(), "expected a file in the folder of the index"),
            (String::new(), "JSON text without a `weight_map`"),
        ] {
            let dir = sharded(&format!("{{\"weight_map\": {{{map}}}}}"));
            let e = load(dir.path().join("i.json")).unwrap_err();
            assert!(e.exit_code() == 4 && e.to_string().contains(expected), "{map}: {e}");
        }
        // Both shards hold `y`.
        let dir = sharded(&format!(r#"{{"weight_map": {{"x": "{a}", "y": "{b}"}}}}"#));
        let mut both = Tensors::new();
        both.insert("x", &[1], vec![1.0]).unwrap();
        both.insert("y", &[1], vec![1.0]).unwrap();
        save(dir.path().join(a), &both).unwrap();
        let e = load(dir.path().join("i.json")).unwrap_err().to_string();
        assert!(e.contains(r#"a.safetensors: array "y": the index lists it in"#), "{e}");
    }
}
