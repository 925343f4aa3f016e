// The emulator's TMA, wgmma, ldmatrix and mma, and the device's Philox, against what NVIDIA documents (PTX ISA,
// "Asynchronous Warpgroup Level Matrix Instructions" and "Tensors") and CUTLASS has (ea667d6). The expected
// values are written here, and call nothing of kernels/.
#include <vector>

#include "emu/emu.h"
#include "facts.h"

namespace kernels_facts {
#include "lib/hopper.cuh"
#include "lib/mma.cuh"
#include "lib/philox.cuh"
}
using namespace kernels_facts;

extern "C" int emu_launch(void (*entry)(void**), const unsigned grid[3], const unsigned block[3],
                          size_t dynamic_shared, void** args, int order, int threads, char* error,
                          size_t error_len);

static void launch(void (*entry)(void**), unsigned blocks, unsigned threads, size_t shared, std::vector<void*> args) {
    const unsigned grid[3] = {blocks, 1, 1}, block[3] = {threads, 1, 1};
    char text[1024];
    if (emu_launch(entry, grid, block, shared, args.data(), 0, 1, text, sizeof text)) printf("error: %s\n", text);
}
#define ENTRY(...) [](void** a) { emu::call(__VA_ARGS__, a); }

// Byte of element (row, column) in rows of 64 with the 128-byte swizzle: the number of a 16-byte piece is
// XORed with the row's number modulo 8.
static int swizzled_byte(int row, int column) {
    return row * 128 + ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2;
}

// ---- TMA ----

// Where a box is loaded from: x, y; or c, w, h, n and the offsets in w and h.
struct At {
    int of[6];
};

// Block b loads the box at[b] and copies its bytes to out.
static void load_boxes(u16* out, MAPS_PARAM maps, const At* at, int rows, int is_im2col) {
    DYN_SHARED(u16, box);
    SHARED(u64, bar, 1);
    const int* const from = at[blockIdx.x].of;
    if (threadIdx.x == 0) {
        mbar_init(bar, 1);
        mbar_fence_init();
        mbar_expect_tx(bar, rows * 128);
        if (is_im2col) {
            tma_load_im2col_4d(box, maps.of, from[0], from[1], from[2], from[3], (u16)from[4], (u16)from[5], bar);
        } else {
            tma_load_2d(box, maps.of, from[0], from[1], bar);
        }
    }
    sync_block();
    mbar_wait(bar, 0);
    for (int i = threadIdx.x; i < rows * 64; i += 32) out[(i64)blockIdx.x * rows * 64 + i] = box[i];
}

static std::vector<u16> loaded(const CUtensorMap& map, const std::vector<At>& at, int rows) {
    std::vector<u16> boxes(at.size() * rows * 64);
    TensorMaps maps{};
    maps.of[0] = map;
    u16* out = boxes.data();
    const At* from = at.data();
    int is_im2col = map.kind == CUtensorMap::IM2COL;
    launch(ENTRY(load_boxes), at.size(), 32, rows * 128, {&out, &maps, &from, &rows, &is_im2col});
    return boxes;
}

// Element i of a tensor: never 0, which is what lies outside the tensor.
static u16 numbered(int i) { return (u16)(i % 65521 + 1); }
static std::vector<u16> tensor(int elements) {
    std::vector<u16> all(elements);
    for (int i = 0; i < elements; i++) all[i] = numbered(i);
    return all;
}

// A matrix of 300 x 200 in boxes that begin inside it and reach beyond its last row and column.
static void tiles() {
    Fact fact("TMA: where the 128-byte swizzle puts an element of a tile");
    const int HEIGHT = 300, WIDTH = 200, X = 150, Y = 90;
    const std::vector<u16> matrix = tensor(HEIGHT * WIDTH);
    for (u32 rows : {64, 128, 192, 256}) {
        const CUtensorMap map = {CUtensorMap::MAGIC, (u64)matrix.data(), CUtensorMap::TILED, 2,
                                 {WIDTH, HEIGHT, 1, 1}, {WIDTH * 2, 0, 0}, {64, rows}, {0, 0}, {0, 0}, {1, 1}};
        const std::vector<u16> box = loaded(map, {{{X, Y, 0, 0, 0, 0}}}, rows);
        for (int r = 0; r < (int)rows; r++) {
            for (int c = 0; c < 64; c++) {
                const bool is_inside = Y + r < HEIGHT && X + c < WIDTH;
                const u16 want = is_inside ? numbered((Y + r) * WIDTH + X + c) : 0;
                fact.same(box[swizzled_byte(r, c) / 2], want, "%u rows: row %d, column %d", rows, r, c);
            }
        }
    }
}

// Every tap of every window, 128 windows a box, of the last 64 channels.
static void windows() {
    Fact fact("TMA: the pixels of an im2col box");
    for (const Geometry& g : GEOMETRIES) {
        const std::vector<u16> images = tensor(g.n * g.h * g.w * g.c);
        const u64 pixel = g.c * 2;
        // Corners and steps of width, then of height.
        const CUtensorMap map = {CUtensorMap::MAGIC,
                                 (u64)images.data(),
                                 CUtensorMap::IM2COL,
                                 4,
                                 {(u32)g.c, (u32)g.w, (u32)g.h, (u32)g.n},
                                 {pixel, pixel * g.w, pixel * g.w * g.h},
                                 {64, 128},
                                 {-g.pad, -g.pad},
                                 {g.pad - (g.s - 1), g.pad - (g.r - 1)},
                                 {(u32)g.stride, (u32)g.stride}};
        const int outputs = g.n * g.p() * g.q(), first_channel = g.c - 64;
        std::vector<At> at;
        for (int m = 0; m < outputs; m += 128) {
            for (int tap = 0; tap < g.r * g.s; tap++) {
                const int q = m % g.q(), p = m / g.q() % g.p(), n = m / g.q() / g.p();
                at.push_back({{first_channel, q * g.stride - g.pad, p * g.stride - g.pad, n, tap % g.s, tap / g.s}});
            }
        }
        const std::vector<u16> boxes = loaded(map, at, 128);
        for (size_t i = 0; i < boxes.size() / 64; i++) {
            const int box = i / 128, row = i % 128, tap = box % (g.r * g.s), m = box / (g.r * g.s) * 128 + row;
            const int n = m / g.q() / g.p(), y = m / g.q() % g.p() * g.stride - g.pad + tap / g.s;
            const int x = m % g.q() * g.stride - g.pad + tap % g.s;
            const bool is_inside = n < g.n && x >= 0 && x < g.w && y >= 0 && y < g.h;
            for (int c = 0; c < 64; c++) {
                const int from = ((n * g.h + y) * g.w + x) * g.c + first_channel + c;
                fact.same(boxes[(size_t)box * 8192 + swizzled_byte(row, c) / 2], is_inside ? numbered(from) : 0,
                          "%dx%d filter on %dx%d, stride %d: output pixel %d, tap %d, channel %d", g.r, g.s, g.h, g.w,
                          g.stride, m, tap, first_channel + c);
            }
        }
    }
}

// ---- wgmma ----

static void describe(u64* out) {
    DYN_SHARED(char, shared);
    out[0] = smem_descriptor(shared, 0, 1024);
    out[1] = smem_descriptor(shared, 8192, 1024);
    out[2] = smem_descriptor(shared + 0x2000 + 32, 16, 2048);
}

// Bits 0-13 are the address, 16-29 the leading and 32-45 the stride offset, each over 16; 62-63 are 1 for the
// swizzle of 128 bytes. The emulator puts dynamic shared memory at 0x400.
static void descriptors() {
    Fact fact("wgmma: bits of the emulator's descriptors");
    std::vector<u64> got(3);
    u64* out = got.data();
    launch(ENTRY(describe), 1, 1, 0x4000, {&out});
    fact.same(got[0], 0x4000004000000040, "K-major at 0x400");
    fact.same(got[1], 0x4000004002000040, "MN-major at 0x400, 8192 bytes from 64 columns to the next");
    fact.same(got[2], 0x4000008000010242, "at 0x2420, 16 and 2048 bytes");
}

// Four products of 64 x N x 16. A is at 0x400 of shared memory, B 8192 bytes further.
template <int N, int trans_b> static void multiply(float* out, const u64* operands, u64 a, u64 b, u64 step_b) {
    DYN_SHARED(u64, shared);
    for (int i = threadIdx.x; i < (64 + N) * 16; i += 128) shared[i] = operands[i];
    fence_async_shared();
    sync_block();
    float d[N / 2];
    for (float& v : d) v = 0;
    wgmma_fence();
    for (int k = 0; k < 4; k++) wgmma_m64k16<N, trans_b>(d, a + 2 * k, b + step_b * k);
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < N / 2; i++) out[threadIdx.x * (N / 2) + i] = d[i];
}

// Small whole numbers: exact in bf16, and so are their sums of products in f32.
static int factor_a(int row, int k) { return (row * 31 + k * 17 + row * k) % 13 - 6; }
static int factor_b(int k, int column) { return (k * 29 + column * 7 + k * column) % 11 - 5; }

template <int N, int trans_b> static void products(Fact& fact) {
    std::vector<u64> operands((64 + N) * 16);
    u16* const a = reinterpret_cast<u16*>(operands.data());
    u16* const b = a + 64 * 64;
    for (int k = 0; k < 64; k++) {
        for (int row = 0; row < 64; row++) a[swizzled_byte(row, k) / 2] = to_bf16((float)factor_a(row, k)).bits;
        for (int n = 0; n < N; n++) {
            // K-major: a row for each column of B. MN-major: boxes of 64 columns with a row for each k.
            const int at = trans_b ? n / 64 * 8192 + swizzled_byte(k, n % 64) : swizzled_byte(n, k);
            b[at / 2] = to_bf16((float)factor_b(k, n)).bits;
        }
    }
    std::vector<float> sums(128 * N / 2);
    float* out = sums.data();
    const u64* from = operands.data();
    // 16 of k are 32 bytes along a row, or 16 rows of 128 bytes.
    u64 desc_a = 0x4000004000000040, desc_b = trans_b ? 0x4000004002000240 : 0x4000004000000240;
    u64 step_b = trans_b ? 0x80 : 2;
    launch(ENTRY(multiply<N, trans_b>), 1, 128, (64 + N) * 128, {&out, &from, &desc_a, &desc_b, &step_b});
    for (int t = 0; t < 128; t++) {
        for (int i = 0; i < N / 2; i++) {
            const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (t % 4) + i % 2;
            int want = 0;
            for (int k = 0; k < 64; k++) want += factor_a(row, k) * factor_b(k, column);
            fact.same((u64)(i64)sums[t * (N / 2) + i], (u64)(i64)want,
                      "%d columns, %s-major B: thread %d, register %d", N, trans_b ? "MN" : "K", t, i);
        }
    }
}

static void accumulators() {
    Fact fact("wgmma: operands through the swizzle, and the accumulators of each thread");
    products<64, 0>(fact);
    products<128, 0>(fact);
    products<256, 0>(fact);
    products<64, 1>(fact);
    products<128, 1>(fact);
    products<256, 1>(fact);
}

// ---- ldmatrix and mma ----

// Lane l's registers: four of ldmatrix, four of its transposing form.
static void load_matrices(u32* out) {
    SHARED(u16, matrices, 256);
    for (int i = threadIdx.x; i < 256; i += 32) matrices[i] = (u16)i;
    sync_block();
    u32 plain[4], trans[4];
    ldmatrix_x4(plain, matrices + threadIdx.x * 8);
    ldmatrix_x4_trans(trans, matrices + threadIdx.x * 8);
    for (int i = 0; i < 4; i++) {
        out[threadIdx.x * 8 + i] = plain[i];
        out[threadIdx.x * 8 + 4 + i] = trans[i];
    }
}

static void matrices() {
    Fact fact("ldmatrix: the two elements of each lane's registers");
    std::vector<u32> got(256);
    u32* out = got.data();
    launch(ENTRY(load_matrices), 1, 32, 0, {&out});
    for (int lane = 0; lane < 32; lane++) {
        const u32 across = lane / 4, along = lane % 4 * 2;
        for (u32 i = 0; i < 4; i++) {
            // Element (row, column) of matrix i is 64 i + 8 row + column.
            const u32 plain = 64 * i + 8 * across + along, trans = 64 * i + 8 * along + across;
            fact.same(got[lane * 8 + i], plain | (plain + 1) << 16, "lane %d, matrix %u", lane, i);
            fact.same(got[lane * 8 + 4 + i], trans | (trans + 8) << 16, "lane %d, matrix %u transposed", lane, i);
        }
    }
}

// What a lane holds of a, b and the sums.
struct Held {
    u32 a[4], b[2];
    float d[4];
};
static void multiply_fragments(Held* held) {
    Held& h = held[threadIdx.x];
    mma_bf16_16816(h.d, h.a, h.b[0], h.b[1]);
}

static void fragments() {
    Fact fact("mma.m16n8k16: the fragments of a, b and the sums");
    std::vector<Held> held(32);
    const auto bits = [](int v) { return (u32)to_bf16((float)v).bits; };
    for (int lane = 0; lane < 32; lane++) {
        const int across = lane / 4, along = lane % 4 * 2;
        for (int i = 0; i < 8; i++) {
            const int row = across + 8 * (i / 2 % 2), k = along + i % 2 + 8 * (i / 4);
            held[lane].a[i / 2] |= bits(factor_a(row, k)) << 16 * (i % 2);
        }
        for (int i = 0; i < 4; i++) {
            const int k = along + i % 2 + 8 * (i / 2);
            held[lane].b[i / 2] |= bits(factor_b(k, across)) << 16 * (i % 2);
            held[lane].d[i] = (float)(100 * (across + 8 * (i / 2)) + along + i % 2);
        }
    }
    Held* all = held.data();
    launch(ENTRY(multiply_fragments), 1, 32, 0, {&all});
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
            int want = 100 * row + column;
            for (int k = 0; k < 16; k++) want += factor_a(row, k) * factor_b(k, column);
            fact.same((u64)(i64)held[lane].d[i], (u64)(i64)want, "lane %d, sum %d", lane, i);
        }
    }
}

// ---- Philox ----

// The known answers for philox4x32-10 in the authors' Random123 distribution: counter, key, result.
static void random_words() {
    Fact fact("Philox: known answers");
    static const u32 KNOWN[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
         0x24126ea1},
    };
    for (const u32* k : KNOWN) {
        const Words got = philox({{k[0], k[1], k[2], k[3]}}, k[4], k[5]);
        for (int i = 0; i < 4; i++) fact.same(got.v[i], k[6 + i], "counter %08x, key %08x: word %d", k[0], k[4], i);
    }
}

int main() {
    tiles();
    windows();
    descriptors();
    accumulators();
    matrices();
    fragments();
    random_words();
}
