// Per-channel work on NHWC data: a thread keeps its channels and walks over pixels, so that coefficients stay
// in registers (five floats per channel are ten times the 2 bytes of a bf16) and a sum over pixels needs one
// tree at the end.
//
// A block is `lanes` packs of n channels by `rows` pixels. Blocks cover (image, slab of channels) in x and
// chunks of pixels in y, or in z where launches may be grouped; src/ops/launch/channel_tiles.rs chooses the numbers.
#pragma once
#include "lib/packs.cuh"
#include "lib/reduce.cuh"

// Mirrors `Tiles` of src/ops/launch/channel_tiles.rs.
struct TilesDims {
    i64 pixels;  // of one image, or of all images together where the op does not distinguish them
    i64 chunk;   // pixels of a block
    int c;       // channels
    int lanes;   // packs of channels of a block, side by side
    int slabs;   // blocks that share the channels of a pixel
    int chunks;  // blocks that share the pixels of an image
};
static_assert(sizeof(TilesDims) == 32, "TilesDims must match Tiles of src/ops/launch/channel_tiles.rs");

// The elements of a thread: for (i64 at = t.first; at < t.last; at += t.step) visits the offsets of its
// channels in its pixels.
template <int n> struct Tile {
    int lane, row, rows;
    // The first of n channels. A thread beyond the last channel has channel 0, no pixels, and `works` false.
    int channel;
    bool works;
    i64 first, last, step;

    DEV static Tile of(const TilesDims& d) { return of(d, blockIdx.x, blockIdx.y); }
    // In a launch that may be grouped, where blockIdx.y is the member.
    DEV static Tile of_member(const TilesDims& d) { return of(d, blockIdx.x, blockIdx.z); }
    // `column`: the image and the slab of channels. `chunk`: the run of pixels.
    DEV static Tile of(const TilesDims& d, int column, int chunk) {
        Tile t;
        t.lane = threadIdx.x % d.lanes;
        t.row = threadIdx.x / d.lanes;
        t.rows = blockDim.x / d.lanes;
        t.channel = (column % d.slabs * d.lanes + t.lane) * n;
        t.works = t.channel < d.c;
        if (!t.works) t.channel = 0;
        const i64 begin = chunk * d.chunk, end = begin + d.chunk < d.pixels ? begin + d.chunk : d.pixels;
        const i64 image = (i64)(column / d.slabs) * d.pixels;
        t.first = (image + begin + t.row) * d.c + t.channel;
        t.last = t.works ? (image + end) * d.c : t.first;
        t.step = (i64)t.rows * d.c;
        return t;
    }
    DEV int image(const TilesDims& d) const { return blockIdx.x / d.slabs; }
};

// Calls use(at, load(at)) for the offsets of a thread, in order, and loads two pixels before it uses the first.
// To read 4.8 TB/s at a latency of 700 ns, each of an H200's 132 multiprocessors needs 26 KB of loads in flight.
// The four blocks of 256 threads that a sum over all pixels has there give 16 KB with one pack of 16 bytes per
// thread, and 32 KB with two. A compiler that wants to save registers moves the second load behind the first use;
// the kernels therefore state how many blocks must fit a multiprocessor, which leaves it the rest.
template <int n, class Load, class Use> DEV void each_pack(const Tile<n>& t, const Load& load, const Use& use) {
    i64 at = t.first, next = at + t.step;
    for (; next < t.last; at = next + t.step, next = at + t.step) {
        const auto v = load(at), w = load(next);
        use(at, v);
        use(next, w);
    }
    if (at < t.last) use(at, load(at));
}

// Floats of shared memory that `sum_rows` needs.
template <int n> constexpr int ROWS_SCRATCH = 256 * n;

// The sum of `v` over the block's rows, in every row: a tree whose shape depends on the number of rows alone.
// All threads must call; those that are too few for another row have no part in it.
template <int n> DEV void sum_rows(Floats<n>& v, float* scratch, const Tile<n>& t, int lanes) {
    const int threads = blockDim.x, me = threadIdx.x;
    UNROLL
    for (int i = 0; i < n; i++) scratch[i * threads + me] = v.v[i];
    for (int left = t.rows; left > 1;) {
        const int half = (left + 1) / 2;
        sync_block();
        if (t.row + half < left) {
            UNROLL
            for (int i = 0; i < n; i++) scratch[i * threads + me] += scratch[i * threads + me + half * lanes];
        }
        left = half;
    }
    sync_block();
    UNROLL
    for (int i = 0; i < n; i++) v.v[i] = scratch[i * threads + t.lane];
    sync_block();
}

// The same where the rows fill the block.
template <int n> DEV void sum_rows(Floats<n>& v, float* scratch, const Tile<n>& t) {
    sum_rows<n>(v, scratch, t, blockDim.x / t.rows);
}

// The mean over up to 32 pixels spread over x: close enough to the channel's mean that sums about it lose no
// digits, even where the mean is many standard deviations from zero. The step is odd, so that it meets all
// columns of a power-of-two image.
template <int n, class T> DEV Floats<n> sample_mean(const T* RESTRICT x, const TilesDims& d, float* scratch, const Tile<n>& t) {
    const int count = d.pixels < 32 ? (int)d.pixels : 32;
    const i64 step = (d.pixels / count) | 1;
    Floats<n> sum = floats<n>(0.0f);
    for (int s = t.row; s < count; s += t.rows) {
        i64 pixel = s * step;
        // Subtracting once is enough, because 31 (pixels / 32 + 1) is less than twice the pixels.
        if (pixel >= d.pixels) pixel -= d.pixels;
        const Floats<n> v = load_f32<n>(x + pixel * d.c + t.channel);
        UNROLL
        for (int i = 0; i < n; i++) sum.v[i] += v.v[i];
    }
    sum_rows<n>(sum, scratch, t, d.lanes);
    UNROLL
    for (int i = 0; i < n; i++) sum.v[i] /= (float)count;
    return sum;
}

// Stores the two sums of this block's chunk in parts [chunks][2][c].
template <int n>
DEV void store_parts(float* RESTRICT parts, Floats<n>& first, Floats<n>& second, const TilesDims& d, float* scratch, const Tile<n>& t,
                     int chunk) {
    sum_rows<n>(first, scratch, t, d.lanes);
    sum_rows<n>(second, scratch, t, d.lanes);
    if (!t.works || t.row > 0) return;
    store_f32<n>(parts + (i64)(2 * chunk) * d.c + t.channel, first);
    store_f32<n>(parts + (i64)(2 * chunk + 1) * d.c + t.channel, second);
}

// Stores sums of x - shift and of its square over this block's chunk in parts [chunks][2][c]. Every block
// computes the same shift (from 32 pixels of x, which are in the L2 after the first block), which saves a
// launch; the blocks of chunk 0 store it in `shift` [c].
template <int n, class T>
DEV void store_stats_parts(float* RESTRICT shift, float* RESTRICT parts, const T* RESTRICT x, const TilesDims& d,
                           const Tile<n>& t, int chunk, float* scratch) {
    const Floats<n> about = sample_mean<n>(x, d, scratch, t);
    if (chunk == 0 && t.row == 0 && t.works) store_f32<n>(shift + t.channel, about);
    Floats<n> first = floats<n>(0.0f), second = floats<n>(0.0f);
    each_pack(t, [&](i64 at) { return load_f32<n>(x + at); }, [&](i64, const Floats<n>& v) {
        UNROLL
        for (int i = 0; i < n; i++) {
            const float away = v.v[i] - about.v[i];
            first.v[i] += away;
            second.v[i] = fmaf(away, away, second.v[i]);
        }
    });
    store_parts<n>(parts, first, second, d, scratch, t, chunk);
}

// A block of 256 threads folds the parts of 8 channels, 32 threads per channel: at 528 chunks a thread reads
// 17 pairs, where a single thread would wait for 528.
constexpr int FOLD_CHANNELS = 8, FOLD_SLICES = 32;
constexpr int FOLD_SCRATCH = 2 * FOLD_CHANNELS * FOLD_SLICES;

DEV int fold_channel() { return blockIdx.x * FOLD_CHANNELS + threadIdx.x % FOLD_CHANNELS; }
// One thread per channel owns the reduced result.
DEV bool is_fold_leader(int c) { return threadIdx.x < FOLD_CHANNELS && fold_channel() < c; }

// Both sums of `fold_channel()` over all chunks, in every thread, in double: for a few numbers per channel it
// costs nothing.
DEV void fold_parts(double (&sums)[2], const float* RESTRICT parts, int c, int chunks, double* scratch) {
    const int channel = fold_channel();
    sums[0] = sums[1] = 0.0;
    if (channel < c) {
        for (int k = threadIdx.x / FOLD_CHANNELS; k < chunks; k += FOLD_SLICES) {
            sums[0] += parts[(i64)(2 * k) * c + channel];
            sums[1] += parts[(i64)(2 * k + 1) * c + channel];
        }
    }
    sum_slices<FOLD_CHANNELS * FOLD_SLICES, FOLD_CHANNELS>(sums, scratch);
}

// Mean (as its distance from the shift) and biased variance from the sums about a shift. A variance of NaN
// becomes 0, as on the CPU; the mean still shows that the channel diverged.
DEV void mean_and_variance(float& delta, float& var, const double (&sums)[2], i64 pixels) {
    const double mean = sums[0] / (double)pixels, square = sums[1] / (double)pixels - mean * mean;
    delta = (float)mean;
    var = square > 0.0 ? (float)square : 0.0f;
}

// The sum of x over the tile's pixels, in every row of threads.
template <int n, class T> DEV Floats<n> sum_tile(const T* RESTRICT x, float* scratch, const Tile<n>& t) {
    Floats<n> sum = floats<n>(0.0f);
    each_pack(t, [&](i64 at) { return load_f32<n>(x + at); }, [&](i64, const Floats<n>& v) {
        UNROLL
        for (int i = 0; i < n; i++) sum.v[i] += v.v[i];
    });
    sum_rows<n>(sum, scratch, t);
    return sum;
}
