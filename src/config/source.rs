//! A config file with the command line's changes applied, which remembers where every value was written.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::ops::{Bound, Range, RangeBounds};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::suggest::nearest;
use crate::error::{Error, Result};

/// A hundred times the longest config here; a file without end (a device, a pipe) is refused as soon as it is longer.
const MAX_BYTES: u64 = 1 << 20;

/// What an assignment looks like, for who wrote something else.
const EXPECTED: &str = "expected KEY=VALUE, such as generator.steps=200";

/// A value from the command line, or from an experiment's file, that takes the place of one in a config.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// As errors show it: `--set student.branch=3`, or where the file has it.
    shown: String,
    /// Dotted path.
    key: String,
    /// TOML, or a bare string.
    value: String,
}

impl Override {
    /// `--set key=value`.
    pub fn set(assignment: &str) -> Result<Self> {
        Self::shown_as(format!("--set {assignment}"), assignment)
            .ok_or_else(|| Error::Usage(format!("--set {assignment}: {EXPECTED}")))
    }

    /// `key=value`; none where it is something else.
    fn shown_as(shown: String, assignment: &str) -> Option<Self> {
        let (key, value) = assignment.split_once('=')?;
        let (key, value) = (key.trim(), value.trim());
        let fits = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        key.split('.').all(fits).then(|| Override { shown, key: key.into(), value: value.into() })
    }

    /// `--seed n`.
    pub fn seed(n: u64) -> Self {
        Override { shown: format!("--seed {n}"), key: "seed".into(), value: n.to_string() }
    }

    /// `key = value` as TOML; what is no TOML value is a string.
    fn toml(&self) -> String {
        let as_typed = format!("{} = {}", self.key, self.value);
        let is_one_value = DeTable::parse(&as_typed).is_ok() && !self.value.contains('\n');
        if is_one_value {
            return as_typed;
        }
        format!("{} = {}", self.key, toml::Value::String(self.value.clone()))
    }
}

/// Where one key was written, as offsets into the file's text. What an override wrote lies beyond its end, each
/// override in a stretch of its own.
#[derive(Clone, Debug)]
struct Place {
    key: usize,
    value: Range<usize>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Source {
    file: PathBuf,
    text: String,
    /// The end of each override's stretch, and how the override is shown.
    overrides: Vec<(usize, String)>,
    /// By dotted path, list items by number from 0: `teachers.0.weights`.
    places: BTreeMap<String, Place>,
}

impl Source {
    /// Reads `file`, applies `overrides` in order and parses the result as `Raw`.
    pub fn open<Raw: DeserializeOwned>(file: &Path, overrides: &[Override]) -> Result<(Self, Raw)> {
        let at_file = |message: String| Error::Config { file: file.into(), line: 0, message };
        let bytes = read(file).map_err(|e| at_file(format!("cannot read the config: {e}")))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(at_file(format!("expected a config of at most {MAX_BYTES} bytes, found more")));
        }
        let text = String::from_utf8(bytes).map_err(|e| Error::Config {
            file: file.into(),
            line: line_of(e.as_bytes(), e.utf8_error().valid_up_to()),
            message: "not UTF-8 text".into(),
        })?;
        let mut source = Source { file: file.into(), text, overrides: Vec::new(), places: BTreeMap::new() };
        // Blanks in front move the spans of each override beyond everything before it.
        let mut changes = Vec::new();
        let mut end = source.text.len();
        for o in overrides {
            let padded = format!("{}{}", " ".repeat(end + 1), o.toml());
            end = padded.len();
            source.overrides.push((end, o.shown.clone()));
            changes.push(padded);
        }

        let mut document = DeTable::parse(&source.text).map_err(|e| source.malformed(&e))?;
        for (change, o) in changes.iter().zip(overrides) {
            let change = DeTable::parse(change).map_err(|e| source.malformed(&e))?;
            merge(document.get_mut(), change.into_inner()).map_err(|message| Error::Config {
                file: o.shown.clone().into(),
                line: 0,
                message,
            })?;
        }
        let mut places = BTreeMap::new();
        record_table("", document.get_ref(), &mut places);
        let raw = Raw::deserialize(toml::de::Deserializer::from(document));
        source.places = places;
        match raw {
            Ok(raw) => Ok((source, raw)),
            Err(e) => Err(source.explain(&e)),
        }
    }

    /// The error of the value at `path`, or of the nearest table around it that was written down.
    pub fn fail(&self, path: &str, message: impl Into<String>) -> Error {
        let mut at = path;
        loop {
            if let Some(place) = self.places.get(at) {
                // An override leaves the file's key and replaces the value.
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

    /// A whole number within `range`.
    pub fn count(&self, path: &str, value: i64, range: impl RangeBounds<i64>) -> Result<usize> {
        match usize::try_from(value) {
            Ok(n) if range.contains(&value) => Ok(n),
            Ok(_) | Err(_) => Err(self.out_of_range(path, value, range)),
        }
    }

    /// A number within `range`.
    pub fn number(&self, path: &str, value: f64, range: impl RangeBounds<f64>) -> Result<f32> {
        if range.contains(&value) && (value as f32).is_finite() {
            return Ok(value as f32);
        }
        Err(self.out_of_range(path, value, range))
    }

    /// A file: relative to the config's folder. The raw text becomes absolute, so that a copy elsewhere still finds it.
    pub fn file(&self, path: &str, raw: &mut String) -> Result<PathBuf> {
        if raw.is_empty() {
            return Err(self.fail(path, format!("`{path}` is empty; expected the path of a file")));
        }
        let joined = self.file.parent().unwrap_or(Path::new("")).join(&*raw);
        let whole =
            std::path::absolute(&joined).map_err(|e| self.fail(path, format!("`{path}`: {raw}: {e}")))?;
        *raw = whole.to_string_lossy().into_owned();
        Ok(joined)
    }

    /// A list of assignments `key=value` for another config. What is wrong with one is told with its place in this file.
    pub fn overrides(&self, path: &str, assignments: &[String]) -> Result<Vec<Override>> {
        let one = |(i, assignment): (usize, &String)| {
            let place = format!("{path}.{i}");
            let shown = self.fail(&place, assignment.as_str()).to_string();
            Override::shown_as(shown, assignment)
                .ok_or_else(|| self.fail(&place, format!("`{place}` is {assignment:?}; {EXPECTED}")))
        };
        assignments.iter().enumerate().map(one).collect()
    }

    fn out_of_range<T: Display>(&self, path: &str, value: T, range: impl RangeBounds<T>) -> Error {
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
        self.fail(path, format!("`{path}` is {value}; expected {}", both.join(" and ")))
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

    /// serde's message in the words of somebody who writes TOML.
    fn explain(&self, e: &toml::de::Error) -> Error {
        let offset = e.span().map(|s| s.start);
        let path = offset.and_then(|o| self.path_at(o)).unwrap_or_default();
        let message = e.message();
        let mut quoted = message.split('`').skip(1).step_by(2);
        let text = if message.starts_with("unknown field") {
            let key = quoted.next().unwrap_or_default();
            let known: Vec<&str> = quoted.collect();
            match nearest(key, known.iter().copied()) {
                Some(near) => format!("unknown key `{key}`; did you mean `{near}`?"),
                None if known.is_empty() => format!("unknown key `{key}`"),
                None => format!("unknown key `{key}`; known here: {}", known.join(", ")),
            }
        } else if message.starts_with("missing field") {
            // The span is that of the table that lacks the key; the file itself is in no table.
            let key = quoted.next().unwrap_or_default();
            let table = self.places.iter().find(|(_, p)| Some(&p.value) == e.span().as_ref());
            let Some((table, _)) = table else {
                return self.error(None, format!("missing key `{key}`"));
            };
            format!("missing key `{table}.{key}`")
        } else if path.is_empty() {
            plain(message)
        } else {
            format!("`{path}`: {}", plain(message))
        };
        self.error(offset, text)
    }

    /// The innermost path whose value covers `offset`.
    fn path_at(&self, offset: usize) -> Option<&str> {
        let around = self.places.iter().filter(|(_, p)| p.value.contains(&offset) || p.key == offset);
        around.max_by_key(|(path, _)| path.len()).map(|(path, _)| path.as_str())
    }
}

/// Rust's type names in words.
fn plain(message: &str) -> String {
    let mut text = message.replace('\n', ", ");
    for (rust, word) in [
        ("expected f64", "expected a number"),
        ("expected i64", "expected a whole number"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected a list"),
        ("expected an array of length", "expected a list of length"),
        (", expected struct", "; expected a table:"),
        ("invalid type: ", "found "),
        ("sequence", "list"),
        ("map", "table"),
        ("floating point", "number"),
    ] {
        text = text.replace(rust, word);
    }
    // "expected a table: RawGenerator" names a type of this program, which helps nobody.
    if let Some(end) = text.find(": Raw") {
        text.truncate(end);
    }
    text
}

/// A file's bytes, and no more of them than show that it is too long.
fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// 1-based line of a byte offset.
fn line_of(text: &[u8], offset: usize) -> usize {
    1 + text[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count()
}

/// Writes `change` over `into`. A number as a key counts a list's items.
fn merge<'i>(into: &mut DeTable<'i>, change: DeTable<'i>) -> Result<(), String> {
    for (key, value) in change {
        match (into.get_mut(key.get_ref().as_ref()), value) {
            (Some(old), value) => merge_value(key.get_ref(), old, value)?,
            (None, value) => {
                into.insert(key, value);
            }
        }
    }
    Ok(())
}

fn merge_value<'i>(
    key: &str,
    old: &mut Spanned<DeValue<'i>>,
    value: Spanned<DeValue<'i>>,
) -> Result<(), String> {
    let span = value.span();
    match (old.get_mut(), value.into_inner()) {
        (DeValue::Table(table), DeValue::Table(change)) => merge(table, change),
        (DeValue::Array(items), DeValue::Table(change)) => {
            for (index, value) in change {
                let index = index.into_inner();
                let length = items.len();
                let item = index.parse().ok().and_then(|i: usize| items.get_mut(i)).ok_or_else(|| {
                    format!("`{key}` is a list of {length}, counted from 0; there is no `{key}.{index}`")
                })?;
                merge_value(&format!("{key}.{index}"), item, value)?;
            }
            Ok(())
        }
        (_, value) => {
            *old = Spanned::new(span, value);
            Ok(())
        }
    }
}

fn record_table(path: &str, table: &DeTable, places: &mut BTreeMap<String, Place>) {
    for (key, value) in table {
        let dot = if path.is_empty() { "" } else { "." };
        record(&format!("{path}{dot}{}", key.get_ref()), key.span().start, value, places);
    }
}

fn record(path: &str, key: usize, value: &Spanned<DeValue>, places: &mut BTreeMap<String, Place>) {
    places.insert(path.into(), Place { key, value: value.span() });
    match value.get_ref() {
        DeValue::Table(table) => record_table(path, table, places),
        DeValue::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                record(&format!("{path}.{i}"), item.span().start, item, places);
            }
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => {}
    }
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

    /// The error without its folder.
    fn error(text: &str, sets: &[&str]) -> String {
        let e = open(text, sets).unwrap_err();
        assert_eq!(e.exit_code(), 3);
        e.to_string().rsplit_once("/a.toml").map_or(e.to_string(), |(_, rest)| format!("a.toml{rest}"))
    }

    #[test]
    fn errors_name_file_line_and_key() {
        for (text, expected) in [
            ("name = 'a'\n\n[iner]\n", "a.toml:3: unknown key `iner`; did you mean `inner`?"),
            ("name = 'a'\nqqq = 1\n", "a.toml:2: unknown key `qqq`; known here: name, inner, list"),
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
        assert!(source.count("inner.rate", -1, ..).is_err());
    }

    #[test]
    fn an_override_needs_a_key_and_a_value() {
        for wrong in ["a", "=1", "a..b=1", "a b=1", ""] {
            assert_eq!(Override::set(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn missing_and_binary_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        let missing = Source::open::<Raw>(&path, &[]).unwrap_err();
        assert_eq!(missing.exit_code(), 3);
        std::fs::write(&path, b"name = 'a'\n# \xff").unwrap();
        let binary = Source::open::<Raw>(&path, &[]).unwrap_err();
        assert!(binary.to_string().ends_with("a.toml:2: not UTF-8 text"), "{binary}");
    }
}
