//! What shows only once a run has begun.

use super::{Case, edit, nothing, put};

#[rustfmt::skip] // a case, a line
pub const CASES: &[Case] = &[
    Case { what: "a generator that collapsed", spoil: |l| edit(l, "least_diversity = 0", "least_diversity = 2"), args: "run c.toml --quiet --device cpu", code: 7, words: &["generator: collapsed: diversity of its images", "at least 2 expected", "loss.least_diversity = 0"] },
    Case { what: "a generator that knows one label", spoil: |l| edit(l, "least_entropy = 0", "least_entropy = 1"), args: "run c.toml --quiet --device cpu", code: 7, words: &["generator: collapsed", "label entropy", "at least 1 expected"] },
    Case { what: "a loss that overflows", spoil: nothing, args: "run c.toml --quiet --device cpu --set dual.feature=1e6 --set dual.learning_rate=1 --set dual.steps=[40,40,40,40] --set generator.learning_rate=1", code: 7, words: &["training diverged; lower the learning rate of this stage"] },
    Case { what: "a teacher that diverges", spoil: |l| put(l, "t.toml", super::config::TEACH.replace("steps = 2", "steps = 60\nlearning_rate = 1.0")), args: "teach t.toml --quiet --device cpu", code: 7, words: &["training diverged; lower the learning rate of this stage"] },
    Case { what: "a batch beyond this machine's memory", spoil: nothing, args: "run c.toml --quiet --device cpu --set generator.batch=65536 --set generator.widths=[8192,8192,8192]", code: 6, words: &["GB", "available", "--set generator.batch="] },
];
