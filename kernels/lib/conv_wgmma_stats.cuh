// Partial channel statistics of a pingpong tile, taken from the accumulators.
#pragma once
#include "lib/conv_wgmma_tile.cuh"

// Rows of pixels of one partial: the rows of a pingpong tile. Mirrors STATS_ROWS of
// src/ops/layers/conv2d/hopper.rs.
constexpr int STATS_ROWS = 128;

// Mean of some rows of a column, and the sum of the squared distances from it.
struct Spread {
    float mean, square;
};
// The mean and squares of the rows of a and b together (Chan, Golub, LeVeque 1983). Either may have no rows. No
// digits are lost, however far the mean is from zero.
DEV Spread merge(const Spread& a, const Spread& b, float rows_a, float rows_b) {
    const float away = b.mean - a.mean, share = rows_b > 0.0f ? rows_b / (rows_a + rows_b) : 0.0f;
    return {fmaf(away, share, a.mean), fmaf(away * away, rows_a * share, a.square + b.square)};
}

// Of two lanes whose numbers differ in bit `by`, one keeps the first half of the columns, for the rows of both,
// and the other the second half.
template <int n> DEV void halve(Spread (&s)[n], int by, float mine, float others) {
    const bool high = lane_id() & by;
    UNROLL
    for (int i = 0; i < n / 2; i++) {
        const Spread give = high ? s[i] : s[i + n / 2], keep = high ? s[i + n / 2] : s[i];
        s[i] = merge(keep, {shfl_xor(give.mean, by), shfl_xor(give.square, by)}, mine, others);
    }
}

// Writes the mean and the squared distances from it of each column to io.channel_stats [parts][2][k]; the mean
// includes the bias. `is_whole`: no row is beyond the last one, so that all numbers of rows are constants. All
// threads of warpgroup `group` must call; `scratch` is W::STATS_BYTES.
//
// A thread has four rows of N / 4 columns: it merges the rows, then hands out the columns to the eight lanes
// that have other rows of them, a half at a time. A thread for each column merges what the four warps found.
template <class W, bool is_whole, class Io>
DEV void channel_stats_of(const float (&d)[W::PARTS][W::N / 2], const Product& g, const Io& io, int group, int first_row,
                          int first_column, float* scratch) {
    static_assert(W::PARTS * W::PART_ROWS == STATS_ROWS, "a tile is one partial");
    const int lane = lane_id(), warp = warp_id() & 3, row = first_row + warp * 16 + lane / 4;
    // The thread's rows: 8 apart in each of two parts, which are 64 apart.
    auto has = [&](int i) { return is_whole || row + i / 2 * 64 + i % 2 * 8 < g.rows ? 1.0f : 0.0f; };
    const float upper = has(0) + has(1), lower = has(2) + has(3);
    // Numbers of rows of this lane, after the lanes that differ in bits 4, 3 and 2 joined theirs.
    float rows[4] = {upper + lower};
    float others[3];
    UNROLL
    for (int i = 0; i < 3; i++) {
        others[i] = is_whole ? rows[i] : shfl_xor(rows[i], 16 >> i);
        rows[i + 1] = rows[i] + others[i];
    }
    // Columns 8 i + 2 (lane % 4) + e.
    UNROLL
    for (int e = 0; e < 2; e++) {
        Spread s[W::N / 8];
        UNROLL
        for (int i = 0; i < W::N / 8; i++) {
            Spread part[2];
            UNROLL
            for (int p = 0; p < 2; p++) {
                const float* const v = d[p] + 4 * i + e;
                part[p] = merge({v[0], 0.0f}, {v[2], 0.0f}, has(2 * p), has(2 * p + 1));
            }
            s[i] = merge(part[0], part[1], upper, lower);
        }
        halve<W::N / 8>(s, 16, rows[0], others[0]);
        halve<W::N / 16>(reinterpret_cast<Spread(&)[W::N / 16]>(s), 8, rows[1], others[1]);
        halve<W::N / 32>(reinterpret_cast<Spread(&)[W::N / 32]>(s), 4, rows[2], others[2]);
        const int first = (lane >> 4 & 1) * (W::N / 16) + (lane >> 3 & 1) * (W::N / 32) + (lane >> 2 & 1) * (W::N / 64);
        UNROLL
        for (int i = 0; i < W::N / 64; i++) {
            const int column = (first + i) * 8 + lane % 4 * 2 + e;
            store_pack(scratch + (warp * W::N + column) * 2, Pack<float, 2>{{s[i].mean, s[i].square}});
        }
    }
    named_barrier_sync(1 + group, 128);
    const int c = threadIdx.x & 127, column = first_column + c;
    if (c < W::N && column < g.columns) {
        // Rows of a warp in this tile: 16 in each part.
        auto in_part = [&](int from) {
            const int left = g.rows - from;
            return left < 0 ? 0 : left < 16 ? left : 16;
        };
        Spread s[4];
        float of[4];
        UNROLL
        for (int w = 0; w < 4; w++) {
            const Pack<float, 2> v = load_pack<2>(scratch + (w * W::N + c) * 2);
            const int from = first_row + w * 16;
            s[w] = {v.v[0], v.v[1]};
            of[w] = is_whole ? 32.0f : (float)(in_part(from) + in_part(from + 64));
        }
        const Spread a = merge(s[0], s[1], of[0], of[1]), b = merge(s[2], s[3], of[2], of[3]);
        const Spread all = merge(a, b, of[0] + of[1], of[2] + of[3]);
        const u32 at = (u32)(first_row / STATS_ROWS) * 2 * g.columns + column;
        io.channel_stats[at] = all.mean + (io.bias ? io.bias[column] : 0.0f);
        io.channel_stats[at + g.columns] = all.square;
    }
    // Before the next tile's statistics overwrite the scratch.
    named_barrier_sync(1 + group, 128);
}
template <class W, class Io>
DEV void store_channel_stats(const float (&d)[W::PARTS][W::N / 2], const Product& g, const Io& io, int group, int first_row,
                             int first_column, float* scratch) {
    if (first_row + STATS_ROWS <= g.rows) channel_stats_of<W, true>(d, g, io, group, first_row, first_column, scratch);
    else channel_stats_of<W, false>(d, g, io, group, first_row, first_column, scratch);
}
