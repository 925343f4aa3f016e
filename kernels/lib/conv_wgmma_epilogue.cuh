// The epilogue of a wgmma tile: from the accumulators to bias, residual, activation, mask and stores. What is
// done to eight neighbouring sums is a structure: StoreForward for y, StoreInputGradient for dx, and
// StoreGradientOfStatistics for dx with the gradient of a statistics loss. A new fusion behind the product is
// applied in `store` of one of them if it works element by element, and beside `bias` if it has a value for each
// channel. The README of src/ops/layers/conv2d lists the other places.
#pragma once
#include "lib/conv_wgmma_tile.cuh"

// Eight bf16 as they lie in memory: four registers, where eight separate bf16 would take eight. Maps have
// fewer than 2^31 elements (src/ops/layers/conv2d/hopper.rs checks it), so that a byte offset has 32 bits.
// With an address that all lanes share it takes one register, where a pointer takes two.
using Eight = Pack<u32, 4>;
DEV Eight load_bf16x8(const bf16* map, u32 at) {
    return load_pack<4>(reinterpret_cast<const u32*>(reinterpret_cast<const char*>(map) + at * 2));
}
DEV void store_bf16x8(bf16* map, u32 at, const float (&v)[8]) {
    Eight to;
    UNROLL
    for (int i = 0; i < 4; i++) to.v[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
    store_pack(reinterpret_cast<u32*>(reinterpret_cast<char*>(map) + at * 2), to);
}
DEV float element(const Eight& of, int i) { return bits_to_float(i % 2 ? of.v[i / 2] & 0xffff0000u : of.v[i / 2] << 16); }

// act(sum + bias + residual), and the mask of the sums above 0.
template <class Io> struct StoreForward {
    const Io& io;
    float slope;

    static constexpr bool HAS_BIAS = true, HAS_COLUMNS = false;
    struct Columns {};
    using Old = Eight;
    DEV Pack<float, 2> bias(int k) const { return io.bias ? load_pack<2>(io.bias + k) : Pack<float, 2>{}; }
    DEV Old old(u32 at) const { return io.residual ? load_bf16x8(io.residual, at) : Eight{}; }
    DEV bool keeps_sums() const { return io.pre_activation; }
    DEV void keep(u32 at, const float (&v)[8]) const { store_bf16x8(io.pre_activation, at, v); }
    DEV Columns columns_at(int) const { return {}; }
    DEV void store(u32 at, float (&v)[8], const Old& residual, const Columns&) const {
        u32 bits = 0;
        UNROLL
        for (int i = 0; i < 8; i++) {
            v[i] += element(residual, i);
            bits |= (u32)(v[i] > 0.0f) << i;
            v[i] = v[i] > 0.0f ? v[i] : v[i] * slope;
        }
        if (io.mask) io.mask[at / 8] = (u8)bits;
        store_bf16x8(io.y, at, v);
    }
};

// (sum, or dx + sum if `add`) * (the mask's bit ? 1 : slope).
template <class Io> struct StoreInputGradient {
    const Io& io;
    int channels, add;
    float slope;

    static constexpr bool HAS_BIAS = false, HAS_COLUMNS = false;
    struct Columns {};
    struct Old {
        Eight dx;
        u32 bits;
    };
    DEV Old old(u32 at) const { return {add ? load_bf16x8(io.dx, at) : Eight{}, io.mask ? io.mask[at / 8] : 0xffu}; }
    DEV bool keeps_sums() const { return false; }
    DEV void keep(u32, const float (&)[8]) const {}
    DEV Columns columns_at(int) const { return {}; }
    DEV void sum(float (&v)[8], const Old& old) const {
        UNROLL
        for (int i = 0; i < 8; i++) {
            v[i] += element(old.dx, i);
            v[i] = old.bits >> i & 1 ? v[i] : v[i] * slope;
        }
    }
    DEV void store(u32 at, float (&v)[8], const Old& old, const Columns&) const {
        sum(v, old);
        store_bf16x8(io.dx, at, v);
    }
};

// The same, and dloss * (slope * (u - shift) + offset) added: see Conv2dInputGradient.
template <class Io> struct StoreGradientOfStatistics : StoreInputGradient<Io> {
    using Base = StoreInputGradient<Io>;
    static constexpr bool HAS_COLUMNS = true;
    struct Old {
        typename Base::Old base;
        Eight u;
    };
    // Of each of eight columns: the term is a u + b. That b contains the shift costs no accuracy, because u is
    // rounded to a bf16, b to a float.
    struct Columns {
        float a[8], b[8];
    };

    DEV Old old(u32 at) const { return {Base::old(at), load_bf16x8(this->io.u, at)}; }
    DEV Columns columns_at(int c) const {
        const float scale = *this->io.dloss;
        const float* const from = this->io.coefficients + c;
        Columns at;
        UNROLL
        for (int i = 0; i < 8; i += 4) {
            const Pack<float, 4> shift = load_pack<4>(from + i), slope = load_pack<4>(from + this->channels + i);
            const Pack<float, 4> offset = load_pack<4>(from + 2 * this->channels + i);
            UNROLL
            for (int e = 0; e < 4; e++) {
                at.a[i + e] = scale * slope.v[e];
                at.b[i + e] = scale * fmaf(-slope.v[e], shift.v[e], offset.v[e]);
            }
        }
        return at;
    }
    DEV void store(u32 at, float (&v)[8], const Old& old, const Columns& columns) const {
        Base::sum(v, old.base);
        if (this->io.du) store_bf16x8(this->io.dx, at, v);
        UNROLL
        for (int i = 0; i < 8; i++) v[i] += fmaf(columns.a[i], element(old.u, i), columns.b[i]);
        store_bf16x8(this->io.du ? this->io.du : this->io.dx, at, v);
    }
};

// Transposes within four neighbouring lanes. Before, lane q holds columns 2 q and 2 q + 1 of four groups of
// eight columns, v[group][column]; afterwards it holds the whole group q, v[column / 2][column % 2]: 16 bytes
// of bf16, a byte of a mask.
DEV void transpose_quad(float (&v)[4][2]) {
    UNROLL
    for (int by = 1; by <= 2; by *= 2) {
        const bool high = lane_id() & by;
        UNROLL
        for (int g = 0; g < 4; g++) {
            if (g & by) continue;
            UNROLL
            for (int e = 0; e < 2; e++) {
                const float got = shfl_xor(high ? v[g][e] : v[g | by][e], by);
                v[g][e] = high ? got : v[g][e];
                v[g | by][e] = high ? v[g | by][e] : got;
            }
        }
    }
}

// The eight columns in order.
DEV float (&flat(float (&v)[4][2]))[8] { return reinterpret_cast<float (&)[8]>(v); }

// Passes a warpgroup's sums on, eight neighbouring columns at a time, straight from the registers (shared
// memory belongs to the slabs of the next tile): `out.store(at, sums, old)`, where `at` is an element's index
// in the map. The bias and `old`, what `store` needs from memory, are loaded 32 columns ahead where registers
// allow. `is_whole`: no row is beyond the last one. Without a branch per row the compiler interleaves the
// shuffles of all rows: on 128 x 128 that takes 3,000 cycles instead of 7,700 (stall counts of the SASS).
template <class W, bool is_whole, class Out>
DEV void epilogue_of(const float (&d)[W::PARTS][W::N / 2], const Product& g, int first_row, int first_column, const Out& out) {
    // A thread's rows, which are 8 or 64 apart; blocks of 32 columns, in all and in a part.
    constexpr int ROWS = W::PART_ROWS ? 4 : 2, BLOCKS = W::BLOCKS, PART = W::N / 32;
    // What is loaded ahead takes turns in two places.
    constexpr bool IS_AHEAD = W::IS_AHEAD && !Out::HAS_COLUMNS;
    constexpr int PLACES = IS_AHEAD ? 2 : 1;
    const int lane = lane_id(), row = first_row + (warp_id() & 3) * 16 + lane / 4, column = first_column + lane % 4 * 8;
    auto row_of = [&](int i) { return row + i / 2 * 64 + i % 2 * 8; };
    auto at_of = [&](int i) { return (u32)row_of(i) * g.columns + column; };
    auto has = [&](int i) { return is_whole || row_of(i) < g.rows; };
    typename Out::Old old[PLACES][ROWS];
    Pack<float, 2> bias[PLACES][4] = {};
    auto load = [&](int b) {
        if constexpr (Out::HAS_BIAS) {
            UNROLL
            for (int j = 0; j < 4; j++) bias[b % PLACES][j] = out.bias(first_column + b * 32 + j * 8 + lane % 4 * 2);
        }
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            if (has(i)) old[b % PLACES][i] = out.old(at_of(i) + b * 32);
        }
    };
    if (IS_AHEAD) load(0);
    UNROLL
    for (int b = 0; b < BLOCKS; b++) {
        // The columns are a multiple of 64, so all lanes take the same branch.
        if (first_column + b * 32 >= g.columns) break;
        if (!IS_AHEAD) load(b);
        else if (b + 1 < BLOCKS && first_column + (b + 1) * 32 < g.columns) load(b + 1);
        float v[ROWS][4][2];
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            const float* const sums_of = d[ROWS == 4 ? i / 2 : b / PART] + b % PART * 16 + i % 2 * 2;
            UNROLL
            for (int j = 0; j < 4; j++) {
                UNROLL
                for (int e = 0; e < 2; e++) {
                    v[i][j][e] = sums_of[j * 4 + e];
                    if (Out::HAS_BIAS) v[i][j][e] += bias[b % PLACES][j].v[e];
                }
            }
        }
        UNROLL
        for (int i = 0; i < ROWS; i++) transpose_quad(v[i]);
        const typename Out::Columns columns = out.columns_at(first_column + b * 32 + lane % 4 * 8);
        // One branch for all rows.
        if (out.keeps_sums()) {
            UNROLL
            for (int i = 0; i < ROWS; i++) {
                if (has(i)) out.keep(at_of(i) + b * 32, flat(v[i]));
            }
        }
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            if (has(i)) out.store(at_of(i) + b * 32, flat(v[i]), old[b % PLACES][i], columns);
        }
    }
}
template <class W, class Out>
DEV void epilogue(const float (&d)[W::PARTS][W::N / 2], const Product& g, int first_row, int first_column, const Out& out) {
    constexpr int HEIGHT = W::PART_ROWS ? 128 : 64;
    if (first_row + HEIGHT <= g.rows) epilogue_of<W, true>(d, g, first_row, first_column, out);
    else epilogue_of<W, false>(d, g, first_row, first_column, out);
}

// Prefetches the tile's part of a bf16 map [rows][columns] that the epilogue will read: it then waits for the
// L2, some 270 cycles, and not for memory. All lanes of the copying warp must call.
template <int BM, int BN> DEV void prefetch_map(const bf16* map, const Product& g, const MemberTile& tile) {
    // Lines of 128 bytes, 64 columns.
    for (int i = lane_id(); i < BM * (BN / 64); i += 32) {
        const int m = tile.row + i / (BN / 64), column = tile.column + i % (BN / 64) * 64;
        if (m < g.rows && column < g.columns) prefetch_l2(map + (i64)m * g.columns + column);
    }
}
