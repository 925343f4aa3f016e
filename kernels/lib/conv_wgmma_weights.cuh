// The weight gradient of the convolution on compute capability 9.0: one warp copies slabs of 64 pixels into a ring
// of stages (TMA), two warpgroups multiply them (wgmma). Both operands lie along the pixels, as dz and x are stored,
// so that wgmma transposes both. Where the bias needs a gradient, one or two more warps add the pixels of dz.
#pragma once
#include "lib/conv_gather.cuh"
#include "lib/conv_wgmma_pipeline.cuh"
#include "lib/packs.cuh"

// The shape of a block: BM output channels times BN columns of the filter, two warpgroups that share a tile of 128
// rows by rows, and one of 64 rows by columns.
//
// A slab of 128 x 256 keeps the tensor cores busy for 1024 cycles (2048 multiply-adds a cycle), and its 48 KB arrive
// from the L2 in 1365 cycles (36 bytes a cycle).
template <int BM, int BN> struct WeightTile {
    static constexpr bool BY_ROWS = BM == 128;
    static_assert(BM == 128 || BM == 64, "one or two wgmmas below each other");
    // Columns of a warpgroup, and of each of its wgmmas (two of 128 where it has 256: see Wgmma).
    static constexpr int COLUMNS = BY_ROWS ? BN : BN / 2, N = COLUMNS > 128 ? 128 : COLUMNS, PARTS = COLUMNS / N;
    // Boxes of 64 pixels and 64 channels that make up a slab of dz and of the windows.
    static constexpr int DZ_BOXES = BM / 64, X_BOXES = BN / 64;
    static_assert(DZ_BOXES + X_BOXES <= 32, "each lane copies a box");
    // As many stages as fit 226 KB: 4 of 48 KB, 5 of 40 KB, 7 of 32 KB, 9 of 24 KB.
    static constexpr int STAGE = (DZ_BOXES + X_BOXES) * BOX, STAGES = (226 << 10) / STAGE;
    // The barriers follow the slabs: full and empty for each stage (`turn` is not used).
    static constexpr int SHARED_BYTES = STAGES * STAGE + (2 * STAGES + 2) * 8;
};

// The producer warp: the part's slabs, in order, of the group's member blockIdx.y. Each lane copies one box of a slab, those of dz first. A box beyond
// the last output channel or filter column is not copied: what the stage holds there reaches only sums that are not
// stored. Pixels beyond the last one are zeros.
template <class W>
DEV void copy_weight_slabs(const TensorMaps& maps, const Conv2dDims& d, TileOrigin at, int first, int slabs, char* stages,
                           Barriers<W::STAGES>& bars) {
    const int box = lane_id();
    const bool is_dz = box < W::DZ_BOXES;
    const int row = at.row + box * 64, column = at.column + (box - W::DZ_BOXES) * 64;
    const int rows_left = (d.k - at.row) / 64, columns_left = (d.r * d.s * d.c - at.column) / 64;
    const int dz_boxes = rows_left < W::DZ_BOXES ? rows_left : W::DZ_BOXES;
    const int x_boxes = columns_left < W::X_BOXES ? columns_left : W::X_BOXES;
    const bool copies = is_dz ? box < dz_boxes : box - W::DZ_BOXES < x_boxes;
    const int tap = column / d.c, c = column % d.c;
    const bool plain = Product::forward(d).plain();
    const auto *const of_dz = &maps.of[blockIdx.y], *const of_x = &maps.of[MAX_GROUP + blockIdx.y];
    Ring<W::STAGES> ring;
    for (int slab = 0; slab < slabs; slab++) {
        u64* const full = &bars.full[ring.stage];
        // In the first round every stage is free: parity 1 of a new barrier counts as passed.
        mbar_wait(&bars.empty[ring.stage], ring.parity ^ 1);
        if (box == 0) mbar_expect_tx(full, (dz_boxes + x_boxes) * BOX);
        sync_warp();
        char* const to = stages + ring.stage * W::STAGE + box * BOX;
        const int m = first + slab * WGMMA_SLAB;
        if (copies && is_dz) tma_load_2d(to, of_dz, row, m, full);
        else if (copies && plain) tma_load_2d(to, of_x, c, m, full);
        else if (copies) {
            const int w = m % d.q * d.stride - d.pad, h = m / d.q % d.p * d.stride - d.pad;
            tma_load_im2col_4d(to, of_x, c, w, h, m / d.q / d.p, (u16)(tap % d.s), (u16)(tap / d.s), full);
        }
        ring.next();
    }
}

// A warpgroup's products of all slabs. A step of 16 pixels is 16 rows of 128 bytes in both operands; columns come box
// by box. The address field of a descriptor counts 16 bytes.
template <class W>
DEV void multiply_weight_slabs(float (&sums)[W::PARTS][W::N / 2], int group, int slabs, const char* stages,
                               Barriers<W::STAGES>& bars) {
    constexpr u64 STEP = 16 * 128 >> 4, PART = W::N / 64 * BOX >> 4;
    const int dz_box = W::BY_ROWS ? group : 0;
    const int x_box = W::DZ_BOXES + (W::BY_ROWS ? 0 : group * (W::COLUMNS / 64));
    const bool is_first_lane = lane_id() == 0;
    UNROLL
    for (int i = 0; i < W::PARTS; i++) {
        UNROLL
        for (int j = 0; j < W::N / 2; j++) sums[i][j] = 0.0f;
    }
    Ring<W::STAGES> ring;
    int reading = 0;
    for (int slab = 0; slab < slabs; slab++) {
        mbar_wait(&bars.full[ring.stage], ring.parity);
        UNROLL
        for (int i = 0; i < W::PARTS; i++) wgmma_hold(sums[i]);
        wgmma_fence();
        const char* const stage = stages + ring.stage * W::STAGE;
        const u64 from_dz = smem_descriptor(stage + dz_box * BOX, BOX, 1024);
        const u64 from_x = smem_descriptor(stage + x_box * BOX, BOX, 1024);
        UNROLL
        for (int k = 0; k < WGMMA_SLAB / 16; k++) {
            UNROLL
            for (int i = 0; i < W::PARTS; i++) wgmma_m64k16<W::N, 1, 1>(sums[i], from_dz + k * STEP, from_x + i * PART + k * STEP);
        }
        wgmma_commit();
        // One slab stays in flight while the next is requested; the slab before it has been read.
        wgmma_wait<1>();
        if (slab > 0 && is_first_lane) mbar_arrive(&bars.empty[reading]);
        reading = ring.stage;
        ring.next();
    }
    wgmma_wait<0>();
    UNROLL
    for (int i = 0; i < W::PARTS; i++) wgmma_hold(sums[i]);
}

// The gradient of the bias, `sums` [k]: a warp adds all pixels of one box of dz, for two channels in each lane. In a box, a
// row of 128 bytes is a pixel; TMA stores its 16 bytes number i in place i XOR (row mod 8). A slab takes some 400
// cycles, less than its copy from the L2 (682 and more), and 8 or 16 KB through shared memory.
template <class W>
DEV void sum_dz(float* sums, TileOrigin at, int box, int slabs, const char* stages, Barriers<W::STAGES>& bars) {
    const int lane = lane_id();
    Floats<2> sum = {{0.0f, 0.0f}};
    Ring<W::STAGES> ring;
    for (int slab = 0; slab < slabs; slab++) {
        mbar_wait(&bars.full[ring.stage], ring.parity);
        const char* const rows = stages + ring.stage * W::STAGE + box * BOX;
        _Pragma("unroll 8") for (int row = 0; row < WGMMA_SLAB; row++) {
            const int chunk = lane / 4 ^ row % 8;
            const auto* const at_lane = reinterpret_cast<const bf16*>(rows + row * 128 + chunk * 16 + lane % 4 * 4);
            const Floats<2> dz = load_f32<2>(at_lane);
            sum.v[0] += dz.v[0];
            sum.v[1] += dz.v[1];
        }
        sync_warp();
        if (lane == 0) mbar_arrive(&bars.empty[ring.stage]);
        ring.next();
    }
    store_f32<2>(sums + at.row + box * 64 + lane * 2, sum);
}

// Writes a warpgroup's sums to `out` [k, depth]. k and depth are multiples of 64, so that 64 rows, or 64 columns, are
// stored together or not at all. Four lanes store 32 consecutive bytes, a sector.
template <class W>
DEV void store_weight_sums(float* out, const float (&sums)[W::PARTS][W::N / 2], int group, TileOrigin at, int k, int depth, int add) {
    const int row = at.row + (W::BY_ROWS ? group * 64 : 0) + warp_id() % 4 * 16 + lane_id() / 4;
    const int first = at.column + (W::BY_ROWS ? 0 : group * W::COLUMNS);
    if (row >= k) return;
    UNROLL
    for (int i = 0; i < W::PARTS; i++) {
        UNROLL
        for (int j = 0; j < W::N / 8; j++) {
            const int column = first + i * W::N + j * 8 + lane_id() % 4 * 2;
            if (column >= depth) continue;
            UNROLL
            for (int below = 0; below < 2; below++) {
                const Floats<2> v = {{sums[i][4 * j + 2 * below], sums[i][4 * j + 2 * below + 1]}};
                put_f32<2>(out + (i64)(row + 8 * below) * depth + column, v, add);
            }
        }
    }
}

// The work of a block: the pixels [first, first + count) of one tile. `bias`, if not null, gets the sums of dz from the
// blocks of the first column. `shared` is W::SHARED_BYTES.
template <class W>
DEV void wgmma_weight_gradient(float* out, float* bias, const TensorMaps& maps, const Conv2dDims& d, TileOrigin at, int first,
                               int count, int add, char* shared) {
    const int rows_left = (d.k - at.row) / 64;
    const int dz_boxes = rows_left < W::DZ_BOXES ? rows_left : W::DZ_BOXES;
    const int bias_warps = bias && at.column == 0 ? dz_boxes : 0;
    auto& bars = *reinterpret_cast<Barriers<W::STAGES>*>(shared + W::STAGES * W::STAGE);
    if (threadIdx.x == 0) {
        UNROLL
        for (int i = 0; i < W::STAGES; i++) {
            mbar_init(&bars.full[i], 1);
            mbar_init(&bars.empty[i], 8 + bias_warps);
        }
        mbar_fence_init();
    }
    sync_block();
    const int slabs = slabs_of(count, WGMMA_SLAB);
    // The registers of Wgmma's blocks of 384 threads.
    if (warp_id() < 4) {
        setmaxnreg_dec<40>();
        if (warp_id() == 0) copy_weight_slabs<W>(maps, d, at, first, slabs, shared, bars);
        else if (warp_id() <= bias_warps) sum_dz<W>(bias, at, warp_id() - 1, slabs, shared, bars);
    } else {
        setmaxnreg_inc<232>();
        const int group = shfl(warp_id(), 0) / 4 - 1;
        float sums[W::PARTS][W::N / 2];
        multiply_weight_slabs<W>(sums, group, slabs, shared, bars);
        store_weight_sums<W>(out, sums, group, at, d.k, d.r * d.s * d.c, add);
    }
}
