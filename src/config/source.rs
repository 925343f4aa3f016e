//! A config file with overrides applied. It keeps the place of every value, so that an error found later
//! still names the line or the override at fault.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use super::document::{Places, merge, places};
use super::overrides::{EXPECTED, Override};
use super::wording::{Fault, reword};
use crate::error::{Error, Result};
use crate::text;

/// About 250 times the longest config in `configs/`. An endless file (a device, a pipe) is refused at this
/// length.
const MAX_BYTES: u64 = 1 << 20;

/// A config file with overrides applied, and the place of every value.
#[derive(Debug)]
pub struct Source {
    file: PathBuf,
    text: String,
    /// The end of each override's range of offsets, and how errors cite the override.
    overrides: Vec<(usize, String)>,
    places: Places,
}

impl Source {
    /// Reads `file`, applies `overrides` in order and deserialises the result as `Raw`.
    ///
    /// Errors: a file that cannot be read, is not UTF-8 or not TOML, an override of a list's item that does
    /// not exist, a key that `Raw` does not have, lacks, or has with another type. Each names its line or
    /// override.
    pub fn open<Raw: DeserializeOwned>(file: &Path, overrides: &[Override]) -> Result<(Self, Raw)> {
        Source::of_text(file, read(file)?, overrides)
    }

    /// The same for a text that is not in a file yet. Its paths are relative to the folder of `file`, which errors name.
    pub(super) fn of_text<Raw: DeserializeOwned>(
        file: &Path,
        text: String,
        overrides: &[Override],
    ) -> Result<(Self, Raw)> {
        if text.len() as u64 > MAX_BYTES {
            return Err(too_long(file));
        }
        let mut source = Source { file: file.into(), text, overrides: Vec::new(), places: Places::new() };
        // Leading blanks shift the spans of each override beyond everything before it.
        let mut changes = Vec::new();
        let mut end = source.text.len();
        for o in overrides {
            let padded = format!("{}{}", " ".repeat(end + 1), o.toml());
            end = padded.len();
            source.overrides.push((end, o.shown().into()));
            changes.push(padded);
        }

        let mut document = DeTable::parse(&source.text).map_err(|e| source.malformed(&e))?;
        for (change, o) in changes.iter().zip(overrides) {
            let change = DeTable::parse(change).map_err(|e| source.malformed(&e))?;
            merge(document.get_mut(), change.into_inner()).map_err(|message| Error::Config {
                file: o.shown().into(),
                line: 0,
                message,
            })?;
        }
        let places = places(document.get_ref());
        let raw = Raw::deserialize(toml::de::Deserializer::from(document));
        source.places = places;
        match raw {
            Ok(raw) => Ok((source, raw)),
            Err(e) => Err(source.explain(&e)),
        }
    }

    /// The error `message` with the place of the value at `path`, or, if that value is not written anywhere,
    /// of the innermost table around it that is.
    pub fn fail(&self, path: &str, message: impl Into<String>) -> Error {
        let mut at = path;
        loop {
            if let Some(place) = self.places.get(at) {
                // An override replaces the value only: the key keeps its place in the file.
                let replaced = place.value.start > self.text.len();
                let at = if replaced { place.value.start } else { place.key };
                return self.error(Some(at), message.into());
            }
            match at.rfind('.') {
                Some(end) => at = &at[..end],
                None => return self.error(None, message.into()),
            }
        }
    }

    /// `value`, the one at `path`, as a count. Errors: it is outside `range`.
    pub fn count(&self, path: &str, value: i64, range: impl RangeBounds<i64>) -> Result<usize> {
        match usize::try_from(value) {
            Ok(n) if range.contains(&value) => Ok(n),
            Ok(_) | Err(_) => Err(self.out_of_range(path, &value.to_string(), range)),
        }
    }

    /// `value`, the one at `path`, in single precision. Errors: it is outside `range`, or single precision rounds it to
    /// an end of the range that does not belong to it.
    pub fn number(&self, path: &str, value: f64, range: impl RangeBounds<f64>) -> Result<f32> {
        let rounded = value as f32;
        if !range.contains(&value) || !rounded.is_finite() {
            return Err(self.out_of_range(path, &value.to_string(), range));
        }
        // The ends are rounded too, so that an end that belongs to the range still does.
        let ends = [range.start_bound(), range.end_bound()].map(|end| end.map(|v| *v as f32));
        if !(ends[0], ends[1]).contains(&rounded) {
            let found = format!("{value:?}, which is {rounded} in single precision");
            return Err(self.out_of_range(path, &found, range));
        }
        Ok(rounded)
    }

    /// The path of the file that `raw` names relative to the config's folder. `raw` becomes absolute, so
    /// that a copy of the config in another folder names the same file; and without `..` and links to folders, so that two
    /// spellings of its path give the same config. A link to a file stays: what lies beside it may belong to it.
    ///
    /// Errors: an empty path, or one that is not UTF-8.
    pub fn file(&self, path: &str, raw: &mut String) -> Result<PathBuf> {
        if raw.is_empty() {
            return Err(self.fail(path, format!("`{path}` is empty; expected the path of a file")));
        }
        let joined = self.file.parent().unwrap_or(Path::new("")).join(&*raw);
        let whole =
            std::path::absolute(&joined).map_err(|e| self.fail(path, format!("`{path}`: {raw}: {e}")))?;
        let folder = whole.parent().and_then(|folder| std::fs::canonicalize(folder).ok());
        let whole = match (folder, whole.file_name()) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => whole,
        };
        let Some(text) = whole.to_str() else {
            let message = format!(
                "`{path}`: {}: this path is not UTF-8 text, and a run's records cannot hold it; rename the folder or the file",
                whole.display()
            );
            return Err(self.fail(path, message));
        };
        *raw = text.into();
        Ok(joined)
    }

    /// The list of assignments `key=value` at `path`, for another config. Their errors cite the place in
    /// this file.
    pub fn overrides(&self, path: &str, assignments: &[String]) -> Result<Vec<Override>> {
        let one = |(i, assignment): (usize, &String)| {
            let place = format!("{path}.{i}");
            let shown = self.fail(&place, assignment.as_str()).to_string();
            Override::parse(assignment, shown)
                .ok_or_else(|| self.fail(&place, format!("`{place}` is {assignment:?}; {EXPECTED}")))
        };
        assignments.iter().enumerate().map(one).collect()
    }

    fn out_of_range<T: Display>(&self, path: &str, found: &str, range: impl RangeBounds<T>) -> Error {
        let low = match range.start_bound() {
            Bound::Included(v) => Some(format!("at least {v}")),
            Bound::Excluded(v) => Some(format!("above {v}")),
            Bound::Unbounded => None,
        };
        let high = match range.end_bound() {
            Bound::Included(v) => Some(format!("at most {v}")),
            Bound::Excluded(v) => Some(format!("below {v}")),
            Bound::Unbounded => None,
        };
        let both: Vec<_> = low.into_iter().chain(high).collect();
        self.fail(path, format!("`{path}` is {found}; expected {}", both.join(" and ")))
    }

    fn malformed(&self, e: &toml::de::Error) -> Error {
        self.error(e.span().map(|s| s.start), format!("not valid TOML: {}", e.message().replace('\n', ", ")))
    }

    fn error(&self, offset: Option<usize>, message: String) -> Error {
        let Some(offset) = offset else {
            return Error::Config { file: self.file.clone(), line: 0, message };
        };
        if offset > self.text.len()
            && let Some((_, shown)) = self.overrides.iter().find(|(end, _)| offset <= *end)
        {
            return Error::Config { file: shown.into(), line: 0, message };
        }
        Error::Config { file: self.file.clone(), line: line_of(self.text.as_bytes(), offset), message }
    }

    /// The error `e` of deserialising, reworded, with its place.
    fn explain(&self, e: &toml::de::Error) -> Error {
        let offset = e.span().map(|s| s.start);
        match reword(e.message()) {
            Fault::UnknownKey(text) => self.error(offset, text),
            Fault::MissingKey(key) => {
                // The span is that of the table that lacks the key. The whole document has no entry in
                // `places`.
                let table = self.places.iter().find(|(_, p)| Some(&p.value) == e.span().as_ref());
                match table {
                    None => self.error(None, format!("missing key `{key}`")),
                    Some((table, _)) => self.error(offset, format!("missing key `{table}.{key}`")),
                }
            }
            Fault::WrongValue(text) => match offset.and_then(|o| self.path_at(o)) {
                None | Some("") => self.error(offset, text),
                Some(path) => self.error(offset, format!("`{path}`: {text}")),
            },
        }
    }

    /// The innermost path whose value covers `offset`.
    fn path_at(&self, offset: usize) -> Option<&str> {
        let around = self.places.iter().filter(|(_, p)| p.value.contains(&offset) || p.key == offset);
        around.max_by_key(|(path, _)| path.len()).map(|(path, _)| path.as_str())
    }
}

/// A config's text. Reads no more than one byte beyond [`MAX_BYTES`].
fn read(file: &Path) -> Result<String> {
    let at_file = |message: String| Error::Config { file: file.into(), line: 0, message };
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|e| at_file(format!("cannot read the config: {e}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(too_long(file));
    }
    text::decode(bytes).map_err(|text::Fault { line, message }| Error::Config {
        file: file.into(),
        line,
        message,
    })
}

fn too_long(file: &Path) -> Error {
    let message = format!("expected a config of at most {MAX_BYTES} bytes, found more");
    Error::Config { file: file.into(), line: 0, message }
}

/// 1-based line of a byte offset.
fn line_of(text: &[u8], offset: usize) -> usize {
    1 + text[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        name: String,
        #[serde(default)]
        inner: Inner,
        #[serde(default)]
        list: Vec<Inner>,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        rate: Option<f64>,
        steps: Option<Vec<i64>>,
    }

    fn open(text: &str, sets: &[&str]) -> Result<(Source, Raw)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, text).unwrap();
        let overrides: Vec<_> = sets.iter().map(|s| Override::set(s).unwrap()).collect();
        Source::open(&path, &overrides)
    }

    /// The error's message, without the folder of the file.
    fn error(text: &str, sets: &[&str]) -> String {
        let e = open(text, sets).unwrap_err();
        assert_eq!(e.exit_code(), 3);
        e.to_string().rsplit_once("/a.toml").map_or(e.to_string(), |(_, rest)| format!("a.toml{rest}"))
    }

    #[test]
    fn errors_name_file_line_and_key() {
        for (text, expected) in [
            ("name = 'a'\n\n[iner]\n", "a.toml:3: unknown key `iner`; did you mean `inner`?"),
            ("name = 'a'\nqqq = 1\n", "a.toml:2: unknown key `qqq`; expected one of: name, inner, list"),
            (
                "name = 'a'\n[inner]\nrate = 'x'",
                "a.toml:3: `inner.rate`: found string \"x\", expected a number",
            ),
            (
                "name = 'a'\n[[list]]\n[[list]]\nstpes = []",
                "a.toml:4: unknown key `stpes`; did you mean `steps`?",
            ),
            (
                "name = 'a'\n[inner]\nsteps = [\n1,\n'b']",
                "a.toml:5: `inner.steps.1`: found string \"b\", expected a whole number",
            ),
            ("name = 'a'\ninner = 3", "a.toml:2: `inner`: found integer `3`; expected a table"),
            ("name = 'a'\nname = 'b'", "a.toml:2: not valid TOML: duplicate key"),
            ("[inner]\nrate = 1", "a.toml: missing key `name`"),
        ] {
            let e = error(text, &[]);
            assert!(e.contains(expected), "{text:?}\n{e}\n{expected}");
        }
    }

    #[test]
    fn overrides_replace_add_and_are_named_when_wrong() {
        let text = "name = 'a'\n[inner]\nrate = 1\n[[list]]\nrate = 2\n";
        let sets = ["name=b c", "inner.steps=[1, 2]", "list.0.rate=7", "inner.rate = 0.5"];
        let (_, raw) = open(text, &sets).unwrap();
        let expected = Raw {
            name: "b c".into(),
            inner: Inner { rate: Some(0.5), steps: Some(vec![1, 2]) },
            list: vec![Inner { rate: Some(7.0), steps: None }],
        };
        assert_eq!(raw, expected);
        for (set, expected) in [
            ("inner.rate=x", "--set inner.rate=x: `inner.rate`: found string \"x\", expected a number"),
            ("inner.rat=1", "--set inner.rat=1: unknown key `rat`; did you mean `rate`?"),
            (
                "list.1.rate=1",
                "--set list.1.rate=1: `list` is a list of 1, counted from 0; there is no `list.1`",
            ),
            ("inner.rate.x=1", "--set inner.rate.x=1: `inner.rate`"),
        ] {
            let e = error(text, &["inner.rate=0.25", set, "inner.steps=[]"]);
            assert!(e.contains(expected), "{e}\n{expected}");
        }
    }

    #[test]
    fn later_checks_find_the_line_or_the_override() {
        let (source, _) = open("name = 'a'\n[inner]\nrate = 1\n", &["inner.steps=[3]", "name=b"]).unwrap();
        for (path, expected) in [
            ("inner.rate", "a.toml:3: m"),
            ("inner.missing", "a.toml:2: m"),
            ("list", "a.toml: m"),
            ("inner.steps.0", "--set inner.steps=[3]: m"),
            ("name", "--set name=b: m"),
        ] {
            assert!(source.fail(path, "m").to_string().ends_with(expected), "{path} {:?}", source);
        }
        let e = source.number("inner.rate", 2.0, (Bound::Excluded(0.0), Bound::Included(1.0))).unwrap_err();
        assert!(e.to_string().ends_with("`inner.rate` is 2; expected above 0 and at most 1"), "{e}");
        assert!(source.number("inner.rate", f64::NAN, 0.0..).is_err());
        let open = (Bound::Excluded(0.0), Bound::Excluded(1.0));
        for (value, found) in [(1e-320, "1e-320, which is 0"), (0.99999999999, "0.99999999999, which is 1")] {
            let e = source.number("inner.rate", value, open).unwrap_err().to_string();
            assert!(
                e.ends_with(&format!("{found} in single precision; expected above 0 and below 1")),
                "{e}"
            );
        }
        // Single precision rounds 1e-4 down.
        assert_eq!(source.number("inner.rate", 1e-4, 1e-4..=1.0).unwrap(), 1e-4);
        assert!(source.count("inner.rate", -1, ..).is_err());
    }

    #[test]
    fn missing_and_binary_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        let missing = Source::open::<Raw>(&path, &[]).unwrap_err();
        assert_eq!(missing.exit_code(), 3);
        std::fs::write(&path, b"name = 'a'\n# \xff").unwrap();
        let binary = Source::open::<Raw>(&path, &[]).unwrap_err();
        assert!(
            binary.to_string().contains("a.toml:2: not UTF-8 text, perhaps Latin-1 (byte ff)"),
            "{binary}"
        );
        std::fs::write(&path, b"\xef\xbb\xbfname = 'a'\r\n[inner]\r\nrate = 'x'\r\n").unwrap();
        let marked = Source::open::<Raw>(&path, &[]).unwrap_err();
        assert!(marked.to_string().contains("a.toml:3: `inner.rate`: found string"), "{marked}");
    }
}
