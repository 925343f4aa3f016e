// Runs one kernel of bugs.cu: `bugs_main <case> <order>` prints "ok", "wrong: ..." or "error: ...".
// tests/emulator.rs builds it plainly and with each sanitizer. `bugs_main arithmetic` checks bf16 rounding
// instead, and `bugs_main again` that launches after failed ones are unharmed.
#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <thread>
#include <vector>

#include "emu/emu.h"

namespace kernels_bugs {
#include "emu/bugs.cu"
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
    {"shared_too_large_together", ENTRY(neighbour_right), one, 1, 128, 232448, 128},
    {"dynamic_too_large", ENTRY(blocks_right), one, 1, 128, 232449, 128},
    {"block_too_large", ENTRY(blocks_right), one, 1, 1025, 0, 1025},
    {"block_too_deep", ENTRY(blocks_right), one, 1, 1, 0, 1, 65},
    {"grid_empty", ENTRY(blocks_right), one, 0, 128, 0, 128},
    {"grid_too_deep", ENTRY(blocks_right), one, 1, 128, 0, 128, 1, 65536},
};

// What the case comes to: "ok", "wrong: ..." or "error: ...".
static std::string run(const Case& c, int order) {
    float* out = (float*)emu_alloc(c.out * sizeof(float));
    float* in = (float*)emu_alloc(1024 * sizeof(float));
    bf16* a = (bf16*)emu_alloc(256 * sizeof(bf16));
    bf16* b = (bf16*)emu_alloc(128 * sizeof(bf16));
    for (int i = 0; i < 1024; i++) in[i] = input(i);
    for (int i = 0; i < 256; i++) a[i] = to_bf16(element(i));
    for (int i = 0; i < 128; i++) b[i] = to_bf16(element(i + 3));
    const bool matrices = !strcmp(c.name, "matrix_product");
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

static std::string run(const char* name, int order) {
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
                // Neighbours in magnitude are `high` and `high + 1`; past the largest finite one comes infinity.
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
