//! NCCL, opened at run time: it moves data between the cards of several processes.
//!
//! The binding is ours and has ten functions, because cudarc's looks for `libnccl.so` only, while PyTorch's wheels bring
//! `libnccl.so.2`, and panics if a function is missing. Exchanges of a step are put into its stream, so that a captured graph
//! holds them. The communicator lives as long as the process: a graph that holds its exchanges must not outlive it.

use super::device::Cuda;
use super::driver::enter;
use super::handles::Stream;
use crate::device::collective::library::Library as Moves;
use crate::device::gpu::block::{Address, Block};
use crate::device::gpu::launch::{Exchange, Prepared};
use crate::device::loader;
use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// NCCL's `ncclUniqueId`, by which the ranks of a run find each other.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Id(pub [u8; 128]);

/// A pointer to NCCL's communicator.
type Comm = *mut c_void;
/// A pointer to a CUDA stream.
type CudaStream = *mut c_void;
/// NCCL's `ncclResult_t`.
type Status = c_int;

/// NCCL's `ncclUint8`.
const BYTES: c_int = 1;
/// The first version whose exchanges a graph can hold: 2.9.6.
const LEAST_VERSION: c_int = 20_906;

/// The functions that are called.
struct Functions {
    get_version: unsafe extern "C" fn(*mut c_int) -> Status,
    get_unique_id: unsafe extern "C" fn(*mut Id) -> Status,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, Id, c_int) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    group_start: unsafe extern "C" fn() -> Status,
    group_end: unsafe extern "C" fn() -> Status,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, CudaStream) -> Status,
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, CudaStream) -> Status,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, CudaStream) -> Status,
    broadcast:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CudaStream) -> Status,
}

/// The ranks' communicator, and the card of this one.
pub struct Nccl {
    file: String,
    functions: Functions,
    /// Locked during every call, because NCCL takes one at a time.
    comm: Mutex<Comm>,
    rank: usize,
    size: usize,
    /// For what is moved between the memories of the processes.
    device: Cuda,
    /// Where such bytes are on the card: what is sent, and what arrives.
    staging: Mutex<Option<Staging>>,
    /// Keeps the functions valid.
    _library: Library,
}

/// The two blocks have the same size.
struct Staging {
    out: Block,
    back: Block,
}

// SAFETY: NCCL allows calls from any thread, one at a time (`comm`); its other functions keep no state.
unsafe impl Send for Nccl {}
// SAFETY: as above.
unsafe impl Sync for Nccl {}

impl Nccl {
    /// Opens the library and meets the other ranks; this one computes on the CUDA device `index`. `shared` passes on the id
    /// of rank 0. Without it every rank makes the id itself, which `NCCL_COMM_ID` then determines.
    ///
    /// Errors: no library, an old one; no such card; what NCCL refuses, such as two ranks on one card.
    pub fn start(
        index: usize,
        rank: usize,
        size: usize,
        shared: Option<impl FnOnce(Id) -> Result<Id, String>>,
    ) -> Result<Nccl> {
        let (library, file) = open()?;
        let refused = |why: String| Error::NoDevice(format!("{file}: {why}"));
        let functions = Functions::of(&library).map_err(refused)?;
        functions.expect_version().map_err(refused)?;
        // Makes the card's context current on this thread, which NCCL takes.
        let device = Cuda::open(index)?;
        enter()?;
        let mut id = Id([0; 128]);
        if rank == 0 || shared.is_none() {
            // SAFETY: NCCL's prototype; a pointer to a live local.
            let made = unsafe { (functions.get_unique_id)(&mut id) };
            functions.check("ncclGetUniqueId", made).map_err(refused)?;
        }
        let id = shared.map_or(Ok(id), |shared| shared(id)).map_err(refused)?;
        let mut comm = std::ptr::null_mut();
        // SAFETY: NCCL's prototype; a pointer to a live local.
        let started = unsafe { (functions.comm_init_rank)(&mut comm, size as c_int, id, rank as c_int) };
        functions.check("ncclCommInitRank", started).map_err(refused)?;
        let (comm, staging) = (Mutex::new(comm), Mutex::new(None));
        Ok(Nccl { file, functions, comm, rank, size, device, staging, _library: library })
    }

    /// Puts an exchange of a step into a stream.
    ///
    /// Errors: NCCL's own.
    pub(super) fn launch(&self, exchange: Exchange, p: &Prepared, stream: &Stream) -> Result<()> {
        enter()?;
        let (to, from, bytes) = (p.cell(0), p.cell(1), p.cell(2) as usize);
        let done = match exchange {
            Exchange::AllToAll => self.send_parts(from, to, bytes / self.size, stream),
            Exchange::AllGather => self.gather(from, to, bytes, stream),
        };
        done.map_err(|e| Error::Run(format!("{}: {}: {e}", p.in_words(), self.file)))
    }

    fn comm(&self) -> MutexGuard<'_, Comm> {
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_parts(&self, from: Address, to: Address, part: usize, stream: &Stream) -> Result<(), String> {
        let (f, stream, comm) = (&self.functions, stream.0.cast(), self.comm());
        // SAFETY: NCCL's prototype.
        f.check("ncclGroupStart", unsafe { (f.group_start)() })?;
        let both = (0..self.size).try_for_each(|peer| {
            let at = (peer * part) as Address;
            let (from, to) = ((from + at) as *const c_void, (to + at) as *mut c_void);
            // SAFETY: both ranges lie in live blocks of the card; the stream is alive.
            f.check("ncclSend", unsafe { (f.send)(from, part, BYTES, peer as c_int, *comm, stream) })?;
            // SAFETY: as above.
            f.check("ncclRecv", unsafe { (f.receive)(to, part, BYTES, peer as c_int, *comm, stream) })
        });
        // The group is closed after an error too: NCCL would add all later calls to an open one and not start them.
        // SAFETY: NCCL's prototype.
        let ended = f.check("ncclGroupEnd", unsafe { (f.group_end)() });
        both.and(ended)
    }

    fn gather(&self, from: Address, to: Address, bytes: usize, stream: &Stream) -> Result<(), String> {
        let (f, from, to, comm) = (&self.functions, from as *const c_void, to as *mut c_void, self.comm());
        // SAFETY: both ranges lie in live blocks of the card; the stream is alive.
        f.check("ncclAllGather", unsafe { (f.all_gather)(from, to, bytes, BYTES, *comm, stream.0.cast()) })
    }

    /// Moves bytes of the processes' memories: to the card, from card to card by `moves`, and back.
    fn through_the_card(
        &self,
        from: &[u8],
        to: &mut [u8],
        moves: impl FnOnce(Address, Address) -> Result<(), String>,
    ) -> Result<(), String> {
        let words = |e: Error| e.to_string();
        let mut staging = self.staging.lock().map_err(|_| "another exchange has failed".to_string())?;
        let bytes = from.len().max(to.len());
        if staging.as_ref().is_none_or(|s| s.out.bytes < bytes) {
            *staging = None;
            let block = || self.device.allocate(bytes).map_err(words);
            *staging = Some(Staging { out: block()?, back: block()? });
        }
        let Some(Staging { out, back }) = &*staging else { return Ok(()) };
        self.device.upload(out.address, from).map_err(words)?;
        moves(out.address, back.address)?;
        self.device.download(back.address, to).map_err(words)
    }
}

impl Moves for Nccl {
    fn file(&self) -> &str {
        &self.file
    }
    fn all_to_all(&self, from: &[u8], to: &mut [u8]) -> Result<(), String> {
        let part = from.len() / self.size;
        self.through_the_card(from, to, |from, to| self.send_parts(from, to, part, &self.device.stream))
    }
    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<(), String> {
        self.through_the_card(own, all, |from, to| self.gather(from, to, own.len(), &self.device.stream))
    }
    fn broadcast(&self, data: &mut [u8], from: usize) -> Result<(), String> {
        let (f, bytes) = (&self.functions, data.len());
        let own = if self.rank == from { data.to_vec() } else { Vec::new() };
        self.through_the_card(&own, data, |out, back| {
            let (out, back, comm) = (out as *const c_void, back as *mut c_void, self.comm());
            let stream = self.device.stream.0.cast();
            // SAFETY: both blocks hold `bytes` bytes; the stream is alive.
            f.check("ncclBroadcast", unsafe {
                (f.broadcast)(out, back, bytes, BYTES, from as c_int, *comm, stream)
            })
        })
    }
    /// Waits for all ranks. The communicator ends with the process.
    fn finalize(&self) {
        let mut all = vec![0; self.size];
        // If a rank is gone, the watch ends this process.
        let _ = self.all_gather(&[0], &mut all);
    }
}

impl Functions {
    fn of(library: &Library) -> Result<Functions, String> {
        /// A function of the library.
        fn find<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
            // SAFETY: the callers' types are those of nccl.h for these names.
            unsafe { library.get::<T>(name.as_bytes()) }.map(|f| *f).map_err(|_| {
                format!("has no function {name}: it is no NCCL, or one older than 2.9; install NVIDIA's NCCL")
            })
        }
        Ok(Functions {
            get_version: find(library, "ncclGetVersion")?,
            get_unique_id: find(library, "ncclGetUniqueId")?,
            comm_init_rank: find(library, "ncclCommInitRank")?,
            error_string: find(library, "ncclGetErrorString")?,
            group_start: find(library, "ncclGroupStart")?,
            group_end: find(library, "ncclGroupEnd")?,
            send: find(library, "ncclSend")?,
            receive: find(library, "ncclRecv")?,
            all_gather: find(library, "ncclAllGather")?,
            broadcast: find(library, "ncclBroadcast")?,
        })
    }
    fn expect_version(&self) -> Result<(), String> {
        let mut version = 0;
        // SAFETY: NCCL's prototype; a pointer to a live local.
        self.check("ncclGetVersion", unsafe { (self.get_version)(&mut version) })?;
        if version >= LEAST_VERSION {
            return Ok(());
        }
        // Up to 2.8 the minor version has a digit less.
        let place = if version < 10_000 { 1000 } else { 10_000 };
        let (major, minor, patch) = (version / place, version % place / 100, version % 100);
        Err(format!("is NCCL {major}.{minor}.{patch}; 2.9.6 or newer is needed"))
    }
    fn check(&self, name: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: NCCL's prototype; the text is a constant of the library.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return Err(format!("{name} failed with error {status}"));
        }
        // SAFETY: a text of C, checked not to be null.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        Err(format!("{name} failed: {text} (NCCL_DEBUG=INFO tells more)"))
    }
}

/// Opens the library that `DFKA_NCCL` names, or the first of the usual names that the loader finds.
fn open() -> Result<(Library, String)> {
    let named = std::env::var("DFKA_NCCL").ok();
    let names = named.map_or_else(|| vec!["libnccl.so.2".to_string(), "libnccl.so".into()], |n| vec![n]);
    let mut why = String::new();
    for name in names {
        // SAFETY: loading NCCL runs its initialisers, which only set up its own tables.
        match unsafe { Library::new(&name) } {
            Ok(library) => return Ok((library, name)),
            Err(e) => why += &format!("\n  {}", loader::words(&e)),
        }
    }
    Err(Error::NoDevice(format!(
        "several ranks on cards need NCCL, and libnccl.so.2 is neither in LD_LIBRARY_PATH nor where the loader looks; \
         install it (pip install nvidia-nccl-cu12), and name its file in DFKA_NCCL:{why}"
    )))
}
