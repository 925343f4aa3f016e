// A block's tile of a matrix product, for compute capability 8.0 and later: operands arrive slab by slab
// through a pipeline of asynchronous copies, the sums stay in registers and are stored through shared memory.
// bf16 is multiplied by tensor cores (mma.sync), float by fmaf; a slab has the same bytes in both.
#pragma once
#include "lib/eights.cuh"
#include "lib/mma.cuh"

constexpr int TILE_THREADS = 256;
// Slabs in flight. Mirrors STAGES of src/ops/layers/conv2d/launch.rs. Three of 128 + 128 rows are 108 KB, so
// that two blocks share the 228 KB of a multiprocessor; with a fourth, only one block would fit.
constexpr int TILE_STAGES = 3;
// Elements of the inner dimension in a slab: 128 bytes, so that eight threads copy a whole cache line.
template <class T> constexpr int SLAB = 128 / (int)sizeof(T);

// The layout of an operand's slab in shared memory: [len][SLAB] if the inner dimension is contiguous
// (`inner`), else [SLAB][len]. A row is padded by 16 bytes to an odd number of chunks: eight rows below each
// other are then in eight different groups of four banks, as ldmatrix and 16-byte loads need to be free of
// bank conflicts.
template <class T, int len, bool inner> struct Slab {
    static constexpr int ROWS = inner ? len : SLAB<T>;
    static constexpr int COLUMNS = inner ? SLAB<T> : len;
    static constexpr int PITCH = COLUMNS + CHUNK<T>;
    static constexpr int ELEMS = ROWS * PITCH;
    // A thread copies one column of chunks: rows row(), row() + STEP, ..., COPIES in all.
    static constexpr int CHUNKS = COLUMNS / CHUNK<T>;
    static constexpr int STEP = TILE_THREADS / CHUNKS;
    static constexpr int COPIES = ROWS / STEP;
    static_assert(COPIES * STEP == ROWS && STEP * CHUNKS == TILE_THREADS, "every thread copies the same number of chunks");

    DEV static int row() { return threadIdx.x / CHUNKS; }
    DEV static int column() { return threadIdx.x % CHUNKS * CHUNK<T>; }
    DEV static T* at(T* slab, int copy) { return slab + (row() + copy * STEP) * PITCH + column(); }
};

// The sums of a tile of BM x BN. `a_inner` and `b_inner` are the layouts of its operands' slabs.
template <class T, int BM, int BN, bool a_inner, bool b_inner> struct Tile;

// Eight warps, each 32 columns wide: 64x32, 32x32 or 16x32 sums per warp, at most 64 registers per thread.
template <int BM, int BN, bool a_inner, bool b_inner> struct Tile<bf16, BM, BN, a_inner, b_inner> {
    using A = Slab<bf16, BM, a_inner>;
    using B = Slab<bf16, BN, b_inner>;
    static constexpr int WARPS_N = BN / 32, WM = BM / (8 / WARPS_N), FRAGMENTS = WM / 16;
    static_assert(WM % 16 == 0, "a warp's rows are whole fragments");
    float sum[FRAGMENTS][4][4] = {};

    DEV static int first_row() { return warp_id() / WARPS_N * WM; }
    DEV static int first_column() { return warp_id() % WARPS_N * 32; }

    DEV void multiply(const bf16* a, const bf16* b) {
        const int lane = lane_id(), low = lane & 7, mid = lane >> 3 & 1, high = lane >> 4;
        // Unrolled twice: all four rounds would need 163 registers at 128x128 (ptxas, sm_90a), two need 128,
        // with which two blocks fit a multiprocessor.
        _Pragma("unroll 2") for (int k = 0; k < SLAB<bf16>; k += 16) {
            u32 fa[FRAGMENTS][4], fb[2][4];
            UNROLL
            for (int i = 0; i < FRAGMENTS; i++) {
                const int m = first_row() + i * 16;
                if (a_inner) ldmatrix_x4(fa[i], a + (m + mid * 8 + low) * A::PITCH + k + high * 8);
                else ldmatrix_x4_trans(fa[i], a + (k + high * 8 + low) * A::PITCH + m + mid * 8);
            }
            UNROLL
            for (int j = 0; j < 2; j++) {
                const int n = first_column() + j * 16;
                if (b_inner) ldmatrix_x4(fb[j], b + (n + high * 8 + low) * B::PITCH + k + mid * 8);
                else ldmatrix_x4_trans(fb[j], b + (k + mid * 8 + low) * B::PITCH + n + high * 8);
            }
            UNROLL
            for (int i = 0; i < FRAGMENTS; i++) {
                UNROLL
                for (int j = 0; j < 4; j++) mma_bf16_16816(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
    DEV void store(float* to, int pitch) const {
        const int lane = lane_id();
        UNROLL
        for (int i = 0; i < FRAGMENTS; i++) {
            UNROLL
            for (int j = 0; j < 4; j++) {
                float* const at = to + (first_row() + i * 16 + lane / 4) * pitch + first_column() + j * 8 + lane % 4 * 2;
                store_pack(at, Pack<float, 2>{{sum[i][j][0], sum[i][j][1]}});
                store_pack(at + 8 * pitch, Pack<float, 2>{{sum[i][j][2], sum[i][j][3]}});
            }
        }
    }
};

// 16 x 16 threads with BM / 16 x BN / 16 sums each. A thread's rows (columns) are 16 apart if the inner
// dimension is contiguous, otherwise they come in runs of four. In both cases a load has 16 bytes.
template <int BM, int BN, bool a_inner, bool b_inner> struct Tile<float, BM, BN, a_inner, b_inner> {
    using A = Slab<float, BM, a_inner>;
    using B = Slab<float, BN, b_inner>;
    static constexpr int TM = BM / 16, TN = BN / 16;
    float sum[TM][TN] = {};

    // The row (column) of element `i` of `count`, for thread `t` of 16.
    template <int count, bool inner> DEV static int own(int t, int i) {
        constexpr int run = inner ? 1 : count < 4 ? count : 4;
        return t * run + i / run * 16 * run + i % run;
    }
    // Loads four steps of the inner dimension for each of the thread's elements.
    template <int count, bool inner, int pitch> DEV static void fetch(float (&to)[count][4], const float* slab, int t, int k) {
        constexpr int run = count < 4 ? count : 4;
        if constexpr (inner) {
            UNROLL
            for (int i = 0; i < count; i++) {
                const Pack<float, 4> v = load_pack<4>(slab + own<count, true>(t, i) * pitch + k);
                UNROLL
                for (int u = 0; u < 4; u++) to[i][u] = v.v[u];
            }
        } else {
            UNROLL
            for (int u = 0; u < 4; u++) {
                UNROLL
                for (int i = 0; i < count; i += run) {
                    const Pack<float, run> v = load_pack<run>(slab + (k + u) * pitch + own<count, false>(t, i));
                    UNROLL
                    for (int e = 0; e < run; e++) to[i + e][u] = v.v[e];
                }
            }
        }
    }
    DEV void multiply(const float* a, const float* b) {
        // Not unrolled: the operands of two rounds would need 128 registers beside the sums.
        _Pragma("unroll 1") for (int k = 0; k < SLAB<float>; k += 4) {
            float fa[TM][4], fb[TN][4];
            fetch<TM, a_inner, A::PITCH>(fa, a, threadIdx.x / 16, k);
            fetch<TN, b_inner, B::PITCH>(fb, b, threadIdx.x % 16, k);
            UNROLL
            for (int u = 0; u < 4; u++) {
                UNROLL
                for (int i = 0; i < TM; i++) {
                    UNROLL
                    for (int j = 0; j < TN; j++) sum[i][j] = fmaf(fa[i][u], fb[j][u], sum[i][j]);
                }
            }
        }
    }
    DEV void store(float* to, int pitch) const {
        UNROLL
        for (int i = 0; i < TM; i++) {
            UNROLL
            for (int j = 0; j < TN; j++) {
                to[own<TM, a_inner>(threadIdx.x / 16, i) * pitch + own<TN, b_inner>(threadIdx.x % 16, j)] = sum[i][j];
            }
        }
    }
};

// Adds the products of `slabs` slabs to the tile's sums. A loader (lib/conv_gather.cuh) has `load(T* slab)`,
// which starts the copies of its next slab. `shared` holds TILE_STAGES pairs of slabs and is free again after
// the call.
template <class T, int BM, int BN, class LoadA, class LoadB, bool a_inner, bool b_inner>
DEV void accumulate(Tile<T, BM, BN, a_inner, b_inner>& tile, LoadA& load_a, LoadB& load_b, int slabs, T* shared) {
    constexpr int A = Slab<T, BM, a_inner>::ELEMS, STAGE = A + Slab<T, BN, b_inner>::ELEMS;
    auto load = [&](int slab) {
        if (slab < slabs) {
            T* const to = shared + slab % TILE_STAGES * STAGE;
            load_a.load(to);
            load_b.load(to + A);
        }
        // An empty group is committed too, because the wait below counts groups.
        cp_async_commit();
    };
    for (int slab = 0; slab < TILE_STAGES - 1; slab++) load(slab);
    for (int slab = 0; slab < slabs; slab++) {
        cp_async_wait<TILE_STAGES - 2>();
        // After the barrier all threads' copies of this slab are complete, and no thread reads the slab that
        // the next copies replace.
        sync_block();
        load(slab + TILE_STAGES - 1);
        const T* const from = shared + slab % TILE_STAGES * STAGE;
        tile.multiply(from, from + A);
    }
    cp_async_wait<0>();
    sync_block();
}

// Calls `out(row, column, float (&sums)[8])` for every eight neighbouring columns of the tile: a thread then
// stores 16 bytes of a row, and holds a whole byte of an activation mask.
template <class T, int BM, int BN, bool a_inner, bool b_inner, class Out>
DEV void epilogue(const Tile<T, BM, BN, a_inner, b_inner>& tile, float* shared, Out out) {
    // Eight floats of padding: the four rows that half a warp stores together begin 8 banks apart.
    constexpr int PITCH = BN + 8;
    static_assert(BM * PITCH * sizeof(float) <= TILE_STAGES * (BM + BN) * 128, "the sums fit where the slabs were");
    tile.store(shared, PITCH);
    sync_block();
    // Not unrolled: the loop runs once per tile, and unrolled it would decide the kernel's register count.
    _Pragma("unroll 1") for (int i = threadIdx.x; i < BM * (BN / 8); i += TILE_THREADS) {
        const int row = i / (BN / 8), column = i % (BN / 8) * 8;
        const Pack<float, 4> low = load_pack<4>(shared + row * PITCH + column);
        const Pack<float, 4> high = load_pack<4>(shared + row * PITCH + column + 4);
        float sums[8] = {low.v[0], low.v[1], low.v[2], low.v[3], high.v[0], high.v[1], high.v[2], high.v[3]};
        out(row, column, sums);
    }
}
