// The negative mean L1 norm of features f [n, c]: see src/ops/losses/activation_loss.rs. Features are wide
// ([64, 2048]), so many blocks compute partial sums, and a second launch adds these. Blocks of 256 threads, 4
// neighbouring elements per load.
#include "lib/dev.cuh"
#include "lib/loss.cuh"

// partial[block] = sum of |f| over the elements of a block.
KERNEL(256) activation_loss_fwd(double* RESTRICT partial,  // [blocks]
                                const float* RESTRICT f,   // [elements]
                                i64 elements) {
    SHARED(double, scratch, 8);
    double sum = 0.0;
    for (i64 at = 4 * global_thread(); at < elements; at += 4 * global_threads()) {
        if (at + 4 <= elements) {
            const Pack<float, 4> v = load_pack<4>(f + at);
            UNROLL
            for (int k = 0; k < 4; k++) sum += fabs((double)v.v[k]);
        } else {
            for (i64 i = at; i < elements; i++) sum += fabs((double)f[i]);
        }
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
INSTANCE(activation_loss_fwd)

// y = -share * sum of the partial sums, in one block. `share` is 1 / (number of terms of the mean).
KERNEL(256) activation_loss_finish(float* RESTRICT y,               // scalar
                                   const double* RESTRICT partial,  // [blocks]
                                   int blocks, double share) {
    SHARED(double, scratch, 8);
    const double total = block_total(blocks, scratch, [&](i64 i) { return partial[i]; });
    if (threadIdx.x == 0) *y = (float)(-total * share);
}
INSTANCE(activation_loss_finish)

// df (+)= -dy * share * sign(f).
KERNEL(256) activation_loss_bwd(float* RESTRICT df,        // [elements]
                                const float* RESTRICT f,   // [elements]
                                const float* RESTRICT dy,  // scalar
                                i64 elements, double share, int add) {
    const double d = (double)*dy * share;
    for (i64 at = 4 * global_thread(); at < elements; at += 4 * global_threads()) {
        if (at + 4 <= elements) {
            const Pack<float, 4> v = load_pack<4>(f + at);
            Pack<float, 4> g = {};
            if (add) g = load_pack<4>(df + at);
            UNROLL
            for (int k = 0; k < 4; k++) put(&g.v[k], (float)(d * -sign_of(v.v[k])), add);
            store_pack(df + at, g);
        } else {
            for (i64 i = at; i < elements; i++) put(df + i, (float)(d * -sign_of(f[i])), add);
        }
    }
}
INSTANCE(activation_loss_bwd)
