// A convolution's forward product and its input gradient at stride 1 on compute capability 9.0, for bf16 with whole slabs
// of 64 channels on both sides. One warpgroup of a block copies (TMA), two or three multiply (wgmma) and write what they
// multiplied. Blocks stay: each takes tile after tile, so that the next tile's slabs come in while this one is written.
//
// A slab is 64 elements of the inner dimension: 128 bytes of bf16, the widest row that TMA swizzles and wgmma reads free
// of bank conflicts. An im2col map gives a slab of one filter tap's windows, pixels outside the image as zeros, so the
// inner dimension runs tap by tap and no index is computed a window.
#pragma once
#include "lib/conv2d_dims.cuh"
#include "lib/hopper.cuh"
#include "lib/group.cuh"
#include "lib/packs.cuh"

// The copying warpgroup comes first; a wgmma's four warps must begin at a multiple of four.
constexpr int WGMMA_SLAB = 64;
// Bytes of a box of the filter, 64 rows of a slab.
constexpr int BOX = 64 * 128;

// How a block works. `turns`: two warpgroups multiply, a whole tile of 128 rows each, in turns: one writes while the other
// multiplies. Else they work abreast on one tile, 64 rows each: three of them on 192.
//
// A slab of 192 x 256 keeps the tensor cores busy for 1536 cycles (2048 multiply-adds a cycle), brings 56 KB and has 144 KB read
// by wgmma: 37 bytes a cycle from the L2, 133 of shared memory's 128. 128 x 128 in turns: 512 cycles, 32 KB and 48 KB, so 64
// and 160; it wins where few slabs make a tile, for abreast nothing multiplies while a tile is written.
template <int BM, int BN, bool turns> struct Wgmma {
    static constexpr int GROUPS = turns ? 2 : BM / 64;
    // Columns of one wgmma, and how many wgmmas make a warpgroup's sums: two below each other, or side by side. Not one of 256:
    // with 128 registers at entry ptxas refuses it (C7602).
    static constexpr int N = BN > 128 ? 128 : BN, PARTS = turns ? 2 : BN / N;
    static_assert(BM % 64 == 0 && BN % N == 0 && PARTS * N <= 256, "a thread has registers for 128 sums");
    static_assert(!turns || (BM == 128 && BN <= 128), "in turns, a warpgroup has all rows of a tile");
    // Registers of a thread: 65536 over 384 threads are 168 rounded down to eights, over 512 they are 128. One thread copies,
    // so its warpgroup leaves most of them: 40 + 2 * 232 = 3 * 168, 32 + 3 * 160 = 4 * 128.
    static constexpr int COPY_REGISTERS = GROUPS == 3 ? 32 : 40, MULTIPLY_REGISTERS = GROUPS == 3 ? 160 : 232;
    // Whether the epilogue has registers to fetch 32 columns ahead.
    static constexpr bool IS_AHEAD = GROUPS < 3;
    // As many stages as fit: 4 of 56 KB, 7 of 32 KB, 9 of 24 KB.
    static constexpr int A_BYTES = BM * 128, B_BYTES = BN * 128, STAGE = A_BYTES + B_BYTES, STAGES = (224 << 10) / STAGE;
    // Warps that read each slab.
    static constexpr int READERS = turns ? 4 : 4 * GROUPS;
    // What three warps of each warpgroup that takes turns tell the fourth of 16 columns' moments, twice.
    static constexpr int MOMENT_BYTES = turns ? 2 * 3 * 16 * 8 : 0;
    // Barriers follow the slabs: full and empty for each stage, and the two turns.
    static constexpr int SHARED_BYTES = STAGES * STAGE + (2 * STAGES + 2) * 8 + GROUPS * MOMENT_BYTES;
    // Of 32 columns, the unit of the epilogue.
    static constexpr int BLOCKS = BN / 32;
    // From one warpgroup's rows to the next's, and from one part to the next.
    static constexpr int GROUP_ROWS = turns ? 0 : 64, PART_ROWS = turns ? 64 : 0, PART_COLUMNS = turns ? 0 : N;
};

// What is multiplied. Row m of the product is pixel (n, p, q) of its output; tap (r, s) of that pixel's window reads pixel
// (p * step + r - above, q * step + s - left).
struct Product {
    int rows, columns; // output pixels and channels
    int inner;         // channels of a tap
    int p, q;          // the output's height and width
    int r, s, step, above, left;

    DEV static Product forward(const Conv2dDims& d) {
        return {d.n * d.p * d.q, d.k, d.c, d.p, d.q, d.r, d.s, d.stride, d.pad, d.pad};
    }
    // Windows over dz, the filter turned round.
    DEV static Product input_gradient(const Conv2dDims& d) {
        return {d.n * d.h * d.w, d.c, d.k, d.h, d.w, d.r, d.s, 1, d.r - 1 - d.pad, d.s - 1 - d.pad};
    }
    // Windows of one pixel, in order: a plain matrix, for which there is a plain map.
    DEV bool plain() const { return r * s == 1 && step == 1 && above == 0 && left == 0; }
    DEV int slabs() const { return r * s * (inner / WGMMA_SLAB); }
};

// The t-th tile: columns first, so that blocks that run together read the same windows and share them in the L2.
struct MemberTile {
    int member, row, column;

    template <int BM, int BN> DEV static MemberTile of(int t, const Product& g) {
        const int across = (g.columns + BN - 1) / BN, down = (g.rows + BM - 1) / BM;
        return {t / (across * down), t / across % down * BM, t % across * BN};
    }
    template <int BM, int BN> DEV static int count(const Product& g, int members) {
        return (g.columns + BN - 1) / BN * ((g.rows + BM - 1) / BM) * members;
    }
};
// Launches of several members name them from the first row on.
template <class S> DEV int count_members(const Group<S>& members) {
    int count = 0;
    UNROLL
    for (int i = 0; i < MAX_GROUP; i++) count += members.of[i].w != nullptr;
    return count;
}

// Where a warp stands in the ring of stages. `parity` is that of the phase of `full` which ends when the stage's slab is
// there.
template <int STAGES> struct Ring {
    int stage = 0;
    u32 parity = 0;

    DEV void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    DEV void skip(int slabs) {
        const int at = stage + slabs;
        parity ^= at / STAGES & 1;
        stage = at % STAGES;
    }
};

template <int STAGES> struct Barriers {
    u64 full[STAGES];  // one arrival, the copier's, and the bytes of the slab
    u64 empty[STAGES]; // an arrival of each warp that has read the slab
    u64 turn[2];       // an arrival of each warp of the other warpgroup: it has begun its last slab
};

// The copying warp. Operand B is the filter [k, (r, s, c)] as it lies, in boxes of 64 rows and 64 channels of a tap, so that
// one map serves tiles of any width. The forward product's columns are the filter's rows. The gradient's columns are its
// channels, and the tap is the one that lies opposite.
template <class W, int BM, int BN, bool is_gradient, class Prefetch>
DEV void copy_tiles(const TensorMaps& maps, const Product& g, int tiles, char* slabs, Barriers<W::STAGES>& bars, Prefetch prefetch) {
    Ring<W::STAGES> at;
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
        const MemberTile tile = MemberTile::of<BM, BN>(t, g);
        prefetch(tile);
        if (lane_id() == 0) {
            const CUtensorMap* const map_a = &maps.of[tile.member];
            const CUtensorMap* const map_b = &maps.of[MAX_GROUP + tile.member];
            const int w = tile.row % g.q * g.step - g.left, h = tile.row / g.q % g.p * g.step - g.above;
            const int n = tile.row / g.q / g.p;
            for (int r = 0; r < g.r; r++) {
                for (int s = 0; s < g.s; s++) {
                    const int tap = is_gradient ? g.r * g.s - 1 - (r * g.s + s) : r * g.s + s;
                    // Unrolled four times, it would spill 32 registers.
                    _Pragma("unroll 1") for (int c = 0; c < g.inner; c += WGMMA_SLAB) {
                        char* const a = slabs + at.stage * W::STAGE;
                        char* const b = a + W::A_BYTES;
                        u64* const full = &bars.full[at.stage];
                        // The first time round nobody has read the stage: parity 1 of a new barrier is over.
                        mbar_wait(&bars.empty[at.stage], at.parity ^ 1);
                        mbar_expect_tx(full, W::STAGE);
                        if (g.plain()) tma_load_2d(a, map_a, c, tile.row, full);
                        else tma_load_im2col_4d(a, map_a, c, w, h, n, (u16)s, (u16)r, full);
                        UNROLL
                        for (int i = 0; i < BN / 64; i++) {
                            const int first = tile.column + i * 64;
                            if (is_gradient) tma_load_2d(b + i * BOX, map_b, tap * g.columns + first, c, full);
                            else tma_load_2d(b + i * BOX, map_b, tap * g.inner + c, first, full);
                        }
                        at.next();
                    }
                }
            }
        }
        sync_warp();
    }
}

// A slab's products for one warpgroup: four steps of 16 along the inner dimension. `a` has the warpgroup's rows.
//
// Descriptors: rows of 128 bytes in atoms of eight are 1024 bytes from the next eight, in every operand. A step is 32 bytes
// along the rows of A and of the forward's B; the gradient's B has a row for each inner element, so its step is 16 rows of
// 128 bytes, and its columns come box by box. The address field counts 16 bytes.
template <class W, bool is_gradient> DEV void multiply_slab(float (&d)[W::PARTS][W::N / 2], const char* a, const char* b) {
    const u64 from_a = smem_descriptor(a, 0, 1024);
    const u64 from_b = is_gradient ? smem_descriptor(b, BOX, 1024) : smem_descriptor(b, 0, 1024);
    constexpr u64 STEP_A = 32 >> 4, STEP_B = (is_gradient ? 16 * 128 : 32) >> 4;
    UNROLL
    for (int k = 0; k < WGMMA_SLAB / 16; k++) {
        UNROLL
        for (int i = 0; i < W::PARTS; i++) {
            const u64 part_a = i * W::PART_ROWS * 128 >> 4, part_b = i * W::PART_COLUMNS * 128 >> 4;
            wgmma_m64k16<W::N, is_gradient>(d[i], from_a + part_a + k * STEP_A, from_b + part_b + k * STEP_B);
        }
    }
}

// Lane q of a quad holds columns 2 q and 2 q + 1 of four groups of eight, v[group][column]. Afterwards it has the whole group
// q, v[column / 2][column % 2]: 16 bytes of bf16, and a byte of an activation mask.
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

// Rows of pixels of a part of the moments: what a warpgroup has in a tile of any size.
constexpr int MOMENT_ROWS = 64;

// The moments of a warpgroup's columns, over 64 rows each: means and squared distances from them, in parts [2][k]. A warp sums
// about the values of its first row, which lose no digits however far the mean is from zero; the warpgroup's first warp merges
// all four (Chan, Golub, LeVeque 1983). 16 columns at a time: three warps' take 384 bytes of `scratch`, used in turns.
template <class W, class Io>
DEV void leave_moments(const float (&d)[W::PARTS][W::N / 2], const Product& g, const Io& io, int group, int first_row,
                       int first_column, float* scratch) {
    const int lane = lane_id(), warp = warp_id() & 3;
    // The column of 16 that a lane ends with; lanes that differ in bit 2 have the same.
    const int mine = (lane >> 3 & 1) * 8 + (lane & 3) * 2 + (lane >> 4);
    auto rows_of = [](int rows) { return rows < 0 ? 0 : rows < 16 ? rows : 16; };
    UNROLL
    for (int part = 0; part < W::PARTS; part++) {
        const int row = first_row + part * W::PART_ROWS, column = first_column + part * W::PART_COLUMNS;
        const int rows = g.rows - row, here = rows_of(rows - warp * 16);
        if (rows <= 0) break;
        const bool has[2] = {lane / 4 < here, lane / 4 + 8 < here};
        // A warp that has rows comes behind full ones. Of its and their rows it has 1 / (w + 1), the last one perhaps less.
        const float over = here > 0 ? 1.0f / (float)here : 0.0f;
        const float last = rows < 64 ? (float)(rows % 16) / (float)rows : 0.0f;
        const u32 at = (u32)(row / MOMENT_ROWS) * 2 * g.columns + column + mine;
        UNROLL
        for (int unit = 0; unit < W::N / 16; unit++) {
            if (column + unit * 16 >= g.columns) break;
            float mean = 0.0f, square = 0.0f;
            // Eight columns after eight, which takes fewer registers.
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
                // Lanes that differ in bit 4 take a column each of the two.
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
            io.moments[at + unit * 16] = mean + (io.bias ? io.bias[column + mine + unit * 16] : 0.0f);
            io.moments[at + g.columns + unit * 16] = square;
        }
    }
}

// Hands a warpgroup's sums out eight neighbouring columns at a time, straight from the registers (shared memory belongs to
// the next tile's slabs): `out.store(at, sums, old)`, `at` an element of the map. `old`, what it takes from maps, is fetched 32 columns
// ahead.
template <class W, class Out>
DEV void hand_out_sums(const float (&d)[W::PARTS][W::N / 2], const Product& g, int first_row, int first_column, const Out& out) {
    // Rows of a thread, eight or 64 apart; blocks of 32 columns; how many of them one part has.
    constexpr int ROWS = W::PART_ROWS ? 4 : 2, BLOCKS = W::BLOCKS, PART = W::N / 32;
    const int lane = lane_id(), row = first_row + (warp_id() & 3) * 16 + lane / 4, column = first_column + lane % 4 * 8;
    auto row_of = [&](int i) { return row + i / 2 * 64 + i % 2 * 8; };
    auto at_of = [&](int i) { return (u32)row_of(i) * g.columns + column; };
    typename Out::Old old[2][ROWS];
    auto fetch = [&](int b, int i) {
        if (row_of(i) < g.rows) old[b & 1][i] = out.old(at_of(i) + b * 32);
    };
    auto fetch_rows = [&](int b) {
        UNROLL
        for (int i = 0; i < ROWS; i++) fetch(b, i);
    };
    if (W::IS_AHEAD) fetch_rows(0);
    UNROLL
    for (int b = 0; b < BLOCKS; b++) {
        // Columns come in 64, so all lanes agree.
        if (first_column + b * 32 >= g.columns) break;
        if (W::IS_AHEAD && b + 1 < BLOCKS && first_column + (b + 1) * 32 < g.columns) fetch_rows(b + 1);
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            Pack<float, 2> bias[4] = {};
            if constexpr (Out::HAS_BIAS) {
                UNROLL
                for (int j = 0; j < 4; j++) bias[j] = out.bias(first_column + b * 32 + j * 8 + lane % 4 * 2);
            }
            const float* const sums_of = d[ROWS == 4 ? i / 2 : b / PART] + b % PART * 16 + i % 2 * 2;
            float v[4][2];
            UNROLL
            for (int j = 0; j < 4; j++) {
                UNROLL
                for (int e = 0; e < 2; e++) v[j][e] = Out::HAS_BIAS ? sums_of[j * 4 + e] + bias[j].v[e] : sums_of[j * 4 + e];
            }
            transpose_quad(v);
            if (!W::IS_AHEAD) fetch(b, i);
            float sums[8];
            UNROLL
            for (int j = 0; j < 8; j++) sums[j] = v[j / 2][j % 2];
            if (row_of(i) < g.rows) out.store(at_of(i) + b * 32, sums, old[b & 1][i]);
        }
    }
}

// Eight bf16 as they lie in memory: four registers, where eight bf16 would take eight. Maps have fewer than 2^31 elements
// (launch.rs): a byte's 32-bit offset and an address all lanes share take one register, where a pointer takes two.
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

// The multiplying warpgroups. `out_of(member)` says what becomes of the sums.
template <class W, int BM, int BN, bool turns, bool is_gradient, class OutOf>
DEV void multiply_tiles(const Product& g, int tiles, const char* slabs, Barriers<W::STAGES>& bars, char* moments, OutOf out_of) {
    // The same in all lanes, which the compiler cannot know of threadIdx.x / 128: descriptors live in uniform registers.
    const int group = shfl(warp_id(), 0) / 4 - 1;
    const bool is_first_lane = lane_id() == 0;
    const int count = g.slabs();
    const int first_row = group * W::GROUP_ROWS;
    Ring<W::STAGES> at;
    int i = 0, taken = 0;
    for (int t = blockIdx.x; t < tiles; t += gridDim.x, i++) {
        if (turns && (i & 1) != group) {
            at.skip(count);
            continue;
        }
        // Through a shuffle, which the compiler cannot put off: the divisions' registers are free now, not behind the products.
        MemberTile tile = MemberTile::of<BM, BN>(t, g);
        tile = {shfl(tile.member, 0), shfl(tile.row, 0), shfl(tile.column, 0)};
        const auto out = out_of(tile.member);
        float d[W::PARTS][W::N / 2];
        UNROLL
        for (int i = 0; i < W::PARTS; i++) {
            UNROLL
            for (int j = 0; j < W::N / 2; j++) d[i][j] = 0.0f;
        }
        // Without a turn the second warpgroup would wait for a slab several rounds of the ring ahead, and parities tell a
        // round only from the next. The first group's first turn is free.
        if (turns) mbar_wait(&bars.turn[group], (taken++ & 1) ^ (group == 0));
        int reading = 0;
        for (int slab = 0; slab < count; slab++) {
            mbar_wait(&bars.full[at.stage], at.parity);
            UNROLL
            for (int i = 0; i < W::PARTS; i++) wgmma_hold(d[i]);
            wgmma_fence();
            const char* const a = slabs + at.stage * W::STAGE;
            multiply_slab<W, is_gradient>(d, a + first_row * 128, a + W::A_BYTES);
            wgmma_commit();
            // One slab stays under way while the next is asked for; the one before it has been read.
            wgmma_wait<1>();
            if (slab > 0 && is_first_lane) mbar_arrive(&bars.empty[reading]);
            reading = at.stage;
            at.next();
        }
        if (turns && is_first_lane) mbar_arrive(&bars.turn[1 - group]);
        wgmma_wait<0>();
        UNROLL
        for (int i = 0; i < W::PARTS; i++) wgmma_hold(d[i]);
        if (is_first_lane) mbar_arrive(&bars.empty[reading]);
        // Abreast it would spill 11 registers: launch.rs has products that leave moments take turns.
        if constexpr (turns && !is_gradient) {
            float* const scratch = reinterpret_cast<float*>(moments + group * W::MOMENT_BYTES);
            if (out.io.moments) leave_moments<W>(d, g, out.io, group, tile.row + first_row, tile.column, scratch);
        }
        hand_out_sums<W>(d, g, tile.row + first_row, tile.column, out);
    }
}

// A block's work. `prefetch(tile)` runs in all lanes of the copying warp before a tile's copies.
template <int BM, int BN, bool turns, bool is_gradient, class Prefetch, class OutOf>
DEV void wgmma_convolution(const TensorMaps& maps, const Product& g, int members, char* shared, Prefetch prefetch, OutOf out_of) {
    using W = Wgmma<BM, BN, turns>;
    auto& bars = *reinterpret_cast<Barriers<W::STAGES>*>(shared + W::STAGES * W::STAGE);
    if (threadIdx.x == 0) {
        UNROLL
        for (int i = 0; i < W::STAGES; i++) {
            mbar_init(&bars.full[i], 1);
            mbar_init(&bars.empty[i], W::READERS);
        }
        mbar_init(&bars.turn[0], 4);
        mbar_init(&bars.turn[1], 4);
        mbar_fence_init();
    }
    sync_block();
    const int tiles = MemberTile::count<BM, BN>(g, members);
    if (warp_id() < 4) {
        setmaxnreg_dec<W::COPY_REGISTERS>();
        if (warp_id() == 0) copy_tiles<W, BM, BN, is_gradient>(maps, g, tiles, shared, bars, prefetch);
    } else {
        setmaxnreg_inc<W::MULTIPLY_REGISTERS>();
        char* const moments = reinterpret_cast<char*>(&bars + 1);
        multiply_tiles<W, BM, BN, turns, is_gradient>(g, tiles, shared, bars, moments, out_of);
    }
}

// Asks for the tile's part of a map [rows][columns] of bf16, which the epilogue reads once the slabs are multiplied: it then
// waits for the L2, some 270 cycles, and not for memory.
template <int BM, int BN> DEV void prefetch_map(const bf16* map, const Product& g, const MemberTile& tile) {
    // Lines of 128 bytes, 64 columns.
    for (int i = lane_id(); i < BM * (BN / 64); i += 32) {
        const int m = tile.row + i / (BN / 64), column = tile.column + i % (BN / 64) * 64;
        if (m < g.rows && column < g.columns) prefetch_l2(map + (i64)m * g.columns + column);
    }
}

// act(sum + bias + residual) and the bits of what is above 0.
template <class Io> struct StoreForward {
    const Io& io;
    float slope;

    static constexpr bool HAS_BIAS = true;
    using Old = Eight;
    DEV Pack<float, 2> bias(int k) const { return io.bias ? load_pack<2>(io.bias + k) : Pack<float, 2>{}; }
    DEV Old old(u32 at) const { return io.residual ? load_bf16x8(io.residual, at) : Eight{}; }
    DEV void store(u32 at, float (&v)[8], const Old& residual) const {
        if (io.before) store_bf16x8(io.before, at, v);
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

// (dx + sum or sum) * (gate's bit ? 1 : slope).
template <class Io> struct StoreInputGradient {
    const Io& io;
    int add;
    float slope;

    static constexpr bool HAS_BIAS = false;
    struct Old {
        Eight dx;
        u32 bits;
    };
    DEV Old old(u32 at) const { return {add ? load_bf16x8(io.dx, at) : Eight{}, io.gate ? io.gate[at / 8] : 0xffu}; }
    DEV void store(u32 at, float (&v)[8], const Old& old) const {
        UNROLL
        for (int i = 0; i < 8; i++) {
            v[i] += element(old.dx, i);
            v[i] = old.bits >> i & 1 ? v[i] : v[i] * slope;
        }
        store_bf16x8(io.dx, at, v);
    }
};

template <int BM, int BN, bool turns, class Io>
DEV void wgmma_forward(const TensorMaps& maps, const Group<Io>& members, const Conv2dDims& d, float slope, char* shared) {
    const Product g = Product::forward(d);
    auto prefetch = [&](const MemberTile& tile) {
        const bf16* const residual = members.of[tile.member].residual;
        if (residual) prefetch_map<BM, BN>(residual, g, tile);
    };
    auto out_of = [&](int member) { return StoreForward<Io>{members.of[member], slope}; };
    wgmma_convolution<BM, BN, turns, false>(maps, g, count_members(members), shared, prefetch, out_of);
}

template <int BM, int BN, bool turns, class Io>
DEV void wgmma_input_gradient(const TensorMaps& maps, const Group<Io>& members, const Conv2dDims& d, int add, float slope,
                              char* shared) {
    const Product g = Product::input_gradient(d);
    auto prefetch = [&](const MemberTile& tile) {
        if (add) prefetch_map<BM, BN>(members.of[tile.member].dx, g, tile);
    };
    auto out_of = [&](int member) { return StoreInputGradient<Io>{members.of[member], add, slope}; };
    wgmma_convolution<BM, BN, turns, true>(maps, g, count_members(members), shared, prefetch, out_of);
}
