//! What a run leaves for people: the final table, `summary.json`, pictures, `report.html` and TensorBoard's
//! files.
//!
//! Start with `write`: it reads a run's folder (`run_folder`), lets `page` assemble `report.html`, and stores
//! the result. Each section of the page is a file of its own, built on `html`, `chart` and `table`.

mod bars;
mod blocks;
mod card;
mod chart;
mod closing;
mod config_facts;
mod costs;
pub mod experiment;
mod files;
mod grid;
mod html;
mod images;
mod losses;
pub mod metrics;
pub mod origin;
mod overview;
mod page;
mod run_folder;
mod table;
mod teacher_card;
pub mod tensorboard;
mod time;
mod write;

pub use closing::closing_lines;
pub use files::{
    CAPTIONS, CARD, CONFIG, HTML, LABEL_STATISTICS, METRICS, ORIGIN, SAMPLES, SUMMARY, samples_at,
};
pub use grid::{STRIP_IMAGES, grid_png, small_grid_png};
pub use page::page_html;
pub use run_folder::RunFolder;
pub use table::{duration, final_table, score_table};
pub use teacher_card::write_teacher_card;
pub use write::{read_summary, rebuild, remove_old, write};
