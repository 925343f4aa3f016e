//! The results of a run, as `summary.json` stores them and the final table shows them.

mod agreement;
mod captions;
mod collapse;
mod figures;
mod limits;
mod mean;
mod verdict;

pub use agreement::{Agreement, LabelAgreement};
pub use captions::{Caption, Captions};
pub use collapse::Collapse;
pub use figures::{
    Decisions, LabelShare, LabelStatistics, Parameters, Score, StudentScore, Summary, TaskBranch,
};
pub use limits::MOST;
pub use mean::mean_of_known;
pub use verdict::{Verdict, Word, chance};
