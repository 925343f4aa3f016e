//! Printing of results: as text, as JSON, or one `path  value` a line.

use std::io::{self, Write};

use serde_json::Value;

use crate::error::{Error, Result};

/// Prints a result to standard output. A closed pipe is not an error: its reader has stopped reading.
///
/// Errors: any other failed write.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Run(format!("cannot write to standard output: {e}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints what the user should know beside a result to standard error, a line each. If that is closed, the
/// notes are lost.
pub fn notes(notes: &[String]) {
    let mut out = io::stderr().lock();
    for note in notes {
        let _ = writeln!(out, "note: {note}");
    }
}

/// Indented JSON with a line end.
pub fn pretty(value: &Value) -> Result<String> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Run(format!("cannot print the result as JSON: {e}")))?;
    Ok(text + "\n")
}

/// A JSON object as lines of `path  value`, with the values aligned.
pub fn lines(value: &Value) -> String {
    fn walk(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, value, out);
                }
            }
            Value::String(text) => out.push((path.into(), text.clone())),
            other => out.push((path.into(), other.to_string())), // lists in one line, and scalars
        }
    }
    let mut out = Vec::new();
    walk("", value, &mut out);
    let width = out.iter().map(|(path, _)| path.chars().count()).max().unwrap_or(0);
    out.iter().map(|(path, value)| format!("{path:<width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn results_print_as_lines() {
        let text = lines(&json!({ "a": { "bytes": 12 }, "note": "x", "list": [1, 2] }));
        assert_eq!(text, "a.bytes  12\nlist     [1,2]\nnote     x\n");
    }
}
