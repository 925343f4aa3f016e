//! Images that the host hands over as pixels, while the GPU still works on earlier ones.

use super::backend::{Gpu, Inlet};
use super::block::Block;
use super::launch::{KernelArg, Launch, Prepared, THREADS};
use super::target::Target;
use crate::device::memory::{Buffer, PIXEL_BLOCKS, Slot, Space};
use crate::error::{Error, Result};

/// The way of one tensor's pixels to the GPU: one byte an element, copied into two blocks in turn. A kernel turns them
/// into the f32 tensor, so that four times fewer bytes are copied, and the copy for a step overlaps with the step
/// before it.
pub(super) struct Pixels {
    /// Each with the launch that converts what is in it.
    inlets: [(Inlet, Prepared); PIXEL_BLOCKS],
    next: usize,
}

impl Pixels {
    /// A way for `elements` pixels into the tensor at the start of `to`.
    ///
    /// Errors: out of memory.
    pub(super) fn new(gpu: &Gpu, target: &Target, elements: usize, to: &Block) -> Result<Pixels> {
        let blocks = target.blocks_for(elements, PACK * THREADS as usize);
        let slot = |bytes| KernelArg::Slot(Slot { space: Space::Arena, offset: 0, bytes });
        let args = vec![slot(4 * elements), slot(elements), (elements as i64).into()];
        let launch = Launch::new("pixels_to_inputs", [blocks, 1, 1], THREADS, 0, args)?;
        let inlet = || {
            let inlet = gpu.inlet(elements)?;
            let mut addresses = [to.address, inlet.block.address].into_iter();
            let mut address = |_: &KernelArg| {
                addresses.next().ok_or_else(|| Error::Run("pixels_to_inputs takes two addresses".into()))
            };
            let convert = gpu.prepare(&launch, "pixels to inputs".into(), &mut address)?;
            Ok((inlet, convert))
        };
        Ok(Pixels { inlets: [inlet()?, inlet()?], next: 0 })
    }

    /// Bytes of its blocks.
    pub(super) fn bytes(&self) -> usize {
        self.inlets.iter().map(|(inlet, _)| inlet.block.bytes).sum()
    }

    /// Copies pixels to the GPU and lets it convert them. Returns when the pixels may be changed.
    ///
    /// Errors: the driver's.
    pub(super) fn send(&mut self, gpu: &Gpu, pixels: &Buffer) -> Result<()> {
        let (inlet, convert) = &self.inlets[self.next];
        gpu.fill(inlet, pixels.get(0, inlet.block.bytes))?;
        gpu.launch(convert)?;
        gpu.used(inlet)?;
        self.next = (self.next + 1) % self.inlets.len();
        Ok(())
    }
}

/// Pixels that a thread converts.
const PACK: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::unlabelled::to_input;
    use crate::device::gpu::emu::Emu;
    use crate::device::gpu::skipped;
    use crate::tensor::Elem;

    #[test]
    fn every_pixel_becomes_the_hosts_input_whatever_was_sent_before() {
        let gpu = match Emu::open(0) {
            Ok(emu) => Gpu::Emu(emu),
            Err(e) => return skipped(&e),
        };
        let target = gpu.target(Elem::F32);
        // Whole packs, a rest of 3, and one element.
        for elements in [4096, 259, 1] {
            let to = gpu.allocate(4 * elements).unwrap();
            let mut pixels = Pixels::new(&gpu, &target, elements, &to).unwrap();
            assert_eq!(pixels.bytes(), PIXEL_BLOCKS * elements);
            for first in 0..3 {
                let sent: Vec<u8> = (0..elements).map(|i| (first + i) as u8).collect();
                let mut buffer = Buffer::with_bytes(elements);
                buffer.get_mut(0, elements).copy_from_slice(&sent);
                pixels.send(&gpu, &buffer).unwrap();
                let mut found = vec![0.0f32; elements];
                gpu.download(&to, 0, bytemuck::cast_slice_mut(&mut found)).unwrap();
                assert!(found.iter().zip(&sent).all(|(x, p)| x.to_bits() == to_input(*p).to_bits()));
            }
        }
    }
}
