// Partial statistics of a convolution's output channels, taken from its tiles while they are in registers: a
// batch norm or a statistics loss behind it then needs no pass over the map.
//
// For each of its columns a tile stores the mean and the sum of squared distances from it. Such partials are
// merged without a common shift (Chan, Golub, LeVeque 1983) and lose no digits where the mean is many
// standard deviations from zero. `fold_tiles` merges them.
#pragma once
#include "lib/eights.cuh"
#include "lib/reduce.cuh"

// The statistics of eight columns over the rows that one of THREADS threads is given by the epilogue of
// lib/tile.cuh: BN / 8 threads share a row, and THREADS / (BN / 8) rows are processed at a time.
template <int THREADS, int BN> struct ColumnStats {
    static constexpr int GROUPS = THREADS / (BN / 8);
    // Floats of shared memory that `store` needs.
    static constexpr int SCRATCH = 2 * GROUPS * BN;
    float about[8] = {}, first[8] = {}, second[8] = {};
    int count = 0;

    DEV void add(const float (&v)[8]) {
        UNROLL
        for (int i = 0; i < 8; i++) {
            // Sums about the first row's value lose no digits.
            if (count == 0) about[i] = v[i];
            const float away = v[i] - about[i];
            first[i] += away;
            second[i] = fmaf(away, away, second[i]);
        }
        count++;
    }
    // Writes the tile's part [2][k]: means, then sums of squared distances. `rows` is the number of rows of
    // the tile that exist. All threads must call, and `scratch` (SCRATCH floats of shared memory) must be
    // free.
    DEV void store(float* part, int k, int column, int rows, float* scratch) const {
        const int group = threadIdx.x / (BN / 8), mine = threadIdx.x % (BN / 8) * 8;
        UNROLL
        for (int i = 0; i < 8; i++) {
            const float mean = count > 0 ? first[i] / (float)count : 0.0f;
            scratch[group * BN + mine + i] = about[i] + mean;
            scratch[(GROUPS + group) * BN + mine + i] = second[i] - mean * first[i];
        }
        sync_block();
        const int c = threadIdx.x;
        if (c >= BN || column + c >= k) return;
        float n = 0.0f, mean = 0.0f, square = 0.0f;
        for (int g = 0; g < GROUPS && g < rows; g++) {
            const float more = (float)((rows - g + GROUPS - 1) / GROUPS), all = n + more;
            const float away = scratch[g * BN + c] - mean;
            mean += away * (more / all);
            square += scratch[(GROUPS + g) * BN + c] + away * away * (n * more / all);
            n = all;
        }
        part[column + c] = mean;
        part[k + column + c] = square;
    }
};

// A block of 1024 threads merges the tiles of eight channels, 128 threads for each: 64 images of 112x112 are
// 6272 tiles of 128 pixels, 49 for each thread. `scratch`: 16 KB of shared memory.
constexpr int TILE_FOLD_THREADS = 1024, TILE_FOLD_CHANNELS = 8, TILE_FOLD_SCRATCH = 2 * TILE_FOLD_THREADS;

DEV int tile_fold_channel() { return blockIdx.x * TILE_FOLD_CHANNELS + threadIdx.x % TILE_FOLD_CHANNELS; }
// One thread per channel owns the merged result.
DEV bool is_tile_fold_leader(int c) { return threadIdx.x < TILE_FOLD_CHANNELS && tile_fold_channel() < c; }

// The sums of x and of x^2 over all pixels of `tile_fold_channel()`, in its leader. stats [tiles][2][c]: of
// each run of `rows` pixels (the last one has the rest) the mean and the squared distances from it. In double:
// its 53 bits leave the rounding of the tiles' own floats as the only error. All threads must call.
DEV void fold_tiles(double (&sums)[2], const float* RESTRICT stats, i64 pixels, int c, int rows, double* scratch) {
    constexpr int SLICES = TILE_FOLD_THREADS / TILE_FOLD_CHANNELS;
    const int channel = tile_fold_channel();
    const int tiles = (int)((pixels + rows - 1) / rows);
    sums[0] = sums[1] = 0.0;
    if (channel < c) {
        _Pragma("unroll 4") for (int t = threadIdx.x / TILE_FOLD_CHANNELS; t < tiles; t += SLICES) {
            const double mean = stats[(i64)(2 * t) * c + channel], square = stats[(i64)(2 * t + 1) * c + channel];
            const double n = t + 1 < tiles ? rows : (int)(pixels - (i64)t * rows);
            sums[0] += n * mean;
            sums[1] += square + n * mean * mean;
        }
    }
    sum_slices<TILE_FOLD_THREADS, TILE_FOLD_CHANNELS>(sums, scratch);
}

// Mean and biased variance from the two sums. The mean is a float and what is lost by rounding it. A variance of
// NaN becomes 0, as on the CPU; the mean still shows that the channel diverged.
struct TileMoments {
    float mean, rest, variance;

    DEV static TileMoments of(const double (&sums)[2], i64 pixels) {
        const double mean = sums[0] / (double)pixels, variance = sums[1] / (double)pixels - mean * mean;
        return {(float)mean, (float)(mean - (float)mean), variance > 0.0 ? (float)variance : 0.0f};
    }
};
