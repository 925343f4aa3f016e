// Means and variances of a convolution's output channels, taken from its tiles while they are at hand: a batch norm or a
// statistics loss behind it then needs no pass of its own over the map.
//
// A tile leaves, for each of its columns, the mean and the sum of squared distances from it (Chan, Golub, LeVeque 1983):
// parts that are merged without a shift in common and lose no digits where the mean is many deviations from zero.
#pragma once
#include "lib/eights.cuh"

// The moments of eight columns over the rows that one of THREADS threads sees; rows are dealt out in turn, a group of
// BN / 8 threads a row.
template <int THREADS, int BN> struct ColumnMoments {
    static constexpr int GROUPS = THREADS / (BN / 8);
    // Floats of shared memory that `store` needs.
    static constexpr int SCRATCH = 2 * GROUPS * BN;
    float about[8] = {}, first[8] = {}, second[8] = {};
    int count = 0;

    DEV void add(const float (&v)[8]) {
        UNROLL
        for (int i = 0; i < 8; i++) {
            // The first row's value: sums about it lose no digits.
            if (count == 0) about[i] = v[i];
            const float away = v[i] - about[i];
            first[i] += away;
            second[i] = fmaf(away, away, second[i]);
        }
        count++;
    }
    // The tile's part [2][k]: means, then sums of squared distances. `rows`: how many the tile has. All threads must call;
    // `scratch` is free.
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
