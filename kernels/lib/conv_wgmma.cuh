// The convolution's forward product, and its input gradient at stride 1, on compute capability 9.0: bf16,
// with c and k in whole slabs of 64 channels. Blocks are persistent: each takes tile after tile, so that the
// slabs of the next tile arrive while this one is written.
//
//   conv_wgmma_tile.cuh      how a block divides its work, and what is multiplied
//   conv_wgmma_pipeline.cuh  produce (TMA) and consume (wgmma), and the ring between them
//   conv_wgmma_epilogue.cuh  from the sums to what is stored
//   conv_wgmma_stats.cuh     partial channel statistics of a tile
#pragma once
#include "lib/conv_wgmma_pipeline.cuh"

// The work of a block. `shared` is W::SHARED_BYTES: the stages, the barriers, and scratch for channel
// statistics.
template <int BM, int BN, bool pingpong, bool is_gradient, class Prefetch, class OutOf>
DEV void wgmma_convolution(const TensorMaps& maps, const Product& g, int members, char* shared, Prefetch prefetch, OutOf out_of) {
    using W = Wgmma<BM, BN, pingpong>;
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
        if (warp_id() == 0) produce<W, BM, BN, is_gradient>(maps, g, tiles, shared, bars, prefetch);
    } else {
        setmaxnreg_inc<W::MULTIPLY_REGISTERS>();
        char* const stats = reinterpret_cast<char*>(&bars + 1);
        consume<W, BM, BN, pingpong, is_gradient>(g, tiles, shared, bars, stats, out_of);
    }
}

template <int BM, int BN, bool pingpong, class Io>
DEV void wgmma_forward(const TensorMaps& maps, const Group<Io>& members, const Conv2dDims& d, float slope, char* shared) {
    const Product g = Product::forward(d);
    auto prefetch = [&](const MemberTile& tile) {
        const bf16* const residual = members.of[tile.member].residual;
        if (residual) prefetch_map<BM, BN>(residual, g, tile);
    };
    auto out_of = [&](int member) { return StoreForward<Io>{members.of[member], slope}; };
    wgmma_convolution<BM, BN, pingpong, false>(maps, g, count_members(members), shared, prefetch, out_of);
}

template <int BM, int BN, bool pingpong, template <class> class Store, class Io>
DEV void wgmma_input_gradient(const TensorMaps& maps, const Group<Io>& members, const Conv2dDims& d, int add, float slope,
                              char* shared) {
    const Product g = Product::input_gradient(d);
    auto prefetch = [&](const MemberTile& tile) {
        const Io& io = members.of[tile.member];
        if (add) prefetch_map<BM, BN>(io.dx, g, tile);
        if (Store<Io>::HAS_COLUMNS) prefetch_map<BM, BN>(io.u, g, tile);
    };
    auto out_of = [&](int member) { return Store<Io>{members.of[member], g.columns, add, slope}; };
    wgmma_convolution<BM, BN, pingpong, true>(maps, g, count_members(members), shared, prefetch, out_of);
}
