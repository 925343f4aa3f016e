// Squeeze and excitation: see src/ops/layers/se_filter.rs. Forward is three launches: the mean of every
// image, two small products for each sample, and the scaling. Backward is four: sums of x * dy, the
// transposes of the products, the gradients of the weights, and dx. x, y, dx and dy are [n, pixels, c];
// blocks and chunks as in lib/channels.cuh. Filters of equal sizes share each launch: blockIdx.y is the member.
#include "lib/activation.cuh"
#include "lib/channels.cuh"
#include "lib/group.cuh"
#include "lib/reduce.cuh"

// Both intermediate tables have a row of 2 c + k floats for each sample. `small`, which forward saves, is
// [pooled c][gain c][hidden k], as on the host. `inner`, of backward, is [outer c][dpooled c][dhidden k],
// where outer is the gradient with respect to the sigmoid's input.
DEV i64 row_of(i64 sample, int c, int k) { return sample * (2 * c + k); }

template <class T> struct SeSqueeze {
    float* small;
    const T* x;
};

// pooled = mean of x over the pixels. Blocks of a multiprocessor as in global_avg_pool_fwd.
template <class T, int n>
KERNEL(256, n == 8 ? 6 : 8) se_filter_fwd_squeeze(IN_PLACE Group<SeSqueeze<T>> members, int k, TilesDims d) {
    SHARED(float, scratch, ROWS_SCRATCH<n>);
    const SeSqueeze<T>& io = members.mine();
    const Tile<n> t = Tile<n>::of_member(d);
    const Floats<n> sum = sum_tile<n>(io.x, scratch, t);
    if (!t.works || t.row > 0) return;
    // A row is not a multiple of a pack, since k may be odd: element by element.
    float* const pooled = io.small + row_of(t.image(d), d.c, k) + t.channel;
    UNROLL
    for (int i = 0; i < n; i++) pooled[i] = sum.v[i] * (1.0f / (float)d.pixels);
}
INSTANCE(se_filter_fwd_squeeze<float, 4>)
INSTANCE(se_filter_fwd_squeeze<float, 1>)
INSTANCE(se_filter_fwd_squeeze<bf16, 8>)
INSTANCE(se_filter_fwd_squeeze<bf16, 1>)

// The dot product of a and b, computed by one warp. All lanes get it.
DEV float warp_dot(const float* a, const float* b, int len) {
    float sum = 0.0f;
    for (int i = lane_id(); i < len; i += 32) sum = fmaf(a[i], b[i], sum);
    return warp_sum(sum);
}

struct SeExcite {
    float* small;
    const float* w1;
    const float* b1;
    const float* w2;
    const float* b2;
};

// hidden = relu(w1 pooled + b1) and gain = top * sigmoid(w2 hidden + b2) with w1 [k, c], w2 [c, k]. One block
// per sample, one warp per row of w1, then of w2.
KERNEL(256) se_filter_fwd_excite(Group<SeExcite> members, float top, int c, int k) {
    const SeExcite& io = members.mine();
    const int warps = blockDim.x / 32;
    float* const pooled = io.small + row_of(blockIdx.x, c, k);
    float *const gain = pooled + c, *const hidden = gain + c;
    for (int j = warp_id(); j < k; j += warps) {
        const float v = warp_dot(io.w1 + (i64)j * c, pooled, c) + io.b1[j];
        if (lane_id() == 0) hidden[j] = v > 0.0f ? v : 0.0f;
    }
    sync_block();
    for (int i = warp_id(); i < c; i += warps) {
        const float v = warp_dot(io.w2 + (i64)i * k, hidden, k) + io.b2[i];
        if (lane_id() == 0) gain[i] = top * sigmoid(v);
    }
}
INSTANCE(se_filter_fwd_excite)

template <class T> struct SeScale {
    T* y;
    const T* x;
    const float* small;
};

// y = x * gain of a thread's pixels. Parameters that do not alias let the loads of a pixel overtake the store of the one before.
template <class T, int n> DEV void scale(T* RESTRICT y, const T* RESTRICT x, const Floats<n>& gain, const Tile<n>& t) {
    for (i64 at = t.first; at < t.last; at += t.step) {
        Floats<n> v = load_f32<n>(x + at);
        UNROLL
        for (int i = 0; i < n; i++) v.v[i] *= gain.v[i];
        store_f32<n>(y + at, v);
    }
}

// y = x * gain.
template <class T, int n> KERNEL(256) se_filter_fwd(Group<SeScale<T>> members, int k, TilesDims d) {
    const SeScale<T>& io = members.mine();
    const Tile<n> t = Tile<n>::of_member(d);
    if (!t.works) return;
    const float* const gains = io.small + row_of(t.image(d), d.c, k) + d.c + t.channel;
    Floats<n> gain;
    UNROLL
    for (int i = 0; i < n; i++) gain.v[i] = gains[i];
    scale<T, n>(io.y, io.x, gain, t);
}
INSTANCE(se_filter_fwd<float, 4>)
INSTANCE(se_filter_fwd<float, 1>)
INSTANCE(se_filter_fwd<bf16, 8>)
INSTANCE(se_filter_fwd<bf16, 1>)

template <class T> struct SeSqueezeBackward {
    float* inner;
    const T* x;
    const T* dy;
    const float* small;
};

// outer = gain * (1 - gain / top) * sum of x * dy over the pixels.
template <class T, int n>
KERNEL(256) se_filter_bwd_squeeze(Group<SeSqueezeBackward<T>> members, float top, int k, TilesDims d) {
    SHARED(float, scratch, ROWS_SCRATCH<n>);
    const SeSqueezeBackward<T>& io = members.mine();
    const T *const x = io.x, *const dy = io.dy;
    const Tile<n> t = Tile<n>::of_member(d);
    Floats<n> sum = floats<n>(0.0f);
    for (i64 at = t.first; at < t.last; at += t.step) {
        const Floats<n> u = load_f32<n>(x + at), v = load_f32<n>(dy + at);
        UNROLL
        for (int i = 0; i < n; i++) sum.v[i] = fmaf(u.v[i], v.v[i], sum.v[i]);
    }
    sum_rows<n>(sum, scratch, t);
    if (!t.works || t.row > 0) return;
    const i64 row = row_of(t.image(d), d.c, k);
    UNROLL
    for (int i = 0; i < n; i++) {
        const float gain = io.small[row + d.c + t.channel + i];
        io.inner[row + t.channel + i] = sum.v[i] * (gain * (1.0f - gain / top));
    }
}
INSTANCE(se_filter_bwd_squeeze<float, 4>)
INSTANCE(se_filter_bwd_squeeze<float, 1>)
INSTANCE(se_filter_bwd_squeeze<bf16, 8>)
INSTANCE(se_filter_bwd_squeeze<bf16, 1>)

struct SeExciteBackward {
    float* inner;
    const float* small;
    const float* w1;
    const float* w2;
};

// dhidden = w2^T outer where hidden > 0, and dpooled = w1^T dhidden / pixels. One block per sample;
// neighbouring threads read neighbouring elements of a row of w2, then of w1.
KERNEL(256) se_filter_bwd_excite(Group<SeExciteBackward> members, i64 pixels, int c, int k) {
    SHARED(float, parts, 256);
    const SeExciteBackward& io = members.mine();
    const float *const w1 = io.w1, *const w2 = io.w2;
    const int threads = blockDim.x, me = threadIdx.x;
    const i64 row = row_of(blockIdx.x, c, k);
    float *const outer = io.inner + row, *const dpooled = outer + c, *const dhidden = dpooled + c;
    const float* const hidden = io.small + row + 2 * c;
    for (int first = 0; first < k; first += threads) {
        // The threads of the block are divided among the hidden units. Each sums a share of the channels; the
        // shares are added in order.
        const int width = k - first < threads ? k - first : threads, shares = threads / width, share = me / width;
        const int j = first + me % width;
        float sum = 0.0f;
        for (int i = share; i < c && share < shares; i += shares) sum = fmaf(outer[i], w2[(i64)i * k + j], sum);
        parts[me] = sum;
        sync_block();
        if (me < width) {
            float total = 0.0f;
            for (int s = 0; s < shares; s++) total += parts[s * width + me];
            dhidden[j] = hidden[j] > 0.0f ? total : 0.0f;
        }
        sync_block();
    }
    for (int i = me; i < c; i += threads) {
        float sum = 0.0f;
        for (int j = 0; j < k; j++) sum = fmaf(dhidden[j], w1[(i64)j * c + i], sum);
        dpooled[i] = sum / (float)pixels;
    }
}
INSTANCE(se_filter_bwd_excite)

// Each of the first four may be null.
struct SeWeightGradients {
    float* dw1;
    float* db1;
    float* dw2;
    float* db2;
    const float* inner;
    const float* small;
};

// The gradients of w1, b1, w2 and b2: sum over the samples of left * right, where right is 1 for a bias. A
// block computes 32 elements, one per lane, and each of its 8 warps sums every eighth
// sample: for 256 samples, a thread waits for 32 loads instead of 256.
KERNEL(256) se_filter_bwd_weights(Group<SeWeightGradients> members, int samples, int c, int k, int add_w1, int add_b1, int add_w2,
                                  int add_b2) {
    SHARED(float, parts, 256);
    const SeWeightGradients& io = members.mine();
    const float *outer = io.inner, *dhidden = io.inner + 2 * c, *pooled = io.small, *hidden = io.small + 2 * c;
    i64 e = (i64)blockIdx.x * 32 + lane_id();
    const i64 product = (i64)c * k;
    float* to = nullptr;
    const float *left = nullptr, *right = nullptr;
    int add = 0;
    if (e < product) {
        to = io.dw1, add = add_w1, left = dhidden + e / c, right = pooled + e % c;
    } else if ((e -= product) < product) {
        to = io.dw2, add = add_w2, left = outer + e / k, right = hidden + e % k;
    } else if ((e -= product) < k) {
        to = io.db1, add = add_b1, left = dhidden + e;
    } else if ((e -= k) < c) {
        to = io.db2, add = add_b2, left = outer + e;
    }
    float sum = 0.0f;
    for (int s = warp_id(); s < samples && to; s += 8) {
        const i64 row = row_of(s, c, k);
        sum = fmaf(left[row], right ? right[row] : 1.0f, sum);
    }
    parts[threadIdx.x] = sum;
    sync_block();
    if (warp_id() > 0 || !to) return;
    for (int w = 1; w < 8; w++) sum += parts[w * 32 + lane_id()];
    put(to + e, sum, add);
}
INSTANCE(se_filter_bwd_weights)

template <class T> struct SeBackward {
    T* dx;
    const T* dy;
    const float* small;
    const float* inner;
};

// dx (+)= dy * gain + dpooled of a thread's pixels.
template <class T, int n>
DEV void scale_back(T* RESTRICT dx, const T* RESTRICT dy, const Floats<n>& gain, const Floats<n>& dpooled, int add, const Tile<n>& t) {
    for (i64 at = t.first; at < t.last; at += t.step) {
        Floats<n> v = load_f32<n>(dy + at);
        UNROLL
        for (int i = 0; i < n; i++) v.v[i] = fmaf(v.v[i], gain.v[i], dpooled.v[i]);
        put_f32<n>(dx + at, v, add);
    }
}

// dx (+)= dy * gain + dpooled.
template <class T, int n> KERNEL(256) se_filter_bwd(Group<SeBackward<T>> members, int k, int add, TilesDims d) {
    const SeBackward<T>& io = members.mine();
    const Tile<n> t = Tile<n>::of_member(d);
    if (!t.works) return;
    const i64 row = row_of(t.image(d), d.c, k) + d.c + t.channel;
    Floats<n> gain, dpooled;
    UNROLL
    for (int i = 0; i < n; i++) {
        gain.v[i] = io.small[row + i];
        dpooled.v[i] = io.inner[row + i];
    }
    scale_back<T, n>(io.dx, io.dy, gain, dpooled, add, t);
}
INSTANCE(se_filter_bwd<float, 4>)
INSTANCE(se_filter_bwd<float, 1>)
INSTANCE(se_filter_bwd<bf16, 8>)
INSTANCE(se_filter_bwd<bf16, 1>)
