// A run of samples. Neither kernel looks inside a sample: a tensor is a line of packs.
#include "lib/packs.cuh"

// y [packs], x at its first pack
template <class T, int n> KERNEL(256) slice_fwd(T* RESTRICT y, const T* RESTRICT x, i64 first, i64 packs) {
    for (i64 i = global_thread(); i < packs; i += global_threads()) store_pack<n>(y + i * n, load_pack<n>(x + (first + i) * n));
}
INSTANCE(slice_fwd<float, 4>)
INSTANCE(slice_fwd<float, 1>)
INSTANCE(slice_fwd<bf16, 8>)
INSTANCE(slice_fwd<bf16, 1>)

// dx [packs]: dy [count] in its place, zero elsewhere
template <class T, int n> KERNEL(256) slice_bwd(T* RESTRICT dx, const T* RESTRICT dy, i64 first, i64 count, i64 packs, int add) {
    for (i64 i = global_thread(); i < packs; i += global_threads()) {
        if (i >= first && i < first + count) {
            put_f32<n>(dx + i * n, load_f32<n>(dy + (i - first) * n), add);
        } else if (!add) {
            store_f32<n>(dx + i * n, floats<n>(0.0f));
        }
    }
}
INSTANCE(slice_bwd<float, 4>)
INSTANCE(slice_bwd<float, 1>)
INSTANCE(slice_bwd<bf16, 8>)
INSTANCE(slice_bwd<bf16, 1>)
