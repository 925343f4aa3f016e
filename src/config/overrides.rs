//! Assignments such as `generator.steps=200` that replace a value of a config file.

use toml::de::DeTable;

use crate::error::{Error, Result};

/// The form of an assignment, as errors state it.
pub(super) const EXPECTED: &str = "expected KEY=VALUE, such as generator.steps=200";

/// A value from the command line, or from an experiment's file, that replaces one in a config.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// How errors cite it: `--set student.branch=3`, or file, line and assignment.
    shown: String,
    /// Dotted path.
    key: String,
    /// TOML, or a string without quotes.
    value: String,
}

impl Override {
    /// `--set key=value`.
    ///
    /// Errors: no `=`, or a key that is no dotted path of letters, digits, `_` and `-`.
    pub fn set(assignment: &str) -> Result<Self> {
        Self::parse(assignment, format!("--set {assignment}"))
            .ok_or_else(|| Error::Usage(format!("--set {assignment}: {EXPECTED}")))
    }

    /// `--seed n`.
    pub fn seed(n: u64) -> Self {
        Override { shown: format!("--seed {n}"), key: "seed".into(), value: n.to_string() }
    }

    /// Parses `key=value`; `None` if it has another form. `shown` is how errors cite the override.
    pub(super) fn parse(assignment: &str, shown: String) -> Option<Self> {
        let (key, value) = assignment.split_once('=')?;
        let (key, value) = (key.trim(), value.trim());
        let is_valid = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        key.split('.').all(is_valid).then(|| Override { shown, key: key.into(), value: value.into() })
    }

    /// How errors cite it.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// `key=value`, without blanks around the sign.
    pub(super) fn assignment(&self) -> String {
        format!("{}={}", self.key, self.value)
    }

    /// `key = value` as TOML. A value that is not valid TOML is taken as a string.
    pub(super) fn toml(&self) -> String {
        let as_typed = format!("{} = {}", self.key, self.value);
        let is_one_value = DeTable::parse(&as_typed).is_ok() && !self.value.contains('\n');
        if is_one_value {
            return as_typed;
        }
        format!("{} = {}", self.key, toml::Value::String(self.value.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_needs_a_key_and_a_value() {
        for wrong in ["a", "=1", "a..b=1", "a b=1", ""] {
            assert_eq!(Override::set(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }
}
