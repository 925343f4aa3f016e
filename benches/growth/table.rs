//! The table: its lines, written and read.

use crate::memory::Memory;
use crate::row::{Step, Vary, named};
use crate::time::Times;
use dfka_engine::error::{Error, Result};
use std::path::Path;

/// Names of a line's columns.
pub const OF_TIME: &str = "# time\tstep\tvaries\tvalue\tmedian ms\tleast ms\tto base\tto previous / linear";
pub const OF_MEMORY: &str =
    "# memory\tvaries\tvalue\ttensors MB\tlargest step MB\tforecast MB\tpeak MB\tforecast / peak";

/// A line of the table.
pub enum Line {
    Time(Step, Vary, Times),
    Memory(Vary, Memory),
}

impl Line {
    /// The line as text.
    pub fn text(&self) -> String {
        match self {
            Line::Time(step, vary, t) => {
                let (step, vary) = (step.name(), vary.name());
                let over_linear = t.over_linear.map_or("-".into(), |r| format!("{r:.3}"));
                let Times { value, median, least, to_base, .. } = t;
                format!("time\t{step}\t{vary}\t{value}\t{median:.2}\t{least:.2}\t{to_base:.3}\t{over_linear}")
            }
            Line::Memory(vary, m) => {
                let (vary, ratio) = (vary.name(), m.forecast / m.peak);
                let Memory { value, store, arena, forecast, peak } = m;
                format!(
                    "memory\t{vary}\t{value}\t{store:.1}\t{arena:.1}\t{forecast:.1}\t{peak:.1}\t{ratio:.3}"
                )
            }
        }
    }

    /// Reads [`Line::text`].
    fn parse(text: &str) -> Result<Line> {
        let words: Vec<&str> = text.split('\t').collect();
        let wrong = || Error::Usage(format!("expected a line of the table, found {text}"));
        let number = |word: &str| word.parse::<f64>().map_err(|_| wrong());
        let vary = |word: &str| named(&Vary::ALL, Vary::name, word);
        match words[..] {
            ["time", step, varies, value, median, least, to_base, over_linear] => {
                let times = Times {
                    value: number(value)? as usize,
                    median: number(median)?,
                    least: number(least)?,
                    to_base: number(to_base)?,
                    over_linear: number(over_linear).ok(),
                };
                Ok(Line::Time(named(&Step::ALL, Step::name, step)?, vary(varies)?, times))
            }
            ["memory", varies, value, store, arena, forecast, peak, _] => {
                let memory = Memory {
                    value: number(value)? as usize,
                    store: number(store)?,
                    arena: number(arena)?,
                    forecast: number(forecast)?,
                    peak: number(peak)?,
                };
                Ok(Line::Memory(vary(varies)?, memory))
            }
            _ => Err(wrong()),
        }
    }
}

/// The lines of a file; those that begin with `#` are comments.
pub fn read(file: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
    text.lines().filter(|l| !l.starts_with('#')).map(Line::parse).collect()
}
