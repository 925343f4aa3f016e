// Rung 1: wgmma fed by TMA, without roles. Each of the two warpgroups multiplies 64 rows of a tile of
// 128 x 128, thread 0 issues the copies, and the whole block synchronises once per slab. Three stages are
// 96 KB, so that two blocks share a multiprocessor and one multiplies while the other waits or writes.
// Parameters as conv2d_fwd_wgmma (kernels/layers/conv2d_fwd.cu), without statistics. Grid: a block per tile;
// block: 256 threads.
#include "lib/conv_wgmma.cuh"

using Rung1 = Wgmma<128, 128, false>;
constexpr int RUNG1_STAGES = 3, RUNG1_STAGE = Rung1::STAGE;

KERNEL(256, 2)
conv2d_rung1(MAPS_PARAM maps, Group<Conv2dForward<bf16>> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    SHARED(u64, full, RUNG1_STAGES);
    const Product g = Product::forward(d);
    const MemberTile tile = MemberTile::of<128, 128>(blockIdx.x, g);
    const int w = tile.row % g.q * g.step - g.left, h = tile.row / g.q % g.p * g.step - g.above, n = tile.row / g.q / g.p;
    const int slabs = g.slabs(), a_tap = g.inner / WGMMA_SLAB;
    auto copy = [&](int slab) {
        if (slab >= slabs || threadIdx.x != 0) return;
        u64* const bar = &full[slab % RUNG1_STAGES];
        char* const to = shared + slab % RUNG1_STAGES * RUNG1_STAGE;
        const int tap = slab / a_tap, c = slab % a_tap * WGMMA_SLAB;
        mbar_expect_tx(bar, RUNG1_STAGE);
        if (g.plain()) tma_load_2d(to, &maps.of[tile.member], c, tile.row, bar);
        else tma_load_im2col_4d(to, &maps.of[tile.member], c, w, h, n, (u16)(tap % g.s), (u16)(tap / g.s), bar);
        for (int i = 0; i < 2; i++) {
            char* const box = to + (2 + i) * BOX;
            tma_load_2d(box, &maps.of[MAX_GROUP + tile.member], slab * WGMMA_SLAB, tile.column + i * 64, bar);
        }
    };
    if (threadIdx.x == 0) {
        for (int i = 0; i < RUNG1_STAGES; i++) mbar_init(&full[i], 1);
        mbar_fence_init();
    }
    sync_block();
    for (int slab = 0; slab < RUNG1_STAGES - 1; slab++) copy(slab);
    const int group = shfl(warp_id(), 0) / 4;
    float sum[Rung1::PARTS][Rung1::N / 2] = {};
    for (int slab = 0; slab < slabs; slab++) {
        mbar_wait(&full[slab % RUNG1_STAGES], slab / RUNG1_STAGES & 1);
        wgmma_hold(sum[0]);
        wgmma_fence();
        const char* const from = shared + slab % RUNG1_STAGES * RUNG1_STAGE;
        multiply_slab<Rung1, false>(sum, from + group * 64 * 128, from + 128 * 128);
        wgmma_commit();
        wgmma_wait<0>();
        // After the barrier no thread reads this slab or the one before it, which the next copies replace.
        sync_block();
        copy(slab + RUNG1_STAGES - 1);
    }
    wgmma_hold(sum[0]);
    epilogue<Rung1>(sum, g, tile.row + group * 64, tile.column, StoreForward<Conv2dForward<bf16>>{members.of[tile.member], slope});
}

INSTANCE_90A(conv2d_rung1)
