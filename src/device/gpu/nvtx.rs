//! Named ranges on a profiler's timeline. The NVTX library is looked for once, at run time. Without it, or
//! without a profiler, a range costs too little to measure.

use libloading::Library;
use std::ffi::{CString, c_char, c_int};
use std::sync::OnceLock;

struct Nvtx {
    push: unsafe extern "C" fn(*const c_char) -> c_int,
    pop: unsafe extern "C" fn() -> c_int,
    _library: Library,
}

/// CUDA 13 ships NVTX for languages other than C under the first name, older toolkits under the second.
const NAMES: [&str; 4] =
    ["libnvtx3interop.so.1", "libnvtx3interop.so", "libnvToolsExt.so.1", "libnvToolsExt.so"];

fn nvtx() -> Option<&'static Nvtx> {
    static NVTX: OnceLock<Option<Nvtx>> = OnceLock::new();
    let open = || {
        // SAFETY: NVTX's initialiser only looks for a profiler. Both functions have the types that
        // nvToolsExt.h declares, and they stay valid because the library is kept open.
        NAMES.iter().find_map(|name| unsafe {
            let library = Library::new(*name).ok()?;
            let (push, pop) =
                (*library.get(b"nvtxRangePushA\0").ok()?, *library.get(b"nvtxRangePop\0").ok()?);
            Some(Nvtx { push, pop, _library: library })
        })
    };
    NVTX.get_or_init(open).as_ref()
}

/// A range that ends when it is dropped. Ranges nest, and a range begins and ends on one thread.
#[must_use]
pub struct Range(Option<&'static Nvtx>);

/// Begins a range with this name.
pub fn range(name: &str) -> Range {
    let (Some(nvtx), Ok(name)) = (nvtx(), CString::new(name)) else { return Range(None) };
    // SAFETY: the string outlives the call, which copies it.
    unsafe { (nvtx.push)(name.as_ptr()) };
    Range(Some(nvtx))
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(nvtx) = self.0 {
            // SAFETY: ends the range that `range` began on this thread.
            unsafe { (nvtx.pop)() };
        }
    }
}
