//! The `[student]` table. Defaults are ours unless a comment names their source.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};

use super::keys::value_or;
use super::labels::RawLabels;
use super::network::RawNetwork;
use super::source::Source;
use super::suggest::suggest;
use crate::error::Result;
use crate::models::filter::FilterKind;
use crate::pipeline::spec::{Branch, StudentInit, StudentNorm, StudentOptions, TeacherSpec};

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStudent {
    labels: Option<RawLabels>,
    init: Option<String>,
    norm: Option<StudentNorm>,
    branch: Option<RawBranch>,
    branch_least: Option<i64>,
    filter: Option<FilterKind>,
    filter_reduction: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<RawNetwork>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    teachers_of: BTreeMap<String, String>,
}

/// `"auto"` or the number of a block.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum RawBranch {
    Word(String),
    Number(i64),
}

// Written by hand because a derived untagged enum loses the place of an error.
impl<'de> Deserialize<'de> for RawBranch {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct WordOrNumber;
        impl Visitor<'_> for WordOrNumber {
            type Value = RawBranch;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("\"auto\" or the number of a block")
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<RawBranch, E> {
                Ok(RawBranch::Word(v.into()))
            }
            fn visit_i64<E: Error>(self, v: i64) -> Result<RawBranch, E> {
                Ok(RawBranch::Number(v))
            }
        }
        d.deserialize_any(WordOrNumber)
    }
}

impl RawStudent {
    pub fn build(&mut self, source: &Source, teachers: &[TeacherSpec]) -> Result<StudentOptions> {
        let labels = value_or(&mut self.labels, RawLabels::Word("all".into()));
        let init = self.init(source, teachers)?;
        // Random weights have no statistics worth storing.
        let norm = if init == StudentInit::Scratch { StudentNorm::Batch } else { StudentNorm::Stored };
        for (label, name) in &self.teachers_of {
            if !teachers.iter().any(|t| t.name == *name) {
                let known: Vec<&str> = teachers.iter().map(|t| t.name.as_str()).collect();
                let message = format!(
                    "`student.teachers_of` gives the label `{label}` to `{name}`, but no teacher is named so; {}",
                    suggest(name, &known)
                );
                return Err(source.fail(&format!("student.teachers_of.{label}"), message));
            }
        }
        Ok(StudentOptions {
            labels: labels.names(source, "student.labels")?,
            init,
            norm: value_or(&mut self.norm, norm),
            teachers_of: self.teachers_of.clone(),
            branch: self.branch(source)?,
            network: match &self.network {
                Some(network) => Some(network.build(source, "student.network")?),
                None => None,
            },
            filter: value_or(&mut self.filter, FilterKind::Gain),
            // Supplement 1.2.
            filter_reduction: source.count(
                "student.filter_reduction",
                value_or(&mut self.filter_reduction, 4),
                1..=1024,
            )?,
        })
    }

    fn init(&mut self, source: &Source, teachers: &[TeacherSpec]) -> Result<StudentInit> {
        let raw = self.init.get_or_insert("scratch".into());
        if raw == "scratch" {
            return Ok(StudentInit::Scratch);
        }
        if raw == "mean" {
            return Ok(StudentInit::Mean);
        }
        let Some(name) = raw.strip_prefix("teacher:") else {
            return Ok(StudentInit::Weights(source.file("student.init", raw)?));
        };
        match teachers.iter().position(|t| t.name == name) {
            Some(i) => Ok(StudentInit::Teacher(i)),
            None => {
                let known: Vec<&str> = teachers.iter().map(|t| t.name.as_str()).collect();
                let hint = suggest(name, &known);
                let message =
                    format!("`student.init` is \"{raw}\", but no teacher is named `{name}`; {hint}");
                Err(source.fail("student.init", message))
            }
        }
    }

    fn branch(&mut self, source: &Source) -> Result<Branch> {
        match value_or(&mut self.branch, RawBranch::Word("auto".into())) {
            RawBranch::Word(word) if word == "auto" => {
                let least = value_or(&mut self.branch_least, 1);
                Ok(Branch::Auto { least: source.count("student.branch_least", least, 1..=64)? })
            }
            RawBranch::Word(word) => {
                let message =
                    format!("`student.branch` is \"{word}\"; expected \"auto\" or the number of a block");
                Err(source.fail("student.branch", message))
            }
            RawBranch::Number(block) => {
                // `branch_least` limits the automatic choice only. It is dropped instead of refused, so that
                // `--set student.branch=3` works on a config that has it.
                self.branch_least = None;
                Ok(Branch::Block(source.count("student.branch", block, 1..=64)?))
            }
        }
    }
}
