// The producer-consumer pipeline of the wgmma convolution: one warp copies slabs into a ring of stages (TMA);
// warpgroups multiply them (wgmma) and write the results.
#pragma once
#include "lib/conv_wgmma_epilogue.cuh"
#include "lib/conv_wgmma_stats.cuh"

// A warp's position in the ring of stages. `parity` is that of the phase of `full` that ends when the stage's
// slab has arrived.
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
    u64 full[STAGES];  // completed by one arrival, the producer's, and the bytes of the slab
    u64 empty[STAGES]; // completed by an arrival of each warp that has read the slab
    u64 turn[2];       // completed by an arrival of each warp of the other pingpong group, after its last slab
};

// The producer warp: the slabs of each tile of the block, in order. Operand A is a slab of windows: an im2col
// map yields the channels of one tap for BM windows, with zeros outside the image, so that no index is
// computed per window. Operand B is the filter [k, (r, s, c)] as it lies in memory, in boxes of 64 rows and
// 64 channels of a tap, so that one map serves tiles of any width. The columns of the forward product are the
// filter's rows. The columns of the input gradient are the filter's channels, and its tap is the opposite
// one. `prefetch(tile)` runs in all lanes before a tile's copies.
template <class W, int BM, int BN, bool is_gradient, class Prefetch>
DEV void produce(const TensorMaps& maps, const Product& g, int tiles, char* slabs, Barriers<W::STAGES>& bars, Prefetch prefetch) {
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
                    // Unrolled four times, the loop would spill 32 registers.
                    _Pragma("unroll 1") for (int c = 0; c < g.inner; c += WGMMA_SLAB) {
                        char* const a = slabs + at.stage * W::STAGE;
                        char* const b = a + W::A_BYTES;
                        u64* const full = &bars.full[at.stage];
                        // In the first round every stage is free: parity 1 of a new barrier counts as passed.
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

// The products of one slab for one warpgroup: four steps of 16 along the inner dimension. `a` points to the
// warpgroup's rows.
//
// Descriptors: rows of 128 bytes come in atoms of eight, 1024 bytes apart, in every operand. A step is 32
// bytes along the rows of A and of the forward product's B. The input gradient's B has a row for each inner
// element, so a step is 16 rows of 128 bytes, and its columns come box by box. The address field of a
// descriptor counts 16 bytes.
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

// The consumer warpgroups: multiply the block's tiles and write them. `stats` is their scratch for channel
// statistics, W::STATS_BYTES each. `out_of(member)` is the epilogue's `Out` for a member of the group.
template <class W, int BM, int BN, bool pingpong, bool is_gradient, class OutOf>
DEV void consume(const Product& g, int tiles, const char* slabs, Barriers<W::STAGES>& bars, char* stats, OutOf out_of) {
    // The shuffle shows the compiler that all lanes agree, which it cannot derive from threadIdx.x / 128:
    // descriptors can then be in uniform registers.
    const int group = shfl(warp_id(), 0) / 4 - 1;
    const bool is_first_lane = lane_id() == 0;
    const int count = g.slabs();
    const int first_row = group * W::GROUP_ROWS;
    Ring<W::STAGES> at;
    int i = 0, taken = 0;
    for (int t = blockIdx.x; t < tiles; t += gridDim.x, i++) {
        if (pingpong && (i & 1) != group) {
            at.skip(count);
            continue;
        }
        // The compiler cannot move a shuffle behind the products: the divisions of MemberTile::of are done
        // here, while their registers are free.
        MemberTile tile = MemberTile::of<BM, BN>(t, g);
        tile = {shfl(tile.member, 0), shfl(tile.row, 0), shfl(tile.column, 0)};
        const auto out = out_of(tile.member);
        float d[W::PARTS][W::N / 2];
        UNROLL
        for (int i = 0; i < W::PARTS; i++) {
            UNROLL
            for (int j = 0; j < W::N / 2; j++) d[i][j] = 0.0f;
        }
        // The two warpgroups multiply alternately. Otherwise the second one could wait for a slab several
        // rounds of the ring ahead, but a parity distinguishes a round only from the next one. The first
        // warpgroup does not wait for its first tile.
        if (pingpong) mbar_wait(&bars.turn[group], (taken++ & 1) ^ (group == 0));
        int reading = 0;
        for (int slab = 0; slab < count; slab++) {
            mbar_wait(&bars.full[at.stage], at.parity);
            UNROLL
            for (int i = 0; i < W::PARTS; i++) wgmma_hold(d[i]);
            wgmma_fence();
            const char* const a = slabs + at.stage * W::STAGE;
            multiply_slab<W, is_gradient>(d, a + first_row * 128, a + W::A_BYTES);
            wgmma_commit();
            // One slab stays in flight while the next is requested; the slab before it has been read.
            wgmma_wait<1>();
            if (slab > 0 && is_first_lane) mbar_arrive(&bars.empty[reading]);
            reading = at.stage;
            at.next();
        }
        if (pingpong && is_first_lane) mbar_arrive(&bars.turn[1 - group]);
        wgmma_wait<0>();
        UNROLL
        for (int i = 0; i < W::PARTS; i++) wgmma_hold(d[i]);
        if (is_first_lane) mbar_arrive(&bars.empty[reading]);
        // A cooperative tile would spill 11 registers here, so hopper.rs gives products with statistics a
        // pingpong tile.
        if constexpr (pingpong && !is_gradient) {
            float* const scratch = reinterpret_cast<float*>(stats + group * W::STATS_BYTES);
            if (out.io.channel_stats) store_channel_stats<W>(d, g, out.io, group, tile.row + first_row, tile.column, scratch);
        }
        epilogue<W>(d, g, tile.row + first_row, tile.column, out);
    }
}
