// The parameter gradients of the 2-D convolution, dw and dbias: sums over pixels that are cut into a fixed
// number of parts, which conv2d_sum_parts adds in order. src/ops/layers/conv2d/README.md has the drawing.
#include "lib/conv_gather.cuh"
#include "lib/conv_wgmma_weights.cuh"
#include "lib/group.cuh"
#include "lib/tile.cuh"

template <class T> struct Conv2dWeightGradient {
    float* sums; // [parts, k, r, s, c]
    const T* dz; // [n, p, q, k]
    const T* x;  // [n, h, w, c]
};

// dw[k,r,s,c] = sum over n, p, q of dz[n,p,q,k] * x[n, p * stride + r - pad, q * stride + s - pad, c].
// Product: rows k, columns r s c, inner dimension the pixels n p q. blockIdx.z sums the pixels
// [z * per_part, (z + 1) * per_part) into a part of its own.
// Grid: (tiles of BM x BN, members of the group, parts); block: 256 threads; shared memory as conv2d_fwd.
template <class T, int BM, int BN>
KERNEL(256) conv2d_wgrad(Group<Conv2dWeightGradient<T>> members, Conv2dDims d, int per_part) {
    DYN_SHARED(T, shared);
    const Conv2dWeightGradient<T>& io = members.mine();
    const int depth = d.r * d.s * d.c, pixels = d.n * d.p * d.q;
    const TileOrigin at = TileOrigin::of(BM, BN, depth);
    const int first = blockIdx.z * per_part;
    const int count = pixels - first < per_part ? pixels - first : per_part;
    LoadWindowsAcross<T, BM> load_dz(matrix(io.dz, pixels, d.k), at.row, first);
    LoadWindowsAcross<T, BN> load_x(windows_of(io.x, d), at.column, first);
    Tile<T, BM, BN, false, false> tile;
    accumulate(tile, load_dz, load_x, slabs_of(count, SLAB<T>), shared);

    const bool aligned = depth % 8 == 0;
    float* const part = io.sums + (i64)blockIdx.z * d.k * depth;
    epilogue(tile, reinterpret_cast<float*>(shared), [&](int row, int column, float(&v)[8]) {
        const int k = at.row + row, i = at.column + column, count = depth - i;
        if (k < d.k && count > 0) store_eight(part + (i64)k * depth + i, v, count, aligned);
    });
}

// The maps of a launch hold the other two operands.
struct Conv2dWeightSums {
    float* sums; // [parts, k, r, s, c]
    float* bias; // [parts, k], or null
};

// The same on compute capability 9.0, where both c and k are multiples of 64, and per_part one of 64. `maps`: a plain
// map of dz, then the im2col map of x (a plain map for 1x1 filters at stride 1 without padding), both with boxes of 64
// pixels. With a single part, `sums` is dw itself, and `add` says whether the kernel adds to it or replaces it. `bias` gets the
// sums of dz over the pixels of each part.
// Grid: (tiles of BM x BN, members of the group, parts); block: 384 threads; shared memory: WeightTile::SHARED_BYTES, up to 224 KB.
template <int BM, int BN>
KERNEL(384, 1)
conv2d_wgrad_wgmma(MAPS_PARAM maps, IN_PLACE Group<Conv2dWeightSums> members, Conv2dDims d, int per_part, int add) {
    DYN_SHARED(char, shared);
    const int depth = d.r * d.s * d.c, pixels = d.n * d.p * d.q;
    const TileOrigin at = TileOrigin::of(BM, BN, depth);
    const int first = blockIdx.z * per_part;
    const int count = pixels - first < per_part ? pixels - first : per_part;
    float* const part = members.mine().sums + (i64)blockIdx.z * d.k * depth;
    float* const bias = members.mine().bias ? members.mine().bias + (i64)blockIdx.z * d.k : nullptr;
    wgmma_weight_gradient<WeightTile<BM, BN>>(part, bias, maps, d, at, first, count, add, shared);
}

// sums[part][k] = the sum of dz[m][k] over the part's `per_part` pixels.
// Grid: (blocks of `width` channels, parts); block: 256 threads, 256 / width rows of pixels at a time. With 3
// channels 85 rows are in flight, where a row per warp would leave 29 of 32 lanes idle. Shared memory: 1 KB.
template <class T>
KERNEL(256)
conv2d_dbias(float* RESTRICT sums,  // [parts, k]
             const T* RESTRICT dz,  // [pixels, k]
             i64 pixels, int k, i64 per_part, int width) {
    SHARED(float, line_sums, 256);
    const int lines = 256 / width, line = threadIdx.x / width, column = blockIdx.x * width + threadIdx.x % width;
    const i64 first = blockIdx.y * per_part, end = first + per_part < pixels ? first + per_part : pixels;
    float sum = 0.0f;
    if (line < lines && column < k) {
        _Pragma("unroll 4") for (i64 m = first + line; m < end; m += lines) sum += to_f32(dz[m * k + column]);
    }
    line_sums[threadIdx.x] = sum;
    sync_block();
    if (line == 0 && column < k) {
        for (int l = 1; l < lines; l++) sum += line_sums[l * width + threadIdx.x];
        sums[(i64)blockIdx.y * k + column] = sum;
    }
}

struct Conv2dSumParts {
    float* out;        // [len]
    const float* sums; // [parts, len]
};

// out[i] (+)= the sum of sums[part][i] over the parts, in order.
// Grid: (a grid-stride loop over `len`, members of the group); block: 256 threads.
KERNEL(256) conv2d_sum_parts(IN_PLACE Group<Conv2dSumParts> members, i64 len, int parts, int add) {
    const Conv2dSumParts& io = members.mine();
    for (i64 i = global_thread(); i < len; i += global_threads()) {
        float sum = 0.0f;
        for (int p = 0; p < parts; p++) sum += io.sums[p * len + i];
        put(io.out + i, sum, add);
    }
}

// Tiles as in conv2d_fwd.cu.
INSTANCE(conv2d_wgrad<bf16, 128, 128>)
INSTANCE(conv2d_wgrad<bf16, 128, 64>)
INSTANCE(conv2d_wgrad<bf16, 64, 64>)
INSTANCE(conv2d_wgrad<bf16, 128, 32>)
INSTANCE(conv2d_wgrad<float, 128, 128>)
INSTANCE(conv2d_wgrad<float, 128, 64>)
INSTANCE(conv2d_wgrad<float, 64, 64>)
INSTANCE(conv2d_wgrad<float, 128, 32>)
// 128x256 reads each operand least often; the others suit fewer columns or rows, and small problems.
INSTANCE_90A(conv2d_wgrad_wgmma<128, 256>)
INSTANCE_90A(conv2d_wgrad_wgmma<128, 128>)
INSTANCE_90A(conv2d_wgrad_wgmma<128, 64>)
INSTANCE_90A(conv2d_wgrad_wgmma<64, 256>)
INSTANCE(conv2d_dbias<bf16>)
INSTANCE(conv2d_dbias<float>)
INSTANCE(conv2d_sum_parts)
