//! TensorBoard's event files, in `tensorboard/` of a run's folder: the metrics of every step, the pictures
//! and the config.
//!
//! A resumed run writes a new file. It computes the steps after its checkpoint again, but does not write
//! those that an earlier file already has.

mod event;
mod record;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use event::{
    Event, EventContent, ImageProto, PluginData, SummaryMetadata, SummaryProto, SummaryValue, TensorProto,
    TensorShapeProto, ValueContent,
};
use prost::Message;
use record::{Records, write_record};

/// Name of the folder of event files in a run's folder.
pub const TENSORBOARD: &str = "tensorboard";

/// The contents of event files by tag, each as (step, value) in the order of the files.
#[derive(Debug, Default, PartialEq)]
pub struct Logged {
    pub scalars: BTreeMap<String, Vec<(i64, f32)>>,
    /// Encoded as PNG.
    pub images: BTreeMap<String, Vec<(i64, Vec<u8>)>>,
    pub texts: BTreeMap<String, String>,
}

/// Reads the event files of `folder` in the order of their names. A record that is cut off or does not match
/// its checksum ends its file, as it does for TensorBoard. A missing folder reads as empty.
///
/// Errors: a folder or a file that cannot be read.
pub fn read(folder: &Path) -> io::Result<Logged> {
    let mut logged = Logged::default();
    for path in event_files(folder)? {
        let mut records = Records::new(BufReader::new(File::open(path)?));
        while let Some(bytes) = records.next()? {
            let Ok(event) = Event::decode(&bytes[..]) else { break };
            logged.take(event);
        }
    }
    Ok(logged)
}

impl Logged {
    fn take(&mut self, event: Event) {
        let Some(EventContent::Summary(summary)) = event.content else { return };
        for SummaryValue { tag, value, .. } in summary.value {
            match value {
                Some(ValueContent::SimpleValue(v)) => {
                    self.scalars.entry(tag).or_default().push((event.step, v))
                }
                Some(ValueContent::Image(image)) => {
                    self.images.entry(tag).or_default().push((event.step, image.encoded_image_string));
                }
                Some(ValueContent::Tensor(tensor)) => {
                    let text = tensor.string_val.concat();
                    self.texts.insert(tag, String::from_utf8_lossy(&text).into_owned());
                }
                None => {}
            }
        }
    }

    /// The last step of every tag; 0 for a text.
    fn last_steps(&self) -> BTreeMap<String, i64> {
        let scalars = self.scalars.iter().map(|(tag, all)| (tag, all.iter().map(|s| s.0).max()));
        let images = self.images.iter().map(|(tag, all)| (tag, all.iter().map(|s| s.0).max()));
        let texts = self.texts.keys().map(|tag| (tag, Some(0)));
        scalars.chain(images).chain(texts).filter_map(|(tag, last)| Some((tag.clone(), last?))).collect()
    }
}

fn event_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let is_one =
        |p: &PathBuf| p.is_file() && p.file_name().is_some_and(|n| n.to_string_lossy().contains("tfevents"));
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(is_one).collect();
    paths.sort();
    Ok(paths)
}

/// The event file that one call of the program writes.
pub struct EventFile {
    file: BufWriter<File>,
    /// The last step of every tag that earlier files hold.
    last: BTreeMap<String, i64>,
}

impl EventFile {
    /// Creates a new file in `folder`, whose name sorts after those of the existing ones.
    pub fn create(folder: &Path) -> io::Result<EventFile> {
        fs::create_dir_all(folder)?;
        let last = read(folder)?.last_steps();
        // TensorBoard reads the files of a folder in the order of their names and never returns to an earlier
        // one.
        let started = |p: &PathBuf| p.file_name()?.to_str()?.split('.').nth(3)?.parse::<u64>().ok();
        let earlier = event_files(folder)?;
        let now = earlier.iter().filter_map(started).max().unwrap_or(0).max(super::time::unix_seconds());
        let name = format!("events.out.tfevents.{now:010}.{:04}.dfka-engine", earlier.len());
        let file = OpenOptions::new().write(true).create_new(true).open(folder.join(name))?;
        let mut file = EventFile { file: BufWriter::new(file), last };
        file.put(0, EventContent::FileVersion("brain.Event:2".into()))?;
        Ok(file)
    }

    /// Writes the metrics of one step, tagged `stage/metric`.
    pub fn scalars(&mut self, stage: &str, step: usize, metrics: &[(String, f32)]) -> io::Result<()> {
        let tagged = metrics.iter().map(|(name, v)| (format!("{stage}/{name}"), *v));
        let value = |(tag, v)| self.value(tag, step, ValueContent::SimpleValue(v), None);
        let value: Vec<SummaryValue> = tagged.filter_map(value).collect();
        if value.is_empty() {
            return Ok(());
        }
        self.put(step as i64, EventContent::Summary(SummaryProto { value }))
    }

    /// Writes a gray or RGB image, encoded as PNG.
    pub fn image(&mut self, tag: &str, step: usize, png: &[u8]) -> io::Result<()> {
        // The header chunk comes first: width at byte 16, height at 20, bits at 24, colour type at 25.
        let side = |at: usize| {
            let bytes: Option<[u8; 4]> = png.get(at..at + 4).and_then(|b| b.try_into().ok());
            bytes.map_or(0, |b| u32::from_be_bytes(b) as i32)
        };
        let colorspace = if png.get(25) == Some(&0) { 1 } else { 3 };
        let image =
            ImageProto { height: side(20), width: side(16), colorspace, encoded_image_string: png.to_vec() };
        match self.value(tag.into(), step, ValueContent::Image(image), None) {
            Some(value) => self.put(step as i64, EventContent::Summary(SummaryProto { value: vec![value] })),
            None => Ok(()),
        }
    }

    /// Writes a text in Markdown.
    pub fn text(&mut self, tag: &str, text: &str) -> io::Result<()> {
        let tensor = TensorProto {
            dtype: event::DT_STRING,
            tensor_shape: Some(TensorShapeProto {}),
            string_val: vec![text.as_bytes().to_vec()],
        };
        let metadata = SummaryMetadata { plugin_data: Some(PluginData { plugin_name: "text".into() }) };
        match self.value(tag.into(), 0, ValueContent::Tensor(tensor), Some(metadata)) {
            Some(value) => self.put(0, EventContent::Summary(SummaryProto { value: vec![value] })),
            None => Ok(()),
        }
    }

    /// The value to write; `None` if an earlier file already has this step of the tag.
    fn value(
        &self,
        tag: String,
        step: usize,
        value: ValueContent,
        metadata: Option<SummaryMetadata>,
    ) -> Option<SummaryValue> {
        let is_there = self.last.get(&tag).is_some_and(|last| step as i64 <= *last);
        (!is_there).then_some(SummaryValue { tag, metadata, value: Some(value) })
    }

    fn put(&mut self, step: i64, content: EventContent) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let event = Event { wall_time: now, step, content: Some(content) };
        write_record(&mut self.file, &event.encode_to_vec())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Whether this program wrote an event file of that name.
pub fn is_event_file(name: &str) -> bool {
    name.starts_with("events.out.tfevents.") && name.ends_with(".dfka-engine")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: usize) -> Vec<(String, f32)> {
        vec![("loss".into(), 1.0 / (step + 1) as f32), ("dual.A".into(), step as f32)]
    }

    #[test]
    fn files_are_read_back_and_a_resumed_run_repeats_no_step() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tb");
        let png = crate::report::grid_png(&[0.5; 12], 1, 3, 4, 1).unwrap();
        let mut first = EventFile::create(&folder).unwrap();
        first.text("config", "a = 1").unwrap();
        (0..7).for_each(|step| first.scalars("generator", step, &metrics(step)).unwrap());
        first.image("generator/images", 3, &png).unwrap();
        drop(first);
        // As if killed while writing step 7.
        let path = event_files(&folder).unwrap().remove(0);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], &whole[..20]].concat()).unwrap();

        // Resumed from a checkpoint at step 4.
        let mut second = EventFile::create(&folder).unwrap();
        second.text("config", "a = 1").unwrap();
        second.image("generator/images", 3, &png).unwrap();
        (4..10).for_each(|step| second.scalars("generator", step, &metrics(step)).unwrap());
        (0..2).for_each(|step| second.scalars("block1", step, &metrics(step)).unwrap());
        second.image("generator/images", 9, &png).unwrap();
        second.flush().unwrap();
        drop(second);

        assert_eq!(event_files(&folder).unwrap().len(), 2);
        let logged = read(&folder).unwrap();
        let expected: Vec<(i64, f32)> = (0..10).map(|step| (step as i64, metrics(step)[0].1)).collect();
        assert_eq!(logged.scalars["generator/loss"], expected);
        assert_eq!(logged.scalars["block1/dual.A"], [(0, 0.0), (1, 1.0)]);
        assert_eq!(logged.scalars.len(), 4);
        assert_eq!(logged.images["generator/images"], [(3, png.clone()), (9, png)]);
        assert_eq!(logged.texts["config"], "a = 1");
    }

    #[test]
    fn files_without_valid_records_read_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&dir.path().join("none")).unwrap(), Logged::default());
        fs::create_dir(dir.path().join("events.out.tfevents.4.0")).unwrap();
        let path = dir.path().join("events.out.tfevents.5.0");
        for bytes in [vec![], vec![0; 7], vec![255; 100], b"{\"stage\": 1}\n".repeat(20)] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(read(dir.path()).unwrap(), Logged::default());
        }
        // A valid record that is not an event.
        let mut bytes = Vec::new();
        write_record(&mut bytes, &[0xff; 9]).unwrap();
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Logged::default());
        EventFile::create(dir.path()).unwrap();
    }
}
