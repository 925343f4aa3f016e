//! Text files that people write: a byte order mark of UTF-8 and line ends of Windows are accepted, and other
//! encodings are named. It also writes labels within the program's own texts.

/// What is wrong with the encoding of a text.
#[derive(Debug, PartialEq)]
pub struct Fault {
    /// 1-based.
    pub line: usize,
    /// What was found, and what to do about it.
    pub message: String,
}

/// The text of a file, without a byte order mark, and with line ends of one character.
///
/// Errors: text that is not UTF-8.
pub fn decode(bytes: Vec<u8>) -> Result<String, Fault> {
    match fault(&bytes) {
        Some(fault) => Err(fault),
        None => {
            let text = String::from_utf8_lossy(without_mark(&bytes));
            Ok(if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text.into_owned() })
        }
    }
}

/// The bytes after a byte order mark of UTF-8.
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// What is wrong with the encoding of a text; `None` for UTF-8. A reader of large files may ask only after it
/// has failed.
pub fn fault(bytes: &[u8]) -> Option<Fault> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        let message = "not UTF-8 text but UTF-16; save the file as UTF-8".into();
        return Some(Fault { line: 1, message });
    }
    let at = std::str::from_utf8(bytes).err()?.valid_up_to();
    let line = 1 + bytes[..at].iter().filter(|b| **b == b'\n').count();
    let found = bytes.get(at).copied().unwrap_or_default();
    let message = format!("not UTF-8 text, perhaps Latin-1 (byte {found:02x}); save the file as UTF-8");
    Some(Fault { line, message })
}

/// A label within running text or a table: one that looks like a number is put in quotes, so that nobody takes
/// it for a figure.
pub fn label(name: &str) -> String {
    let is_number = name.chars().any(|c| c.is_numeric())
        && name.chars().all(|c| c.is_numeric() || c.is_whitespace() || "+-.,:/%".contains(c));
    if is_number { format!("\"{name}\"") } else { name.into() }
}

/// A command and its arguments as a line that a shell takes apart into the same ones.
pub fn shell_line(command: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let quoted = |a: &String| {
        if !a.is_empty() && a.chars().all(plain) {
            return a.clone();
        }
        format!("'{}'", a.replace('\'', "'\\''"))
    };
    command.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_look_like_numbers_are_quoted() {
        for (name, expected) in [
            ("7", "\"7\""),
            ("-1.5 %", "\"-1.5 %\""),
            ("\u{663}", "\"\u{663}\""),
            ("bus", "bus"),
            ("7 up", "7 up"),
            ("-", "-"),
        ] {
            assert_eq!(label(name), expected);
        }
    }

    #[test]
    fn a_mark_and_line_ends_are_removed_and_other_encodings_named() {
        for (bytes, expected) in
            [(&b"\xef\xbb\xbfa\r\nb\n"[..], "a\nb\n"), ("ä\rb".as_bytes(), "ä\rb"), (b"", "")]
        {
            assert_eq!(decode(bytes.to_vec()).unwrap(), expected);
        }
        let utf16: Vec<u8> =
            [0xfeffu16].into_iter().chain("a\n".encode_utf16()).flat_map(u16::to_le_bytes).collect();
        for (bytes, line, part) in [
            (&utf16[..], 1, "UTF-16; save the file as UTF-8"),
            (b"\xfe\xff\0a", 1, "UTF-16"),
            (b"a\r\ncaf\xe9\n", 2, "perhaps Latin-1 (byte e9); save the file as UTF-8"),
            (b"a\nb\n\xc3", 3, "not UTF-8 text"),
        ] {
            let fault = decode(bytes.to_vec()).unwrap_err();
            assert!(fault.line == line && fault.message.contains(part), "{fault:?}");
        }
    }
}
