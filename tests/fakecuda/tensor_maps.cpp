// Tensor maps: the alignments, strides, boxes and corners that CUDA's manual asks for, written in the
// emulator's format.
#include <string.h>

#include "driver.h"

// Values of the driver's enumerations.
constexpr int BFLOAT16 = 9, INTERLEAVE_NONE = 0, SWIZZLE_128B = 3, L2_PROMOTION_256B = 3, FILL_ZEROS = 0;
constexpr u32 SWIZZLE_BYTES = 128;

// The arguments that both kinds have.
struct Tensor {
    int type;
    u32 rank;
    void* base;
    const u64 *dims, *strides; // strides in bytes, of all dimensions but the innermost
    const u32* steps;
    int interleave, swizzle, promotion, fill;
};

static int encode(Call& call, void* out, const Tensor& t, CUtensorMap& map) {
    if (SM < 90) REFUSE(NOT_SUPPORTED, "tensor maps on sm_%ld", SM);
    if ((uintptr_t)out % 64) REFUSE(INVALID_VALUE, "a map at %p, expected a multiple of 64", out);
    if (t.type != BFLOAT16) REFUSE(INVALID_VALUE, "this driver knows bf16 (9) only, found type %d", t.type);
    if (t.interleave != INTERLEAVE_NONE || t.swizzle != SWIZZLE_128B) {
        REFUSE(INVALID_VALUE, "this driver knows only no interleave and the swizzle of 128 bytes, found %d and %d",
               t.interleave, t.swizzle);
    }
    if (t.promotion < 0 || t.promotion > L2_PROMOTION_256B || t.fill != FILL_ZEROS) {
        REFUSE(INVALID_VALUE, "promotion %d, fill %d", t.promotion, t.fill);
    }
    if (t.rank < 1 || t.rank > 4) REFUSE(INVALID_VALUE, "rank %u", t.rank);
    if (!t.base || (uintptr_t)t.base % 16) {
        REFUSE(INVALID_VALUE, "a tensor at %p, expected a multiple of 16", t.base);
    }
    map = {CUtensorMap::MAGIC, (u64)t.base, 0, t.rank, {1, 1, 1, 1}, {}, {}, {}, {}, {1, 1}};
    for (u32 d = 0; d < t.rank; d++) {
        if (!t.dims[d] || t.dims[d] >= 1ull << 32) REFUSE(INVALID_VALUE, "dimension %u of %llu", d, t.dims[d]);
        if (!t.steps[d] || t.steps[d] > 8) REFUSE(INVALID_VALUE, "step %u of %u", d, t.steps[d]);
        map.dims[d] = (u32)t.dims[d];
        if (d == 0) continue;
        const u64 stride = t.strides[d - 1], least = d == 1 ? t.dims[0] * 2 : t.strides[d - 2];
        if (stride % 16 || stride >= 1ull << 40) REFUSE(INVALID_VALUE, "stride %u of %llu bytes", d, stride);
        if (stride < least) {
            say("%s: stride %u of %llu bytes is less than the %llu of the dimension below it", call.name, d,
                stride, least);
        }
        map.strides[d - 1] = stride;
    }
    return SUCCESS;
}

API cuTensorMapEncodeTiled(CUtensorMap* out, int type, u32 rank, void* base, const u64* dims,
                           const u64* strides, const u32* box, const u32* steps, int interleave, int swizzle,
                           int promotion, int fill) {
    ENTER(INIT | CURRENT | HEALTHY);
    CUtensorMap map;
    const Tensor tensor = {type, rank, base, dims, strides, steps, interleave, swizzle, promotion, fill};
    if (int e = encode(call, out, tensor, map)) return e;
    for (u32 d = 0; d < rank; d++) {
        if (!box[d] || box[d] > 256) REFUSE(INVALID_VALUE, "box %u of %u", d, box[d]);
        if (steps[d] != 1) REFUSE(NOT_SUPPORTED, "the emulator knows no steps");
    }
    if (box[0] * 2 % 16 || box[0] * 2 > SWIZZLE_BYTES) {
        REFUSE(INVALID_VALUE, "rows of %u bytes in a swizzle of 128", box[0] * 2);
    }
    if (rank != 2) REFUSE(NOT_SUPPORTED, "the emulator knows two dimensions");
    map.kind = CUtensorMap::TILED;
    map.box[0] = box[0];
    map.box[1] = box[1];
    memcpy(out, &map, sizeof map);
    return SUCCESS;
}
API cuTensorMapEncodeIm2col(CUtensorMap* out, int type, u32 rank, void* base, const u64* dims,
                            const u64* strides, const int* lower, const int* upper, u32 channels, u32 pixels,
                            const u32* steps, int interleave, int swizzle, int promotion, int fill) {
    ENTER(INIT | CURRENT | HEALTHY);
    CUtensorMap map;
    const Tensor tensor = {type, rank, base, dims, strides, steps, interleave, swizzle, promotion, fill};
    if (int e = encode(call, out, tensor, map)) return e;
    if (rank != 4) REFUSE(NOT_SUPPORTED, "the emulator knows four dimensions");
    if (!channels || channels > 256 || channels * 2 % 16 || channels * 2 > SWIZZLE_BYTES) {
        REFUSE(INVALID_VALUE, "%u channels", channels);
    }
    if (!pixels || pixels > 1024) REFUSE(INVALID_VALUE, "%u pixels", pixels);
    for (int d = 0; d < 2; d++) { // width, height
        if (lower[d] < -128 || lower[d] > 127 || upper[d] < -128 || upper[d] > 127) {
            REFUSE(INVALID_VALUE, "corners %d and %d", lower[d], upper[d]);
        }
        if (lower[d] > (i64)dims[d + 1] - 1 + upper[d]) {
            REFUSE(INVALID_VALUE, "no window from %d to %d of %llu", lower[d], upper[d], dims[d + 1]);
        }
        map.lower[d] = lower[d];
        map.upper[d] = upper[d];
        map.steps[d] = steps[d + 1];
    }
    if (steps[0] != 1 || steps[3] != 1) REFUSE(NOT_SUPPORTED, "the emulator knows steps of width and height");
    map.kind = CUtensorMap::IM2COL;
    map.box[0] = channels;
    map.box[1] = pixels;
    memcpy(out, &map, sizeof map);
    return SUCCESS;
}
