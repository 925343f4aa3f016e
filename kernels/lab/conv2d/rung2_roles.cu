// Rung 2: roles. A warpgroup of its own copies, two multiply 64 rows each of a tile of 128 x 128; nobody meets, seven slabs of
// 32 KB are under way. One block an SM, a block a tile.
#include "lib/conv_wgmma.cuh"

KERNEL(384, 1)
conv2d_rung2(MAPS_PARAM maps, Group<Conv2dForward<bf16>> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    const Product g = Product::forward(d);
    auto out_of = [&](int member) { return StoreForward<Conv2dForward<bf16>>{members.of[member], slope}; };
    wgmma_convolution<128, 128, false, false>(maps, g, count_members(members), shared, [](const MemberTile&) {}, out_of);
}

INSTANCE_90A(conv2d_rung2)
