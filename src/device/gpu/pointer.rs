//! Pointers to tensors: a slot, or the bf16 copy of one.

use crate::device::memory::Slot;

/// A tensor whose device address is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pointer {
    /// The tensor in this slot.
    Slot(Slot),
    /// The bf16 copy of the f32 tensor in this slot of the store.
    Bf16Copy(Slot),
}

impl Pointer {
    /// The slot, of the tensor itself or of the f32 tensor that the copy is of.
    pub fn slot(self) -> Slot {
        match self {
            Pointer::Slot(slot) | Pointer::Bf16Copy(slot) => slot,
        }
    }
    /// Bytes at the address: a bf16 copy has half as many as its f32 tensor.
    pub fn bytes(self) -> usize {
        match self {
            Pointer::Slot(slot) => slot.bytes,
            Pointer::Bf16Copy(slot) => slot.bytes / 2,
        }
    }
}
