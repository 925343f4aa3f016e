// What the wgmma convolution hands to TMA and wgmma, as NVRTC compiles it: descriptors, and the coordinates of
// every copy. g++ compiles the headers' part for the GPU, with the instructions left out or, below, recorded.
// The expected values are CUTLASS's (ea667d6), or the definition of a convolution.
#include <math.h>
#include <stddef.h>

#include <vector>

#include "facts.h"

#define __CUDACC__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define volatile(...) ("") // `asm volatile(...)` becomes `asm ("")`
static struct {
    unsigned x, y;
} threadIdx, blockIdx, blockDim, gridDim;
// Shared memory, whose first byte has address 0x400 in the shared window.
alignas(1024) static char shared[224 << 10];
inline size_t __cvta_generic_to_shared(const void* p) { return (const char*)p - shared + 0x400; }
// A warp of one lane.
template <class T> T __shfl_sync(unsigned, T v, int) { return v; }
template <class T> T __shfl_xor_sync(unsigned, T v, int) { return v; }
inline void __syncwarp() {}
// Never called.
size_t __cvta_generic_to_global(const void*);
float __uint_as_float(unsigned);
unsigned __float_as_uint(float), __umulhi(unsigned, unsigned), __ballot_sync(unsigned, bool);
template <class T> T __shfl_down_sync(unsigned, T, int);
void __syncthreads();

#define tma_load_2d tma_load_2d_instruction
#define tma_load_im2col_4d tma_load_im2col_4d_instruction
#define wgmma_m64k16 wgmma_m64k16_instruction
#include "lib/hopper.cuh"
#undef tma_load_2d
#undef tma_load_im2col_4d
#undef wgmma_m64k16

struct Copied {
    u32 to; // bytes from the first of shared memory
    const CUtensorMap* map;
    bool is_im2col;
    int x, y;          // of a tile; x is also the channel of windows
    int w, h, n, s, r; // the first window's corner, and the tap
};
static std::vector<Copied> copies;
DEV void tma_load_2d(void* to, const CUtensorMap* map, int x, int y, u64*) {
    copies.push_back({(u32)((char*)to - shared), map, false, x, y, 0, 0, 0, 0, 0});
}
DEV void tma_load_im2col_4d(void* to, const CUtensorMap* map, int c, int w, int h, int n, u16 s, u16 r, u64*) {
    copies.push_back({(u32)((char*)to - shared), map, true, c, 0, w, h, n, s, r});
}
struct Issued {
    int columns;
    bool trans_b;
    u64 a, b;
};
static std::vector<Issued> products;
template <int N, int trans_b> DEV void wgmma_m64k16(float (&)[N / 2], u64 a, u64 b) {
    products.push_back({N, trans_b != 0, a, b});
}
#include "lib/conv_wgmma_pipeline.cuh"

// An epilogue that stores nothing.
struct StoreNothing {
    Conv2dForward<bf16> io;
    static constexpr bool HAS_BIAS = false, HAS_COLUMNS = false;
    struct Old {};
    struct Columns {};
    Pack<float, 2> bias(int) const { return {}; }
    Old old(u32) const { return {}; }
    bool keeps_sums() const { return false; }
    void keep(u32, const float (&)[8]) const {}
    Columns columns_at(int) const { return {}; }
    void store(u32, float (&)[8], const Old&, const Columns&) const {}
};

// Bytes of a stage of the ring, and the number of stages in 226 KB less what two pingpong warpgroups (tiles of 128
// rows) take for channel statistics: the mean and the squared distances of each column, from four warps.
template <int BM, int BN> constexpr int STAGE = (BM + BN) * 128;
template <int BM, int BN> constexpr int STAGES = ((226 << 10) - (BM == 128 ? 2 * 4 * BN * 2 * 4 : 0)) / STAGE<BM, BN>;

// ---- descriptors ----

// Two tiles of three slabs, in the stages of a ring; the first stage is at 0x400. A warpgroup multiplies two
// parts of a tile: its rows 0-63 and 64-127 where two warpgroups multiply in turns, otherwise columns 0-127 and
// 128-255 of the group's 64 rows.
template <int BM, int BN, bool pingpong, bool is_gradient> static void multiplied(Fact& fact) {
    Barriers<STAGES<BM, BN>> bars{};
    const Product g = {2 * BM, BN, 192, 2, BM, 1, 1, 1, 0, 0};
    for (int group = 0; group < (pingpong ? 2 : 3); group++) {
        threadIdx.x = 128 * (group + 1);
        products.clear();
        consume<Wgmma<BM, BN, pingpong>, BM, BN, pingpong, is_gradient>(g, 2, shared, bars, nullptr,
                                                                         [](int) { return StoreNothing{}; });
        const int first = pingpong ? group * 3 : 0, count = (pingpong ? 3 : 6) * 4 * 2;
        fact.same(products.size(), count, "number of products");
        for (int i = 0; i < (int)products.size(); i++) {
            const Issued& p = products[i];
            const int part = i % 2, k = i / 2 % 4, stage = (first + i / 8) % STAGES<BM, BN>;
            // Addresses and offsets count 16 bytes.
            const u32 base_a = 0x40 + stage * STAGE<BM, BN> / 16, base_b = base_a + BM * 128 / 16;
            const u32 a = base_a + 0x200 * (pingpong ? part : group) + 2 * k;
            const u32 b = base_b + (pingpong ? 0 : 0x400 * part) + (is_gradient ? 0x02000000 + 0x80 * k : 2 * k);
            // The hardware ignores the leading offset, bits 16-29, where an operand is K-major and swizzled.
            const u32 k_major = ~0x3fff0000;
#define WHERE \
    "%s %dx%d, group %d, stage %d, part %d, step %d", is_gradient ? "gradient" : "forward", BM, BN, group, stage, part, k
            fact.same(p.a >> 32, 0x40000040, "high word of A: " WHERE);
            fact.same(p.b >> 32, 0x40000040, "high word of B: " WHERE);
            fact.same((u32)p.a & k_major, a, "low word of A: " WHERE);
            fact.same((u32)p.b & (is_gradient ? ~0u : k_major), b, "low word of B: " WHERE);
            fact.same(p.trans_b, is_gradient, "whether B is MN-major: " WHERE);
            fact.same(p.columns, BN < 128 ? BN : 128, "columns of a product: " WHERE);
#undef WHERE
        }
    }
}

static void descriptors() {
    Fact fact("wgmma: the convolution's descriptors");
    multiplied<192, 256, false, false>(fact);
    multiplied<128, 128, true, false>(fact);
    multiplied<128, 64, true, false>(fact);
    multiplied<192, 256, false, true>(fact);
    multiplied<128, 128, true, true>(fact);
    multiplied<128, 64, true, true>(fact);
}

// ---- coordinates ----

// y[n, p, q] has w[r, s] times x[n, p stride - pad + r, q stride - pad + s], and so dx[n, h, w] has w[r, s]
// times dz[n, h + pad - r, w + pad - s] at stride 1. The filter is a matrix [k, (r, s, c)].
template <int BM, int BN, bool pingpong, bool is_gradient> static void copied(Fact& fact, const Geometry& g) {
    const Conv2dDims dims = {g.n, g.h, g.w, g.c, g.k, g.r, g.s, g.p(), g.q(), g.stride, g.pad};
    const Product product = is_gradient ? Product::input_gradient(dims) : Product::forward(dims);
    Barriers<STAGES<BM, BN>> bars{};
    static const TensorMaps maps{};
    const int columns = is_gradient ? g.c : g.k, inner = is_gradient ? g.k : g.c, taps = g.r * g.s;
    const int height = is_gradient ? g.h : g.p(), width = is_gradient ? g.w : g.q();
    const int across = (columns + BN - 1) / BN, tiles = (g.n * height * width + BM - 1) / BM * across;
    threadIdx.x = 0;
    copies.clear();
    produce<Wgmma<BM, BN, pingpong>, BM, BN, is_gradient>(maps, product, tiles, shared, bars, [](const MemberTile&) {});
    const int boxes = 1 + BN / 64, slabs = tiles * taps * (inner / 64);
    fact.same(copies.size(), slabs * boxes, "number of copies");
    for (int i = 0; i < slabs && !fact.wrong; i++) {
        const int tile = i / (inner / 64) / taps, tap = i / (inner / 64) % taps, c = i % (inner / 64) * 64;
        const int pixel = tile / across * BM, x = pixel % width, y = pixel / width % height, n = pixel / width / height;
        const int of_filter = is_gradient ? taps - 1 - tap : tap, r = of_filter / g.s, s = of_filter % g.s;
        const u32 stage = i % STAGES<BM, BN> * STAGE<BM, BN>;
        const Copied& a = copies[i * boxes];
#define WHERE \
    "%s %dx%d, filter %dx%d on %dx%d, stride %d: output pixel %d, tap %d", is_gradient ? "gradient" : "forward", BM, \
        BN, g.r, g.s, g.h, g.w, g.stride, pixel, tap
        fact.same(a.map - maps.of + 100 * a.is_im2col, 100, "map of windows: " WHERE);
        fact.same(a.to, stage, "place of windows: " WHERE);
        fact.same(a.x, c, "channel: " WHERE);
        fact.same(a.n, n, "image: " WHERE);
        fact.same(a.h + a.r, is_gradient ? y + g.pad - r : y * g.stride - g.pad + r, "row of the pixel: " WHERE);
        fact.same(a.w + a.s, is_gradient ? x + g.pad - s : x * g.stride - g.pad + s, "column of the pixel: " WHERE);
        fact.same(a.r, tap / g.s, "offset in h: " WHERE);
        fact.same(a.s, tap % g.s, "offset in w: " WHERE);
        for (int j = 0; j < BN / 64; j++) {
            const Copied& b = copies[i * boxes + 1 + j];
            const int first = tile % across * BN + j * 64;
            fact.same(b.map - maps.of + 100 * b.is_im2col, 8, "map of the filter: " WHERE);
            fact.same(b.to, stage + BM * 128 + j * 8192, "place of the filter: " WHERE);
            fact.same(b.x, of_filter * g.c + (is_gradient ? first : c), "column of the filter: " WHERE);
            fact.same(b.y, is_gradient ? c : first, "row of the filter: " WHERE);
        }
#undef WHERE
    }
}

static void coordinates() {
    Fact fact("TMA: the convolution's coordinates and offsets");
    for (const Geometry& g : GEOMETRIES) {
        copied<192, 256, false, false>(fact, g);
        copied<128, 128, true, false>(fact, g);
        copied<128, 64, true, false>(fact, g);
        if (g.stride != 1) continue;
        copied<192, 256, false, true>(fact, g);
        copied<128, 128, true, true>(fact, g);
        copied<128, 64, true, true>(fact, g);
    }
}

int main() {
    gridDim.x = 1;
    descriptors();
    coordinates();
}
