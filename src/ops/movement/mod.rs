//! Ops that move rows and images without computing on them.

pub mod columns;
pub mod concat_columns;
pub mod gather_images;
pub mod scatter_images;
pub mod to_maps;
