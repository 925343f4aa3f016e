// Partial statistics of a convolution's output channels, taken from its tiles while they are in registers: a
// batch norm or a statistics loss behind it then needs no pass over the map.
//
// For each of its columns a tile stores the mean and the sum of squared distances from it. Such partials are
// merged without a common shift (Chan, Golub, LeVeque 1983) and lose no digits where the mean is many
// standard deviations from zero. channel_stats_fold (kernels/engine/channel_stats.cu) merges them.
#pragma once
#include "lib/eights.cuh"

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
