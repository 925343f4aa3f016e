// Turns the partial channel statistics that a convolution writes into sums over all pixels, for which a batch
// norm or a statistics loss would otherwise read the whole map. Launched by src/ops/launch/channel_stats.rs.
#include "lib/dev.cuh"

// Merges the statistics of tiles of `rows` pixels (the last tile has the rest) into the sums of x - shift and
// of its square, which `fold_parts` of lib/channels.cuh reads as a single part; `shift` is the channel's
// mean, rounded to a float.
// Grid: (ceil(k / 8)); block: 1024 threads, 128 for each of eight channels. 64 images of 112x112 are 6272
// tiles of 128 pixels, 49 for each thread. Shared memory: 16 KB.
KERNEL(1024)
channel_stats_fold(float* RESTRICT sums,        // [2][k]
                   float* RESTRICT shift,       // [k]
                   const float* RESTRICT stats, // [tiles][2][k]: means, then squared distances from them
                   i64 pixels, int k, int rows) {
    constexpr int CHANNELS = 8, SLICES = 1024 / CHANNELS;
    SHARED(double, scratch, 2 * 1024);
    const int channel = blockIdx.x * CHANNELS + threadIdx.x % CHANNELS, slice = threadIdx.x / CHANNELS;
    const int tiles = (int)((pixels + rows - 1) / rows);
    // The sums of x and of x^2. In double: its 53 bits leave the rounding of the tiles' own floats as the
    // only error.
    double first = 0.0, second = 0.0;
    if (channel < k) {
        _Pragma("unroll 4") for (int t = slice; t < tiles; t += SLICES) {
            const double mean = stats[(i64)(2 * t) * k + channel], square = stats[(i64)(2 * t + 1) * k + channel];
            const double n = t + 1 < tiles ? rows : (int)(pixels - (i64)t * rows);
            first += n * mean;
            second += square + n * mean * mean;
        }
    }
    scratch[threadIdx.x] = first;
    scratch[1024 + threadIdx.x] = second;
    for (int half = 512; half >= CHANNELS; half /= 2) {
        sync_block();
        if (threadIdx.x < half) {
            scratch[threadIdx.x] += scratch[threadIdx.x + half];
            scratch[1024 + threadIdx.x] += scratch[1024 + threadIdx.x + half];
        }
    }
    sync_block();
    if (threadIdx.x >= CHANNELS || channel >= k) return;
    const double mean = scratch[threadIdx.x] / (double)pixels;
    const float near = (float)mean;
    shift[channel] = near;
    sums[channel] = (float)((mean - near) * (double)pixels);
    const double away = mean - near, square = scratch[1024 + threadIdx.x] - (double)pixels * mean * mean;
    sums[k + channel] = (float)(square + (double)pixels * away * away);
}

INSTANCE(channel_stats_fold)
