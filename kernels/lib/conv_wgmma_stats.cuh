// Partial channel statistics of a wgmma tile, taken from the accumulators.
#pragma once
#include "lib/conv_wgmma_tile.cuh"

// Rows of pixels of one partial: the rows of one warpgroup's wgmma, whatever the tile. Mirrors STATS_ROWS of
// src/ops/layers/conv2d/hopper.rs.
constexpr int STATS_ROWS = 64;

// Writes the mean and the squared distances from it of each column, over 64 rows each, to io.channel_stats
// [parts][2][k]; the mean includes the bias. All threads of warpgroup `group` must call.
//
// A warp sums about the values of its first row, so that no digits are lost however far the mean is from
// zero; the first warp merges the results of all four (Chan, Golub, LeVeque 1983). 16 columns at a time:
// those of three warps take 384 bytes of `scratch`, which is double-buffered so that one barrier per 16
// columns suffices.
template <class W, class Io>
DEV void store_channel_stats(const float (&d)[W::PARTS][W::N / 2], const Product& g, const Io& io, int group, int first_row,
                             int first_column, float* scratch) {
    const int lane = lane_id(), warp = warp_id() & 3;
    // The column, of 16, whose result a lane ends with. Lanes that differ in bit 2 have the same column.
    const int mine = (lane >> 3 & 1) * 8 + (lane & 3) * 2 + (lane >> 4);
    auto rows_of = [](int rows) { return rows < 0 ? 0 : rows < 16 ? rows : 16; };
    UNROLL
    for (int part = 0; part < W::PARTS; part++) {
        const int row = first_row + part * W::PART_ROWS, column = first_column + part * W::PART_COLUMNS;
        const int rows = g.rows - row, here = rows_of(rows - warp * 16);
        if (rows <= 0) break;
        const bool has[2] = {lane / 4 < here, lane / 4 + 8 < here};
        // All warps before one that has rows are full. A full warp w has 1 / (w + 1) of the rows of warps 0
        // to w; the last warp with rows may have fewer.
        const float over = here > 0 ? 1.0f / (float)here : 0.0f;
        const float last = rows < 64 ? (float)(rows % 16) / (float)rows : 0.0f;
        const u32 at = (u32)(row / STATS_ROWS) * 2 * g.columns + column + mine;
        UNROLL
        for (int unit = 0; unit < W::N / 16; unit++) {
            if (column + unit * 16 >= g.columns) break;
            float mean = 0.0f, square = 0.0f;
            // Eight columns at a time take fewer registers than 16.
            UNROLL
            for (int half = 0; half < 2; half++) {
                float about[2], first[2], second[2];
                UNROLL
                for (int i = 0; i < 2; i++) {
                    const float* const v = d[part] + (unit * 2 + half) * 4 + i;
                    about[i] = shfl(v[0], lane & 3);
                    const float above = has[0] ? v[0] - about[i] : 0.0f, below = has[1] ? v[2] - about[i] : 0.0f;
                    first[i] = above + below;
                    second[i] = fmaf(above, above, below * below);
                }
                // Of two lanes that differ in bit 4, each takes one of the two columns.
                const bool high = lane & 16;
                const float f = shfl_xor(high ? first[0] : first[1], 16), s = shfl_xor(high ? second[0] : second[1], 16);
                float sum = (high ? first[1] : first[0]) + f, squares = (high ? second[1] : second[0]) + s;
                UNROLL
                for (int by = 8; by >= 4; by /= 2) {
                    sum += shfl_xor(sum, by);
                    squares += shfl_xor(squares, by);
                }
                const float away = sum * over;
                if ((lane >> 3 & 1) == half) {
                    mean = (high ? about[1] : about[0]) + away;
                    square = squares - away * sum;
                }
            }
            float* const to = scratch + unit % 2 * (3 * 16 * 2) + mine * 2;
            if (warp > 0 && !(lane & 4)) store_pack(to + (warp - 1) * 32, Pack<float, 2>{{mean, square}});
            named_barrier_sync(1 + group, 128);
            if (warp > 0 || lane & 4) continue;
            UNROLL
            for (int w = 1; w < 4; w++) {
                if (rows <= w * 16) break;
                const Pack<float, 2> v = load_pack<2>(to + (w - 1) * 32);
                const float between = v.v[0] - mean, share = rows >= w * 16 + 16 ? 1.0f / (float)(w + 1) : last;
                mean = fmaf(between, share, mean);
                square += fmaf(between * between, share * (float)(w * 16), v.v[1]);
            }
            io.channel_stats[at + unit * 16] = mean + (io.bias ? io.bias[column + mine + unit * 16] : 0.0f);
            io.channel_stats[at + g.columns + unit * 16] = square;
        }
    }
}
