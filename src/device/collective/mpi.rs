//! An MPI library, opened at run time: Open MPI, MPICH, or any library with the interface of MPI 5.
//!
//! Nothing of MPI is needed to build the program. The three differ in the values of a few constants, such as the name of
//! the group of all processes; everything else is MPI's C interface.

use super::launcher::{Launched, Launcher};
use super::library::Library as Moves;
use crate::device::loader;
use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{c_int, c_void};
use std::path::PathBuf;

/// A communicator, a type or an error handler: an integer in MPICH, a pointer in Open MPI and MPI 5. On 64 bits both are
/// passed in the same register.
type Handle = usize;

/// Most characters of an error's text, in all three.
const MOST_TEXT: usize = 8192;

/// The values of the constants.
#[derive(Clone, Copy)]
struct Constants {
    world: Handle,
    byte: Handle,
    errors_return: Handle,
    /// The lowest level of threads that suffices: calls come one after the other, from the workers of a pool.
    serialized: c_int,
}

/// MPICH's `mpi.h`.
const MPICH: Constants =
    Constants { world: 0x4400_0000, byte: 0x4c00_010d, errors_return: 0x5400_0001, serialized: 2 };
/// MPI 5.0, chapter 20.
const MPI_5: Constants = Constants { world: 0x101, byte: 0x247, errors_return: 0x143, serialized: 2048 };

type AllToAll =
    unsafe extern "C" fn(*const c_void, c_int, Handle, *mut c_void, c_int, Handle, Handle) -> c_int;
type Broadcast = unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, Handle) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int, *mut u8, *mut c_int) -> c_int;

/// An opened library that has started.
pub struct Mpi {
    file: String,
    size: usize,
    constants: Constants,
    all_to_all: AllToAll,
    all_gather: AllToAll,
    broadcast: Broadcast,
    error_string: ErrorString,
    finalize: unsafe extern "C" fn() -> c_int,
    /// Keeps the functions above valid.
    _library: Library,
}

impl Mpi {
    /// Opens and starts the launcher's library. Returns the rank of this process and their number too.
    ///
    /// Errors: no library, one that lacks a function, or one that cannot start.
    pub fn start(launched: &Launched) -> Result<(Mpi, usize, usize)> {
        let (library, file) = open(launched)?;
        let refused = |why: String| Error::NoDevice(format!("{file}: {why}"));
        Self::of(library, &file).map_err(refused)
    }

    fn of(library: Library, file: &str) -> Result<(Mpi, usize, usize), String> {
        /// A function of the library.
        fn find<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
            // SAFETY: the callers' types are those of MPI's standard for these names.
            unsafe { library.get::<T>(name.as_bytes()) }.map(|f| *f).map_err(|_| format!("lacks {name}"))
        }
        let mut mpi = Mpi {
            file: file.into(),
            size: 1,
            constants: constants(&library, file),
            all_to_all: find(&library, "MPI_Alltoall")?,
            all_gather: find(&library, "MPI_Allgather")?,
            broadcast: find(&library, "MPI_Bcast")?,
            error_string: find(&library, "MPI_Error_string")?,
            finalize: find(&library, "MPI_Finalize")?,
            _library: library,
        };
        type Init = unsafe extern "C" fn(*mut c_void, *mut c_void, c_int, *mut c_int) -> c_int;
        let init: Init = find(&mpi._library, "MPI_Init_thread")?;
        let handler: unsafe extern "C" fn(Handle, Handle) -> c_int =
            find(&mpi._library, "MPI_Comm_set_errhandler")?;
        type Query = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
        let of_rank: Query = find(&mpi._library, "MPI_Comm_rank")?;
        let of_size: Query = find(&mpi._library, "MPI_Comm_size")?;
        let (mut level, mut rank, mut size) = (0, 0, 0);
        let (Constants { world, serialized, .. }, none) = (mpi.constants, std::ptr::null_mut());
        // SAFETY: MPI's prototypes; the results outlive the calls. Without arguments MPI reads none.
        mpi.check("MPI_Init_thread", unsafe { init(none, none, serialized, &mut level) })?;
        if level < serialized {
            return Err(format!("allows calls of one thread only (level {level}, {serialized} is needed)"));
        }
        // SAFETY: as above.
        mpi.check("MPI_Comm_set_errhandler", unsafe { handler(world, mpi.constants.errors_return) })?;
        // SAFETY: as above.
        mpi.check("MPI_Comm_rank", unsafe { of_rank(world, &mut rank) })?;
        // SAFETY: as above.
        mpi.check("MPI_Comm_size", unsafe { of_size(world, &mut size) })?;
        mpi.size = size as usize;
        Ok((mpi, rank as usize, size as usize))
    }

    fn exchange(
        &self,
        name: &str,
        f: AllToAll,
        from: &[u8],
        to: &mut [u8],
        part: usize,
    ) -> Result<(), String> {
        let count = count(name, part)?;
        let Constants { byte, world, .. } = self.constants;
        // SAFETY: MPI's prototype; both buffers hold `count` bytes for every rank they have a part of.
        self.check(name, unsafe {
            f(from.as_ptr().cast(), count, byte, to.as_mut_ptr().cast(), count, byte, world)
        })
    }
    fn check(&self, name: &str, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let (mut text, mut length) = ([0; MOST_TEXT], 0);
        // SAFETY: MPI's prototype; the text has room for the longest.
        unsafe { (self.error_string)(status, text.as_mut_ptr(), &mut length) };
        let text = String::from_utf8_lossy(&text[..(length.max(0) as usize).min(MOST_TEXT)]).into_owned();
        Err(format!("{name} failed: {text}"))
    }
}

impl Moves for Mpi {
    fn file(&self) -> &str {
        &self.file
    }
    fn all_to_all(&self, from: &[u8], to: &mut [u8]) -> Result<(), String> {
        self.exchange("MPI_Alltoall", self.all_to_all, from, to, from.len() / self.size)
    }
    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<(), String> {
        self.exchange("MPI_Allgather", self.all_gather, own, all, own.len())
    }
    fn broadcast(&self, data: &mut [u8], from: usize) -> Result<(), String> {
        let count = count("MPI_Bcast", data.len())?;
        let Constants { byte, world, .. } = self.constants;
        // SAFETY: MPI's prototype; the buffer holds `count` bytes.
        self.check("MPI_Bcast", unsafe {
            (self.broadcast)(data.as_mut_ptr().cast(), count, byte, from as c_int, world)
        })
    }
    /// Its status is ignored, because nothing is exchanged afterwards.
    fn finalize(&self) {
        // SAFETY: MPI's prototype; no call follows.
        unsafe { (self.finalize)() };
    }
}

/// MPI counts in 32 bits.
fn count(name: &str, bytes: usize) -> Result<c_int, String> {
    c_int::try_from(bytes)
        .map_err(|_| format!("{name}: {bytes} bytes for one rank, MPI counts to {}", c_int::MAX))
}

/// The constants of an opened library. Open MPI's are the addresses of its variables.
fn constants(library: &Library, file: &str) -> Constants {
    let address = |name: &str| -> Option<Handle> {
        // SAFETY: the address of a variable, which is not read.
        let symbol = unsafe { library.get::<*mut c_void>(name.as_bytes()) }.ok()?;
        // SAFETY: as above.
        unsafe { symbol.try_as_raw_ptr() }.map(|p| p as Handle)
    };
    let open_mpi = ["ompi_mpi_comm_world", "ompi_mpi_byte", "ompi_mpi_errors_return"].map(address);
    match open_mpi {
        [Some(world), Some(byte), Some(errors_return)] => {
            Constants { world, byte, errors_return, serialized: 2 }
        }
        _ if file.contains("_abi") => MPI_5,
        _ => MPICH,
    }
}

/// Opens the launcher's library: the one that `DFKA_MPI` names, or the first of its usual names that the loader finds, or
/// that lies beside the launcher.
fn open(launched: &Launched) -> Result<(Library, String)> {
    let names: &[&str] = if launched.launcher == Launcher::OpenMpi {
        &["libmpi.so.40", "libmpi.so"]
    } else {
        &["libmpi_abi.so.1", "libmpi_abi.so.0", "libmpi.so.12", "libmpich.so.12"]
    };
    let named = std::env::var("DFKA_MPI").ok();
    let candidates: Vec<String> = match &named {
        Some(file) => vec![file.clone()],
        None => names.iter().map(|n| n.to_string()).chain(beside_the_launcher(names)).collect(),
    };
    let mut why = Vec::new();
    for file in candidates {
        match open_globally(&file) {
            Ok(library) => return Ok((library, file)),
            Err(e) => why.push(loader::words(&e)),
        }
    }
    let advice = match named {
        Some(file) => format!("DFKA_MPI names {file}; it must be the library of the launcher"),
        None => "install it, or name its file in DFKA_MPI".into(),
    };
    Err(Error::NoDevice(format!(
        "started as rank {} of {}, but the launcher's MPI library does not open; {advice} ({})",
        launched.rank,
        launched.size,
        why.join("; ")
    )))
}

/// The libraries of these names in the `lib` folder beside every `bin` of `PATH` that has an `mpirun`.
fn beside_the_launcher(names: &[&str]) -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).filter(|bin| bin.join("mpirun").exists());
    let libraries: Vec<PathBuf> = folders.filter_map(|bin| Some(bin.parent()?.join("lib"))).collect();
    let all = libraries.iter().flat_map(|lib| names.iter().map(|n| lib.join(n)));
    all.filter(|file| file.exists()).map(|file| file.display().to_string()).collect()
}

/// Open MPI's plugins look for its symbols among those of the whole process.
#[cfg(unix)]
fn open_globally(file: &str) -> Result<Library, libloading::Error> {
    use libloading::os::unix;
    // SAFETY: a library's initialisers run; the user has named or installed this one.
    unsafe { unix::Library::open(Some(file), unix::RTLD_NOW | unix::RTLD_GLOBAL) }.map(Library::from)
}

#[cfg(not(unix))]
fn open_globally(file: &str) -> Result<Library, libloading::Error> {
    // SAFETY: as above.
    unsafe { Library::new(file) }
}
