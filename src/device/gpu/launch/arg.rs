//! The arguments of a launch, while addresses are still unknown.

use crate::device::gpu::pointer::Pointer;
use crate::device::gpu::source::Parameter;
use crate::device::gpu::tensor_map::TensorMap;
use crate::device::memory::Slot;

/// An argument of a kernel, while addresses are still unknown.
#[derive(Clone, Debug, PartialEq)]
pub enum KernelArg {
    /// A null pointer.
    Null,
    /// The address of a slot.
    Slot(Slot),
    /// The address of the bf16 copy of a slot of the store, which holds f32.
    Bf16Copy(Slot),
    /// The address of the device's `StepState`.
    Step,
    /// The address of the ring that collects metrics.
    Ring,
    /// `int`
    I32(i32),
    /// `u32`
    U32(u32),
    /// `i64`
    I64(i64),
    /// `u64`
    U64(u64),
    /// `float`
    F32(f32),
    /// `double`
    F64(f64),
    /// A `#[repr(C)]` structure by value: the name that the kernel gives it, and its bytes.
    Structure(&'static str, Vec<u8>),
    /// The address of an array of 8-byte cells. A value shorter than a cell fills its low end.
    Table(Vec<KernelArg>),
    /// A table with a row of cells for each member of the group, of any sizes and any number.
    Members(Vec<Vec<KernelArg>>),
    /// `MAPS_PARAM`: a map of the first operand for each member of the group (`maps.of[member]`), then as
    /// many of the second (`maps.of[8 + member]`).
    TensorMaps(Vec<TensorMap>),
    /// `Group<S>` by value: the name of `S`, and the addresses in it for each member of the group.
    Group(&'static str, Vec<Vec<KernelArg>>),
}

/// Most members of a grouped launch. Mirrors `MAX_GROUP` of kernels/lib/group.cuh.
pub const MAX_GROUP: usize = 8;

macro_rules! from {
    ($($t:ty => $variant:ident),*) => {
        $(impl From<$t> for KernelArg {
            fn from(v: $t) -> KernelArg { KernelArg::$variant(v) }
        })*
    };
}
from!(i32 => I32, u32 => U32, i64 => I64, u64 => U64, f32 => F32, f64 => F64);

impl From<bool> for KernelArg {
    fn from(v: bool) -> KernelArg {
        KernelArg::I32(i32::from(v))
    }
}

impl<T: Into<KernelArg>> From<Option<T>> for KernelArg {
    fn from(v: Option<T>) -> KernelArg {
        v.map_or(KernelArg::Null, Into::into)
    }
}

impl From<Pointer> for KernelArg {
    fn from(p: Pointer) -> KernelArg {
        match p {
            Pointer::Slot(slot) => KernelArg::Slot(slot),
            Pointer::Bf16Copy(slot) => KernelArg::Bf16Copy(slot),
        }
    }
}

impl KernelArg {
    /// The address of an array of rows of cells.
    pub fn table<const N: usize>(rows: Vec<[KernelArg; N]>) -> KernelArg {
        KernelArg::Table(rows.into_iter().flatten().collect())
    }
    /// A table with one member; [`Launch::join`](super::Launch::join) adds more.
    pub fn member<const N: usize>(cells: [KernelArg; N]) -> KernelArg {
        KernelArg::Members(vec![cells.into()])
    }
    /// The cells of a table, row by row; none of another argument.
    pub fn table_cells(&self) -> Option<impl Iterator<Item = &KernelArg>> {
        let (cells, rows): (&[KernelArg], &[Vec<KernelArg>]) = match self {
            KernelArg::Table(cells) => (cells, &[]),
            KernelArg::Members(rows) => (&[], rows),
            _ => return None,
        };
        Some(cells.iter().chain(rows.iter().flatten()))
    }
    /// The members of a grouped launch that this argument lists.
    pub(super) fn members(&self) -> &[Vec<KernelArg>] {
        match self {
            KernelArg::Group(_, members) | KernelArg::Members(members) => members,
            _ => &[],
        }
    }
    /// A structure by value, which the kernel calls `name`.
    pub fn structure<T: bytemuck::NoUninit>(name: &'static str, value: &T) -> KernelArg {
        KernelArg::Structure(name, bytemuck::bytes_of(value).to_vec())
    }
    /// `Group<name>` with one member; [`Launch::join`](super::Launch::join) adds more.
    pub fn group_of_one<const N: usize>(name: &'static str, addresses: [KernelArg; N]) -> KernelArg {
        KernelArg::Group(name, vec![addresses.into()])
    }
    /// The tensors that the argument itself points to: those of a group and of tensor maps, but not those in
    /// a table.
    pub fn pointers(&self) -> impl Iterator<Item = Pointer> {
        let (itself, members, maps): (&[KernelArg], &[Vec<KernelArg>], &[TensorMap]) = match self {
            KernelArg::Group(_, members) => (&[], members, &[]),
            KernelArg::TensorMaps(maps) => (&[], &[], maps),
            arg => (std::slice::from_ref(arg), &[], &[]),
        };
        let addresses = itself.iter().chain(members.iter().flatten()).filter_map(KernelArg::pointer);
        addresses.chain(maps.iter().map(|m| m.tensor))
    }
    /// The tensor that this address points to; none if it is something else.
    pub fn pointer(&self) -> Option<Pointer> {
        match self {
            KernelArg::Slot(slot) => Some(Pointer::Slot(*slot)),
            KernelArg::Bf16Copy(slot) => Some(Pointer::Bf16Copy(*slot)),
            _ => None,
        }
    }
    /// Whether a kernel takes the argument for this parameter.
    pub(super) fn fits(&self, parameter: &Parameter<&'static str>) -> bool {
        match (self, parameter) {
            (KernelArg::Group(name, members), Parameter::Group(expected, pointers, _)) => {
                name == expected && members.len() <= MAX_GROUP && members.iter().all(|m| m.len() == *pointers)
            }
            (KernelArg::Group(..), _) => false,
            (
                KernelArg::Null
                | KernelArg::Slot(_)
                | KernelArg::Bf16Copy(_)
                | KernelArg::Step
                | KernelArg::Ring
                | KernelArg::Table(_)
                | KernelArg::Members(_),
                p,
            ) => *p == Parameter::Pointer,
            (KernelArg::I32(_), p) => *p == Parameter::I32,
            (KernelArg::U32(_), p) => *p == Parameter::U32,
            (KernelArg::I64(_), p) => *p == Parameter::I64,
            (KernelArg::U64(_), p) => *p == Parameter::U64,
            (KernelArg::F32(_), p) => *p == Parameter::F32,
            (KernelArg::F64(_), p) => *p == Parameter::F64,
            (KernelArg::Structure(name, _), Parameter::Structure(expected)) => name == expected,
            (KernelArg::TensorMaps(maps), Parameter::TensorMaps) => {
                (2..=2 * MAX_GROUP).contains(&maps.len()) && maps.len() % 2 == 0
            }
            (KernelArg::Structure(..) | KernelArg::TensorMaps(_), _) => false,
        }
    }
}
