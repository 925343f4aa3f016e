//! Tensor maps in the format of the CUDA driver.

use super::device::Cuda;
use super::driver::{check, enter};
use super::library::{cuTensorMapEncodeIm2col, cuTensorMapEncodeTiled};
use crate::device::gpu::block::Address;
use crate::device::gpu::tensor_map::{Boxes, Encoded, ROW, TensorMap, width_first};
use crate::error::Result;
use cudarc::driver::sys::*;
use std::ffi::c_void;

const BF16: CUtensorMapDataType = CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
const ROWS: CUtensorMapInterleave = CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
const SWIZZLE: CUtensorMapSwizzle = CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
const PROMOTION: CUtensorMapL2promotion = CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
const ZEROS: CUtensorMapFloatOOBfill = CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;

/// A tensor map as the driver takes it: CUDA 13 asks for an alignment of 128 bytes, CUDA 12 for 64.
#[repr(C, align(128))]
struct Aligned(CUtensorMap);

impl Cuda {
    /// Encodes a tensor map that [`TensorMap::check`] accepts, for a tensor at `address`.
    ///
    /// Errors: the driver's.
    pub fn encode(&self, map: &TensorMap, address: Address) -> Result<Encoded> {
        enter()?;
        let (dims, strides) = map.extents();
        let rank = dims.len() as u32;
        let (mut encoded, base) = (Aligned(CUtensorMap { opaque: [0; 16] }), address as *mut c_void);
        let (dims, strides) = (dims.as_ptr(), strides.as_ptr());
        // SAFETY: every array is live and has `rank` elements, strides one fewer and corners two fewer
        // (`check`). The driver only reads them and writes `encoded`; it does not read the tensor.
        let result = unsafe {
            match &map.boxes {
                Boxes::Tiled { boxes, .. } => {
                    let (boxes, steps) = (boxes.as_ptr(), [1; 2]);
                    cuTensorMapEncodeTiled(
                        &mut encoded.0,
                        BF16,
                        rank,
                        base,
                        dims,
                        strides,
                        boxes,
                        steps.as_ptr(),
                        ROWS,
                        SWIZZLE,
                        PROMOTION,
                        ZEROS,
                    )
                }
                Boxes::Im2col { lower, upper, steps, pixels, .. } => {
                    let (lower, upper) = (width_first(*lower), width_first(*upper));
                    let [w, h] = width_first(*steps);
                    let steps = [1, w, h, 1];
                    cuTensorMapEncodeIm2col(
                        &mut encoded.0,
                        BF16,
                        rank,
                        base,
                        dims,
                        strides,
                        lower.as_ptr(),
                        upper.as_ptr(),
                        ROW,
                        *pixels,
                        steps.as_ptr(),
                        ROWS,
                        SWIZZLE,
                        PROMOTION,
                        ZEROS,
                    )
                }
            }
        };
        check(result, "cuTensorMapEncode")?;
        Ok(encoded.0.opaque)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of cuda.h. The emulator's maps have none of these settings, so that its tests would not see
    /// another swizzle.
    #[test]
    fn maps_have_bf16_in_the_128_byte_swizzle_and_zeros_outside() {
        assert_eq!([BF16 as u32, ROWS as u32, SWIZZLE as u32, ZEROS as u32], [9, 0, 3, 0]);
    }
}
