// Hands a value to networks on several ranks and adds their gradients: see src/ops/ranks/spread.rs. One thread per
// element. A library moves the terms between the ranks; these kernels lay them out and add them.
#include "lib/dev.cuh"

// y_i = x for every network i of this rank.
template <class T>
KERNEL(256) spread_fwd(T* const* RESTRICT y,  // [networks] of [elements]
                       const T* RESTRICT x,   // [elements]
                       int networks, i64 elements) {
    for (i64 e = global_thread(); e < elements; e += global_threads())
        for (int i = 0; i < networks; i++) y[i][e] = x[e];
}
INSTANCE(spread_fwd<float>)
INSTANCE(spread_fwd<bf16>)

// own[rank][i][k] = dy_i[rank * slice + k]: the terms of each slice, for the rank that adds it. A network without a
// gradient has a null dy, and its terms are 0.
template <class T>
KERNEL(256) spread_pack(float* RESTRICT own,           // [ranks, most, slice]
                        const T* const* RESTRICT dy,   // [networks] of [elements]
                        int networks, int most, i64 slice, i64 elements) {
    for (i64 e = global_thread(); e < elements; e += global_threads()) {
        float* to = own + e / slice * most * slice + e % slice;
        for (int i = 0; i < networks; i++) to[i * slice] = dy[i] ? to_f32(dy[i][e]) : 0.0f;
    }
}
INSTANCE(spread_pack<float>)
INSTANCE(spread_pack<bf16>)

// sum[k] is the sum of the terms of all networks. `terms` lists their rows in the order of the additions.
KERNEL(256) spread_sum(float* RESTRICT sum,             // [slice]
                       const float* RESTRICT all,       // [ranks * most, slice]
                       const i64* RESTRICT terms,       // [count] rows of `all`
                       int count, i64 slice) {
    for (i64 k = global_thread(); k < slice; k += global_threads()) {
        float total = all[terms[0] * slice + k];
        for (int i = 1; i < count; i++) total += all[terms[i] * slice + k];
        sum[k] = total;
    }
}
INSTANCE(spread_sum)

// dx (+)= the sums of all slices.
template <class T>
KERNEL(256) spread_store(T* RESTRICT dx,              // [elements]
                         const float* RESTRICT sums,  // [elements], and the last slice's remainder
                         i64 elements, int add) {
    for (i64 e = global_thread(); e < elements; e += global_threads()) put(dx + e, sums[e], add);
}
INSTANCE(spread_store<float>)
INSTANCE(spread_store<bf16>)
