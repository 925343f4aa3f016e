// Runs one kernel of bugs.cu: `bugs_main <case> <order>` prints "ok", "wrong: ..." or "error: ...". tests/emulator.rs
// builds it plainly and with each sanitizer. `bugs_main arithmetic` checks bf16 rounding instead.
#include <stdio.h>
#include <stdlib.h>

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
};

static float one(int) { return 1; }
static float neighbour_id(int i) { return (float)(i ^ 1); }
static float rounds_sum(int i) { return (float)(8 * ((i + 1) % 128) + 28); }
static float input(int i) { return (float)(i * 7 % 97) - 40; }
static float copied(int i) { return i < 512 ? input(i) : 0; }
static float element(int i) { return (float)(i * 5 % 13 - 6); } // exact in bf16, and so is any sum of 16 products in f32
static float product(int i) {
    float sum = 0;
    for (int k = 0; k < 16; k++) sum += element(i / 8 * 16 + k) * element(k * 8 + i % 8 + 3);
    return sum;
}
static float sum_1024(int) { return 1024 * 1025 / 2 + 1023 * 1024 / 2; }

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
    SIMPLE(global_far_out_of_bounds, one),
    SIMPLE(global_read_out_of_bounds, one),
    SIMPLE(null_pointer, one),
    SIMPLE(stack_overflow, one),
    SIMPLE(uninitialised, one),
    SIMPLE(shared_too_large, one),
    SIMPLE(signed_overflow, one),
    {"blocks_race", ENTRY(blocks_race), one, 2, 128, 0, 1024},
    {"blocks_right", ENTRY(blocks_right), one, 8, 128, 0, 1024},
    {"blocks_large", ENTRY(blocks_right), one, 4096, 128, 0, 4096 * 128}, // enough for several OS threads
    {"sum_right", ENTRY(sum_right), sum_1024, 1, 1024, 0, 1024},
    SIMPLE(ballot_right, one),
    {"ballot_partial", ENTRY(ballot_right), one, 1, 75, 0, 75},
    {"matrix_partial", ENTRY(matrix_partial), one, 1, 31, 0, 31},
    {"matrix_misaligned", ENTRY(matrix_misaligned), one, 1, 32, 0, 32},
    {"matrix_product", ENTRY(matrix_product), product, 1, 32, 0, 128},
    {"block_too_large", ENTRY(blocks_right), one, 1, 1025, 0, 1025},
    {"grid_empty", ENTRY(blocks_right), one, 0, 128, 0, 128},
    {"dynamic_too_large", ENTRY(blocks_right), one, 1, 128, 232449, 128},
};

static int run(const Case& c, int order) {
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
    const unsigned grid[3] = {c.grid, 1, 1}, block[3] = {c.block, 1, 1};
    char error[1024];
    if (emu_launch(c.entry, grid, block, c.dynamic_shared, args, order, 4, error, sizeof error)) {
        printf("error: %s\n", error);
        return 1;
    }
    for (int i = 0; i < c.out; i++) {
        if (out[i] != c.want(i)) {
            printf("wrong: element %d is %g, should be %g\n", i, out[i], c.want(i));
            return 2;
        }
    }
    emu_free(out);
    emu_free(in);
    emu_free(a);
    emu_free(b);
    printf("ok\n");
    return 0;
}

// Every upper half of a float with lower halves around the tie, against rounding done in double.
static int arithmetic() {
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
                printf("wrong: to_bf16(%a) is %#x\n", f, got);
                return 2;
            }
        }
    }
    if (mul_hi(0xffffffffu, 0xffffffffu) != 0xfffffffeu) {
        printf("wrong: mul_hi\n");
        return 2;
    }
    printf("ok\n");
    return 0;
}

int main(int argc, char** argv) {
    if (argc == 2 && !strcmp(argv[1], "arithmetic")) return arithmetic();
    if (argc == 3) {
        for (const Case& c : CASES) {
            if (!strcmp(c.name, argv[1])) return run(c, atoi(argv[2]));
        }
    }
    fprintf(stderr, "usage: bugs_main <case> <order>\n");
    return 3;
}
