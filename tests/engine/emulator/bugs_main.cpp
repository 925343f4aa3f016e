// Runs one kernel of bugs.cu: `bugs_main <case> <order>` prints "ok", "wrong: ..." or "error: ...".
// tests/engine/emulator.rs builds it plainly and with each sanitizer. `bugs_main arithmetic` checks bf16
// rounding instead, and `bugs_main again` that launches after failed ones are unharmed.
#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <thread>
#include <vector>

#include "emu/emu.h"

namespace kernels_bugs {
#include "bugs.cu"
#include "products.cu"
}

extern "C" {
int emu_launch(void (*entry)(void**), const unsigned grid[3], const unsigned block[3], size_t dynamic_shared,
               void** args, int order, int threads, char* error, size_t error_len);
void* emu_alloc(size_t bytes);
void emu_free(void*);
}

using namespace kernels_bugs;

struct Case {
    const char* name;
    void (*entry)(void**);
    float (*want)(int i); // element i of the result
    unsigned grid, block, dynamic_shared;
    int out; // elements
    unsigned block_depth = 1, grid_depth = 1;
};

static float one(int) { return 1; }
static float neighbour_id(int i) { return (float)(i ^ 1); }
static float rounds_sum(int i) { return (float)(8 * ((i + 1) % 128) + 28); }
static float input(int i) { return (float)(i * 7 % 97) - 40; }
static float copied(int i) { return i < 512 ? input(i) : 0; }
// Exact in bf16, and so is any sum of 16 products in f32.
static float element(int i) { return (float)(i * 5 % 13 - 6); }
static float product(int i) {
    float sum = 0;
    for (int k = 0; k < 16; k++) sum += element(i / 8 * 16 + k) * element(k * 8 + i % 8 + 3);
    return sum;
}
static float product_64(int i);
// n (n + 1) / 2 + n (n - 1) / 2
static float sum_416(int) { return 416 * 416; }
static float sum_1024(int) { return 1024 * 1024; }

#define ENTRY(kernel) [](void** a) { emu::call(kernel, a); }
#define SIMPLE(kernel, want) {#kernel, ENTRY(kernel), want, 1, 128, 4096, 128}

static const Case CASES[] = {
    SIMPLE(neighbour_right, neighbour_id),
    SIMPLE(neighbour_no_barrier, neighbour_id),
    SIMPLE(neighbour_hidden_race, neighbour_id),
    SIMPLE(neighbour_sync_warp, neighbour_id),
    SIMPLE(rounds_right, rounds_sum),
    SIMPLE(rounds_no_second_barrier, rounds_sum),
    {"copies_right", ENTRY(copies_right), copied, 1, 128, 4096, 1024},
    {"copies_no_wait", ENTRY(copies_no_wait), copied, 1, 128, 4096, 1024},
    SIMPLE(copies_at_exit, one),
    SIMPLE(copy_from_beyond, one),
    SIMPLE(copy_misaligned, one),
    SIMPLE(copy_overlong, one),
    SIMPLE(barrier_elsewhere, one),
    SIMPLE(barrier_skipped, one),
    SIMPLE(collective_skipped, one),
    SIMPLE(collective_elsewhere, one),
    SIMPLE(collective_against_barrier, one),
    SIMPLE(shared_out_of_bounds, one),
    SIMPLE(dynamic_out_of_bounds, one),
    SIMPLE(global_out_of_bounds, one),
    {"global_just_out_of_bounds", ENTRY(global_out_of_bounds), one, 1, 75, 0, 75}, // before the guard page
    SIMPLE(global_far_out_of_bounds, one),
    SIMPLE(global_read_out_of_bounds, one),
    SIMPLE(null_pointer, one),
    SIMPLE(stack_overflow, one),
    SIMPLE(uninitialised, one),
    SIMPLE(shared_too_large, one),
    SIMPLE(divided_by_zero, one),
    SIMPLE(signed_overflow, one),
    {"blocks_race", ENTRY(blocks_race), one, 2, 128, 0, 1024},
    {"blocks_right", ENTRY(blocks_right), one, 8, 128, 0, 1024},
    {"blocks_large", ENTRY(blocks_right), one, 4096, 128, 0, 4096 * 128}, // enough for several OS threads
    {"sum_right", ENTRY(sum_right), sum_416, 1, 416, 0, 416},
    {"sum_large", ENTRY(sum_right), sum_1024, 1, 1024, 0, 1024},
    SIMPLE(ballot_right, one),
    {"ballot_partial", ENTRY(ballot_right), one, 1, 75, 0, 75},
    {"matrix_partial", ENTRY(matrix_partial), one, 1, 31, 0, 31},
    {"matrix_misaligned", ENTRY(matrix_misaligned), one, 1, 32, 0, 32},
    {"matrix_product", ENTRY(matrix_product), product, 1, 32, 0, 128},
    {"product_stored", ENTRY(product_stored<true>), product_64, 1, 128, 16384, 4096},
    {"product_stored_no_fence", ENTRY(product_stored<false>), product_64, 1, 128, 16384, 4096},
    SIMPLE(handed_right, one),
    SIMPLE(handed_unawaited, one),
    {"shared_too_large_together", ENTRY(neighbour_right), one, 1, 128, 232448, 128},
    {"dynamic_too_large", ENTRY(blocks_right), one, 1, 128, 232449, 128},
    {"block_too_large", ENTRY(blocks_right), one, 1, 1025, 0, 1025},
    {"block_too_deep", ENTRY(blocks_right), one, 1, 1, 0, 1, 65},
    {"grid_empty", ENTRY(blocks_right), one, 0, 128, 0, 128},
    {"grid_too_deep", ENTRY(blocks_right), one, 1, 128, 0, 128, 1, 65536},
};

// The result of a case: "ok", "wrong: ..." or "error: ...".
static std::string run(const Case& c, int order) {
    float* out = (float*)emu_alloc(c.out * sizeof(float));
    float* in = (float*)emu_alloc(1024 * sizeof(float));
    bf16* a = (bf16*)emu_alloc(4096 * sizeof(bf16));
    bf16* b = (bf16*)emu_alloc(4096 * sizeof(bf16));
    for (int i = 0; i < 1024; i++) in[i] = input(i);
    for (int i = 0; i < 4096; i++) a[i] = to_bf16(element(i));
    for (int i = 0; i < 4096; i++) b[i] = to_bf16(element(i + 3));
    const bool matrices = strstr(c.name, "product");
    void *first = matrices ? (void*)a : (void*)in, *second = matrices ? b : nullptr;
    void* args[] = {&out, &first, &second};
    const unsigned grid[3] = {c.grid, 1, c.grid_depth}, block[3] = {c.block, 1, c.block_depth};
    char text[1024];
    std::string result = "ok";
    if (emu_launch(c.entry, grid, block, c.dynamic_shared, args, order, 3, text, sizeof text)) {
        result = std::string("error: ") + text;
    } else {
        for (int i = 0; i < c.out && result == "ok"; i++) {
            if (out[i] == c.want(i)) continue;
            snprintf(text, sizeof text, "wrong: element %d is %g, should be %g", i, out[i], c.want(i));
            result = text;
        }
    }
    emu_free(out);
    emu_free(in);
    emu_free(a);
    emu_free(b);
    return result;
}

// ---- products with the functions of lib/hopper.cuh ----

struct ProductCase {
    const char* name;
    void (*entry)(void**);
    int columns; // N
    bool trans_b, im2col;
    ProductDims dims;
    int n, h, w; // of the images
    unsigned block;
    int stages;
};

#define PRODUCT(N, trans_b, im2col, bug) [](void** a) { emu::call(product<N, trans_b, im2col, Bug::bug>, a); }
// 200 rows are one block and a part of another; a depth of 144 is two boxes and a part of another.
#define MATRIX {200, 144, 1, 1, 1, 200, 1, 0}
#define WRONG_PRODUCT(name, bug) {name, PRODUCT(64, 0, false, bug), 64, false, false, MATRIX, 0, 0, 0, 288, 2}

static const ProductCase PRODUCTS[] = {
    {"product_64", PRODUCT(64, 0, false, None), 64, false, false, MATRIX, 0, 0, 0, 288, 2},
    {"product_128", PRODUCT(128, 0, false, None), 128, false, false, MATRIX, 0, 0, 0, 288, 2},
    {"product_256", PRODUCT(256, 0, false, None), 256, false, false, MATRIX, 0, 0, 0, 288, 2},
    {"product_64_trans", PRODUCT(64, 1, false, None), 64, true, false, MATRIX, 0, 0, 0, 288, 2},
    {"product_256_trans", PRODUCT(256, 1, false, None), 256, true, false, MATRIX, 0, 0, 0, 288, 2},
    // Rows, channels, taps, filter's width, p, q, stride, pad; images of n, h, w.
    {"conv_1x1", PRODUCT(64, 0, true, None), 64, false, true, {126, 72, 1, 1, 7, 6, 1, 0}, 3, 7, 6, 288, 2},
    {"conv_1x1_stride_2", PRODUCT(64, 0, true, None), 64, false, true, {160, 72, 1, 1, 4, 8, 2, 0}, 5, 7, 16, 288, 2},
    {"conv_3x3", PRODUCT(64, 0, true, None), 64, false, true, {126, 72, 9, 3, 7, 6, 1, 1}, 3, 7, 6, 288, 2},
    {"conv_3x3_trans", PRODUCT(128, 1, true, None), 128, true, true, {210, 64, 9, 3, 7, 6, 1, 1}, 5, 7, 6, 288, 2},
    {"conv_3x3_stride_2", PRODUCT(64, 0, true, None), 64, false, true, {180, 24, 9, 3, 4, 5, 2, 1}, 9, 8, 9, 288, 2},
    {"conv_3x3_no_pad", PRODUCT(64, 0, true, None), 64, false, true, {140, 64, 9, 3, 5, 4, 1, 0}, 7, 7, 6, 288, 2},
    {"conv_7x7_stride_2", PRODUCT(64, 0, true, None), 64, false, true, {60, 8, 49, 7, 5, 6, 2, 3}, 2, 10, 11, 288, 2},
    {"product_one_stage", [](void** a) { emu::call(product_one_stage<true, false>, a); }, 64, false, false, MATRIX, 0,
     0, 0, 256, 1},
    {"product_no_last_barrier", [](void** a) { emu::call(product_one_stage<false, false>, a); }, 64, false, false,
     MATRIX, 0, 0, 0, 256, 1},
    {"product_loaded_early", [](void** a) { emu::call(product_one_stage<true, true>, a); }, 64, false, false, MATRIX,
     0, 0, 0, 256, 1},
    WRONG_PRODUCT("product_no_full_wait", NoFullWait),
    WRONG_PRODUCT("product_no_empty_wait", NoEmptyWait),
    WRONG_PRODUCT("product_no_wait", NoProductWait),
    WRONG_PRODUCT("product_no_fence", NoFence),
    WRONG_PRODUCT("product_no_init_fence", NoInitFence),
    WRONG_PRODUCT("product_no_init_barrier", NoInitBarrier),
    WRONG_PRODUCT("product_too_few_bytes", TooFewBytes),
    WRONG_PRODUCT("product_too_many_bytes", TooManyBytes),
    WRONG_PRODUCT("product_no_last_wait", NoLastWait),
    WRONG_PRODUCT("product_loads_left", LoadsLeft),
    WRONG_PRODUCT("product_wrong_parity", WrongParity),
    WRONG_PRODUCT("product_other_operands", OtherOperands),
    WRONG_PRODUCT("product_released_early", ReleasedEarly),
};

// A map of a matrix without gaps between its rows. Dimensions and boxes are innermost first.
static CUtensorMap tiled(const bf16* at, u32 columns, u32 rows, u32 box_rows) {
    return {CUtensorMap::MAGIC, (u64)(uintptr_t)at, CUtensorMap::TILED, 2,      {columns, rows, 1, 1},
            {columns * 2, 0, 0}, {64, box_rows},     {0, 0},             {0, 0}, {1, 1}};
}
static CUtensorMap windows(const bf16* at, const ProductCase& c) {
    const ProductDims& s = c.dims;
    const u64 pixel = s.channels * 2;
    const int upper_w = s.pad - (s.filter_width - 1), upper_h = s.pad - (s.taps / s.filter_width - 1);
    return {CUtensorMap::MAGIC,
            (u64)(uintptr_t)at,
            CUtensorMap::IM2COL,
            4,
            {(u32)s.channels, (u32)c.w, (u32)c.h, (u32)c.n},
            {pixel, pixel * c.w, pixel * c.w * c.h},
            {64, 128},
            {-s.pad, -s.pad},
            {upper_w, upper_h},
            {(u32)s.stride, (u32)s.stride}};
}

static std::string run(const ProductCase& c, int order) {
    const ProductDims& s = c.dims;
    const int depth = s.taps * s.channels, width = c.columns;
    const int a_elements = c.im2col ? c.n * c.h * c.w * s.channels : s.rows * depth;
    bf16* a = (bf16*)emu_alloc(a_elements * sizeof(bf16));
    bf16* b = (bf16*)emu_alloc(depth * width * sizeof(bf16));
    float* out = (float*)emu_alloc(s.rows * width * sizeof(float));
    std::vector<float> rows((size_t)s.rows * depth), columns((size_t)depth * width);
    for (int i = 0; i < a_elements; i++) a[i] = to_bf16(element(i + i / 13));
    for (int r = 0; r < s.rows; r++) {
        for (int k = 0; k < depth; k++) {
            int at = r * depth + k;
            if (c.im2col) {
                const int tap = k / s.channels, x = r % s.q * s.stride - s.pad + tap % s.filter_width;
                const int y = r / s.q % s.p * s.stride - s.pad + tap / s.filter_width, n = r / s.q / s.p;
                at = x < 0 || y < 0 || x >= c.w || y >= c.h || n >= c.n
                         ? -1
                         : ((n * c.h + y) * c.w + x) * s.channels + k % s.channels;
            }
            rows[(size_t)r * depth + k] = at < 0 ? 0 : to_f32(a[at]);
        }
    }
    for (int k = 0; k < depth; k++) {
        for (int j = 0; j < width; j++) {
            const float v = element(k * 3 + j * 7 + k / 11);
            b[c.trans_b ? k * width + j : j * depth + k] = to_bf16(v);
            columns[(size_t)k * width + j] = v;
        }
    }
    TensorMaps maps{};
    maps.of[0] = c.im2col ? windows(a, c) : tiled(a, depth, s.rows, 128);
    maps.of[8] = c.trans_b ? tiled(b, width, depth, 64) : tiled(b, depth, width, width);
    ProductDims dims = s;
    void* args[] = {&out, &maps, &dims};
    const unsigned grid[3] = {(unsigned)(s.rows + 127) / 128, 1, 1}, block[3] = {c.block, 1, 1};
    char text[1024];
    std::string result = "ok";
    if (emu_launch(c.entry, grid, block, c.stages * (16384 + width * 128), args, order, 3, text, sizeof text)) {
        result = std::string("error: ") + text;
    }
    for (int r = 0; r < s.rows && result == "ok"; r++) {
        std::vector<float> want(width);
        for (int k = 0; k < depth; k++) {
            const float v = rows[(size_t)r * depth + k];
            for (int j = 0; j < width; j++) want[j] += v * columns[(size_t)k * width + j];
        }
        for (int j = 0; j < width && result == "ok"; j++) {
            const float got = out[r * width + j];
            if (got == want[j]) continue;
            snprintf(text, sizeof text, "wrong: element %d is %g, should be %g", r * width + j, got, want[j]);
            result = text;
        }
    }
    emu_free(a);
    emu_free(b);
    emu_free(out);
    return result;
}

// out[64, 64] = a[64, 64] b[64, 64], b given transposed.
static float product_64(int i) {
    float sum = 0;
    for (int k = 0; k < 64; k++) sum += element(i / 64 * 64 + k) * element(i % 64 * 64 + k + 3);
    return sum;
}

static std::string run(const char* name, int order) {
    for (const ProductCase& c : PRODUCTS) {
        if (!strcmp(c.name, name)) return run(c, order);
    }
    for (const Case& c : CASES) {
        if (!strcmp(c.name, name)) return run(c, order);
    }
    return std::string("no such case: ") + name;
}

// Failures, each followed by kernels that are right, from several host threads at once.
static std::string again() {
    const char* failing[] = {
        "barrier_skipped", "collective_elsewhere", "copies_at_exit",
#if !EMU_ASAN && !EMU_TSAN && defined(__x86_64__) // these would end the process
        "null_pointer",    "global_out_of_bounds", "global_just_out_of_bounds",
        "stack_overflow",  "divided_by_zero",
#endif
    };
    const char* right[] = {"sum_right", "copies_right", "blocks_right", "matrix_product"};
    const auto work = [&](std::string* result) {
        *result = "ok";
        for (int order = 0; order < 3; order++) {
            for (const char* f : failing) {
                if (run(f, order).rfind("error:", 0) != 0) *result = std::string("missed: ") + f;
                for (const char* r : right) {
                    const std::string got = run(r, order);
                    if (got != "ok") *result = std::string(r) + " after " + f + ": " + got;
                }
            }
        }
    };
    std::string results[2];
    std::vector<std::thread> threads;
    for (std::string& r : results) threads.emplace_back(work, &r);
    for (std::thread& t : threads) t.join();
    for (const std::string& r : results) {
        if (r != "ok") return r;
    }
    return "ok";
}

// Every upper half of a float with lower halves around the tie, against rounding done in double.
static std::string arithmetic() {
    const u32 lows[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    for (u32 high = 0; high < 65536; high++) {
        for (u32 low : lows) {
            const float f = bits_to_float(high << 16 | low);
            const u16 got = to_bf16(f).bits;
            const float back = bits_to_float((u32)got << 16);
            bool right;
            if (isnan(f)) {
                right = isnan(back);
            } else if (isinf(f)) {
                right = back == f;
            } else {
                // Neighbours in magnitude are `high` and `high + 1`; past the largest finite one comes
                // infinity.
                const u32 magnitude = high & 0x7fff;
                const bool up = low > 0x8000 || (low == 0x8000 && (high & 1));
                right = got == ((high & 0x8000) | (magnitude + (up ? 1 : 0)));
            }
            if (!right || pack_bf16(f, 1.f) != ((u32)got | 0x3f800000u)) {
                char text[100];
                snprintf(text, sizeof text, "wrong: to_bf16(%a) is %#x", f, got);
                return text;
            }
        }
    }
    return mul_hi(0xffffffffu, 0xffffffffu) == 0xfffffffeu ? "ok" : "wrong: mul_hi";
}

int main(int argc, char** argv) {
    std::string result = "usage: bugs_main <case> <order>";
    if (argc == 3) result = run(argv[1], atoi(argv[2]));
    if (argc == 2 && !strcmp(argv[1], "arithmetic")) result = arithmetic();
    if (argc == 2 && !strcmp(argv[1], "again")) result = again();
    printf("%s\n", result.c_str());
    return result == "ok" ? 0 : 1;
}
