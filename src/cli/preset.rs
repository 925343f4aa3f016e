//! How long a training is, in one word.

use std::fmt;

use crate::config::Override;
use crate::error::Result;
use crate::pipeline::spec::RunSpec;

/// A factor on the numbers of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// A quarter of the steps: whether anything works at all.
    Quick,
    /// The config's steps.
    Balanced,
    /// Three times the steps.
    Best,
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Preset::Quick => "quick",
            Preset::Balanced => "balanced",
            Preset::Best => "best",
        })
    }
}

/// Steps of the generator, and of each block.
pub type Steps = (usize, Vec<usize>);

impl Preset {
    /// The balanced numbers of steps for a network of so many blocks. Small images: the demo's if the student starts
    /// from its teachers' blocks (`is_warm`), and four times the generator's and three times the blocks' from scratch,
    /// with which the demo's student keeps 95 % instead of 78 % of its teachers' mAP. Large ones: those of
    /// configs/voc.toml.
    pub fn steps(is_small: bool, is_warm: bool, blocks: usize) -> Steps {
        let (generator, first) = match (is_small, is_warm) {
            (true, true) => (500, [100, 400, 800, 1300]),
            (true, false) => (2000, [400, 1200, 2400, 2600]),
            (false, _) => (5000, [2000, 3000, 4000, 6000]),
        };
        (generator, (0..blocks).map(|b| first[b.min(first.len() - 1)]).collect())
    }

    /// So many steps by this preset.
    pub fn scale(self, (generator, dual): &Steps) -> Steps {
        let of = |steps: usize| match self {
            Preset::Quick => steps.div_ceil(4),
            Preset::Balanced => steps,
            Preset::Best => 3 * steps,
        };
        (of(*generator), dual.iter().map(|s| of(*s)).collect())
    }

    /// The values that replace those of a config.
    ///
    /// Errors: none that a loaded config can cause.
    pub fn overrides(self, spec: &RunSpec) -> Result<Vec<Override>> {
        let (generator, dual) = self.scale(&(spec.generator.steps, spec.dual.steps.clone()));
        [format!("generator.steps={generator}"), format!("dual.steps={dual:?}")]
            .iter()
            .map(|assignment| Override::set(assignment))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_scale_the_steps_of_both_stages() {
        let steps = (10, vec![4, 7]);
        assert_eq!(Preset::Quick.scale(&steps), (3, vec![1, 2]));
        assert_eq!(Preset::Balanced.scale(&steps), steps);
        assert_eq!(Preset::Best.scale(&steps), (30, vec![12, 21]));
        assert_eq!(Preset::steps(true, false, 5).1, [400, 1200, 2400, 2600, 2600]);
    }
}
