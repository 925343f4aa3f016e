// Global average pooling: see src/ops/layers/global_avg_pool.rs. A block sums a slab of channels of one
// image; blocks as in lib/channels.cuh. Maps of equal sizes share a launch: blockIdx.y is the member.
#include "lib/channels.cuh"
#include "lib/group.cuh"

template <class T> struct PoolForward {
    float* y;
    const T* x;
};

// y [n, c] = mean of x [n, pixels, c] over the pixels. In packs of 8, six blocks with two loads each have 48 KB in
// flight, where eight with one had 32 KB.
template <class T, int n>
KERNEL(256, n == 8 ? 6 : 8) global_avg_pool_fwd(IN_PLACE Group<PoolForward<T>> members, TilesDims d) {
    SHARED(float, scratch, ROWS_SCRATCH<n>);
    const PoolForward<T>& io = members.mine();
    const Tile<n> t = Tile<n>::of_member(d);
    Floats<n> mean = sum_tile<n>(io.x, scratch, t);
    if (!t.works || t.row > 0) return;
    UNROLL
    for (int i = 0; i < n; i++) mean.v[i] *= 1.0f / (float)d.pixels;
    store_f32<n>(io.y + (i64)t.image(d) * d.c + t.channel, mean);
}
INSTANCE(global_avg_pool_fwd<float, 4>)
INSTANCE(global_avg_pool_fwd<float, 1>)
INSTANCE(global_avg_pool_fwd<bf16, 8>)
INSTANCE(global_avg_pool_fwd<bf16, 1>)

// dx [n, pixels, c] (+)= dy [n, c] / pixels. `mask` [n, pixels, ceil(c / 8)], if not null, has the bits of
// the activation that produced x; the gradient is multiplied by `slope` where its bit is 0.
template <class T> struct PoolBackward {
    T* dx;
    const float* dy;
    const u8* mask;
};

template <class T, int n> KERNEL(256) global_avg_pool_bwd(Group<PoolBackward<T>> members, float slope, int add, TilesDims d) {
    const PoolBackward<T>& io = members.mine();
    const Tile<n> t = Tile<n>::of_member(d);
    if (!t.works) return;
    Floats<n> v = load_f32<n>(io.dy + (i64)t.image(d) * d.c + t.channel);
    UNROLL
    for (int i = 0; i < n; i++) v.v[i] *= 1.0f / (float)d.pixels;
    i64 pixel = t.first / d.c;
    for (i64 at = t.first; at < t.last; at += t.step, pixel += t.rows) {
        put_f32<n>(io.dx + at, v, add, mask_bits<n>(io.mask, pixel, t.channel, d.c), slope);
    }
}
INSTANCE(global_avg_pool_bwd<float, 4>)
INSTANCE(global_avg_pool_bwd<float, 1>)
INSTANCE(global_avg_pool_bwd<bf16, 8>)
INSTANCE(global_avg_pool_bwd<bf16, 1>)
