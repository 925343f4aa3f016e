//! Files that are not weights in a format that the engine reads, recognised by their first bytes, so that an
//! error can say what a file is and what to do about it.

use super::common::PICKLE;

/// The number of first bytes that [`describe`] needs: a tar file's mark ends at 262.
pub const HEAD: u64 = 512;

/// First bytes, and what a file that has them is.
const MARKS: [(&[u8], &str); 15] = [
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip file: unpack it with gunzip"),
    (b"BZh", "a bzip2 file: unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "an xz file: unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!", "a rar archive: unpack it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes: save the weights as npz or safetensors"),
    (b"GGUF", "a GGUF file: save the weights as npz or safetensors"),
    (b"\x93NUMPY", "a single npy array: numpy.savez writes several of them, with their names, to an npz"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF file"),
    (b"\x7fELF", "a program"),
];

/// What a file that begins with `head` is, and what to do about it; `None` for content without a known mark.
pub fn describe(head: &[u8]) -> Option<String> {
    if head.is_empty() {
        return Some("an empty file".into());
    }
    if let Some((_, what)) = MARKS.iter().find(|(mark, _)| head.starts_with(mark)) {
        return Some((*what).into());
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some("a tar archive: unpack it".into());
    }
    let text = String::from_utf8_lossy(head).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if ["<!doctype html", "<html", "<head", "<body", "<!--"].iter().any(|start| text.starts_with(start)) {
        return Some(
            "an HTML page, perhaps an error page or the page that shows the file: download the file itself"
                .into(),
        );
    }
    text.starts_with("<?xml").then(|| "an XML text, perhaps a server's error message: download again".into())
}

/// What a zip is whose directory cannot be read: the directory is at the end, so most such files were cut
/// short. `head` holds its first bytes.
pub fn describe_cut_zip(head: &[u8]) -> String {
    let length = head.get(26..28).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let first_name = head.get(30..30 + length).unwrap_or_default();
    if first_name.ends_with(b"data.pkl") {
        return "the beginning of a PyTorch checkpoint, a zip that ends early: copy or download it again, then convert it \
                with scripts/torch_to_npz.py"
            .into();
    }
    "a zip that ends early or is damaged: copy or download it again".into()
}

/// Whether `head` begins JSON text. A safetensors file may begin with the same byte, which is then the lowest
/// of the eight bytes of its header's length; the highest four are zero.
pub fn is_json(head: &[u8]) -> bool {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let is_length = head.len() > 8 && head[4..8] == [0; 4];
    text.trim_ascii_start().starts_with(b"{") && !is_length
}

/// Whether `head` begins a safetensors file: the length of its header in eight bytes, then the header, which
/// is JSON.
pub fn is_safetensors(head: &[u8]) -> bool {
    head.get(8) == Some(&b'{')
}

/// Whether `head` begins a pickle of protocol version 2 or later, which is what PyTorch before 1.6 wrote.
pub fn is_pickle(head: &[u8]) -> bool {
    matches!(head, [0x80, 2..=5, ..])
}

/// The message for content that is no weights file.
pub fn refusal(head: &[u8]) -> String {
    if is_pickle(head) {
        return PICKLE.into();
    }
    let found =
        describe(head).unwrap_or_else(|| format!("one that begins with {:02x?}", &head[..head.len().min(9)]));
    format!("expected an npz, safetensors or ONNX file, found {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_kinds_are_called_by_their_names() {
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, expected) in [
            (&b"version https://git-lfs.github.com/spec/v1\n"[..], "run `git lfs pull`"),
            (b"\xef\xbb\xbf\r\n <!DOCTYPE HTML>", "an HTML page"),
            (b"<?xml version='1.0'?><Error>", "an XML text"),
            (b"\x1f\x8b\x08", "gunzip"),
            (b"\x93NUMPY\x01", "a single npy array"),
            (b"\x80\x04\x95", "pickle"),
            (b"", "an empty file"),
            (&tar, "a tar archive"),
            (b"weights", "one that begins with [77, 65, 69, 67, 68, 74, 73]"),
        ] {
            assert!(refusal(head).contains(expected), "{expected}: {}", refusal(head));
        }
    }

    #[test]
    fn json_is_told_from_the_length_of_a_safetensors_header() {
        for text in [&b"{}"[..], b"\xef\xbb\xbf{\"a\": 1}", b"\n  {\"weight_map\": {}}", b"{\"a\":[[{}]]}"] {
            assert!(is_json(text));
        }
        for other in [&b"{\0\0\0\0\0\0\0{\"a\""[..], b"[1]", b"", b"\x10\0\0\0\0\0\0\0{"] {
            assert!(!is_json(other));
        }
    }

    #[test]
    fn a_cut_zip_of_pytorch_is_told_from_another() {
        let mut head = b"PK\x03\x04".to_vec();
        head.resize(30, 0);
        head[26] = 16;
        head.extend(b"archive/data.pkl");
        assert!(describe_cut_zip(&head).contains("a PyTorch checkpoint, a zip that ends early"));
        assert!(describe_cut_zip(&head[..40]).contains("a zip that ends early or is damaged"));
    }
}
