// The relative feature error ||a - b||^2 / ||b||^2: see src/ops/losses/feature_loss.rs. Forward computes
// partial sums of both norms, then adds them in one block; backward is elementwise. a, b and da are read as
// packs of n elements of type T. The kernels of forward have a table of losses, of any number and sizes: a student for two
// tasks has twelve at its third block.
#include "lib/group.cuh"
#include "lib/packs.cuh"
#include "lib/reduce.cuh"

// One row of the table of passes.
template <class T> struct FeaturePass {
    double* parts; // [2][blocks]: a block's partial sums of ||a - b||^2 and ||b||^2
    const T* a;
    const T* b;
    i64 packs, blocks;
};
static_assert(sizeof(FeaturePass<float>) == 40, "FeaturePass must match src/ops/losses/feature_loss.rs");

// Squares are added in f32 within a pack, and in double, as on the host, from there on: a pack of 8 elements costs two
// conversions instead of 16. Grid: (blocks of the loss with most of them, losses).
template <class T, int n> KERNEL(256) feature_loss_fwd_sums(const FeaturePass<T>* RESTRICT passes) {
    SHARED(double, scratch, 8);
    const FeaturePass<T> p = passes[blockIdx.y];
    if ((i64)blockIdx.x >= p.blocks) return;
    double error = 0.0, norm = 0.0;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < p.packs; i += p.blocks * blockDim.x) {
        const Floats<n> u = load_f32<n>(p.a + i * n), v = load_f32<n>(p.b + i * n);
        float pack_error = 0.0f, pack_norm = 0.0f;
        UNROLL
        for (int k = 0; k < n; k++) {
            const float away = u.v[k] - v.v[k];
            pack_error = fmaf(away, away, pack_error);
            pack_norm = fmaf(v.v[k], v.v[k], pack_norm);
        }
        error += pack_error;
        norm += pack_norm;
    }
    error = block_sum(error, scratch);
    norm = block_sum(norm, scratch);
    if (threadIdx.x > 0) return;
    p.parts[blockIdx.x] = error;
    p.parts[p.blocks + blockIdx.x] = norm;
}
INSTANCE(feature_loss_fwd_sums<float, 4>)
INSTANCE(feature_loss_fwd_sums<float, 1>)
INSTANCE(feature_loss_fwd_sums<bf16, 8>)
INSTANCE(feature_loss_fwd_sums<bf16, 1>)

// One row of the table of losses. `norm`, if not null, is saved for backward.
struct FeatureSums {
    float* loss;
    double* norm;
    const double* parts; // [2][blocks]
    i64 blocks;
};
static_assert(sizeof(FeatureSums) == 32, "FeatureSums must match src/ops/losses/feature_loss.rs");

// loss = error / norm from the partial sums, in one block. Grid: (1, losses).
KERNEL(256) feature_loss_fwd(const FeatureSums* RESTRICT losses) {
    SHARED(double, scratch, 8);
    const FeatureSums s = losses[blockIdx.y];
    double error_sum = 0.0, norm_sum = 0.0;
    for (i64 i = threadIdx.x; i < s.blocks; i += blockDim.x) {
        error_sum += s.parts[i];
        norm_sum += s.parts[s.blocks + i];
    }
    error_sum = block_sum(error_sum, scratch);
    norm_sum = block_sum(norm_sum, scratch);
    if (threadIdx.x > 0) return;
    // A NaN norm becomes 1e-12 too, as on the host; the error is NaN then, and shows the divergence.
    if (!(norm_sum > 1e-12)) norm_sum = 1e-12;
    s.loss[0] = (float)(error_sum / norm_sum);
    if (s.norm) s.norm[0] = norm_sum;
}
INSTANCE(feature_loss_fwd)

template <class T> struct FeatureBackward {
    T* da;
    const T* a;
    const T* b;
    const float* dloss;
    const double* norm;
};

// The packs of one loss. A structure's pointers may alias each other, these may not.
template <class T, int n>
DEV void put_differences(T* RESTRICT da, const T* RESTRICT a, const T* RESTRICT b, float slope, i64 packs, int add) {
    for (i64 i = global_thread(); i < packs; i += global_threads()) {
        Floats<n> u = load_f32<n>(a + i * n);
        const Floats<n> v = load_f32<n>(b + i * n);
        UNROLL
        for (int k = 0; k < n; k++) u.v[k] = (u.v[k] - v.v[k]) * slope;
        put_f32<n>(da + i * n, u, add);
    }
}

// da (+)= 2 dloss (a - b) / norm. One thread per pack; losses of equal sizes share a launch, and blockIdx.y is the member.
template <class T, int n> KERNEL(256) feature_loss_bwd(Group<FeatureBackward<T>> members, i64 packs, int add) {
    const FeatureBackward<T>& io = members.mine();
    put_differences<T, n>(io.da, io.a, io.b, (float)(2.0 * (double)io.dloss[0] / io.norm[0]), packs, add);
}
INSTANCE(feature_loss_bwd<float, 4>)
INSTANCE(feature_loss_bwd<float, 1>)
INSTANCE(feature_loss_bwd<bf16, 8>)
INSTANCE(feature_loss_bwd<bf16, 1>)
