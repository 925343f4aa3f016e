// The sizes of a convolution, and what the members of its launches read and write. Letters as in src/ops/layers/conv2d/mod.rs.
#pragma once
#include "lib/dev.cuh"

// Mirrors `Conv2dDims` of src/ops/layers/conv2d/launch.rs. Products of three of them that count pixels fit an int (checked there);
// products with channels are 64-bit.
struct Conv2dDims {
    int n, h, w, c;
    int k, r, s;
    int p, q;
    int stride, pad;
};
static_assert(sizeof(Conv2dDims) == 44, "Conv2dDims must match src/ops/layers/conv2d/launch.rs");

template <class T> struct Conv2dForward {
    T* y;              // [n, p, q, k]
    T* before;         // what comes before the residual and the activation, as y, or null
    u8* mask;          // [n, p, q, ceil(k / 8)] bits of y > 0, or null
    const T* x;        // [n, h, w, c]
    const T* w;        // [k, r, s, c]
    const float* bias; // [k] or null
    const T* residual; // as y, or null
    float* moments;    // [parts][2][k] of what `before` has, a part a tile of BM rows, or 64 rows (wgmma); or null
};

template <class T> struct Conv2dInputGradient {
    T* dx;          // [n, h, w, c]
    const T* dz;    // [n, p, q, k]
    const T* w;     // [k, r, s, c]
    const u8* gate; // [n, h, w, ceil(c / 8)] bits of x > 0, the activation that gave x; or null
};
