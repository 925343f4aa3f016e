//! serde's messages, reworded for a person who writes TOML.

use super::suggest::suggest;

/// A message of serde, sorted by what it says.
pub(super) enum Fault<'a> {
    /// A table has a key that its struct lacks. The text is the whole message.
    UnknownKey(String),
    /// A table lacks this key.
    MissingKey(&'a str),
    /// A value has the wrong type or length. The text says what was found and what was expected.
    WrongValue(String),
}

/// Sorts and rewords `message`, which is one that deserialising gave.
pub(super) fn reword(message: &str) -> Fault<'_> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") {
        let key = quoted.next().unwrap_or_default();
        let known: Vec<&str> = quoted.collect();
        let hint = if known.is_empty() { String::new() } else { format!("; {}", suggest(key, &known)) };
        return Fault::UnknownKey(format!("unknown key `{key}`{hint}"));
    }
    if message.starts_with("missing field") {
        return Fault::MissingKey(quoted.next().unwrap_or_default());
    }
    Fault::WrongValue(in_toml_terms(message))
}

/// `message` with TOML's terms in place of Rust's types.
fn in_toml_terms(message: &str) -> String {
    let mut text = message.replace('\n', ", ");
    for (rust, toml) in [
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
        text = text.replace(rust, toml);
    }
    // "expected a table: RawGenerator" would name a type of this program.
    if let Some(end) = text.find(": Raw") {
        text.truncate(end);
    }
    text
}
