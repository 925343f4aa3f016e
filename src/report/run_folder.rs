//! Reads the folder of a run for its page. The run may have finished, failed, or still be running.

use std::path::Path;

use super::config_facts::ConfigFacts;
use super::files::{
    CAPTIONS, CONFIG, LABEL_STATISTICS, METRICS, SAMPLES, SUMMARY, read_if_present, samples_at,
    step_of_samples,
};
use super::metrics::{self, Stage};
use super::origin::Origin;
use super::tensorboard::TENSORBOARD;
use crate::error::{Error, Result};
use crate::summary::{Captions, LabelStatistics, Summary};

/// The contents of a run's folder. Fields whose files are missing are empty.
pub struct RunFolder {
    /// For an unfinished run, derived from its config and the stages so far.
    pub summary: Summary,
    pub is_finished: bool,
    pub config: ConfigFacts,
    pub stages: Vec<Stage>,
    /// Pictures of the generator, as PNG, by the number of steps done, ascending.
    pub snapshots: Vec<(u64, Vec<u8>)>,
    pub grid_png: Option<Vec<u8>>,
    /// What the images of the grid were asked to show, and what is seen in them.
    pub captions: Option<Captions>,
    pub origin: Option<Origin>,
    /// The text of the resolved config.
    pub config_text: String,
    /// Files that exist and cannot be used, each as `name: reason`.
    pub damaged: Vec<String>,
}

/// Limits on the pictures in a page, and on the bytes of each. A run leaves six, of less than 1 MB each.
const MOST_PICTURES: usize = 24;
const MOST_PICTURE_BYTES: u64 = 16 << 20;

impl RunFolder {
    /// Reads `folder`. A damaged file is noted in `damaged` and left out.
    ///
    /// Errors: not a folder, no file of a run in it, the folder of a teacher's training, or a file that
    /// cannot be read.
    pub fn read(folder: &Path) -> Result<RunFolder> {
        let mut damaged = Vec::new();
        let config_bytes = read_if_present(&folder.join(CONFIG))?;
        let metrics = read_if_present(&folder.join(METRICS))?;
        let summary: Option<Summary> = json(folder, SUMMARY, Summary::validate, &mut damaged)?;
        if config_bytes.is_none() && metrics.is_none() && summary.is_none() {
            let found = match damaged.first() {
                Some(damage) => format!("only a damaged {damage}"),
                None => format!("none of {CONFIG}, {METRICS}, {SUMMARY}"),
            };
            return Err(Error::data(folder, format!("expected the folder of a run, found {found}")));
        }
        let config_text = String::from_utf8_lossy(&config_bytes.unwrap_or_default()).into_owned();
        let config = ConfigFacts::read(&config_text);
        if config.is_teacher_training {
            let message = format!(
                "expected the folder of a run, found that of a teacher's training, which has no page; its curves are in \
                 {TENSORBOARD}/ and {METRICS}"
            );
            return Err(Error::data(folder, message));
        }
        let stages = metrics.map(|m| metrics::parse(&String::from_utf8_lossy(&m))).unwrap_or_default();
        let origin = Origin::read(folder)?;
        let statistics = json(folder, LABEL_STATISTICS, LabelStatistics::validate, &mut damaged)?;
        let captions = json(folder, CAPTIONS, Captions::validate, &mut damaged)?;
        let is_finished = summary.is_some();
        let summary = summary.unwrap_or_else(|| so_far(&config, &stages, origin.as_ref(), statistics));
        let mut found = RunFolder {
            summary,
            is_finished,
            config,
            stages,
            snapshots: Vec::new(),
            grid_png: None,
            captions,
            origin,
            config_text,
            damaged,
        };
        found.take_pictures(folder)?;
        Ok(found)
    }

    fn take_pictures(&mut self, folder: &Path) -> Result<()> {
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let mut steps: Vec<u64> = names.filter_map(|name| step_of_samples(&name)).collect();
        steps.sort_unstable();
        steps.dedup();
        steps.truncate(MOST_PICTURES);
        for step in steps {
            let picture = self.picture(folder, &samples_at(step))?;
            self.snapshots.extend(picture.map(|p| (step, p)));
        }
        self.grid_png = self.picture(folder, SAMPLES)?;
        Ok(())
    }

    fn picture(&mut self, folder: &Path, name: &str) -> Result<Option<Vec<u8>>> {
        let path = folder.join(name);
        let is_too_large = std::fs::metadata(&path).is_ok_and(|m| m.len() > MOST_PICTURE_BYTES);
        let bytes = if is_too_large { None } else { read_if_present(&path)? };
        let is_png = bytes.as_ref().is_some_and(|b| b.starts_with(b"\x89PNG\r\n\x1a\n"));
        if is_too_large || (bytes.is_some() && !is_png) {
            self.damaged.push(format!("{name}: not a PNG of at most {} MB", MOST_PICTURE_BYTES >> 20));
        }
        Ok(bytes.filter(|_| is_png))
    }
}

/// Reads a JSON file; `None` if there is none. One that does not parse or validate is added to `damaged`.
fn json<T: serde::de::DeserializeOwned>(
    folder: &Path,
    name: &str,
    validate: fn(&T) -> Result<(), String>,
    damaged: &mut Vec<String>,
) -> Result<Option<T>> {
    let Some(bytes) = read_if_present(&folder.join(name))? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes).map_err(|e| e.to_string());
    match value.and_then(|value| validate(&value).map(|()| value)) {
        Ok(value) => Ok(Some(value)),
        Err(e) => {
            damaged.push(format!("{name}: {e}"));
            Ok(None)
        }
    }
}

/// The summary of an unfinished run.
fn so_far(
    config: &ConfigFacts,
    stages: &[Stage],
    origin: Option<&Origin>,
    label_statistics: Option<LabelStatistics>,
) -> Summary {
    let call = origin.and_then(|o| o.calls.last());
    Summary {
        name: config.name.clone().unwrap_or_else(|| "run".into()),
        seed: config.seed.unwrap_or(0),
        label_statistics,
        seconds: stages.iter().map(|s| (s.name.clone(), s.seconds)).collect(),
        version: call.map(|c| c.version.clone()).unwrap_or_default(),
        ..Summary::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn usable_files_are_read_and_damaged_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let e = RunFolder::read(dir.path()).err().unwrap();
        assert!(e.exit_code() == 4 && e.to_string().contains("the folder of a run"), "{e}");
        assert!(RunFolder::read(&at("none")).is_err());
        fs::write(at(SUMMARY), "{ half").unwrap();
        let e = RunFolder::read(dir.path()).err().unwrap();
        assert!(e.to_string().contains("found only a damaged summary.json: "), "{e}");

        fs::write(at(CONFIG), "name = 'n'\n[training]\nsteps = 4\n").unwrap();
        let e = RunFolder::read(dir.path()).err().unwrap();
        assert!(e.exit_code() == 4 && e.to_string().contains("found that of a teacher's training"), "{e}");

        fs::write(at(CONFIG), "name = 'n'\nseed = 4\n").unwrap();
        let line = "{\"stage\":\"block1\",\"step\":2,\"seconds\":1.5,\"metrics\":{\"loss\":0.5}}\n";
        fs::write(at(METRICS), line).unwrap();
        fs::write(at(SUMMARY), "{ half").unwrap();
        let png = crate::report::grid_png(&[0.0], 1, 1, 1, 1).unwrap();
        for name in ["samples-30.png", "samples-4.png", "samples.png"] {
            fs::write(at(name), &png).unwrap();
        }
        fs::write(at("samples-5.png"), "no PNG").unwrap();
        fs::write(at("samples-x.png"), &png).unwrap();
        let run = RunFolder::read(dir.path()).unwrap();
        assert!(!run.is_finished && run.summary.name == "n" && run.summary.seed == 4);
        assert_eq!(run.summary.seconds["block1"], 1.5);
        assert_eq!(run.snapshots.iter().map(|s| s.0).collect::<Vec<_>>(), [4, 30]);
        assert!(run.grid_png.is_some());
        assert!(run.damaged.len() == 2 && run.damaged[0].starts_with("summary.json: "), "{:?}", run.damaged);
        assert!(run.damaged[1].starts_with("samples-5.png: "), "{:?}", run.damaged);

        fs::write(at(SUMMARY), serde_json::to_vec(&Summary::default()).unwrap()).unwrap();
        assert!(RunFolder::read(dir.path()).unwrap().is_finished);

        let strange = Summary { branch: vec![Default::default()], ..Summary::default() };
        fs::write(at(SUMMARY), serde_json::to_vec(&strange).unwrap()).unwrap();
        let run = RunFolder::read(dir.path()).unwrap();
        assert!(
            !run.is_finished && run.damaged[0].starts_with("summary.json: branch 0: "),
            "{:?}",
            run.damaged
        );
    }
}
