// Average pooling over windows of 2x2 pixels: see src/ops/layers/avg_pool.rs. A thread computes a pack of n
// channels of one output pixel (forward) or input pixel (backward). Grid [images, parts of an image]: indices
// within an image have 32 bits, as in max_pool.cu.
#include "lib/packs.cuh"

// Mirrors `AvgPoolDims` of src/ops/layers/avg_pool.rs: x [n, h, w, c], y [n, p, q, c] with p = ceil(h / 2)
// and q = ceil(w / 2).
struct AvgPoolDims {
    int h, w, p, q, c;
};
static_assert(sizeof(AvgPoolDims) == 20, "AvgPoolDims must match src/ops/layers/avg_pool.rs");

// One over the number of pixels in the window of output (p, q): at an odd height or width the last windows
// have fewer than four.
DEV float window_scale(int p, int q, AvgPoolDims d) {
    return (2 * p + 1 < d.h ? 0.5f : 1.0f) * (2 * q + 1 < d.w ? 0.5f : 1.0f);
}

// y [n, p, q, c] = means of the windows of x [n, h, w, c].
template <class T, int n> KERNEL(256) avg_pool_fwd(T* RESTRICT y, const T* RESTRICT x, AvgPoolDims d) {
    const u32 packs = d.c / n, outputs = d.p * d.q * packs;
    x += (i64)blockIdx.x * d.h * d.w * d.c;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < outputs; i += gridDim.y * blockDim.x) {
        const int channel = i % packs * n, q = i / packs % d.q, p = i / packs / d.q;
        Floats<n> sum = floats<n>(0.0f);
        for (int row = 2 * p; row < 2 * p + 2 && row < d.h; row++) {
            for (int column = 2 * q; column < 2 * q + 2 && column < d.w; column++) {
                const Floats<n> v = load_f32<n>(x + ((i64)row * d.w + column) * d.c + channel);
                UNROLL
                for (int k = 0; k < n; k++) sum.v[k] += v.v[k];
            }
        }
        const float scale = window_scale(p, q, d);
        UNROLL
        for (int k = 0; k < n; k++) sum.v[k] *= scale;
        store_f32<n>(y + (i64)blockIdx.x * d.p * d.q * d.c + (i64)i * n, sum);
    }
}
INSTANCE(avg_pool_fwd<float, 4>)
INSTANCE(avg_pool_fwd<float, 1>)
INSTANCE(avg_pool_fwd<bf16, 8>)
INSTANCE(avg_pool_fwd<bf16, 1>)

// dx [n, h, w, c] (+)= dy [n, p, q, c] of the pixel's window, times the window's scale. `mask` [n, h, w,
// ceil(c / 8)], if not null, has the bits of the activation that produced x; the gradient is multiplied by
// `slope` where its bit is 0.
template <class T, int n>
KERNEL(256)
avg_pool_bwd(T* RESTRICT dx, const T* RESTRICT dy, const u8* RESTRICT mask, AvgPoolDims d, float slope, int add) {
    const u32 packs = d.c / n, inputs = d.h * d.w * packs;
    dy += (i64)blockIdx.x * d.p * d.q * d.c;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < inputs; i += gridDim.y * blockDim.x) {
        const int channel = i % packs * n, q = i / packs % d.w / 2, p = i / packs / d.w / 2;
        Floats<n> v = load_f32<n>(dy + ((i64)p * d.q + q) * d.c + channel);
        const float scale = window_scale(p, q, d);
        UNROLL
        for (int k = 0; k < n; k++) v.v[k] *= scale;
        const u32 bits = mask_bits<n>(mask, (i64)blockIdx.x * d.h * d.w + i / packs, channel, d.c);
        put_f32<n>(dx + (i64)blockIdx.x * d.h * d.w * d.c + (i64)i * n, v, add, bits, slope);
    }
}
INSTANCE(avg_pool_bwd<float, 4>)
INSTANCE(avg_pool_bwd<float, 1>)
INSTANCE(avg_pool_bwd<bf16, 8>)
INSTANCE(avg_pool_bwd<bf16, 1>)
