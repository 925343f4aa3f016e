// The sizes of a convolution, and the operands of one member of a grouped launch. Letters as in
// src/ops/layers/conv2d/geometry.rs.
#pragma once
#include "lib/dev.cuh"

// Mirrors `Dims::kernel_arg` of src/ops/layers/conv2d/geometry.rs, which checks that there are fewer than
// 2^30 pixels and filter elements per output channel, so that an int counts either. Offsets of elements are
// 64-bit, except in the epilogue and the statistics of the wgmma kernels: there they are u32, as hopper.rs takes
// only maps of fewer than 2^31 elements.
struct Conv2dDims {
    int n, h, w, c; // of x
    int k, r, s;    // output channels, filter height and width
    int p, q;       // height and width of y
    int stride, pad;
};
static_assert(sizeof(Conv2dDims) == 44, "Conv2dDims must match src/ops/layers/conv2d/geometry.rs");

// `mask` has a bit per channel, bit k % 8 of byte k / 8: whether y > 0. `channel_stats` has the mean and the
// squared distances from it of each channel of `pre_activation`, a part per BM rows of a tile (mma) or per 64
// rows (wgmma). `bias`, `residual` and the outputs other than y may be null.
template <class T> struct Conv2dForward {
    T* y;                 // [n, p, q, k]
    T* pre_activation;    // [n, p, q, k]: bias + x * w, without residual and activation
    u8* mask;             // [n, p, q, ceil(k / 8)]
    const T* x;           // [n, h, w, c]
    const T* w;           // [k, r, s, c]
    const float* bias;    // [k]
    const T* residual;    // [n, p, q, k]
    float* channel_stats; // [parts][2][k]
};

// `mask`, or null: the bits of x > 0, where x is the output of an activation of u.
// `u`, or null: the gradient of u gets another term, `*dloss * (slope * (u - shift) + offset)`, that of a
// statistics loss (losses/statistics_loss.cu). The gradient with that term goes to `du`, or to dx if that is
// null.
template <class T> struct Conv2dInputGradient {
    T* dx;                     // [n, h, w, c]
    const T* dz;               // [n, p, q, k]
    const T* w;                // [k, r, s, c]
    const u8* mask;            // [n, h, w, ceil(c / 8)]
    const T* u;                // [n, h, w, c]
    const float* coefficients; // [3][c]: shift, slope, offset
    const float* dloss;        // scalar
    T* du;                     // [n, h, w, c]
};
