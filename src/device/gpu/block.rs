//! Memory of a device.

/// An address in a device's memory.
pub type Address = u64;

/// An allocation in a device's memory, freed when it is dropped.
pub struct Block {
    /// Where it begins.
    pub address: Address,
    /// Bytes that were asked for.
    pub bytes: usize,
    /// Frees the allocation, given its address and bytes.
    pub(super) free: fn(Address, usize),
}

impl Drop for Block {
    fn drop(&mut self) {
        (self.free)(self.address, self.bytes);
    }
}
