//! A folder of images with a table of their labels, a CSV file:
//!
//! ```text
//! file,bus,car
//! a.jpg,1,0
//! more/b.png,0,
//! ```
//!
//! The first line names the labels. A value is 1 (present), 0 (absent) or empty (ignored). Paths are relative
//! to the folder of the images. A field may be in double quotes, and then contain commas.

use std::collections::HashMap;
use std::path::Path;

use super::average_precision::DIFFICULT;
use super::files::{is_plain_name, read_text};
use super::targets::{Listed, Named};
use crate::error::{Error, Result};
use crate::weights::check_labels;

/// The largest table that is read: a million images with a hundred labels take a fifth of it.
const MAX_BYTES: u64 = 1 << 30;

/// Reads the table `labels` and looks up its images in `folder`. No image is opened.
///
/// Errors: those of [`parse`]; an image that is not in the folder.
pub fn open(folder: &Path, labels: &Path) -> Result<Listed> {
    parse(&read_text(labels, MAX_BYTES)?, labels)?.below(folder, labels)
}

/// Parses a table. `path` is for error messages.
///
/// Errors: a first line that does not begin with `file`, no label or image, a label or an image that is
/// listed twice, a line with another number of fields, a value other than 0, 1 and nothing.
pub fn parse(text: &str, path: &Path) -> Result<Named> {
    let fail = |line: usize, m: String| Error::data(path, format!("line {line}: {m}"));
    let mut lines = text.lines().enumerate().map(|(i, l)| (i + 1, l)).filter(|(_, l)| !l.trim().is_empty());
    let Some((line, header)) = lines.next() else {
        return Err(Error::data(path, "expected a first line such as file,bus,car; found no text"));
    };
    let header = fields(header).map_err(|m| fail(line, m))?;
    if header.first().map(String::as_str) != Some("file") || header.len() < 2 {
        let found = header.join(",");
        let message =
            format!("expected `file` and then the labels, with commas between them; found {found:?}");
        return Err(fail(line, message));
    }
    let labels = header[1..].to_vec();
    check_labels(&labels).map_err(|e| fail(line, format!("labels: {e}")))?;
    let (mut files, mut targets, mut places) = (Vec::new(), Vec::new(), HashMap::new());
    for (line, row) in lines {
        let row = fields(row).map_err(|m| fail(line, m))?;
        if row.len() != header.len() {
            let message =
                format!("expected {} fields as in the first line, found {}", header.len(), row.len());
            return Err(fail(line, message));
        }
        let name = &row[0];
        if !name.split('/').all(is_plain_name) {
            let message =
                format!("expected the name of a file in the images' folder or below it, found {name:?}");
            return Err(fail(line, message));
        }
        if let Some(first) = places.insert(name.clone(), line) {
            return Err(fail(
                line,
                format!("expected each image once, found {name:?} again (first on line {first})"),
            ));
        }
        for (label, value) in labels.iter().zip(&row[1..]) {
            targets.push(match value.as_str() {
                "1" | "1.0" => 1,
                "0" | "0.0" => 0,
                "" => DIFFICULT,
                other => {
                    let message = format!(
                        "{label}: expected 1 (present), 0 (absent) or nothing (ignored), found {other:?}"
                    );
                    return Err(fail(line, message));
                }
            });
        }
        files.push(name.clone());
    }
    if files.is_empty() {
        return Err(Error::data(path, "expected a line for each image after the first line, found none"));
    }
    Ok(Named { files, targets, labels })
}

/// The fields of a line, without the blanks around them.
fn fields(line: &str) -> Result<Vec<String>, String> {
    let (mut all, mut rest) = (Vec::new(), line.trim_start());
    loop {
        let after = match rest.strip_prefix('"') {
            Some(quoted) => {
                // Two quotes inside a field stand for one.
                let (mut field, mut left) = (String::new(), quoted);
                loop {
                    let at =
                        left.find('"').ok_or("a field begins with a quote that is not closed on its line")?;
                    field += &left[..at];
                    left = &left[at + 1..];
                    let Some(next) = left.strip_prefix('"') else { break };
                    field.push('"');
                    left = next;
                }
                all.push(field.trim().to_owned());
                left.trim_start()
            }
            None => {
                let at = rest.find(',').unwrap_or(rest.len());
                all.push(rest[..at].trim().to_owned());
                &rest[at..]
            }
        };
        if after.is_empty() {
            return Ok(all);
        }
        rest = after.strip_prefix(',').ok_or("expected a comma after a field in quotes")?.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Named> {
        parse(text, Path::new("labels.csv"))
    }

    #[test]
    fn a_table_is_read_with_quotes_blanks_and_ignored_values() {
        let text =
            "file, bus,\"dining, \"\"set\"\" table\"\n\na.jpg,1,0\n\"b, c.png\" , , 1.0\nmore/d.jpg,0.0,\n";
        let table = of(text).unwrap();
        assert_eq!(table.labels, ["bus", "dining, \"set\" table"]);
        assert_eq!(table.files, ["a.jpg", "b, c.png", "more/d.jpg"]);
        assert_eq!(table.targets, [1, 0, 2, 1, 0, 2]);
    }

    #[test]
    fn a_malformed_table_is_refused_with_its_line() {
        for (text, expected) in [
            ("", "labels.csv: expected a first line such as file,bus,car"),
            ("a.jpg,1\n", "line 1: expected `file` and then the labels"),
            (
                "file;bus\n",
                "line 1: expected `file` and then the labels, with commas between them; found \"file;bus\"",
            ),
            ("file\na.jpg\n", "line 1: expected `file`"),
            (
                "file,bus,bus\na.jpg,1,1\n",
                "line 1: labels: expected each label once, found \"bus\" at places 1 and 2",
            ),
            ("file,\na.jpg,1\n", "line 1: labels: expected names, found an empty label"),
            ("file,bus\n", "expected a line for each image after the first line, found none"),
            ("file,bus\na.jpg\n", "line 2: expected 2 fields as in the first line, found 1"),
            (
                "file,bus\n\na.jpg,yes\n",
                "line 3: bus: expected 1 (present), 0 (absent) or nothing (ignored), found \"yes\"",
            ),
            ("file,bus\n../a.jpg,1\n", "line 2: expected the name of a file in the images' folder"),
            (
                "file,bus\na.jpg,1\na.jpg,0\n",
                "line 3: expected each image once, found \"a.jpg\" again (first on line 2)",
            ),
            ("file,bus\n\"a.jpg,1\n", "line 2: a field begins with a quote that is not closed"),
            ("file,bus\n\"a\".jpg,1\n", "line 2: expected a comma after a field in quotes"),
        ] {
            let e = of(text).unwrap_err();
            assert!(e.exit_code() == 4 && e.to_string().contains(expected), "{text:?}: {e}");
        }
    }
}
