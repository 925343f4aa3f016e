// Rung 6: pingpong. Two warpgroups multiply a tile of 128 x 128 each, alternately, so that the tensor cores
// work while a tile is written. Six stages of 32 KB, persistent blocks. Production (rung 7) is this or rung
// 5, whichever is faster by forecast for the shape, and prefetches into the L2 what the epilogue reads.
#include "lib/conv_wgmma.cuh"

KERNEL(384, 1)
conv2d_rung6(MAPS_PARAM maps, Group<Conv2dForward<bf16>> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    const Product g = Product::forward(d);
    auto out_of = [&](int member) { return StoreForward<Conv2dForward<bf16>>{members.of[member], slope}; };
    wgmma_convolution<128, 128, true, false>(maps, g, count_members(members), shared, [](const MemberTile&) {}, out_of);
}

INSTANCE_90A(conv2d_rung6)
