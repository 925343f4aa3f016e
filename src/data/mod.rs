//! Images: readers of the public archives they come from.

pub mod digits;
pub mod idx;
