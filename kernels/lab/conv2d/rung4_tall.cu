// Rung 4: tiles of 192 x 256 by three cooperative warpgroups, four stages of 56 KB. A multiply-add takes 0.78
// of the bytes of 128 x 256. Rung 5 launches the same kernel with one persistent block per multiprocessor
// instead of a block per tile.
#include "lib/conv_wgmma.cuh"

KERNEL(512, 1)
conv2d_rung4(MAPS_PARAM maps, Group<Conv2dForward<bf16>> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    const Product g = Product::forward(d);
    auto out_of = [&](int member) { return StoreForward<Conv2dForward<bf16>>{members.of[member], slope}; };
    wgmma_convolution<192, 256, false, false>(maps, g, count_members(members), shared, [](const MemberTile&) {}, out_of);
}

INSTANCE_90A(conv2d_rung4)
