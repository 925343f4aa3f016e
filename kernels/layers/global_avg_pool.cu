// Mean over the pixels of each image: a block sums a slab of channels of one image.
#include "lib/channels.cuh"

// y [n, c], x [n, pixels, c]
template <class T, int n> KERNEL(256) global_avg_pool_fwd(float* RESTRICT y, const T* RESTRICT x, TilesDims d) {
    SHARED(float, scratch, ROWS_SCRATCH<n>);
    const Tile<n> t = Tile<n>::of(d);
    Floats<n> mean = sum_tile<n>(x, scratch, t);
    if (!t.works || t.row > 0) return;
    UNROLL
    for (int i = 0; i < n; i++) mean.v[i] *= 1.0f / (float)d.pixels;
    store_f32<n>(y + (i64)t.image(d) * d.c + t.channel, mean);
}
INSTANCE(global_avg_pool_fwd<float, 4>)
INSTANCE(global_avg_pool_fwd<float, 1>)
INSTANCE(global_avg_pool_fwd<bf16, 8>)
INSTANCE(global_avg_pool_fwd<bf16, 1>)

// dx [n, pixels, c], dy [n, c]; `gate`, if not null: [n, pixels, ceil(c / 8)] bits of the activation that gave x, whose slope
// the gradient is multiplied by.
template <class T, int n>
KERNEL(256)
global_avg_pool_bwd(T* RESTRICT dx, const float* RESTRICT dy, const u8* RESTRICT gate, float slope, int add, TilesDims d) {
    const Tile<n> t = Tile<n>::of(d);
    if (!t.works) return;
    Floats<n> v = load_f32<n>(dy + (i64)t.image(d) * d.c + t.channel);
    UNROLL
    for (int i = 0; i < n; i++) v.v[i] *= 1.0f / (float)d.pixels;
    i64 pixel = t.first / d.c;
    for (i64 at = t.first; at < t.last; at += t.step, pixel += t.rows) {
        put_f32<n>(dx + at, v, add, mask_bits<n>(gate, pixel, t.channel, d.c), slope);
    }
}
INSTANCE(global_avg_pool_bwd<float, 4>)
INSTANCE(global_avg_pool_bwd<float, 1>)
INSTANCE(global_avg_pool_bwd<bf16, 8>)
INSTANCE(global_avg_pool_bwd<bf16, 1>)
