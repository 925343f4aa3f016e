// What the optimisers' kernels share: one launch updates all parameters, in chunks.
#pragma once
#include "lib/chunks.cuh"
#include "lib/dev.cuh"

// Calls `four(at)` for each four neighbours among the elements [first, end), and `one(at)` for the elements
// after them. `first` is a multiple of 4, so that a pack is aligned.
template <class Four, class One> DEV void for_chunk(i64 first, i64 end, Four four, One one) {
    for (i64 at = first + 4 * threadIdx.x; at < end; at += 4 * blockDim.x) {
        if (at + 4 <= end) {
            four(at);
        } else {
            for (i64 i = at; i < end; i++) one(i);
        }
    }
}

// Stores four floats as bf16, 8 bytes.
DEV void store_bf16(bf16* to, const Pack<float, 4>& v) {
    Pack<bf16, 4> p;
    UNROLL
    for (int k = 0; k < 4; k++) p.v[k] = to_bf16(v.v[k]);
    store_pack(to, p);
}
