//! The parts of `resolved.toml` that the page shows. Every one is optional: the folder may come from an older
//! version, or the file may have been edited.

use toml::{Table, Value};

use crate::summary::MOST;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigFacts {
    pub name: Option<String>,
    pub seed: Option<u64>,
    /// Names of the teachers.
    pub teachers: Vec<String>,
    /// Where stage two's images come from: `generator`, `noise` or `real:FILE`.
    pub images: Option<String>,
    /// The block that `student.branch` names.
    pub branch: Option<usize>,
    /// Whether each block was frozen before the next one was trained (`dual.freeze_earlier`).
    pub is_frozen: bool,
    /// In the order of training.
    pub stages: Vec<PlannedStage>,
    /// Thresholds of the collapse alarm.
    pub least_diversity: Option<f64>,
    pub least_information: Option<f64>,
    pub least_found: Option<f64>,
    pub has_evaluation: bool,
    /// Whether the config is that of a teacher's training (`teach`), not of a run.
    pub is_teacher_training: bool,
}

/// A stage of training, as the config plans it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedStage {
    pub name: String,
    pub steps: usize,
    /// Images per step.
    pub batch: usize,
}

impl ConfigFacts {
    /// The facts in the text of a config; a text that is not TOML has none.
    pub fn read(text: &str) -> ConfigFacts {
        let root: Table = text.parse().unwrap_or_default();
        let at = |path: &str| {
            let (table, key) = path.split_once('.')?;
            root.get(table)?.as_table()?.get(key)
        };
        let string = |v: &Value| v.as_str().map(str::to_owned);
        let count = |v: &Value| usize::try_from(v.as_integer()?).ok().filter(|n| *n <= MOST);
        let teachers = root.get("teachers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let images = at("dual.images").and_then(string);

        let mut stages = Vec::new();
        let is_generated = images.as_deref() == Some("generator");
        if let (true, Some(steps), Some(batch)) =
            (is_generated, at("generator.steps").and_then(count), at("generator.batch").and_then(count))
        {
            stages.push(PlannedStage { name: "generator".into(), steps, batch });
        }
        let blocks = at("dual.steps").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let noise = at("baselines.noise").and_then(Value::as_bool).unwrap_or(false);
        let students = [("", true), ("noise.", noise), ("ka.", at("baselines.ka").is_some())];
        for (prefix, _) in students.into_iter().filter(|(_, is_planned)| *is_planned) {
            for (b, steps) in blocks.iter().enumerate() {
                if let (Some(steps), Some(batch)) = (count(steps), at("dual.batch").and_then(count)) {
                    stages.push(PlannedStage { name: format!("{prefix}block{}", b + 1), steps, batch });
                }
            }
        }
        ConfigFacts {
            name: root.get("name").and_then(string),
            seed: root.get("seed").and_then(Value::as_integer).and_then(|s| u64::try_from(s).ok()),
            teachers: teachers.iter().filter_map(|t| t.get("name").and_then(string)).collect(),
            images,
            branch: at("student.branch").and_then(count),
            is_frozen: at("dual.freeze_earlier").and_then(Value::as_bool).unwrap_or(false),
            stages,
            least_diversity: at("loss.least_diversity").and_then(number),
            least_information: at("loss.least_information").and_then(number),
            least_found: at("loss.least_found").and_then(number),
            has_evaluation: root.contains_key("evaluation"),
            is_teacher_training: root.contains_key("training") && !root.contains_key("teachers"),
        }
    }

    pub fn stage(&self, name: &str) -> Option<&PlannedStage> {
        self.stages.iter().find(|s| s.name == name)
    }
}

/// A float or an integer: TOML distinguishes 1 from 1.0.
fn number(v: &Value) -> Option<f64> {
    v.as_float().or_else(|| v.as_integer().map(|i| i as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolved_config_is_read_and_any_other_text_is_accepted() {
        let facts = ConfigFacts::read(
            "name = 'n'\nseed = 3\nteachers = [{ name = 'A', weights = 'a' }, { name = 'B', weights = 'b' }]\n\
             [generator]\nsteps = 10\nbatch = 4\n[dual]\nimages = 'generator'\nsteps = [5, 6]\nbatch = 8\n\
             freeze_earlier = true\n[student]\nbranch = 2\n[loss]\nleast_diversity = 0\nleast_information = 0.25\n[baselines]\nka = 'x'\n[evaluation]\ndata = 'e'\n",
        );
        let stages: Vec<_> = facts.stages.iter().map(|s| (s.name.as_str(), s.steps, s.batch)).collect();
        let expected = [
            ("generator", 10, 4),
            ("block1", 5, 8),
            ("block2", 6, 8),
            ("ka.block1", 5, 8),
            ("ka.block2", 6, 8),
        ];
        assert_eq!(stages, expected);
        assert_eq!((facts.least_diversity, facts.least_information), (Some(0.0), Some(0.25)));
        assert!(facts.branch == Some(2) && facts.is_frozen);
        assert!(facts.has_evaluation && facts.teachers == ["A", "B"] && facts.seed == Some(3));
        for text in [
            "",
            "x",
            "teachers = 3\n",
            "seed = -1\ndual.steps = ['a', -4, 9223372036854775807]\ndual.batch = 1\n",
            "[generator]\nsteps = 1\n",
        ] {
            let facts = ConfigFacts::read(text);
            assert!(facts.stages.is_empty() && facts.seed.is_none() && facts.branch.is_none(), "{text}");
        }
    }
}
