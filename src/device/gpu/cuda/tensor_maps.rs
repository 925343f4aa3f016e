//! Tensor maps in the format of the CUDA driver.

use super::device::Cuda;
use super::driver::{check, enter};
use super::library::{cuTensorMapEncodeIm2col, cuTensorMapEncodeTiled};
use crate::device::gpu::block::Address;
use crate::device::gpu::tensor_map::{Boxes, Encoded, ROW, TensorMap};
use crate::error::Result;
use cudarc::driver::sys::*;
use std::ffi::c_void;

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
        let bf16 = CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        let rows = CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
        let swizzle = CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
        let promotion = CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
        let zeros = CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
        // SAFETY: every array is live and has `rank` elements, strides one fewer and corners two fewer
        // (`check`). The driver only reads them and writes `encoded`; it does not read the tensor.
        let result = unsafe {
            match &map.boxes {
                Boxes::Tiled { boxes, .. } => {
                    let (boxes, steps) = (boxes.as_ptr(), [1; 2]);
                    cuTensorMapEncodeTiled(
                        &mut encoded.0,
                        bf16,
                        rank,
                        base,
                        dims,
                        strides,
                        boxes,
                        steps.as_ptr(),
                        rows,
                        swizzle,
                        promotion,
                        zeros,
                    )
                }
                Boxes::Im2col {
                    lower: [lower_h, lower_w],
                    upper: [upper_h, upper_w],
                    steps: [h, w],
                    pixels,
                    ..
                } => {
                    let (lower, upper) = ([*lower_w, *lower_h], [*upper_w, *upper_h]);
                    let steps = [1, *w, *h, 1];
                    cuTensorMapEncodeIm2col(
                        &mut encoded.0,
                        bf16,
                        rank,
                        base,
                        dims,
                        strides,
                        lower.as_ptr(),
                        upper.as_ptr(),
                        ROW,
                        *pixels,
                        steps.as_ptr(),
                        rows,
                        swizzle,
                        promotion,
                        zeros,
                    )
                }
            }
        };
        check(result, "cuTensorMapEncode")?;
        Ok(encoded.0.opaque)
    }
}
