// The sizes of a convolution. Letters as in src/ops/conv2d.rs.
#pragma once

// Mirrors `Conv2dDims` of src/ops/conv2d/launch.rs. Products of three of them that count pixels fit an int (checked there);
// products with channels are 64-bit.
struct Conv2dDims {
    int n, h, w, c;
    int k, r, s;
    int p, q;
    int stride, pad;
};
static_assert(sizeof(Conv2dDims) == 44, "Conv2dDims must match src/ops/conv2d/launch.rs");
