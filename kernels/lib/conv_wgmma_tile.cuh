// How a block of the wgmma convolution divides its work: the tile, its stages in shared memory, the registers
// of each role, and the matrix product that is computed. Letters as in src/ops/layers/conv2d/geometry.rs.
#pragma once
#include "lib/conv2d_dims.cuh"
#include "lib/hopper.cuh"
#include "lib/group.cuh"

// Elements of the inner dimension in a slab: 128 bytes of bf16, the widest row that TMA swizzles and that
// wgmma reads without bank conflicts.
constexpr int WGMMA_SLAB = 64;
// Bytes of a box of the filter: 64 rows of a slab.
constexpr int BOX = 64 * 128;

// The shape of a block. One warpgroup copies (the first: the four warps of a wgmma must begin at a multiple
// of four), the others multiply. `pingpong`: two warpgroups multiply a whole tile of 128 rows each, in turn,
// so that one writes its tile while the other multiplies. Otherwise they are cooperative: they share one
// tile, 64 rows each, three of them on 192 rows.
//
// A slab of 192 x 256 keeps the tensor cores busy for 1536 cycles (2048 multiply-adds a cycle). TMA copies
// 56 KB of it and wgmma reads 144 KB: 37 bytes a cycle from the L2, and 133 through shared memory, which
// moves 128. For a slab of 128 x 128, pingpong, these are 512 cycles, 32 KB and 48 KB, so 64 and 160 bytes.
// Pingpong is faster where a tile has few slabs, because a cooperative block multiplies nothing while it
// writes a tile.
template <int BM, int BN, bool pingpong> struct Wgmma {
    // Warpgroups that multiply.
    static constexpr int GROUPS = pingpong ? 2 : BM / 64;
    // Columns of one wgmma, and how many wgmmas make up a warpgroup's sums: below each other (pingpong) or
    // side by side. Two of 128 columns, not one of 256: with 128 registers at entry ptxas refuses that one
    // (C7602).
    static constexpr int N = BN > 128 ? 128 : BN, PARTS = pingpong ? 2 : BN / N;
    static_assert(BM % 64 == 0 && BN % N == 0 && PARTS * N <= 256, "a thread has registers for 128 sums");
    static_assert(!pingpong || (BM == 128 && BN <= 128), "a pingpong warpgroup has all rows of a tile");
    // Registers of a thread after setmaxnreg. 65536 over 384 threads are 168 rounded down to a multiple of 8,
    // over 512 threads 128. Only one thread copies, so its warpgroup gives most of its registers to the
    // others: 40 + 2 * 232 = 3 * 168, 32 + 3 * 160 = 4 * 128.
    static constexpr int COPY_REGISTERS = GROUPS == 3 ? 32 : 40, MULTIPLY_REGISTERS = GROUPS == 3 ? 160 : 232;
    // Whether the epilogue has registers to load 32 columns ahead.
    static constexpr bool IS_AHEAD = GROUPS < 3;
    // Shared bytes of a warpgroup for partial statistics: 4 warps x BN columns x (mean, squared distances).
    static constexpr int STATS_BYTES = pingpong ? 4 * BN * 8 : 0;
    // As many stages as fit 226 KB: 4 of 56 KB, 6 of 32 KB, 9 of 24 KB.
    static constexpr int A_BYTES = BM * 128, B_BYTES = BN * 128, STAGE = A_BYTES + B_BYTES;
    static constexpr int STAGES = ((226 << 10) - GROUPS * STATS_BYTES) / STAGE;
    // Warps that read each slab.
    static constexpr int READERS = pingpong ? 4 : 4 * GROUPS;
    // The barriers follow the slabs: full and empty for each stage, and one turn for each of two warpgroups.
    static constexpr int SHARED_BYTES = STAGES * STAGE + (2 * STAGES + 2) * 8 + GROUPS * STATS_BYTES;
    // Blocks of 32 columns, the unit of the epilogue.
    static constexpr int BLOCKS = BN / 32;
    // Rows from one warpgroup to the next; rows and columns from one part to the next.
    static constexpr int GROUP_ROWS = pingpong ? 0 : 64, PART_ROWS = pingpong ? 64 : 0, PART_COLUMNS = pingpong ? 0 : N;
};

// The matrix product. Row m is pixel (n, p, q) of the output; tap (r, s) of that pixel's window reads pixel
// (p * step + r - above, q * step + s - left). The inner dimension runs tap by tap, `inner` channels each.
struct Product {
    int rows, columns; // pixels and channels of the output
    int inner;         // channels of a tap
    int p, q;          // height and width of the output
    int r, s, step, above, left;

    DEV static Product forward(const Conv2dDims& d) {
        return {d.n * d.p * d.q, d.k, d.c, d.p, d.q, d.r, d.s, d.stride, d.pad, d.pad};
    }
    // Windows over dz, times the flipped filter.
    DEV static Product input_gradient(const Conv2dDims& d) {
        return {d.n * d.h * d.w, d.c, d.k, d.h, d.w, d.r, d.s, 1, d.r - 1 - d.pad, d.s - 1 - d.pad};
    }
    // Whether the windows are single pixels in order: a plain matrix, which has a plain tensor map.
    DEV bool plain() const { return r * s == 1 && step == 1 && above == 0 && left == 0; }
    DEV int slabs() const { return r * s * (inner / WGMMA_SLAB); }
};

// The t-th tile of a grouped launch. Tiles are numbered along the columns first, so that blocks that run
// together read the same windows and share them in the L2.
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
// The members fill a group from its first place on; the filters of the other places are null.
template <class S> DEV int count_members(const Group<S>& members) {
    int count = 0;
    UNROLL
    for (int i = 0; i < MAX_GROUP; i++) count += members.of[i].w != nullptr;
    return count;
}
