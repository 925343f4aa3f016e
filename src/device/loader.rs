//! Why a shared library does not open.

use std::error::Error;

/// The loader's own words, which begin with the library's name on most systems. libloading keeps them in the source of its
/// error, whose own text is only "dlopen failed".
pub fn words(e: &libloading::Error) -> String {
    e.source().map_or_else(|| e.to_string(), |source| source.to_string())
}
