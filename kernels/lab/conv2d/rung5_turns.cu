// Rung 5: the warpgroups take turns, a tile of 128 x 128 each: the tensor cores work while a tile is written. Six slabs of
// 32 KB. Production (rung 6) is this and the prefetch of the residual into the L2; its 128 x 256 tile is rung 4 with it.
#include "lib/conv_wgmma.cuh"

struct Conv2dForward {
    bf16* y;           // [n, p, q, k]
    u8* mask;          // [n, p, q, k / 8] bits of y > 0, or null
    const bf16* x;     // [n, h, w, c]
    const bf16* w;     // [k, r, s, c]
    const float* bias; // [k] or null
    const bf16* residual; // as y, or null
};

KERNEL(384, 1)
conv2d_rung5(MAPS_PARAM maps, Members<Conv2dForward> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    const Product g = Product::forward(d);
    auto out_of = [&](int member) { return StoreForward<Conv2dForward>{members.of[member], g, slope}; };
    wgmma_convolution<128, 128, true, false>(maps, g, count_members(members), shared, [](const MemberTile&) {}, out_of);
}

INSTANCE_90A(conv2d_rung5)
