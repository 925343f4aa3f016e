// Rung 3: tiles of 128 x 256, four stages of 48 KB. TMA and wgmma read rows half as often; the 128 sums of a
// thread need setmaxnreg. A block per tile.
#include "lib/conv_wgmma.cuh"

KERNEL(384, 1)
conv2d_rung3(MAPS_PARAM maps, Group<Conv2dForward<bf16>> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    const Product g = Product::forward(d);
    auto out_of = [&](int member) { return StoreForward<Conv2dForward<bf16>>{members.of[member], slope}; };
    wgmma_convolution<128, 256, false, false>(maps, g, count_members(members), shared, [](const MemberTile&) {}, out_of);
}

INSTANCE_90A(conv2d_rung3)
