// 2-D convolution as three matrix products whose operands are gathered while they are copied to shared memory (implicit
// GEMM): no patch matrix ever exists. Letters as in src/ops/layers/conv2d/mod.rs.
#include "lib/conv_wgmma.cuh"
#include "lib/group.cuh"
#include "lib/mma.cuh"
#include "lib/moments.cuh"
#include "lib/tile.cuh"

// A number in mixed radix, counted on without division: `hi`, `mid` below `mids`, `lo` below `los`.
struct Digits {
    int hi, mid, lo;

    DEV static Digits of(int i, int mids, int los) { return {i / los / mids, i / los % mids, i % los}; }
    DEV void add(Digits by, int mids, int los) {
        lo += by.lo;
        mid += by.mid;
        hi += by.hi;
        if (lo >= los) {
            lo -= los;
            mid++;
        }
        if (mid >= mids) {
            mid -= mids;
            hi++;
        }
    }
};

// Windows over an NHWC image x: tap (r, s) of window (n, p, q) reads pixel (p * step + r - above, q * step + s - left).
// A plain matrix is windows of one pixel.
template <class T> struct Windows {
    const T* x; // [n, h, w, c]
    int n, h, w, c;
    int p, q, r, s;
    int step, above, left;

    DEV int count() const { return n * p * q; }
    DEV bool wide() const { return c % CHUNK<T> == 0; }
    DEV bool inside(int h_, int w_) const { return (u32)h_ < (u32)h && (u32)w_ < (u32)w; }
};
template <class T> DEV Windows<T> windows_of(const T* x, const Conv2dDims& d) {
    return {x, d.n, d.h, d.w, d.c, d.p, d.q, d.r, d.s, d.stride, d.pad, d.pad};
}
template <class T> DEV Windows<T> matrix(const T* x, int rows, int columns) {
    return {x, rows, 1, 1, columns, 1, 1, 1, 1, 1, 0, 0};
}

// Slabs [len][SLAB]: a row is a window, a column a tap's channel (r, s, c); slabs advance along the columns. All of a
// thread's copies share a column: one set of digits finds the tap, and each row costs two comparisons and one product.
template <class T, int len> struct LoadWindows {
    using S = Slab<T, len, true>;
    Windows<T> g;
    Digits tap, by;
    int h[S::COPIES], w[S::COPIES], pixel[S::COPIES];

    DEV LoadWindows(const Windows<T>& g_, int first) : g(g_) {
        tap = Digits::of(S::column(), g.s, g.c);
        by = Digits::of(SLAB<T>, g.s, g.c);
        UNROLL
        for (int i = 0; i < S::COPIES; i++) {
            const int m = first + S::row() + i * S::STEP;
            const Digits at = Digits::of(m, g.p, g.q);
            h[i] = at.mid * g.step - g.above;
            w[i] = at.lo * g.step - g.left;
            pixel[i] = (at.hi * g.h + h[i]) * g.w + w[i];
            // A window past the last lies above every image.
            if (m >= g.count()) h[i] = -(1 << 30);
        }
    }
    DEV bool exists(int i, const Digits& t) const { return t.hi < g.r && g.inside(h[i] + t.hi, w[i] + t.mid); }
    DEV const T* source(int i, const Digits& t) const { return g.x + (i64)(pixel[i] + t.hi * g.w + t.mid) * g.c + t.lo; }

    DEV void load(T* slab) {
        if (g.wide()) {
            UNROLL
            for (int i = 0; i < S::COPIES; i++) cp_async16(S::at(slab, i), source(i, tap), exists(i, tap));
        } else {
            Digits t = tap;
            _Pragma("unroll 2") for (int e = 0; e < CHUNK<T>; e++) {
                UNROLL
                for (int i = 0; i < S::COPIES; i++) S::at(slab, i)[e] = exists(i, t) ? *source(i, t) : from_f32<T>(0.0f);
                t.add({0, 0, 1}, g.s, g.c);
            }
        }
        tap.add(by, g.s, g.c);
    }
};

// A thread's copies of a slab whose loader counts on by itself. Channels that are no whole chunks come one by one, several
// loads in flight before the first is stored.
template <class S, class Loader, class T> DEV void copy_column(Loader& loader, T* slab, bool wide) {
    if (wide) {
        UNROLL
        for (int i = 0; i < S::COPIES; i++) loader.copy(S::at(slab, i), true);
    } else {
        _Pragma("unroll 1") for (int i = 0; i < S::COPIES; i++) loader.copy(S::at(slab, i), false);
    }
}

// Slabs [SLAB][len], the transpose: a row is a window and slabs advance along the rows; a thread's tap never changes.
template <class T, int len> struct LoadWindowsAcross {
    using S = Slab<T, len, false>;
    Windows<T> g;
    Digits tap, at, by;

    DEV LoadWindowsAcross(const Windows<T>& g_, int column, int first) : g(g_) {
        tap = Digits::of(column + S::column(), g.s, g.c);
        at = Digits::of(first + S::row(), g.p, g.q);
        by = Digits::of(S::STEP, g.p, g.q);
    }
    DEV bool exists(int h, int w, const Digits& t) const { return at.hi < g.n && t.hi < g.r && g.inside(h + t.hi, w + t.mid); }
    DEV const T* source(int h, int w, const Digits& t) const {
        return g.x + (i64)((at.hi * g.h + h + t.hi) * g.w + w + t.mid) * g.c + t.lo;
    }

    // One copy, and on to the next row.
    DEV void copy(T* to, bool wide) {
        const int h = at.mid * g.step - g.above, w = at.lo * g.step - g.left;
        if (wide) {
            cp_async16(to, source(h, w, tap), exists(h, w, tap));
        } else {
            Digits t = tap;
            // Four at a time: all eight of bf16 need 178 registers at 128x128 (ptxas, sm_90a).
            _Pragma("unroll 1") for (int first = 0; first < CHUNK<T>; first += 4) {
                Pack<T, 4> v;
                UNROLL
                for (int e = 0; e < 4; e++) {
                    v.v[e] = exists(h, w, t) ? *source(h, w, t) : from_f32<T>(0.0f);
                    t.add({0, 0, 1}, g.s, g.c);
                }
                store_pack(to + first, v);
            }
        }
        at.add(by, g.p, g.q);
    }
    DEV void load(T* slab) { copy_column<S>(*this, slab, g.wide()); }
};

// The filter taps of one dimension that reach the inputs `phase`, `phase + stride`, ... (`Taps` of src/ops/layers/conv2d/mod.rs):
// first, first - stride, ..., which read the outputs base - count + 1 + j, ... for the j-th input.
struct Taps {
    int count, first, base;

    DEV static Taps of(int phase, int taps, const Conv2dDims& d) {
        const int residue = (phase + d.pad) % d.stride;
        if (residue >= taps) return {0, 0, 0};
        const int count = (taps - 1 - residue) / d.stride + 1;
        return {count, residue + (count - 1) * d.stride, (phase + d.pad - residue) / d.stride};
    }
};

// Slabs [SLAB][len] of the filter turned round: a row is a tap of the phase and an output channel (i, j, k), a column an
// input channel.
template <class T, int len> struct LoadFilter {
    using S = Slab<T, len, false>;
    const T* f; // [k, r, s, c]
    Conv2dDims d;
    Taps rows, cols;
    Digits at, by;
    int column;

    DEV LoadFilter(const T* f_, const Conv2dDims& d_, const Taps& rows_, const Taps& cols_, int first)
        : f(f_), d(d_), rows(rows_), cols(cols_) {
        const int mids = cols.count > 0 ? cols.count : 1;
        at = Digits::of(S::row(), mids, d.k);
        by = Digits::of(S::STEP, mids, d.k);
        column = first + S::column();
    }
    DEV void copy(T* to, bool wide) {
        const int r = rows.first - at.hi * d.stride, s = cols.first - at.mid * d.stride;
        const T* const from = f + ((i64)(at.lo * d.r + r) * d.s + s) * d.c + column;
        const bool exists = at.hi < rows.count;
        if (wide) {
            cp_async16(to, from, exists && column < d.c);
        } else {
            Pack<T, CHUNK<T>> v;
            UNROLL
            for (int e = 0; e < CHUNK<T>; e++) v.v[e] = exists && column + e < d.c ? from[e] : from_f32<T>(0.0f);
            store_pack(to, v);
        }
        at.add(by, cols.count, d.k);
    }
    DEV void load(T* slab) { copy_column<S>(*this, slab, d.c % CHUNK<T> == 0); }
};

// A block's tile: columns first, so that the blocks that run together read the same windows and share them in the L2.
struct Place {
    int row, column;

    DEV static Place of(int BM, int BN, int columns) {
        const int across = (columns + BN - 1) / BN;
        return {(int)(blockIdx.x / across) * BM, (int)(blockIdx.x % across) * BN};
    }
};
DEV int slabs_of(int depth, int slab) { return (depth + slab - 1) / slab; }

// y = act(bias + residual + x * w), rows of the product n p q, columns k, inner dimension r s c. act(v) = v > 0 ? v : v * slope.
template <class T, int BM, int BN> KERNEL(256) conv2d_fwd(Group<Conv2dForward<T>> members, Conv2dDims d, float slope) {
    DYN_SHARED(T, shared);
    const Conv2dForward<T>& io = members.mine();
    const int depth = d.r * d.s * d.c;
    const Place at = Place::of(BM, BN, d.k);
    LoadWindows<T, BM> load_x(windows_of(io.x, d), at.row);
    LoadWindows<T, BN> load_w(matrix(io.w, d.k, depth), at.column);
    Tile<T, BM, BN, true, true> tile;
    accumulate(tile, load_x, load_w, slabs_of(depth, SLAB<T>), shared);

    const int pixels = d.n * d.p * d.q, mask_bytes = (d.k + 7) / 8;
    const bool aligned = d.k % 8 == 0;
    ColumnMoments<TILE_THREADS, BN> moments;
    hand_out(tile, reinterpret_cast<float*>(shared), [&](int row, int column, float(&v)[8]) {
        const int m = at.row + row, k = at.column + column, count = d.k - k;
        if (m >= pixels || count <= 0) return;
        float more[8];
        if (io.bias) {
            load_eight(more, io.bias + k, count, aligned);
            UNROLL
            for (int i = 0; i < 8; i++) v[i] += more[i];
        }
        if (io.moments) moments.add(v);
        if (io.before) store_eight(io.before + (i64)m * d.k + k, v, count, aligned);
        if (io.residual) {
            load_eight(more, io.residual + (i64)m * d.k + k, count, aligned);
            UNROLL
            for (int i = 0; i < 8; i++) v[i] += more[i];
        }
        u32 bits = 0;
        UNROLL
        for (int i = 0; i < 8; i++) {
            // Bits past the last channel stay 0, as on the CPU, whatever a sum there holds.
            bits |= (u32)(v[i] > 0.0f && i < count) << i;
            v[i] = v[i] > 0.0f ? v[i] : v[i] * slope;
        }
        if (io.mask) io.mask[(i64)m * mask_bytes + k / 8] = (u8)bits;
        store_eight(io.y + (i64)m * d.k + k, v, count, aligned);
    });
    if (io.moments) {
        static_assert(ColumnMoments<TILE_THREADS, BN>::SCRATCH <= BM * BN, "the parts fit where the sums were");
        sync_block();
        const int rows = pixels - at.row < BM ? pixels - at.row : BM;
        moments.store(io.moments + (i64)(at.row / BM) * 2 * d.k, d.k, at.column, rows, reinterpret_cast<float*>(shared));
    }
}

// Folds the moments of tiles of `rows` pixels into the sums that `fold_parts` of lib/channels.cuh finishes, of one part, about
// a shift that is the mean as near as a float can be. Eight channels a block, 128 threads each: 64 images of 112x112 are
// 6272 tiles of 128 pixels, 49 of them a thread.
KERNEL(1024)
conv2d_fold_moments(float* RESTRICT sums,          // [2][k]
                    float* RESTRICT shift,         // [k]
                    const float* RESTRICT moments, // [tiles][2][k]
                    i64 pixels, int k, int rows) {
    constexpr int CHANNELS = 8, SLICES = 1024 / CHANNELS;
    SHARED(double, scratch, 2 * 1024);
    const int channel = blockIdx.x * CHANNELS + threadIdx.x % CHANNELS, slice = threadIdx.x / CHANNELS;
    const int tiles = (int)((pixels + rows - 1) / rows);
    // Sums of n mean, and of the squares about zero; in double, which 2^53 keeps apart from the tiles' own rounding.
    double first = 0.0, second = 0.0;
    if (channel < k) {
        _Pragma("unroll 4") for (int t = slice; t < tiles; t += SLICES) {
            const double mean = moments[(i64)(2 * t) * k + channel], square = moments[(i64)(2 * t + 1) * k + channel];
            const double n = t + 1 < tiles ? rows : (int)(pixels - (i64)t * rows);
            first += n * mean;
            second += square + n * mean * mean;
        }
    }
    scratch[threadIdx.x] = first;
    scratch[1024 + threadIdx.x] = second;
    for (int half = 512; half >= CHANNELS; half /= 2) {
        sync_block();
        if (threadIdx.x < half) {
            scratch[threadIdx.x] += scratch[threadIdx.x + half];
            scratch[1024 + threadIdx.x] += scratch[1024 + threadIdx.x + half];
        }
    }
    sync_block();
    if (threadIdx.x >= CHANNELS || channel >= k) return;
    const double mean = scratch[threadIdx.x] / (double)pixels;
    const float near = (float)mean;
    shift[channel] = near;
    sums[channel] = (float)((mean - near) * (double)pixels);
    const double away = mean - near, square = scratch[1024 + threadIdx.x] - (double)pixels * mean * mean;
    sums[k + channel] = (float)(square + (double)pixels * away * away);
}

// dx[n,h,w,c] = sum over r, s, k of dz[n, (h + pad - r) / stride, (w + pad - s) / stride, k] * w[k,r,s,c], added to what is
// there if `add`; then, through a gate, times 1 or `slope`: the gradient behind the activation that gave x.
// blockIdx.z is one residue class of input pixels, all reached by the same taps: a strided gradient multiplies no zeros.
template <class T, int BM, int BN>
KERNEL(256) conv2d_dgrad(Group<Conv2dInputGradient<T>> members, Conv2dDims d, int add, float slope) {
    DYN_SHARED(T, shared);
    SHARED(int, pixel, BM);
    const Conv2dInputGradient<T>& io = members.mine();
    const int wide = d.stride < d.w ? d.stride : d.w;
    const int h0 = blockIdx.z / wide, w0 = blockIdx.z % wide;
    const Taps rows = Taps::of(h0, d.r, d), cols = Taps::of(w0, d.s, d);
    const int height = (d.h - h0 + d.stride - 1) / d.stride, width = (d.w - w0 + d.stride - 1) / d.stride;
    const int above = rows.count - 1 - rows.base, left = cols.count - 1 - cols.base;
    const Windows<T> windows = {io.dz, d.n, d.p, d.q, d.k, height, width, rows.count, cols.count, 1, above, left};
    const Place at = Place::of(BM, BN, d.c);
    // The grid has the tiles of the largest phase.
    if (at.row >= windows.count()) return;
    // The pixel of each of the tile's rows, read behind the barriers of the product.
    for (int i = threadIdx.x; i < BM; i += TILE_THREADS) {
        const Digits m = Digits::of(at.row + i, windows.p, windows.q);
        pixel[i] = m.hi < d.n ? (m.hi * d.h + h0 + m.mid * d.stride) * d.w + w0 + m.lo * d.stride : -1;
    }
    // A phase that no tap reaches (stride above the filter's size) has no slabs and the gradient 0.
    const int slabs = slabs_of(rows.count * cols.count * d.k, SLAB<T>);
    LoadFilter<T, BN> load_w(io.w, d, rows, cols, at.column);
    Tile<T, BM, BN, true, false> tile;
    if (slabs > 0) {
        LoadWindows<T, BM> load_dz(windows, at.row);
        accumulate(tile, load_dz, load_w, slabs, shared);
    }
    const bool aligned = d.c % 8 == 0;
    const int gate_bytes = (d.c + 7) / 8;
    hand_out(tile, reinterpret_cast<float*>(shared), [&](int row, int column, float(&v)[8]) {
        const int c = at.column + column, count = d.c - c;
        if (pixel[row] < 0 || count <= 0) return;
        const u32 bits = io.gate ? io.gate[(i64)pixel[row] * gate_bytes + c / 8] : 0xffu;
        put_eight(io.dx + (i64)pixel[row] * d.c + c, v, count, aligned, add, bits, slope);
    });
}

// The same two where channels come in 64 and, for the gradient, the stride is 1. Tensor maps: the windows' map (x or dz), and the
// filter. Tiles in turns, or by three warpgroups abreast.
template <int BM, int BN>
KERNEL(384, 1)
conv2d_fwd_wgmma(MAPS_PARAM maps, Group<Conv2dForward<bf16>> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    wgmma_forward<BM, BN, true>(maps, members, d, slope, shared);
}
template <int BM, int BN>
KERNEL(512, 1)
conv2d_fwd_wgmma_abreast(MAPS_PARAM maps, Group<Conv2dForward<bf16>> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    wgmma_forward<BM, BN, false>(maps, members, d, slope, shared);
}
template <int BM, int BN>
KERNEL(384, 1)
conv2d_dgrad_wgmma(MAPS_PARAM maps, Group<Conv2dInputGradient<bf16>> members, Conv2dDims d, int add, float slope) {
    DYN_SHARED(char, shared);
    wgmma_input_gradient<BM, BN, true>(maps, members, d, add, slope, shared);
}
template <int BM, int BN>
KERNEL(512, 1)
conv2d_dgrad_wgmma_abreast(MAPS_PARAM maps, Group<Conv2dInputGradient<bf16>> members, Conv2dDims d, int add, float slope) {
    DYN_SHARED(char, shared);
    wgmma_input_gradient<BM, BN, false>(maps, members, d, add, slope, shared);
}

// dw[k,r,s,c] = sum over n, p, q of dz[n,p,q,k] * x[n, p * stride + r - pad, q * stride + s - pad, c]: rows k, columns r s c,
// inner dimension the pixels. blockIdx.z sums pixels [z * per_slice, (z + 1) * per_slice) to a part of its own.
template <class T, int BM, int BN>
KERNEL(256)
conv2d_wgrad(float* RESTRICT parts, // [slices, k, r, s, c]
             const T* RESTRICT dz,  // [n, p, q, k]
             const T* RESTRICT x,   // [n, h, w, c]
             Conv2dDims d, int per_slice) {
    DYN_SHARED(T, shared);
    const int depth = d.r * d.s * d.c, pixels = d.n * d.p * d.q;
    const Place at = Place::of(BM, BN, depth);
    const int first = blockIdx.z * per_slice;
    const int count = pixels - first < per_slice ? pixels - first : per_slice;
    LoadWindowsAcross<T, BM> load_dz(matrix(dz, pixels, d.k), at.row, first);
    LoadWindowsAcross<T, BN> load_x(windows_of(x, d), at.column, first);
    Tile<T, BM, BN, false, false> tile;
    accumulate(tile, load_dz, load_x, slabs_of(count, SLAB<T>), shared);

    const bool aligned = depth % 8 == 0;
    float* const part = parts + (i64)blockIdx.z * d.k * depth;
    hand_out(tile, reinterpret_cast<float*>(shared), [&](int row, int column, float(&v)[8]) {
        const int k = at.row + row, i = at.column + column, count = depth - i;
        if (k < d.k && count > 0) store_eight(part + (i64)k * depth + i, v, count, aligned);
    });
}

// out[i] = the parts' i-th elements, added in order. Parts [slices, len].
KERNEL(256)
conv2d_sum_parts(float* RESTRICT out, const float* RESTRICT parts, i64 len, int slices, int add) {
    for (i64 i = global_thread(); i < len; i += global_threads()) {
        float sum = 0.0f;
        for (int s = 0; s < slices; s++) sum += parts[s * len + i];
        put(out + i, sum, add);
    }
}

// parts[slice][k] = the sum of dz[m][k] over a slice of `per_slice` pixels. `width` channels a block, as many threads in a
// row as channels: with 3 channels 85 rows are in flight, where one row a warp would leave 29 of 32 lanes idle.
template <class T>
KERNEL(256)
conv2d_dbias(float* RESTRICT parts, const T* RESTRICT dz, i64 pixels, int k, i64 per_slice, int width) {
    SHARED(float, sums, 256);
    const int lines = 256 / width, line = threadIdx.x / width, column = blockIdx.x * width + threadIdx.x % width;
    const i64 first = blockIdx.y * per_slice, end = first + per_slice < pixels ? first + per_slice : pixels;
    float sum = 0.0f;
    if (line < lines && column < k) {
        _Pragma("unroll 4") for (i64 m = first + line; m < end; m += lines) sum += to_f32(dz[m * k + column]);
    }
    sums[threadIdx.x] = sum;
    sync_block();
    if (line == 0 && column < k) {
        for (int l = 1; l < lines; l++) sum += sums[l * width + threadIdx.x];
        parts[(i64)blockIdx.y * k + column] = sum;
    }
}

// Tiles, in the order that src/ops/layers/conv2d/launch.rs prefers them. 128x128 reads each operand element 128 times (bf16: 64 sums a
// thread, two blocks an SM); 128x64 for 64 channels; 64x64 gives small problems four times the blocks; 128x32 wastes less of
// a product with few channels (images, logits).
INSTANCE(conv2d_fwd<bf16, 128, 128>)
INSTANCE(conv2d_fwd<bf16, 128, 64>)
INSTANCE(conv2d_fwd<bf16, 64, 64>)
INSTANCE(conv2d_fwd<bf16, 128, 32>)
INSTANCE(conv2d_fwd<float, 128, 128>)
INSTANCE(conv2d_fwd<float, 128, 64>)
INSTANCE(conv2d_fwd<float, 64, 64>)
INSTANCE(conv2d_fwd<float, 128, 32>)
INSTANCE(conv2d_dgrad<bf16, 128, 128>)
INSTANCE(conv2d_dgrad<bf16, 128, 64>)
INSTANCE(conv2d_dgrad<bf16, 64, 64>)
INSTANCE(conv2d_dgrad<bf16, 128, 32>)
INSTANCE(conv2d_dgrad<float, 128, 128>)
INSTANCE(conv2d_dgrad<float, 128, 64>)
INSTANCE(conv2d_dgrad<float, 64, 64>)
INSTANCE(conv2d_dgrad<float, 128, 32>)
INSTANCE(conv2d_wgrad<bf16, 128, 128>)
INSTANCE(conv2d_wgrad<bf16, 128, 64>)
INSTANCE(conv2d_wgrad<bf16, 64, 64>)
INSTANCE(conv2d_wgrad<bf16, 128, 32>)
INSTANCE(conv2d_wgrad<float, 128, 128>)
INSTANCE(conv2d_wgrad<float, 128, 64>)
INSTANCE(conv2d_wgrad<float, 64, 64>)
INSTANCE(conv2d_wgrad<float, 128, 32>)
INSTANCE(conv2d_sum_parts)
INSTANCE(conv2d_fold_moments)
INSTANCE(conv2d_dbias<bf16>)
INSTANCE(conv2d_dbias<float>)
INSTANCE_90A(conv2d_fwd_wgmma_abreast<192, 256>)
INSTANCE_90A(conv2d_fwd_wgmma<128, 128>)
INSTANCE_90A(conv2d_fwd_wgmma<128, 64>)
INSTANCE_90A(conv2d_dgrad_wgmma_abreast<192, 256>)
INSTANCE_90A(conv2d_dgrad_wgmma<128, 128>)
INSTANCE_90A(conv2d_dgrad_wgmma<128, 64>)
