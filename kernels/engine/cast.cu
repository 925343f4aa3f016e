// Kernels that the engine launches for buffers, without an op: bf16 copies of parameters, and constants.
#include "lib/dev.cuh"

// y = x in bf16. A thread converts 8 elements: 32 bytes read, 16 written. Both pointers are 16-byte aligned.
KERNEL(256) cast_bf16(bf16* RESTRICT y,         // [elements]
                      const float* RESTRICT x,  // [elements]
                      i64 elements) {
    for (i64 at = 8 * global_thread(); at < elements; at += 8 * global_threads()) {
        if (at + 8 <= elements) {
            const Pack<float, 4> lo = load_pack<4>(x + at), hi = load_pack<4>(x + at + 4);
            const Pack<u32, 4> p = {{pack_bf16(lo.v[0], lo.v[1]), pack_bf16(lo.v[2], lo.v[3]),
                                     pack_bf16(hi.v[0], hi.v[1]), pack_bf16(hi.v[2], hi.v[3])}};
            store_pack(reinterpret_cast<u32*>(y + at), p);
        } else {
            for (i64 i = at; i < elements; i++) y[i] = to_bf16(x[i]);
        }
    }
}
INSTANCE(cast_bf16)

// y[i] = value, 4 elements per thread. y is 16-byte aligned.
KERNEL(256) fill(float* RESTRICT y,  // [elements]
                 float value, i64 elements) {
    for (i64 at = 4 * global_thread(); at < elements; at += 4 * global_threads()) {
        if (at + 4 <= elements) {
            store_pack(y + at, Pack<float, 4>{{value, value, value, value}});
        } else {
            for (i64 i = at; i < elements; i++) y[i] = value;
        }
    }
}
INSTANCE(fill)
