//! cuBLASLt, opened at run time: a yardstick for our products of matrices, and a second opinion on them.
//!
//! `DFKA_MATMUL=cublaslt` has it compute the products of 1x1 convolutions and linear layers
//! (`ops::layers::conv2d::matmul`); `benches/kernels` times it beside ours. The types are cudarc's. The loader is ours, as for
//! the driver: a missing library or function is an error in words. NVIDIA's library of CUDA 12.8 has every function that is
//! called here and accepts every attribute that is set. No card has run one of its products for this program yet.

use super::driver::enter;
use super::handles::Stream;
use crate::device::gpu::block::{Address, Block};
use crate::device::gpu::launch::Matmul;
use crate::device::loader;
use crate::error::{Error, Result};
use crate::tensor::Elem;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as OfProduct, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as OfPreference, cublasLtMatrixLayout_t,
    cublasLtMatrixLayoutAttribute_t as OfLayout, cudaDataType,
};
use libloading::Library;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

/// What a function of cuBLASLt returns: a value of `cublasStatus_t`, as an integer because a newer library may return values
/// that cudarc's enum does not have.
type Status = c_int;

/// Bytes that a product may use beside its operands. NVIDIA recommends 32 MB for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: a sum that is cut into parts keeps them in f32 and adds them in a separate step.
/// The other schemes add them in place, or round them to the type of the result first.
const REDUCTION_SCHEMES: u32 = 2;

/// Whether `DFKA_MATMUL` asks for cuBLASLt.
///
/// Errors: it asks for something else.
pub fn is_asked_for() -> Result<bool> {
    let asked = std::env::var_os("DFKA_MATMUL").unwrap_or_default();
    match asked.to_string_lossy().as_ref() {
        "" | "own" => Ok(false),
        "cublaslt" => Ok(true),
        other => Err(Error::Usage(format!("DFKA_MATMUL: expected own or cublaslt, found {other}"))),
    }
}

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*), $symbol:literal;)*) => {
        /// The functions that return a status.
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> Status,)*
            status_string: unsafe extern "C" fn(Status) -> *const c_char,
            get_version: unsafe extern "C" fn() -> usize,
        }

        impl Functions {
            /// Errors: the first function that the library lacks.
            fn of(library: &Library) -> Result<Functions, String> {
                Ok(Functions {
                    $($name: find(library, $symbol)?,)*
                    status_string: find(library, "cublasLtGetStatusString")?,
                    get_version: find(library, "cublasLtGetVersion")?,
                })
            }
        }
    };
}

functions! {
    create: fn(*mut cublasLtHandle_t), "cublasLtCreate";
    product_create: fn(*mut cublasLtMatmulDesc_t, cublasComputeType_t, cudaDataType), "cublasLtMatmulDescCreate";
    product_destroy: fn(cublasLtMatmulDesc_t), "cublasLtMatmulDescDestroy";
    product_set: fn(cublasLtMatmulDesc_t, OfProduct, *const c_void, usize), "cublasLtMatmulDescSetAttribute";
    layout_create: fn(*mut cublasLtMatrixLayout_t, cudaDataType, u64, u64, i64), "cublasLtMatrixLayoutCreate";
    layout_destroy: fn(cublasLtMatrixLayout_t), "cublasLtMatrixLayoutDestroy";
    layout_set: fn(cublasLtMatrixLayout_t, OfLayout, *const c_void, usize), "cublasLtMatrixLayoutSetAttribute";
    preference_create: fn(*mut cublasLtMatmulPreference_t), "cublasLtMatmulPreferenceCreate";
    preference_destroy: fn(cublasLtMatmulPreference_t), "cublasLtMatmulPreferenceDestroy";
    preference_set: fn(cublasLtMatmulPreference_t, OfPreference, *const c_void, usize),
        "cublasLtMatmulPreferenceSetAttribute";
    heuristic: fn(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
        cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, c_int,
        *mut cublasLtMatmulHeuristicResult_t, *mut c_int), "cublasLtMatmulAlgoGetHeuristic";
    matmul: fn(cublasLtHandle_t, cublasLtMatmulDesc_t, *const f32, *const c_void, cublasLtMatrixLayout_t, *const c_void,
        cublasLtMatrixLayout_t, *const f32, *const c_void, cublasLtMatrixLayout_t, *mut c_void, cublasLtMatrixLayout_t,
        *const cublasLtMatmulAlgo_t, *mut c_void, usize, *mut c_void), "cublasLtMatmul";
}

fn find<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: the callers' types are those of cublasLt.h for these names.
    unsafe { library.get::<T>(name.as_bytes()) }.map(|f| *f).map_err(|_| {
        format!(
            "has no function {name}: it is no cuBLASLt, or one older than CUDA 12; install NVIDIA's cuBLAS"
        )
    })
}

/// The library, opened once and for the rest of the process: a captured graph holds its kernels, so closing it while the
/// context lives would not be safe.
struct Opened {
    file: String,
    functions: Functions,
    /// Of the process's one context.
    handle: cublasLtHandle_t,
    /// The algorithms chosen so far, by the product and the alignment of its operands in bytes. Locked while a product is put
    /// into a stream, so that two threads do not mix the launches of two products.
    algorithms: Mutex<HashMap<(Matmul, u32), cublasLtMatmulAlgo_t>>,
    /// Keeps the functions valid.
    _library: Library,
}

// SAFETY: cuBLASLt allows calls on one handle from any thread; the algorithms are locked.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

/// cuBLASLt for one device.
pub struct CublasLt {
    library: &'static Opened,
    workspace: Block,
}

/// An object of the library that is given back when it is dropped.
struct Owned<T: Copy> {
    object: T,
    destroy: unsafe extern "C" fn(T) -> Status,
}

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: created by the library, destroyed once; no call that uses it is under way.
        unsafe { (self.destroy)(self.object) };
    }
}

/// A product as the library takes it. Its matrices are column-major, and ours seen as such are transposed, so it computes
/// `d' = b' a'`: b comes first.
struct Description {
    product: Owned<cublasLtMatmulDesc_t>,
    b: Owned<cublasLtMatrixLayout_t>,
    a: Owned<cublasLtMatrixLayout_t>,
    d: Owned<cublasLtMatrixLayout_t>,
}

impl CublasLt {
    /// Opens the library that `DFKA_CUBLASLT` names, or the first of the usual names that the loader finds. `workspace` are
    /// [`WORKSPACE_BYTES`] of the device's memory.
    ///
    /// Errors: no library, one without a function; what it refuses.
    pub(super) fn open(workspace: Block) -> Result<CublasLt> {
        static OPENED: Mutex<Option<&'static Opened>> = Mutex::new(None);
        enter()?;
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let library = match *opened {
            Some(library) => library,
            None => *opened.insert(Box::leak(Box::new(Opened::new()?))),
        };
        Ok(CublasLt { library, workspace })
    }

    /// The version and the file, for people.
    pub fn name(&self) -> String {
        // SAFETY: the library's prototype.
        let version = unsafe { (self.library.functions.get_version)() };
        format!("cuBLASLt {}.{}, {}", version / 10_000, version % 10_000 / 100, self.library.file)
    }

    /// Puts a product into a stream. The addresses are those of d, a and b, each with as many bytes as [`Matmul::bytes`] says.
    ///
    /// Errors: a product that the library does not compute; its own.
    pub(super) fn multiply(
        &self,
        product: &Matmul,
        addresses: [Address; 3],
        stream: &Stream,
    ) -> Result<(), Error> {
        enter()?;
        let done = self.library.enqueue(product, addresses, &self.workspace, stream);
        done.map_err(|e| Error::Run(format!("{}: {e}", self.library.file)))
    }
}

impl Opened {
    fn new() -> Result<Opened> {
        let (library, file) = load()?;
        let refused = |why: String| Error::NoDevice(format!("{file}: {why}"));
        let functions = Functions::of(&library).map_err(refused)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the library's prototype; a pointer to a live local. The device's context is current.
        let created = unsafe { (functions.create)(&mut handle) };
        let created = functions.check("cublasLtCreate", created);
        created.map_err(|e| refused(format!("{e}; is it of a newer CUDA than the driver supports?")))?;
        Ok(Opened { file, functions, handle, algorithms: Mutex::new(HashMap::new()), _library: library })
    }

    fn enqueue(
        &self,
        product: &Matmul,
        [d, a, b]: [Address; 3],
        workspace: &Block,
        stream: &Stream,
    ) -> Result<(), String> {
        let description = Description::of(&self.functions, product)?;
        let alignment = 1 << (d | a | b | 256).trailing_zeros();
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        let algorithm = match algorithms.get(&(*product, alignment)) {
            Some(known) => *known,
            None => {
                let chosen = self.choose(alignment, workspace.bytes, &description)?;
                *algorithms.entry((*product, alignment)).or_insert(chosen)
            }
        };
        let (one, beta) = (1.0f32, if product.adds { 1.0f32 } else { 0.0 });
        let Description { product, b: of_b, a: of_a, d: of_d } = &description;
        // SAFETY: the library's prototype. The matrices lie in live blocks of the device, and are as large as the layouts say
        // (`Launch::of_matmul`); the stream and the workspace live as long as the device. Products that use the workspace run
        // one after the other: all go into the device's one stream, one at a time (`algorithms`).
        let status = unsafe {
            (self.functions.matmul)(
                self.handle,
                product.object,
                &one,
                b as *const c_void,
                of_b.object,
                a as *const c_void,
                of_a.object,
                &beta,
                d as *const c_void,
                of_d.object,
                d as *mut c_void,
                of_d.object,
                &algorithm,
                workspace.address as *mut c_void,
                workspace.bytes,
                stream.0.cast(),
            )
        };
        self.functions.check("cublasLtMatmul", status)
    }

    /// The library's own choice for a product.
    fn choose(
        &self,
        alignment: u32,
        workspace_bytes: usize,
        description: &Description,
    ) -> Result<cublasLtMatmulAlgo_t, String> {
        let f = &self.functions;
        let preference =
            owned(f, f.preference_create, f.preference_destroy, "cublasLtMatmulPreferenceCreate")?;
        let set = |attribute, value: &[u8]| {
            // SAFETY: the library's prototype; the value has the size that the attribute has in cublasLt.h.
            let set = unsafe {
                (f.preference_set)(preference.object, attribute, value.as_ptr().cast(), value.len())
            };
            f.check("cublasLtMatmulPreferenceSetAttribute", set)
        };
        set(OfPreference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(workspace_bytes as u64).to_ne_bytes())?;
        set(OfPreference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &REDUCTION_SCHEMES.to_ne_bytes())?;
        for operand in [
            OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(operand, &alignment.to_ne_bytes())?;
        }
        let (mut best, mut found) = (MaybeUninit::<cublasLtMatmulHeuristicResult_t>::zeroed(), 0);
        let Description { product: desc, b, a, d } = description;
        // SAFETY: the library's prototype; room for the one result that is asked for.
        let status = unsafe {
            (f.heuristic)(
                self.handle,
                desc.object,
                b.object,
                a.object,
                d.object,
                d.object,
                preference.object,
                1,
                best.as_mut_ptr(),
                &mut found,
            )
        };
        f.check("cublasLtMatmulAlgoGetHeuristic", status)?;
        if found < 1 {
            return Err("the library has no algorithm for this product".into());
        }
        // SAFETY: the library has written the result. The status is read as an integer, because it may be none that cudarc
        // knows; the algorithm is plain words.
        let (state, algorithm) = unsafe {
            let best = best.as_ptr();
            let state = std::ptr::addr_of!((*best).state).cast::<Status>().read();
            (state, std::ptr::addr_of!((*best).algo).read())
        };
        f.check("cublasLtMatmulAlgoGetHeuristic", state)?;
        Ok(algorithm)
    }
}

impl Description {
    fn of(f: &Functions, p: &Matmul) -> Result<Description, String> {
        let kind = |elem| match elem {
            Elem::F32 => cudaDataType::CUDA_R_32F,
            Elem::Bf16 => cudaDataType::CUDA_R_16BF,
        };
        let (mut product, sums) = (std::ptr::null_mut(), cublasComputeType_t::CUBLAS_COMPUTE_32F);
        // SAFETY: the library's prototype; a pointer to a live local.
        let created = unsafe { (f.product_create)(&mut product, sums, cudaDataType::CUDA_R_32F) };
        f.check("cublasLtMatmulDescCreate", created)?;
        let product = Owned { object: product, destroy: f.product_destroy };
        for (attribute, is_transposed) in [
            (OfProduct::CUBLASLT_MATMUL_DESC_TRANSA, p.is_b_transposed),
            (OfProduct::CUBLASLT_MATMUL_DESC_TRANSB, p.is_a_transposed),
        ] {
            // `cublasOperation_t`: CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
            let value = i32::from(is_transposed).to_ne_bytes();
            // SAFETY: the library's prototype; the attribute is an int.
            let set =
                unsafe { (f.product_set)(product.object, attribute, value.as_ptr().cast(), value.len()) };
            f.check("cublasLtMatmulDescSetAttribute", set)?;
        }
        // A row-major matrix `[r, c]` is a column-major one of c rows and r columns.
        let layout = |elem, [r, c]: [usize; 2]| Description::layout(f, kind(elem), [r, c], p.count);
        let turned = |is_transposed, [r, c]: [usize; 2]| if is_transposed { [c, r] } else { [r, c] };
        Ok(Description {
            product,
            b: layout(p.operands, turned(p.is_b_transposed, [p.depth, p.columns]))?,
            a: layout(p.operands, turned(p.is_a_transposed, [p.rows, p.depth]))?,
            d: layout(p.result, [p.rows, p.columns])?,
        })
    }
    fn layout(
        f: &Functions,
        kind: cudaDataType,
        [r, c]: [usize; 2],
        count: usize,
    ) -> Result<Owned<cublasLtMatrixLayout_t>, String> {
        let mut layout = std::ptr::null_mut();
        // SAFETY: the library's prototype; a pointer to a live local.
        let created = unsafe { (f.layout_create)(&mut layout, kind, c as u64, r as u64, c as i64) };
        f.check("cublasLtMatrixLayoutCreate", created)?;
        let layout = Owned { object: layout, destroy: f.layout_destroy };
        let set = |attribute, value: &[u8]| {
            // SAFETY: the library's prototype; the value has the size that the attribute has in cublasLt.h.
            let set = unsafe { (f.layout_set)(layout.object, attribute, value.as_ptr().cast(), value.len()) };
            f.check("cublasLtMatrixLayoutSetAttribute", set)
        };
        set(OfLayout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(count as i32).to_ne_bytes())?;
        set(OfLayout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &((r * c) as i64).to_ne_bytes())?;
        Ok(layout)
    }
}

fn owned<T: Copy>(
    f: &Functions,
    create: unsafe extern "C" fn(*mut T) -> Status,
    destroy: unsafe extern "C" fn(T) -> Status,
    name: &str,
) -> Result<Owned<T>, String> {
    let mut object = MaybeUninit::uninit();
    // SAFETY: the library's prototype; room for the object.
    f.check(name, unsafe { create(object.as_mut_ptr()) })?;
    // SAFETY: the library has written the object, because it returned success.
    Ok(Owned { object: unsafe { object.assume_init() }, destroy })
}

impl Functions {
    fn check(&self, name: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library's prototype; the text is a constant of the library.
        let text = unsafe { (self.status_string)(status) };
        if text.is_null() {
            return Err(format!("{name} failed with status {status}"));
        }
        // SAFETY: a text of C, checked not to be null.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        Err(format!("{name} failed: {text} (CUBLASLT_LOG_LEVEL=5 tells more)"))
    }
}

/// Opens the library.
fn load() -> Result<(Library, String)> {
    // SAFETY: loading cuBLASLt runs its initialisers, which only set up its own tables.
    let open = |name: &str| unsafe { Library::new(name) };
    if let Some(named) = std::env::var_os("DFKA_CUBLASLT").filter(|n| !n.is_empty()) {
        let named = named.to_string_lossy().into_owned();
        return match open(&named) {
            Ok(library) => Ok((library, named)),
            Err(e) => {
                let why = loader::words(&e);
                Err(Error::NoDevice(format!("DFKA_CUBLASLT names {named}, which does not open: {why}")))
            }
        };
    }
    let mut why = String::new();
    for name in ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"] {
        match open(name) {
            Ok(library) => return Ok((library, name.into())),
            Err(e) => why += &format!("\n  {}", loader::words(&e)),
        }
    }
    Err(Error::NoDevice(format!(
        "cuBLASLt is neither in LD_LIBRARY_PATH nor where the loader looks; install it (pip install nvidia-cublas-cu12), and \
         name its file, libcublasLt.so.12, in DFKA_CUBLASLT:{why}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::Gpu;
    use crate::device::gpu::cuda::Cuda;
    use crate::device::gpu::launch::{KernelArg, Launch};
    use crate::device::gpu::pointer::Pointer;
    use crate::device::memory::{Slot, Space};
    use half::bf16;
    use std::io::Write;

    const SIZES: [usize; 3] = [5, 3, 4];

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7 + seed * 5) % 11) as f32 - 5.0).collect()
    }
    fn bytes(values: &[f32], elem: Elem) -> Vec<u8> {
        match elem {
            Elem::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Elem::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    }
    fn numbers(bytes: &[u8], elem: Elem) -> Vec<f32> {
        match elem {
            Elem::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Elem::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }
    /// The definition, for whole numbers, so that every order of a sum has the same bits.
    fn expected(p: &Matmul, d: &[f32], a: &[f32], b: &[f32]) -> Vec<f32> {
        let Matmul { rows, columns, depth, .. } = *p;
        let of = |i: usize| {
            let (part, row, column) = (i / (rows * columns), i / columns % rows, i % columns);
            let (a, b) = (&a[part * rows * depth..], &b[part * depth * columns..]);
            let terms = (0..depth).map(|t| {
                let in_a = if p.is_a_transposed { t * rows + row } else { row * depth + t };
                let in_b = if p.is_b_transposed { column * depth + t } else { t * columns + column };
                a[in_a] * b[in_b]
            });
            terms.sum::<f32>() + if p.adds { d[i] } else { 0.0 }
        };
        (0..d.len()).map(of).collect()
    }

    /// On the device that `DFKA_TEST_DEVICE=cuda` names, with `DFKA_MATMUL=cublaslt`; elsewhere there is nothing to test.
    #[test]
    fn products_are_those_of_their_definition() {
        let named = std::env::var("DFKA_TEST_DEVICE").is_ok_and(|d| d.starts_with("cuda"));
        if !named || !is_asked_for().unwrap() {
            let why = "needs DFKA_TEST_DEVICE=cuda and DFKA_MATMUL=cublaslt";
            return writeln!(std::io::stderr(), "SKIPPED: {why}").expect("standard error is open");
        }
        let gpu = Gpu::Cuda(Box::new(Cuda::open(0).unwrap()));
        let of = |operands, result| {
            let (forward, input) =
                (Matmul::forward(SIZES, operands, result), Matmul::input_gradient(SIZES, operands, result));
            [forward, input, Matmul { result, ..Matmul::weight_gradient(SIZES, operands) }]
        };
        let types = [(Elem::F32, Elem::F32), (Elem::Bf16, Elem::F32), (Elem::Bf16, Elem::Bf16)];
        let kinds = types.into_iter().flat_map(|(operands, result)| of(operands, result));
        for product in
            kinds.flat_map(|p| [(1, false), (2, true)].map(|(count, adds)| Matmul { count, adds, ..p }))
        {
            let elems = [product.result, product.operands, product.operands];
            let counts: Vec<usize> = product.bytes().iter().zip(elems).map(|(b, e)| b / e.bytes()).collect();
            let host = [0, 1, 2].map(|i| values(counts[i], i));
            let blocks = product.bytes().map(|bytes| gpu.allocate(bytes).unwrap());
            for i in 0..3 {
                gpu.upload(&blocks[i], 0, &bytes(&host[i], elems[i])).unwrap();
            }
            let slot = |i: usize| Slot { space: Space::Store(i as u32), offset: 0, bytes: blocks[i].bytes };
            let launch = Launch::of_matmul(product, [0, 1, 2].map(|i| Pointer::Slot(slot(i)))).unwrap();
            let mut address = |arg: &KernelArg| match arg {
                KernelArg::Slot(Slot { space: Space::Store(i), .. }) => Ok(blocks[*i as usize].address),
                other => panic!("{other:?}"),
            };
            gpu.launch(&gpu.prepare(&launch, "a product".into(), &mut address).unwrap()).unwrap();
            let mut found = vec![0; blocks[0].bytes];
            gpu.download(&blocks[0], 0, &mut found).unwrap();
            assert_eq!(
                numbers(&found, product.result),
                expected(&product, &host[0], &host[1], &host[2]),
                "{product:?}"
            );
            let small = [slot(0), slot(1), Slot { bytes: 1, ..slot(2) }].map(Pointer::Slot);
            assert!(Launch::of_matmul(product, small).is_err(), "an operand that is too small");
        }
    }
}
