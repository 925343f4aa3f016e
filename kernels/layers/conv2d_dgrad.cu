// The input gradient of the 2-D convolution: windows over dz times the flipped filter, gathered like the
// forward product. src/ops/layers/conv2d/README.md has the drawing.
#include "lib/conv_gather.cuh"
#include "lib/conv_wgmma.cuh"
#include "lib/group.cuh"
#include "lib/tile.cuh"

// dx[n,h,w,c] = sum over r, s, k of dz[n, (h + pad - r) / stride, (w + pad - s) / stride, k] * w[k,r,s,c],
// over the taps whose divisions are exact and give a pixel of dz; added to what dx holds if `add`; then
// multiplied by the slope of the activation that produced x, if there is a mask: 1 where its bit is set, else
// `slope`. With `u` also the gradient of u. Shapes are those of Conv2dInputGradient.
// Product: rows are the input pixels of one phase, columns c, inner dimension the taps that reach them times
// k. A phase is one residue class of input pixels, all reached by the same taps, so that a strided gradient
// multiplies no zeros of the stride. Zeros of padding are multiplied.
// Grid: (tiles of the largest phase, members of the group, phases); block: 256 threads.
// Shared memory: as conv2d_fwd, and the pixel of each row of the tile.
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
    const TileOrigin at = TileOrigin::of(BM, BN, d.c);
    // The grid has the tiles of the largest phase.
    if (at.row >= windows.count()) return;
    // The pixel of each of the tile's rows. The barriers of the product lie between these stores and the
    // epilogue's loads.
    for (int i = threadIdx.x; i < BM; i += TILE_THREADS) {
        const Digits m = Digits::of(at.row + i, windows.p, windows.q);
        pixel[i] = m.hi < d.n ? (m.hi * d.h + h0 + m.mid * d.stride) * d.w + w0 + m.lo * d.stride : -1;
    }
    // A phase that no tap reaches (the stride exceeds the filter's size) has no slabs and the gradient 0.
    const int slabs = slabs_of(rows.count * cols.count * d.k, SLAB<T>);
    LoadFilter<T, BN> load_w(io.w, d, rows, cols, at.column);
    Tile<T, BM, BN, true, false> tile;
    if (slabs > 0) {
        LoadWindows<T, BM> load_dz(windows, at.row);
        accumulate(tile, load_dz, load_w, slabs, shared);
    }
    const bool aligned = d.c % 8 == 0;
    const int mask_bytes = (d.c + 7) / 8;
    epilogue(tile, reinterpret_cast<float*>(shared), [&](int row, int column, float(&v)[8]) {
        const int c = at.column + column, count = d.c - c;
        if (pixel[row] < 0 || count <= 0) return;
        const u32 bits = io.mask ? io.mask[(i64)pixel[row] * mask_bytes + c / 8] : 0xffu;
        const i64 element = (i64)pixel[row] * d.c + c;
        sum_eight(v, io.dx + element, count, aligned, add, bits, slope);
        if (!io.u || io.du) store_eight(io.dx + element, v, count, aligned);
        if (!io.u) return;
        float u[8];
        load_eight(u, io.u + element, count, aligned);
        const float scale = *io.dloss;
        UNROLL
        for (int i = 0; i < 8; i++) {
            if (i >= count) break;
            const float shift = io.coefficients[c + i];
            v[i] += scale * fmaf(io.coefficients[d.c + c + i], u[i] - shift, io.coefficients[2 * d.c + c + i]);
        }
        store_eight((io.du ? io.du : io.dx) + element, v, count, aligned);
    });
}

// The same on compute capability 9.0, at stride 1 and where both c and k are multiples of 64. `maps`: im2col
// maps of the members' dz (or plain ones), then maps of their filters. Geometry as conv2d_fwd_wgmma and its
// cooperative twin.
template <int BM, int BN>
KERNEL(384, 1)
conv2d_dgrad_wgmma(MAPS_PARAM maps, Group<Conv2dInputGradient<bf16>> members, Conv2dDims d, int add, float slope) {
    DYN_SHARED(char, shared);
    wgmma_input_gradient<BM, BN, true, StoreInputGradient>(maps, members, d, add, slope, shared);
}
template <int BM, int BN>
KERNEL(512, 1)
conv2d_dgrad_wgmma_cooperative(MAPS_PARAM maps, Group<Conv2dInputGradient<bf16>> members, Conv2dDims d, int add, float slope) {
    DYN_SHARED(char, shared);
    wgmma_input_gradient<BM, BN, false, StoreInputGradient>(maps, members, d, add, slope, shared);
}
// With u, which takes a third more instructions: a kernel of its own, so that the others stay as they are. A
// cooperative tile would have no registers for it.
template <int BM, int BN>
KERNEL(384, 1)
conv2d_dgrad_statistics_wgmma(MAPS_PARAM maps, Group<Conv2dInputGradient<bf16>> members, Conv2dDims d, int add, float slope) {
    DYN_SHARED(char, shared);
    wgmma_input_gradient<BM, BN, true, StoreGradientOfStatistics>(maps, members, d, add, slope, shared);
}

// Tiles as in conv2d_fwd.cu.
INSTANCE(conv2d_dgrad<bf16, 128, 128>)
INSTANCE(conv2d_dgrad<bf16, 128, 64>)
INSTANCE(conv2d_dgrad<bf16, 64, 64>)
INSTANCE(conv2d_dgrad<bf16, 128, 32>)
INSTANCE(conv2d_dgrad<float, 128, 128>)
INSTANCE(conv2d_dgrad<float, 128, 64>)
INSTANCE(conv2d_dgrad<float, 64, 64>)
INSTANCE(conv2d_dgrad<float, 128, 32>)
INSTANCE_90A(conv2d_dgrad_wgmma_cooperative<192, 256>)
INSTANCE_90A(conv2d_dgrad_wgmma<128, 128>)
INSTANCE_90A(conv2d_dgrad_wgmma<128, 64>)
INSTANCE_90A(conv2d_dgrad_statistics_wgmma<128, 128>)
INSTANCE_90A(conv2d_dgrad_statistics_wgmma<128, 64>)
