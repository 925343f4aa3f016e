//! The files of a run's folder from which `report` makes a page.

use super::{Outcome, refused, scratch};
use dfka_engine::report::{
    CAPTIONS, CONFIG, LABEL_STATISTICS, METRICS, ORIGIN, RunFolder, SUMMARY, page_html,
};

/// The input is six texts separated by zero bytes: the summary, the metrics, the resolved config, the label
/// statistics, the record of calls and the captions. An empty or missing text means that the file does not exist.
pub fn run_folder(bytes: &[u8]) -> Outcome {
    let folder = scratch("run");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder in the scratch folder");
    let names = [SUMMARY, METRICS, CONFIG, LABEL_STATISTICS, ORIGIN, CAPTIONS];
    for (name, text) in names.iter().zip(bytes.split(|b| *b == 0)).filter(|(_, text)| !text.is_empty()) {
        std::fs::write(folder.join(name), text).expect("a file in the scratch folder");
    }
    match RunFolder::read(&folder) {
        Ok(found) => {
            let page = page_html(&found);
            assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
            Outcome::Accepted
        }
        Err(e) => refused(&e, 4, &folder),
    }
}
