// Rung 2: roles. A warpgroup of its own copies, two multiply 64 rows each of a tile of 128 x 128; nobody meets, seven slabs of
// 32 KB are under way. One block an SM, a block a tile.
#include "lib/conv_wgmma.cuh"

struct Conv2dForward {
    bf16* y;              // [n, p, q, k]
    bf16* before;         // null
    u8* mask;             // [n, p, q, k / 8] bits of y > 0, or null
    const bf16* x;        // [n, h, w, c]
    const bf16* w;        // [k, r, s, c]
    const float* bias;    // [k] or null
    const bf16* residual; // as y, or null
    float* moments;       // null
};

KERNEL(384, 1)
conv2d_rung2(MAPS_PARAM maps, Members<Conv2dForward> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    const Product g = Product::forward(d);
    auto out_of = [&](int member) { return StoreForward<Conv2dForward>{members.of[member], slope}; };
    wgmma_convolution<128, 128, false, false>(maps, g, count_members(members), shared, [](const MemberTile&) {}, out_of);
}

INSTANCE_90A(conv2d_rung2)
