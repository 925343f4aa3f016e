// Doubles height and width: see src/ops/layers/upsample.rs. A thread has a pack of n channels of one input
// pixel. In forward it writes the pixel's four outputs, in backward it gathers the 4 or 16 outputs that read
// the pixel. Grid [images, parts of an image]. x and y may differ in type: x is float where a view turned
// rows into pixels.
#include "lib/packs.cuh"

// The address of output (row, column) of an image with rows of 2 w pixels.
template <class T> DEV T* output(T* y, int row, int column, int w, int c, int channel) {
    return y + ((i64)row * 2 * w + column) * c + channel;
}

// Each input pixel four times: y [n, 2h, 2w, c], x [n, h, w, c].
template <class X, class Y, int n> KERNEL(256) upsample_nearest_fwd(Y* RESTRICT y, const X* RESTRICT x, int h, int w, int c) {
    const u32 packs = c / n, pixels = h * w * packs;
    y += (i64)blockIdx.x * 4 * h * w * c;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < pixels; i += gridDim.y * blockDim.x) {
        const int channel = i % packs * n, column = i / packs % w, row = i / packs / w;
        const Floats<n> v = load_f32<n>(x + (i64)blockIdx.x * h * w * c + (i64)i * n);
        for (int a = 0; a < 2; a++) {
            for (int b = 0; b < 2; b++) store_f32<n>(output(y, 2 * row + a, 2 * column + b, w, c, channel), v);
        }
    }
}
INSTANCE(upsample_nearest_fwd<float, float, 4>)
INSTANCE(upsample_nearest_fwd<float, float, 1>)
INSTANCE(upsample_nearest_fwd<bf16, bf16, 8>)
INSTANCE(upsample_nearest_fwd<bf16, bf16, 1>)
INSTANCE(upsample_nearest_fwd<float, bf16, 4>)
INSTANCE(upsample_nearest_fwd<float, bf16, 1>)

// 3/4 near + 1/4 far.
template <int n> DEV Floats<n> mix(const Floats<n>& near, const Floats<n>& far) {
    Floats<n> v;
    UNROLL
    for (int i = 0; i < n; i++) v.v[i] = fmaf(0.75f, near.v[i], 0.25f * far.v[i]);
    return v;
}

// Bilinear: y [n, 2h, 2w, c], x [n, h, w, c]. Rows are interpolated first, then columns: the four outputs
// take nine loads in all, where each on its own would take four.
template <class X, class Y, int n> KERNEL(256) upsample_bilinear_fwd(Y* RESTRICT y, const X* RESTRICT x, int h, int w, int c) {
    const u32 packs = c / n, pixels = h * w * packs;
    x += (i64)blockIdx.x * h * w * c;
    y += (i64)blockIdx.x * 4 * h * w * c;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < pixels; i += gridDim.y * blockDim.x) {
        const int channel = i % packs * n, column = i / packs % w, row = i / packs / w;
        const int left = column > 0 ? column - 1 : 0, right = column + 1 < w ? column + 1 : w - 1;
        const i64 line = (i64)w * c, here = row * line, above = row > 0 ? here - line : here, below = row + 1 < h ? here + line : here;
        for (int a = 0; a < 2; a++) {
            const i64 far = a == 0 ? above : below;
            const auto at = [&](int q) {
                const i64 offset = (i64)q * c + channel;
                return mix<n>(load_f32<n>(x + here + offset), load_f32<n>(x + far + offset));
            };
            const Floats<n> middle = at(column);
            store_f32<n>(output(y, 2 * row + a, 2 * column, w, c, channel), mix<n>(middle, at(left)));
            store_f32<n>(output(y, 2 * row + a, 2 * column + 1, w, c, channel), mix<n>(middle, at(right)));
        }
    }
}
INSTANCE(upsample_bilinear_fwd<float, float, 4>)
INSTANCE(upsample_bilinear_fwd<float, float, 1>)
INSTANCE(upsample_bilinear_fwd<bf16, bf16, 8>)
INSTANCE(upsample_bilinear_fwd<bf16, bf16, 1>)
INSTANCE(upsample_bilinear_fwd<float, bf16, 4>)
INSTANCE(upsample_bilinear_fwd<float, bf16, 1>)

// dx [n, h, w, c] (+)= sum of the pixel's four outputs in dy [n, 2h, 2w, c].
template <class X, class Y, int n> KERNEL(256) upsample_nearest_bwd(X* RESTRICT dx, const Y* RESTRICT dy, int h, int w, int c, int add) {
    const u32 packs = c / n, pixels = h * w * packs;
    dy += (i64)blockIdx.x * 4 * h * w * c;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < pixels; i += gridDim.y * blockDim.x) {
        const int channel = i % packs * n, column = i / packs % w, row = i / packs / w;
        Floats<n> sum = floats<n>(0.0f);
        UNROLL
        for (int a = 0; a < 4; a++) {
            const Floats<n> v = load_f32<n>(output(dy, 2 * row + a / 2, 2 * column + a % 2, w, c, channel));
            UNROLL
            for (int k = 0; k < n; k++) sum.v[k] += v.v[k];
        }
        put_f32<n>(dx + (i64)blockIdx.x * h * w * c + (i64)i * n, sum, add);
    }
}
INSTANCE(upsample_nearest_bwd<float, float, 4>)
INSTANCE(upsample_nearest_bwd<float, float, 1>)
INSTANCE(upsample_nearest_bwd<bf16, bf16, 8>)
INSTANCE(upsample_nearest_bwd<bf16, bf16, 1>)
INSTANCE(upsample_nearest_bwd<float, bf16, 4>)
INSTANCE(upsample_nearest_bwd<float, bf16, 1>)

// dx [n, h, w, c] (+)= weighted sum of dy [n, 2h, 2w, c]. In each direction, outputs 2 i - 1 to 2 i + 2 read
// input i, the inner two with weight 3/4, the outer two with 1/4; at an edge, the outermost output counts for
// the missing one too.
template <class X, class Y, int n> KERNEL(256) upsample_bilinear_bwd(X* RESTRICT dx, const Y* RESTRICT dy, int h, int w, int c, int add) {
    const u32 packs = c / n, pixels = h * w * packs;
    dy += (i64)blockIdx.x * 4 * h * w * c;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < pixels; i += gridDim.y * blockDim.x) {
        const int channel = i % packs * n, column = i / packs % w, row = i / packs / w;
        const auto reader = [](int i, int k, int len) {
            const int at = 2 * i - 1 + k;
            return at < 0 ? 0 : at < 2 * len ? at : 2 * len - 1;
        };
        Floats<n> sum = floats<n>(0.0f);
        for (int a = 0; a < 4; a++) {
            const int p = reader(row, a, h);
            UNROLL
            for (int b = 0; b < 4; b++) {
                const float weight = (a == 1 || a == 2 ? 0.75f : 0.25f) * (b == 1 || b == 2 ? 0.75f : 0.25f);
                const Floats<n> v = load_f32<n>(output(dy, p, reader(column, b, w), w, c, channel));
                UNROLL
                for (int k = 0; k < n; k++) sum.v[k] = fmaf(weight, v.v[k], sum.v[k]);
            }
        }
        put_f32<n>(dx + (i64)blockIdx.x * h * w * c + (i64)i * n, sum, add);
    }
}
INSTANCE(upsample_bilinear_bwd<float, float, 4>)
INSTANCE(upsample_bilinear_bwd<float, float, 1>)
INSTANCE(upsample_bilinear_bwd<bf16, bf16, 8>)
INSTANCE(upsample_bilinear_bwd<bf16, bf16, 1>)
INSTANCE(upsample_bilinear_bwd<float, bf16, 4>)
INSTANCE(upsample_bilinear_bwd<float, bf16, 1>)
