// The deviation of the channel statistics of u [pixels, c] from targets: see
// src/ops/losses/statistics_loss.rs. Forward gets mean and variance of each channel, from the statistics that
// the producer of u stored or by a pass over u, and sums over the channels. The last launch stores three
// vectors, with which backward is linear in u.
//
// Two ResNet-101 teachers have 208 maps. The kernels of forward have a table of them, of any number and sizes;
// blockIdx.y is the map. Blocks and chunks of backward as in lib/channels.cuh.
#include "lib/channel_stats.cuh"
#include "lib/channels.cuh"
#include "lib/reduce.cuh"

// One row of the table.
struct StatisticsMap {
    float* loss;               // scalar
    float* coefficients;       // [3][c]
    const float* parts;        // [tiles][2][c] of the producer of u, or [chunks][2][c] of the pass over u
    const float* target_mean;  // [c]
    const float* target_std;   // [c]
    i64 pixels, c;
    i64 count;  // pixels of a tile, or chunks
};
static_assert(sizeof(StatisticsMap) == 64, "StatisticsMap must match src/ops/losses/statistics_loss.rs");

// One row of the table of passes: the pointers, and the fields of TilesDims.
template <class T> struct StatisticsPass {
    float* parts; // [chunks][2][c]
    float* shift; // [c]
    const T* u;   // [pixels, c]
    i64 pixels, chunk, c, lanes, slabs, chunks;
};
static_assert(sizeof(StatisticsPass<float>) == 72, "StatisticsPass must match src/ops/losses/statistics_loss.rs");

// Sums of u - shift and of its square over chunks of pixels.
// Grid: (chunks times slabs of the map with most of them, maps).
template <class T, int n> KERNEL(256, 4) statistics_loss_fwd_sums(const StatisticsPass<T>* RESTRICT passes) {
    SHARED(float, scratch, ROWS_SCRATCH<n>);
    const StatisticsPass<T> p = passes[blockIdx.y];
    const TilesDims d = {p.pixels, p.chunk, (int)p.c, (int)p.lanes, (int)p.slabs, (int)p.chunks};
    if ((int)blockIdx.x >= d.slabs * d.chunks) return;
    const int chunk = blockIdx.x / d.slabs;
    Tile<n> t = Tile<n>::of(d, blockIdx.x % d.slabs, chunk);
    // All maps have blocks of 256 threads; those that are too few for another row of this map have no pixels.
    if (t.row >= t.rows) t.works = false, t.last = t.first;
    store_stats_parts<n>(p.shift, p.parts, p.u, d, t, chunk, scratch);
}
INSTANCE(statistics_loss_fwd_sums<float, 4>)
INSTANCE(statistics_loss_fwd_sums<float, 1>)
INSTANCE(statistics_loss_fwd_sums<bf16, 8>)
INSTANCE(statistics_loss_fwd_sums<bf16, 1>)

// Folds the chunks. coefficients [3][c]: shift (unchanged), variance, and the mean minus the shift.
// Grid: (ceil(c / 8) of the map with most channels, maps).
KERNEL(256) statistics_loss_fwd_coefficients(const StatisticsMap* RESTRICT maps) {
    SHARED(double, scratch, FOLD_SCRATCH);
    const StatisticsMap m = maps[blockIdx.y];
    const int c = (int)m.c;
    if ((int)blockIdx.x * FOLD_CHANNELS >= c) return;
    double sums[2];
    fold_parts(sums, m.parts, c, (int)m.count, scratch);
    if (!is_fold_leader(c)) return;
    const int i = fold_channel();
    mean_and_variance(m.coefficients[2 * c + i], m.coefficients[c + i], sums, m.pixels);
}
INSTANCE(statistics_loss_fwd_coefficients)

// The same from the tiles that the producers of u stored; the shift is the mean, rounded to a float.
KERNEL(1024) statistics_loss_fwd_merge(const StatisticsMap* RESTRICT maps) {
    SHARED(double, scratch, TILE_FOLD_SCRATCH);
    const StatisticsMap m = maps[blockIdx.y];
    const int c = (int)m.c;
    if ((int)blockIdx.x * TILE_FOLD_CHANNELS >= c) return;
    double sums[2];
    fold_tiles(sums, m.parts, m.pixels, c, (int)m.count, scratch);
    if (!is_tile_fold_leader(c)) return;
    const TileMoments of = TileMoments::of(sums, m.pixels);
    const int i = tile_fold_channel();
    m.coefficients[i] = of.mean;
    m.coefficients[c + i] = of.variance;
    m.coefficients[2 * c + i] = of.rest;
}
INSTANCE(statistics_loss_fwd_merge)

// The loss of each map, in one block. coefficients [3][c] become shift, slope and offset, with du = dloss *
// (slope * (u - shift) + offset). Grid: (1, maps).
KERNEL(256) statistics_loss_fwd(const StatisticsMap* RESTRICT maps, float eps, double min_std) {
    SHARED(double, scratch, 8);
    const StatisticsMap m = maps[blockIdx.y];
    const int c = (int)m.c;
    double counted = 0.0;
    for (int i = threadIdx.x; i < c; i += blockDim.x) counted += (double)m.target_std[i] >= min_std;
    counted = block_sum(counted, scratch);
    if (counted < 1.0) counted = 1.0;
    double sum = 0.0;
    // A few numbers per channel, so double costs nothing.
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        const double std = m.target_std[i], delta = m.coefficients[2 * c + i], var = m.coefficients[c + i];
        double slope = 0.0, offset = 0.0;
        if (std >= min_std) {
            const double away = (double)(m.coefficients[i] - m.target_mean[i]) + delta;
            const double ratio = sqrt(var / (std * std) + (double)eps);
            sum += away / std * (away / std) + (ratio - 1.0) * (ratio - 1.0);
            const double spread = ratio > 0.0 ? (ratio - 1.0) / ratio : 0.0;
            const double scale = 2.0 / (counted * (double)m.pixels) / (std * std);
            slope = scale * spread;
            offset = scale * (away - spread * delta);
        }
        m.coefficients[c + i] = (float)slope;
        m.coefficients[2 * c + i] = (float)offset;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) m.loss[0] = (float)(sum / counted);
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
