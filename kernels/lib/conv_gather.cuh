// The operands of a convolution's matrix products, gathered on the way to shared memory (implicit GEMM): a
// loader copies slab after slab of an operand that exists only as index arithmetic over x, dz or the filter.
// For the kernels that multiply with mma.sync or fmaf (lib/tile.cuh). Letters as in
// src/ops/layers/conv2d/geometry.rs.
//
// A loader's slab is a Slab<T, len, inner> of lib/tile.cuh; `load(slab)` starts the copies of the next one.
#pragma once
#include "lib/conv2d_dims.cuh"
#include "lib/mma.cuh"
#include "lib/tile.cuh"

// A mixed-radix number of three digits, hi * mids * los + mid * los + lo, that is advanced without a
// division.
struct Digits {
    int hi, mid, lo;

    DEV static Digits of(int i, int mids, int los) { return {i / los / mids, i / los % mids, i % los}; }
    // Adds `by`, whose digits are in range.
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

// The windows of a filter over an NHWC image x: tap (r, s) of window (n, p, q) reads pixel
// (p * step + r - above, q * step + s - left). A plain matrix is a set of windows of one pixel each.
template <class T> struct Windows {
    const T* x; // [n, h, w, c]
    int n, h, w, c;
    int p, q, r, s;
    int step, above, left;

    DEV int count() const { return n * p * q; }
    // Whether every 16-byte chunk of channels is aligned, so that cp.async can copy it.
    DEV bool wide() const { return c % CHUNK<T> == 0; }
    DEV bool inside(int h_, int w_) const { return (u32)h_ < (u32)h && (u32)w_ < (u32)w; }
};
template <class T> DEV Windows<T> windows_of(const T* x, const Conv2dDims& d) {
    return {x, d.n, d.h, d.w, d.c, d.p, d.q, d.r, d.s, d.stride, d.pad, d.pad};
}
template <class T> DEV Windows<T> matrix(const T* x, int rows, int columns) {
    return {x, rows, 1, 1, columns, 1, 1, 1, 1, 1, 0, 0};
}

// Loads slabs [len][SLAB]: a row is a window, a column is a channel of a tap (r, s, c), and slabs advance
// along the columns. All copies of a thread are in one column: one set of digits gives the tap, and a row
// costs two comparisons and one product.
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
            // A window past the last one is placed above every image, so that none of its pixels exists.
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

// A thread's copies of one slab, by a loader that advances itself. Channels that do not come in whole chunks
// are copied one by one; several loads are then in flight before the first value is stored.
template <class S, class Loader, class T> DEV void copy_column(Loader& loader, T* slab, bool wide) {
    if (wide) {
        UNROLL
        for (int i = 0; i < S::COPIES; i++) loader.copy(S::at(slab, i), true);
    } else {
        _Pragma("unroll 1") for (int i = 0; i < S::COPIES; i++) loader.copy(S::at(slab, i), false);
    }
}

// Loads the transpose, slabs [SLAB][len]: a row is a window, a column is a channel of a tap, and slabs
// advance along the rows. A thread's tap never changes.
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

    // Copies one chunk and advances to the next row.
    DEV void copy(T* to, bool wide) {
        const int h = at.mid * g.step - g.above, w = at.lo * g.step - g.left;
        if (wide) {
            cp_async16(to, source(h, w, tap), exists(h, w, tap));
        } else {
            Digits t = tap;
            // Four elements at a time: all eight of bf16 need 178 registers at 128x128 (ptxas, sm_90a).
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

// The filter taps of one dimension that reach the inputs `phase`, `phase + stride`, and so on: `count` taps,
// `first`, `first - stride`, and so on. For the j-th of these inputs they read the outputs from
// base - count + 1 + j on. Mirrors `Taps` of src/ops/layers/conv2d/geometry.rs.
struct Taps {
    int count, first, base;

    DEV static Taps of(int phase, int taps, const Conv2dDims& d) {
        const int residue = (phase + d.pad) % d.stride;
        if (residue >= taps) return {0, 0, 0};
        const int count = (taps - 1 - residue) / d.stride + 1;
        return {count, residue + (count - 1) * d.stride, (phase + d.pad - residue) / d.stride};
    }
};

// Loads slabs [SLAB][len] of the flipped filter, for the input gradient: a row is a tap of the phase and an
// output channel (i, j, k), a column is an input channel, and slabs advance along the rows.
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
    // Copies one chunk and advances to the next row.
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

// First row and column of a block's tile of BM x BN. Blocks number the tiles along the columns first: those
// that run together then read the same windows and share them in the L2.
struct TileOrigin {
    int row, column;

    DEV static TileOrigin of(int BM, int BN, int columns) {
        const int across = (columns + BN - 1) / BN;
        return {(int)(blockIdx.x / across) * BM, (int)(blockIdx.x % across) * BN};
    }
};
DEV int slabs_of(int depth, int slab) { return (depth + slab - 1) / slab; }
