// Copies images from the store into a feature map: see src/ops/movement/to_maps.rs.
#include "lib/dev.cuh"

// y = x, 4 elements a thread and pass. Both pointers are aligned to a pack.
template <class T>
KERNEL(256) to_maps(T* RESTRICT y,            // [elements]
                    const float* RESTRICT x,  // [elements]
                    i64 elements) {
    for (i64 at = 4 * global_thread(); at < elements; at += 4 * global_threads()) {
        if (at + 4 <= elements) {
            const Pack<float, 4> v = load_pack<4>(x + at);
            Pack<T, 4> p;
            UNROLL
            for (int k = 0; k < 4; k++) p.v[k] = from_f32<T>(v.v[k]);
            store_pack(y + at, p);
        } else {
            for (i64 i = at; i < elements; i++) y[i] = from_f32<T>(x[i]);
        }
    }
}
INSTANCE(to_maps<float>)
INSTANCE(to_maps<bf16>)
