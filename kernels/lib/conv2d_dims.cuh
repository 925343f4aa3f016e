// The sizes of a convolution, and the operands of one member of a grouped launch. Letters as in
// src/ops/layers/conv2d/geometry.rs.
#pragma once
#include "lib/dev.cuh"

// Mirrors `Dims::kernel_arg` of src/ops/layers/conv2d/geometry.rs, which checks that the products of three sizes that count
// pixels fit an int. Products with channels are 64-bit.
struct Conv2dDims {
    int n, h, w, c; // of x
    int k, r, s;    // output channels, filter height and width
    int p, q;       // height and width of y
    int stride, pad;
};
static_assert(sizeof(Conv2dDims) == 44, "Conv2dDims must match src/ops/layers/conv2d/geometry.rs");

template <class T> struct Conv2dForward {
    T* y;                 // [n, p, q, k]
    T* pre_activation;    // [n, p, q, k]: bias + x * w, without residual and activation; or null
    u8* mask;             // [n, p, q, ceil(k / 8)], bit i % 8 of byte i / 8: whether channel i of y > 0; or null
    const T* x;           // [n, h, w, c]
    const T* w;           // [k, r, s, c]
    const float* bias;    // [k] or null
    const T* residual;    // [n, p, q, k] or null
    float* channel_stats; // [parts][2][k]: mean and squared distances of each channel of `pre_activation`, over the BM rows of a
                          // tile (mma) or over 64 rows (wgmma); or null
};

template <class T> struct Conv2dInputGradient {
    T* dx;          // [n, h, w, c]
    const T* dz;    // [n, p, q, k]
    const T* w;     // [k, r, s, c]
    const u8* mask; // [n, h, w, ceil(c / 8)]: bits of x > 0, where x is the output of an activation; or null
};
