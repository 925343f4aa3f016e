// Mean squared distance between the samples of f [n, c] over their mean squared norm: see
// src/ops/losses/diversity.rs. One launch computes partial sums of both, a second adds them. Arithmetic in
// double.
#include "lib/dev.cuh"
#include "lib/loss.cuh"

// A block of 8 warps takes 32 columns, one per lane, and its warps share the rows. The rows are read once for
// the columns' means, and again (from L1) for the distances to them. 2048 features make 64 blocks.
KERNEL(256) diversity_columns(double* RESTRICT partial,  // [blocks, 2]: squared offsets, squared norms
                              const float* RESTRICT f,   // [n, c]
                              int n, int c) {
    SHARED(double, sums, 8 * 32);
    SHARED(double, scratch, 8);
    const int warps = (int)blockDim.x / 32;
    const int column = (int)blockIdx.x * 32 + lane_id();
    const bool inside = column < c;
    // Offsets from the first sample: equal samples give exactly 0.
    const double first = inside ? f[column] : 0.0;
    double mean = 0.0;
    for (int row = warp_id(); inside && row < n; row += warps) mean += (double)f[(i64)row * c + column] - first;
    sums[warp_id() * 32 + lane_id()] = mean;
    sync_block();
    mean = 0.0;
    for (int w = 0; w < warps; w++) mean += sums[w * 32 + lane_id()];
    mean /= n;
    double spread = 0.0, norm = 0.0;
    for (int row = warp_id(); inside && row < n; row += warps) {
        const double v = f[(i64)row * c + column];
        const double away = v - first - mean;
        spread += away * away;
        norm += v * v;
    }
    spread = block_sum(spread, scratch);
    norm = block_sum(norm, scratch);
    if (threadIdx.x == 0) {
        partial[2 * blockIdx.x] = spread;
        partial[2 * blockIdx.x + 1] = norm;
    }
}
INSTANCE(diversity_columns)

// y from the partial sums, in one block.
KERNEL(256) diversity_finish(float* RESTRICT y,               // scalar
                             const double* RESTRICT partial,  // [blocks, 2]
                             int blocks, int n) {
    SHARED(double, scratch, 8);
    const double spread = block_total(blocks, scratch, [&](i64 i) { return partial[2 * i]; });
    const double norm = block_total(blocks, scratch, [&](i64 i) { return partial[2 * i + 1]; });
    if (threadIdx.x == 0) *y = (float)(norm > 0.0 ? 2.0 * n / (n - 1.0) * spread / norm : 0.0);
}
INSTANCE(diversity_finish)
