// Forward of the 2-D convolution: a matrix product whose left operand is gathered from x while it is copied
// to shared memory (implicit GEMM); no patch matrix exists in memory. src/ops/layers/conv2d/README.md has the
// drawing; launch.rs and hopper.rs there choose the kernel and the tile.
#include "lib/channel_stats.cuh"
#include "lib/conv_gather.cuh"
#include "lib/conv_wgmma.cuh"
#include "lib/group.cuh"
#include "lib/tile.cuh"

// Blocks of a multiprocessor. Without the bound ptxas gives bf16 at 128x128 169 registers, and one block fits; f32
// at 128x128 would spill at the 128 registers of two.
template <class T> constexpr int BLOCKS = sizeof(T) == 2 ? 2 : 1;

// y = act(bias + residual + x * w), where act(v) = v > 0 ? v : v * slope; shapes are those of Conv2dForward.
// Product: rows n p q, columns k, inner dimension r s c.
// Grid: (tiles of BM x BN, members of the group); block: 256 threads.
// Shared memory: three stages of a slab of either operand (108 KB at 128x128), then the tile's sums, then the
// statistics.
template <class T, int BM, int BN> KERNEL(256, BLOCKS<T>) conv2d_fwd(Group<Conv2dForward<T>> members, Conv2dDims d, float slope) {
    DYN_SHARED(T, shared);
    const Conv2dForward<T>& io = members.mine();
    const int depth = d.r * d.s * d.c;
    const TileOrigin at = TileOrigin::of(BM, BN, d.k);
    LoadWindows<T, BM> load_x(windows_of(io.x, d), at.row);
    LoadWindows<T, BN> load_w(matrix(io.w, d.k, depth), at.column);
    Tile<T, BM, BN, true, true> tile;
    accumulate(tile, load_x, load_w, slabs_of(depth, SLAB<T>), shared);

    const int pixels = d.n * d.p * d.q, mask_bytes = (d.k + 7) / 8;
    const bool aligned = d.k % 8 == 0;
    ColumnStats<TILE_THREADS, BN> stats;
    epilogue(tile, reinterpret_cast<float*>(shared), [&](int row, int column, float(&v)[8]) {
        const int m = at.row + row, k = at.column + column, count = d.k - k;
        if (m >= pixels || count <= 0) return;
        float more[8];
        if (io.bias) {
            load_eight(more, io.bias + k, count, aligned);
            UNROLL
            for (int i = 0; i < 8; i++) v[i] += more[i];
        }
        if (io.channel_stats) stats.add(v);
        if (io.pre_activation) store_eight(io.pre_activation + (i64)m * d.k + k, v, count, aligned);
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
    if (io.channel_stats) {
        static_assert(ColumnStats<TILE_THREADS, BN>::SCRATCH <= BM * BN, "the partial statistics fit where the sums were");
        sync_block();
        const int rows = pixels - at.row < BM ? pixels - at.row : BM;
        float* const part = io.channel_stats + (i64)(at.row / BM) * 2 * d.k;
        stats.store(part, d.k, at.column, rows, reinterpret_cast<float*>(shared));
    }
}

// The same on compute capability 9.0, where both c and k are multiples of 64. `maps`: im2col maps of the
// members' x (a plain map for 1x1 filters at stride 1 without padding), then maps of their filters
// [k, r s c].
// Grid: (min(tiles of all members, multiprocessors)), each block takes tile after tile; shared memory:
// Wgmma::SHARED_BYTES, up to 227 KB. Pingpong: 384 threads, two warpgroups multiply a tile each in turn.
// Cooperative: 512 threads, three share one tile; it cannot write channel statistics.
template <int BM, int BN>
KERNEL(384, 1)
conv2d_fwd_wgmma(MAPS_PARAM maps, Group<Conv2dForward<bf16>> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    wgmma_forward<BM, BN, true>(maps, members, d, slope, shared);
}
template <int BM, int BN>
KERNEL(512, 1)
conv2d_fwd_wgmma_cooperative(MAPS_PARAM maps, Group<Conv2dForward<bf16>> members, Conv2dDims d, float slope) {
    DYN_SHARED(char, shared);
    wgmma_forward<BM, BN, false>(maps, members, d, slope, shared);
}

// Tiles in the order that src/ops/layers/conv2d/launch.rs prefers them, for all three products. 128x128 reads
// each operand element 128 times (bf16: 64 sums a thread, two blocks per multiprocessor); 128x64 suits 64
// channels; 64x64 gives small problems four times the blocks; 128x32 wastes less of a product with few
// channels (images, logits).
INSTANCE(conv2d_fwd<bf16, 128, 128>)
INSTANCE(conv2d_fwd<bf16, 128, 64>)
INSTANCE(conv2d_fwd<bf16, 64, 64>)
INSTANCE(conv2d_fwd<bf16, 128, 32>)
INSTANCE(conv2d_fwd<float, 128, 128>)
INSTANCE(conv2d_fwd<float, 128, 64>)
INSTANCE(conv2d_fwd<float, 64, 64>)
INSTANCE(conv2d_fwd<float, 128, 32>)
INSTANCE_90A(conv2d_fwd_wgmma_cooperative<192, 256>)
INSTANCE_90A(conv2d_fwd_wgmma<128, 128>)
INSTANCE_90A(conv2d_fwd_wgmma<128, 64>)
