// Rung 2: roles. One warpgroup copies, and two multiply 64 rows each of a tile of 128 x 128. While it works,
// the block never synchronises as a whole, and seven stages of 32 KB are in flight. One block per
// multiprocessor, a block per tile.
#include "lib/conv_wgmma.cuh"

KERNEL(384, 1)
conv2d_rung2(MAPS_PARAM maps, Group<Conv2dForward<bf16>> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    const Product g = Product::forward(d);
    auto out_of = [&](int member) { return StoreForward<Conv2dForward<bf16>>{members.of[member], slope}; };
    wgmma_convolution<128, 128, false, false>(maps, g, count_members(members), shared, [](const MemberTile&) {}, out_of);
}

INSTANCE_90A(conv2d_rung2)
