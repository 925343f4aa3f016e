//! What a run leaves beside its weights, as `report` makes a page of it.

use super::{Outcome, refused, scratch};
use dfka_engine::report::{CONFIG, LABEL_STATISTICS, METRICS, ORIGIN, RunFolder, SUMMARY, page_html};

/// Texts with a zero byte between them: the summary, the metrics, the resolved config, the label statistics, the record of
/// calls. One that is empty or left out is a file that is not there.
pub fn run_folder(bytes: &[u8]) -> Outcome {
    let folder = scratch("run");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the scratch folder takes a folder");
    let names = [SUMMARY, METRICS, CONFIG, LABEL_STATISTICS, ORIGIN];
    for (name, text) in names.iter().zip(bytes.split(|b| *b == 0)).filter(|(_, text)| !text.is_empty()) {
        std::fs::write(folder.join(name), text).expect("the scratch folder takes a file");
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
