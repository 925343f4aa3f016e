// Kernels that the engine launches for buffers, without an op: bf16 copies of parameters, images from pixels, and
// constants.
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

// A pixel as networks take it: 0 becomes -1, 255 becomes 1.
DEV float input_of(u8 pixel) { return pixel / 127.5f - 1.0f; }

// y = x as networks take it. A thread converts 4 elements, so that a warp reads and writes whole lines. Both pointers
// are aligned to a pack.
KERNEL(256) pixels_to_inputs(float* RESTRICT y,     // [elements]
                             const u8* RESTRICT x,  // [elements]
                             i64 elements) {
    for (i64 at = 4 * global_thread(); at < elements; at += 4 * global_threads()) {
        if (at + 4 <= elements) {
            const Pack<u8, 4> p = load_pack<4>(x + at);
            store_pack(y + at, Pack<float, 4>{{input_of(p.v[0]), input_of(p.v[1]), input_of(p.v[2]), input_of(p.v[3])}});
        } else {
            for (i64 i = at; i < elements; i++) y[i] = input_of(x[i]);
        }
    }
}
INSTANCE(pixels_to_inputs)

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
