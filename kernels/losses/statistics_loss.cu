// The deviation of the channel statistics of u [pixels, c] from targets: see
// src/ops/losses/statistics_loss.rs. Forward is three launches: sums over chunks of pixels, a fold for each
// channel, and one block that sums over the channels. The last one stores three vectors, with which backward
// is linear in u. Blocks and chunks as in lib/channels.cuh.
#include "lib/channels.cuh"
#include "lib/reduce.cuh"

// Sums of u - shift and of its square over chunks of pixels. parts [chunks][2][c], shift [c], u [pixels, c].
template <class T, int n>
KERNEL(256, 4)
statistics_loss_fwd_sums(float* RESTRICT parts, float* RESTRICT shift, const T* RESTRICT u, TilesDims d) {
    SHARED(float, scratch, ROWS_SCRATCH<n>);
    store_stats_parts<n>(shift, parts, u, d, scratch);
}
INSTANCE(statistics_loss_fwd_sums<float, 4>)
INSTANCE(statistics_loss_fwd_sums<float, 1>)
INSTANCE(statistics_loss_fwd_sums<bf16, 8>)
INSTANCE(statistics_loss_fwd_sums<bf16, 1>)

// Folds the chunks. coefficients [3][c]: shift (unchanged), variance, and the mean minus the shift.
KERNEL(256) statistics_loss_fwd_coefficients(float* RESTRICT coefficients, const float* RESTRICT parts, i64 pixels, int c, int chunks) {
    SHARED(double, scratch, FOLD_SCRATCH);
    double sums[2];
    fold_parts(sums, parts, c, chunks, scratch);
    if (!is_fold_leader(c)) return;
    const int i = fold_channel();
    mean_and_variance(coefficients[2 * c + i], coefficients[c + i], sums, pixels);
}
INSTANCE(statistics_loss_fwd_coefficients)

// loss [1], in one block. coefficients [3][c] become shift, slope and offset, with du = dloss * (slope * (u -
// shift) + offset).
KERNEL(256) statistics_loss_fwd(float* RESTRICT loss, float* RESTRICT coefficients, const float* RESTRICT target_mean,
                                const float* RESTRICT target_std, i64 pixels, int c, float eps, double min_std) {
    SHARED(double, scratch, 8);
    double counted = 0.0;
    for (int i = threadIdx.x; i < c; i += blockDim.x) counted += (double)target_std[i] >= min_std;
    counted = block_sum(counted, scratch);
    if (counted < 1.0) counted = 1.0;
    double sum = 0.0;
    // A few numbers per channel, so double costs nothing.
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        const double std = target_std[i], delta = coefficients[2 * c + i], var = coefficients[c + i];
        double slope = 0.0, offset = 0.0;
        if (std >= min_std) {
            const double away = (double)(coefficients[i] - target_mean[i]) + delta;
            const double ratio = sqrt(var / (std * std) + (double)eps);
            sum += away / std * (away / std) + (ratio - 1.0) * (ratio - 1.0);
            const double spread = ratio > 0.0 ? (ratio - 1.0) / ratio : 0.0;
            const double scale = 2.0 / (counted * (double)pixels) / (std * std);
            slope = scale * spread;
            offset = scale * (away - spread * delta);
        }
        coefficients[c + i] = (float)slope;
        coefficients[2 * c + i] = (float)offset;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) loss[0] = (float)(sum / counted);
}
INSTANCE(statistics_loss_fwd)

// du = first + dloss * (slope * (u - shift) + offset); `first` may be null, or du itself.
template <class T, int n>
KERNEL(256) statistics_loss_bwd(T* du, const T* first, const T* RESTRICT u, const float* RESTRICT coefficients,
                                const float* RESTRICT dloss, TilesDims d) {
    const Tile<n> t = Tile<n>::of(d);
    if (!t.works) return;
    const float scale = dloss[0];
    const Floats<n> shift = load_f32<n>(coefficients + t.channel);
    const Floats<n> slope = load_f32<n>(coefficients + d.c + t.channel);
    const Floats<n> offset = load_f32<n>(coefficients + 2 * (i64)d.c + t.channel);
    for (i64 at = t.first; at < t.last; at += t.step) {
        Floats<n> v = load_f32<n>(u + at);
        UNROLL
        for (int i = 0; i < n; i++) v.v[i] = scale * fmaf(slope.v[i], v.v[i] - shift.v[i], offset.v[i]);
        if (first) {
            const Floats<n> more = load_f32<n>(first + at);
            UNROLL
            for (int i = 0; i < n; i++) v.v[i] += more.v[i];
        }
        store_f32<n>(du + at, v);
    }
}
INSTANCE(statistics_loss_bwd<float, 4>)
INSTANCE(statistics_loss_bwd<float, 1>)
INSTANCE(statistics_loss_bwd<bf16, 8>)
INSTANCE(statistics_loss_bwd<bf16, 1>)
