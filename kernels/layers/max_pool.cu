// Max pooling: see src/ops/layers/max_pool.rs. A thread computes a pack of n channels of one output pixel
// (forward) or input pixel (backward). Grid [images, members of the group, parts of an image]: indices within an image have
// 32 bits, in which a division costs four times less than in 64.
#include "lib/group.cuh"
#include "lib/packs.cuh"

// Mirrors `MaxPoolDims` of src/ops/layers/max_pool.rs: x [n, h, w, c], y [n, p, q, c].
struct MaxPoolDims {
    int h, w, p, q, c, window, stride, pad;
};
static_assert(sizeof(MaxPoolDims) == 32, "MaxPoolDims must match src/ops/layers/max_pool.rs");

template <class T> struct MaxPoolForward {
    T* y;
    u8* places;
    const T* x;
};

// The outputs of one image. A structure's pointers may alias each other, these may not.
template <class T, int n> DEV void max_pool_image(T* RESTRICT y, u8* RESTRICT places, const T* RESTRICT x, const MaxPoolDims& d) {
    const u32 packs = d.c / n, outputs = d.p * d.q * packs;
    x += (i64)blockIdx.x * d.h * d.w * d.c;
    for (u32 i = blockIdx.z * blockDim.x + threadIdx.x; i < outputs; i += gridDim.z * blockDim.x) {
        const int channel = i % packs * n, q = i / packs % d.q, p = i / packs / d.q;
        Floats<n> best = floats<n>(0.0f);
        Pack<u8, n> place = {};
        bool fresh = true;
        for (int r = 0; r < d.window; r++) {
            const int row = p * d.stride - d.pad + r;
            if (row < 0 || row >= d.h) continue;
            for (int s = 0; s < d.window; s++) {
                const int column = q * d.stride - d.pad + s;
                if (column < 0 || column >= d.w) continue;
                const Floats<n> v = load_f32<n>(x + ((i64)row * d.w + column) * d.c + channel);
                UNROLL
                for (int k = 0; k < n; k++) {
                    // NaN counts as the maximum, so that divergence shows.
                    const bool wins = fresh || v.v[k] > best.v[k] || v.v[k] != v.v[k];
                    best.v[k] = wins ? v.v[k] : best.v[k];
                    place.v[k] = wins ? (u8)(r * d.window + s) : place.v[k];
                }
                fresh = false;
            }
        }
        const i64 at = (i64)blockIdx.x * d.p * d.q * d.c + (i64)i * n;
        store_f32<n>(y + at, best);
        if (places) store_pack<n>(places + at, place);
    }
}

// y [n, p, q, c], x [n, h, w, c]. `places` [n, p, q, c], if not null: the place of the maximum in its window,
// in row order.
template <class T, int n> KERNEL(256) max_pool_fwd(Group<MaxPoolForward<T>> members, MaxPoolDims d) {
    const MaxPoolForward<T>& io = members.mine();
    max_pool_image<T, n>(io.y, io.places, io.x, d);
}
INSTANCE(max_pool_fwd<float, 4>)
INSTANCE(max_pool_fwd<float, 1>)
INSTANCE(max_pool_fwd<bf16, 8>)
INSTANCE(max_pool_fwd<bf16, 1>)

template <class T> struct MaxPoolBackward {
    T* dx;
    const u8* places;
    const T* dy;
    const u8* mask;
};

// The gradient of one image.
template <class T, int n>
DEV void max_pool_image_bwd(T* RESTRICT dx, const u8* RESTRICT places, const T* RESTRICT dy, const u8* RESTRICT mask,
                            const MaxPoolDims& d, float slope, int add) {
    const u32 packs = d.c / n, inputs = d.h * d.w * packs;
    places += (i64)blockIdx.x * d.p * d.q * d.c;
    dy += (i64)blockIdx.x * d.p * d.q * d.c;
    for (u32 i = blockIdx.z * blockDim.x + threadIdx.x; i < inputs; i += gridDim.z * blockDim.x) {
        const int channel = i % packs * n, column = i / packs % d.w + d.pad, row = i / packs / d.w + d.pad;
        const int first_p = row < d.window ? 0 : (row - d.window) / d.stride + 1;
        const int first_q = column < d.window ? 0 : (column - d.window) / d.stride + 1;
        Floats<n> sum = floats<n>(0.0f);
        for (int p = first_p; p * d.stride <= row && p < d.p; p++) {
            for (int q = first_q; q * d.stride <= column && q < d.q; q++) {
                const i64 at = ((i64)p * d.q + q) * d.c + channel;
                const Pack<u8, n> place = load_pack<n>(places + at);
                const Floats<n> v = load_f32<n>(dy + at);
                const int mine = (row - p * d.stride) * d.window + column - q * d.stride;
                UNROLL
                for (int k = 0; k < n; k++) sum.v[k] += place.v[k] == mine ? v.v[k] : 0.0f;
            }
        }
        const u32 bits = mask_bits<n>(mask, (i64)blockIdx.x * d.h * d.w + i / packs, channel, d.c);
        put_f32<n>(dx + (i64)blockIdx.x * d.h * d.w * d.c + (i64)i * n, sum, add, bits, slope);
    }
}

// dx [n, h, w, c] (+)= sum of dy over the windows whose maximum the input pixel was: the thread of a pixel
// looks at all windows that cover it. `mask` [n, h, w, ceil(c / 8)], if not null, has the bits of the
// activation that produced x; the sum is multiplied by `slope` where its bit is 0.
template <class T, int n> KERNEL(256) max_pool_bwd(Group<MaxPoolBackward<T>> members, MaxPoolDims d, float slope, int add) {
    const MaxPoolBackward<T>& io = members.mine();
    max_pool_image_bwd<T, n>(io.dx, io.places, io.dy, io.mask, d, slope, add);
}
INSTANCE(max_pool_bwd<float, 4>)
INSTANCE(max_pool_bwd<float, 1>)
INSTANCE(max_pool_bwd<bf16, 8>)
INSTANCE(max_pool_bwd<bf16, 1>)
