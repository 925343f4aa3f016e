// Rung 3: tiles of 128 x 256, four slabs of 48 KB. Rows are read half as often, by TMA and by wgmma; the 128 sums a thread need
// setmaxnreg. A block a tile.
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
conv2d_rung3(MAPS_PARAM maps, Members<Conv2dForward> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    const Product g = Product::forward(d);
    auto out_of = [&](int member) { return StoreForward<Conv2dForward>{members.of[member], slope}; };
    wgmma_convolution<128, 256, false, false>(maps, g, count_members(members), shared, [](const MemberTile&) {}, out_of);
}

INSTANCE_90A(conv2d_rung3)
