// Batch normalisation with an activation: see src/ops/layers/batch_norm.rs. Forward with batch statistics is
// three launches: sums over chunks of pixels, a fold that also updates the running estimates, and a pass that
// writes y. Where the producer of x has stored statistics of its tiles, the fold reads those, and there are no
// sums. With running estimates it is only the last of them. Backward: sums, fold, dx; with running estimates the
// sums and dx are one pass. Feature maps are [pixels, c], vectors [c]; chunks as in lib/channels.cuh.
// x and y may differ in type: x is float where a view turned rows into pixels.
//
// The layers of a group, such as those of a student for two tasks, share each launch. Grids: (images and slabs of
// channels, members of the group, chunks of pixels); those of the folds: (blocks of channels, members).
#include "lib/channel_stats.cuh"
#include "lib/channels.cuh"
#include "lib/group.cuh"

template <class X> struct BatchNormSums {
    float* parts; // [chunks][2][c]
    float* shift; // [c]
    const X* x;
};

// Sums of x - shift and of its square over chunks of pixels.
template <class X, int n> KERNEL(256, 4) batch_norm_fwd_sums(Group<BatchNormSums<X>> members, TilesDims d) {
    SHARED(float, scratch, ROWS_SCRATCH<n>);
    const BatchNormSums<X>& io = members.mine();
    store_stats_parts<n>(io.shift, io.parts, io.x, d, Tile<n>::of_member(d), blockIdx.z, scratch);
}
INSTANCE(batch_norm_fwd_sums<float, 4>)
INSTANCE(batch_norm_fwd_sums<float, 1>)
INSTANCE(batch_norm_fwd_sums<bf16, 8>)
INSTANCE(batch_norm_fwd_sums<bf16, 1>)

// What a fold reads and stores. coefficients [3][c]: shift, rstd and offset, with xhat = (x - shift) * rstd + offset.
struct BatchNormFold {
    float* coefficients;
    float* running_mean;
    float* running_var;
    const float* parts; // [chunks or tiles][2][c]
};

// Stores channel i, whose mean is shift + delta.
DEV void store_batch(const BatchNormFold& io, int i, float shift, float delta, float var, i64 pixels, int c, float momentum,
                     float eps) {
    const float unbiased = (float)((double)pixels / ((double)pixels - 1.0));
    io.running_mean[i] += momentum * (shift + delta - io.running_mean[i]);
    io.running_var[i] += momentum * (var * unbiased - io.running_var[i]);
    const float rstd = 1.0f / sqrtf(var + eps);
    io.coefficients[i] = shift;
    io.coefficients[c + i] = rstd;
    io.coefficients[2 * c + i] = -delta * rstd;
}

// Folds the chunks. `coefficients` holds the shift.
KERNEL(256) batch_norm_fwd_finish(Group<BatchNormFold> members, i64 pixels, int c, int chunks, float momentum, float eps) {
    SHARED(double, scratch, FOLD_SCRATCH);
    const BatchNormFold& io = members.mine();
    double sums[2];
    fold_parts(sums, io.parts, c, chunks, scratch);
    if (!is_fold_leader(c)) return;
    const int i = fold_channel();
    float delta, var;
    mean_and_variance(delta, var, sums, pixels);
    store_batch(io, i, io.coefficients[i], delta, var, pixels, c, momentum, eps);
}
INSTANCE(batch_norm_fwd_finish)

// Merges the statistics that the producer of x has stored for each tile of `rows` pixels. The shift is the mean, rounded
// to a float.
KERNEL(1024) batch_norm_fwd_merge(Group<BatchNormFold> members, i64 pixels, int c, int rows, float momentum, float eps) {
    SHARED(double, scratch, TILE_FOLD_SCRATCH);
    const BatchNormFold& io = members.mine();
    double sums[2];
    fold_tiles(sums, io.parts, pixels, c, rows, scratch);
    if (!is_tile_fold_leader(c)) return;
    const TileMoments of = TileMoments::of(sums, pixels);
    const int i = tile_fold_channel();
    store_batch(io, i, of.mean, of.rest, of.variance, pixels, c, momentum, eps);
}
INSTANCE(batch_norm_fwd_merge)

// The coefficients of n channels. The output before the activation is (x - shift) * scale + bias; forward and
// backward compute it in the same way, so that they agree on its sign.
template <int n> struct Channels {
    Floats<n> shift, rstd, offset, scale, bias;

    DEV void affine(const float* RESTRICT gamma, const float* RESTRICT beta, int channel) {
        const Floats<n> g = load_f32<n>(gamma + channel), b = load_f32<n>(beta + channel);
        UNROLL
        for (int i = 0; i < n; i++) {
            scale.v[i] = g.v[i] * rstd.v[i];
            bias.v[i] = fmaf(offset.v[i], g.v[i], b.v[i]);
        }
    }
    DEV void load(const float* RESTRICT coefficients, const float* RESTRICT gamma, const float* RESTRICT beta, int c, int channel) {
        shift = load_f32<n>(coefficients + channel);
        rstd = load_f32<n>(coefficients + c + channel);
        offset = load_f32<n>(coefficients + 2 * (i64)c + channel);
        affine(gamma, beta, channel);
    }
    // If the running estimates are null, `coefficients` holds the batch's statistics. Otherwise they are the
    // statistics, and `coefficients`, if not null, is written for backward.
    DEV void load_or_start(float* RESTRICT coefficients, const float* RESTRICT gamma, const float* RESTRICT beta,
                           const float* RESTRICT running_mean, const float* RESTRICT running_var, float eps, int c,
                           const Tile<n>& t) {
        if (!running_mean) {
            load(coefficients, gamma, beta, c, t.channel);
            return;
        }
        shift = load_f32<n>(running_mean + t.channel);
        rstd = load_f32<n>(running_var + t.channel);
        UNROLL
        for (int i = 0; i < n; i++) rstd.v[i] = 1.0f / sqrtf(rstd.v[i] + eps);
        offset = floats<n>(0.0f);
        affine(gamma, beta, t.channel);
        if (coefficients && blockIdx.z == 0 && t.row == 0) {
            store_f32<n>(coefficients + t.channel, shift);
            store_f32<n>(coefficients + c + t.channel, rstd);
            store_f32<n>(coefficients + 2 * (i64)c + t.channel, offset);
        }
    }
};

template <class X, class Y> struct BatchNormForward {
    Y* y;
    float* coefficients;
    const X* x;
    const float* gamma;
    const float* beta;
    const float* running_mean;
    const float* running_var;
};

// y = act((x - shift) * scale + bias) of a thread's pixels.
template <class X, class Y, int n>
DEV void normalise(Y* RESTRICT y, const X* RESTRICT x, const Channels<n>& k, float slope, const Tile<n>& t) {
    for (i64 at = t.first; at < t.last; at += t.step) {
        Floats<n> v = load_f32<n>(x + at);
        UNROLL
        for (int i = 0; i < n; i++) {
            v.v[i] = fmaf(v.v[i] - k.shift.v[i], k.scale.v[i], k.bias.v[i]);
            if (!(v.v[i] > 0.0f)) v.v[i] *= slope;
        }
        store_f32<n>(y + at, v);
    }
}

template <class X, class Y, int n>
KERNEL(256) batch_norm_fwd(Group<BatchNormForward<X, Y>> members, float eps, float slope, TilesDims d) {
    const BatchNormForward<X, Y>& io = members.mine();
    const Tile<n> t = Tile<n>::of_member(d);
    if (!t.works) return;
    Channels<n> k;
    k.load_or_start(io.coefficients, io.gamma, io.beta, io.running_mean, io.running_var, eps, d.c, t);
    normalise<X, Y, n>(io.y, io.x, k, slope, t);
}
INSTANCE(batch_norm_fwd<float, float, 4>)
INSTANCE(batch_norm_fwd<float, float, 1>)
INSTANCE(batch_norm_fwd<bf16, bf16, 8>)
INSTANCE(batch_norm_fwd<bf16, bf16, 1>)
INSTANCE(batch_norm_fwd<float, bf16, 4>)
INSTANCE(batch_norm_fwd<float, bf16, 1>)

// y, the mask and the residual may be null; the running estimates and `coefficients` as in `load_or_start`.
struct BatchNormActivation {
    bf16* out;
    u8* mask; // bytes of eight channels each
    bf16* y;
    const bf16* residual;
    float* coefficients;
    const bf16* x;
    const float* gamma;
    const float* beta;
    const float* running_mean;
    const float* running_var;
};

// out = act(y + residual), where y is the normalised x, and the mask of y + residual > 0, of a thread's pixels.
DEV void normalise_and_activate(bf16* RESTRICT out, u8* RESTRICT mask, bf16* RESTRICT y, const bf16* RESTRICT residual,
                                const bf16* RESTRICT x, const Channels<8>& k, float slope, const Tile<8>& t) {
    for (i64 at = t.first; at < t.last; at += t.step) {
        Floats<8> v = load_f32<8>(x + at);
        UNROLL
        for (int i = 0; i < 8; i++) v.v[i] = fmaf(v.v[i] - k.shift.v[i], k.scale.v[i], k.bias.v[i]);
        if (y) store_f32<8>(y + at, v);
        if (residual) {
            const Floats<8> more = load_f32<8>(residual + at);
            UNROLL
            for (int i = 0; i < 8; i++) v.v[i] += more.v[i];
        }
        u32 bits = 0;
        UNROLL
        for (int i = 0; i < 8; i++) {
            bits |= (u32)(v.v[i] > 0.0f) << i;
            if (!(v.v[i] > 0.0f)) v.v[i] *= slope;
        }
        if (mask) mask[at / 8] = (u8)bits;
        store_f32<8>(out + at, v);
    }
}

// What batch_norm_fwd does before an activation of y plus a residual.
KERNEL(256) batch_norm_fwd_activation(Group<BatchNormActivation> members, float eps, float slope, TilesDims d) {
    const BatchNormActivation& io = members.mine();
    const Tile<8> t = Tile<8>::of_member(d);
    if (!t.works) return;
    Channels<8> k;
    k.load_or_start(io.coefficients, io.gamma, io.beta, io.running_mean, io.running_var, eps, d.c, t);
    normalise_and_activate(io.out, io.mask, io.y, io.residual, io.x, k, slope, t);
}
INSTANCE(batch_norm_fwd_activation)

// The operands of backward; a kernel leaves those null that it does not use.
template <class X, class Y> struct BatchNormBackward {
    X* dx;
    float* parts; // [chunks][2][c]
    const X* x;
    const Y* dy;
    const float* coefficients; // [3][c]
    const float* gamma;
    const float* beta;
    const float* means; // [2][c]; null with running estimates, which do not depend on x
};

// What the passes of backward sum: g, and g * (x - shift), where g = dy * act'.
template <int n> struct GradientSums {
    Floats<n> g = floats<n>(0.0f), g_away = floats<n>(0.0f);
    struct Pixel {
        Floats<n> x, dy;
    };

    // Calls use(at, g) for each of the thread's packs, after adding it.
    template <class X, class Y, class Use>
    DEV void add(const Tile<n>& t, const X* RESTRICT x, const Y* RESTRICT dy, const Channels<n>& k, float slope, const Use& use) {
        const auto load = [&](i64 at) { return Pixel{load_f32<n>(x + at), load_f32<n>(dy + at)}; };
        each_pack(t, load, [&](i64 at, const Pixel& p) {
            Floats<n> v = p.dy;
            UNROLL
            for (int i = 0; i < n; i++) {
                const float away = p.x.v[i] - k.shift.v[i];
                if (!(fmaf(away, k.scale.v[i], k.bias.v[i]) > 0.0f)) v.v[i] *= slope;
                g.v[i] += v.v[i];
                g_away.v[i] = fmaf(v.v[i], away, g_away.v[i]);
            }
            use(at, v);
        });
    }
};

// Sums of g and of g * xhat over chunks of pixels. In packs of 8, three blocks with two loads each of x and dy have 48 KB
// in flight.
template <class X, class Y, int n>
KERNEL(256, n == 8 ? 3 : 4) batch_norm_bwd_sums(Group<BatchNormBackward<X, Y>> members, float slope, TilesDims d) {
    SHARED(float, scratch, ROWS_SCRATCH<n>);
    const BatchNormBackward<X, Y>& io = members.mine();
    const Tile<n> t = Tile<n>::of_member(d);
    Channels<n> k;
    k.load(io.coefficients, io.gamma, io.beta, d.c, t.channel);
    GradientSums<n> sums;
    sums.add(t, io.x, io.dy, k, slope, [](i64, const Floats<n>&) {});
    // xhat = away * rstd + offset, so the sum of g * xhat follows from the two sums. rstd and offset are loaded
    // again, because 16 registers in the loop would leave room for two blocks instead of three.
    const int channel = opaque(t.channel);
    const Floats<n> rstd = load_f32<n>(io.coefficients + d.c + channel);
    const Floats<n> offset = load_f32<n>(io.coefficients + 2 * (i64)d.c + channel);
    UNROLL
    for (int i = 0; i < n; i++) sums.g_away.v[i] = fmaf(sums.g_away.v[i], rstd.v[i], sums.g.v[i] * offset.v[i]);
    store_parts<n>(io.parts, sums.g, sums.g_away, d, scratch, t, blockIdx.z);
}
INSTANCE(batch_norm_bwd_sums<float, float, 4>)
INSTANCE(batch_norm_bwd_sums<float, float, 1>)
INSTANCE(batch_norm_bwd_sums<bf16, bf16, 8>)
INSTANCE(batch_norm_bwd_sums<bf16, bf16, 1>)
INSTANCE(batch_norm_bwd_sums<float, bf16, 4>)
INSTANCE(batch_norm_bwd_sums<float, bf16, 1>)

// With running estimates dx (+)= scale * g does not depend on the sums: dx and the parts of both sums in one pass.
template <class X, class Y, int n>
KERNEL(256, 2) batch_norm_bwd_running(Group<BatchNormBackward<X, Y>> members, float slope, int add, TilesDims d) {
    SHARED(float, scratch, ROWS_SCRATCH<n>);
    const BatchNormBackward<X, Y>& io = members.mine();
    X* const dx = io.dx;
    const Tile<n> t = Tile<n>::of_member(d);
    Channels<n> k;
    k.load(io.coefficients, io.gamma, io.beta, d.c, t.channel);
    GradientSums<n> sums;
    sums.add(t, io.x, io.dy, k, slope, [&](i64 at, const Floats<n>& g) {
        Floats<n> v;
        UNROLL
        for (int i = 0; i < n; i++) v.v[i] = k.scale.v[i] * g.v[i];
        put_f32<n>(dx + at, v, add);
    });
    // As in batch_norm_bwd_sums; the offset is 0.
    UNROLL
    for (int i = 0; i < n; i++) sums.g_away.v[i] *= k.rstd.v[i];
    store_parts<n>(io.parts, sums.g, sums.g_away, d, scratch, t, blockIdx.z);
}
INSTANCE(batch_norm_bwd_running<float, float, 4>)
INSTANCE(batch_norm_bwd_running<float, float, 1>)
INSTANCE(batch_norm_bwd_running<bf16, bf16, 8>)
INSTANCE(batch_norm_bwd_running<bf16, bf16, 1>)
INSTANCE(batch_norm_bwd_running<float, bf16, 4>)
INSTANCE(batch_norm_bwd_running<float, bf16, 1>)

// Each of the first three may be null.
struct BatchNormBackwardFold {
    float* means; // [2][c]
    float* dgamma;
    float* dbeta;
    const float* parts; // [chunks][2][c]
};

// dbeta (+)= sum of g, dgamma (+)= sum of g * xhat, and means = both divided by the pixels.
KERNEL(256) batch_norm_bwd_finish(Group<BatchNormBackwardFold> members, i64 pixels, int c, int chunks, int add_gamma, int add_beta) {
    SHARED(double, scratch, FOLD_SCRATCH);
    const BatchNormBackwardFold& io = members.mine();
    double sums[2];
    fold_parts(sums, io.parts, c, chunks, scratch);
    if (!is_fold_leader(c)) return;
    const int i = fold_channel();
    if (io.dbeta) put(io.dbeta + i, (float)sums[0], add_beta);
    if (io.dgamma) put(io.dgamma + i, (float)sums[1], add_gamma);
    if (!io.means) return;
    io.means[i] = (float)(sums[0] / (double)pixels);
    io.means[c + i] = (float)(sums[1] / (double)pixels);
}
INSTANCE(batch_norm_bwd_finish)

// dx (+)= scale * (g - constant - away * linear) of a thread's pixels.
template <class X, class Y, int n>
DEV void store_dx(X* RESTRICT dx, const X* RESTRICT x, const Y* RESTRICT dy, const Channels<n>& k, const Floats<n>& constant,
                  const Floats<n>& linear, float slope, int add, const Tile<n>& t) {
    for (i64 at = t.first; at < t.last; at += t.step) {
        const Floats<n> v = load_f32<n>(x + at);
        Floats<n> g = load_f32<n>(dy + at);
        UNROLL
        for (int i = 0; i < n; i++) {
            const float away = v.v[i] - k.shift.v[i];
            if (!(fmaf(away, k.scale.v[i], k.bias.v[i]) > 0.0f)) g.v[i] *= slope;
            g.v[i] = k.scale.v[i] * fmaf(-away, linear.v[i], g.v[i] - constant.v[i]);
        }
        put_f32<n>(dx + at, g, add);
    }
}

// dx (+)= scale * (g - mean_g - xhat * mean_gx).
template <class X, class Y, int n>
KERNEL(256) batch_norm_bwd(Group<BatchNormBackward<X, Y>> members, float slope, int add, TilesDims d) {
    const BatchNormBackward<X, Y>& io = members.mine();
    const Tile<n> t = Tile<n>::of_member(d);
    if (!t.works) return;
    Channels<n> k;
    k.load(io.coefficients, io.gamma, io.beta, d.c, t.channel);
    // g - constant - away * linear: five floats per channel in the loop instead of seven.
    Floats<n> constant = floats<n>(0.0f), linear = floats<n>(0.0f);
    if (io.means) {
        const Floats<n> mean_g = load_f32<n>(io.means + t.channel), mean_gx = load_f32<n>(io.means + d.c + t.channel);
        UNROLL
        for (int i = 0; i < n; i++) {
            constant.v[i] = fmaf(k.offset.v[i], mean_gx.v[i], mean_g.v[i]);
            linear.v[i] = k.rstd.v[i] * mean_gx.v[i];
        }
    }
    store_dx<X, Y, n>(io.dx, io.x, io.dy, k, constant, linear, slope, add, t);
}
INSTANCE(batch_norm_bwd<float, float, 4>)
INSTANCE(batch_norm_bwd<float, float, 1>)
INSTANCE(batch_norm_bwd<bf16, bf16, 8>)
INSTANCE(batch_norm_bwd<bf16, bf16, 1>)
INSTANCE(batch_norm_bwd<float, bf16, 4>)
INSTANCE(batch_norm_bwd<float, bf16, 1>)
