// Kernels that are wrong on purpose, and correct twins of some, which the emulator must tell apart
// (tests/engine/emulator.rs). All run in blocks of 128 threads unless bugs_main.cpp has another number.
#include "lib/mma.cuh"
#include "lib/reduce.cuh"

// Each thread takes what its neighbour wrote.
template <bool barrier> DEV void neighbour(float* out) {
    SHARED(float, s, 128);
    s[threadIdx.x] = (float)threadIdx.x;
    if (barrier) sync_block();
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}
KERNEL(128) neighbour_right(float* out) { neighbour<true>(out); }
KERNEL(128) neighbour_no_barrier(float* out) { neighbour<false>(out); }

// The value is right in every order, because the shuffle makes all lanes wait. But a shuffle does not order
// memory, which only TSan finds.
KERNEL(128) neighbour_hidden_race(float* out) {
    SHARED(float, s, 128);
    s[threadIdx.x] = (float)threadIdx.x;
    shfl_xor(0.f, 1);
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}
KERNEL(128) neighbour_sync_warp(float* out) {
    SHARED(float, s, 128);
    s[threadIdx.x] = (float)threadIdx.x;
    sync_warp();
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}

// In each round a thread writes its own element and reads the next thread's. Without the second barrier a
// fast thread overwrites an element that a slow one has still to read.
KERNEL(128) rounds_right(float* out) {
    SHARED(float, s, 128);
    float sum = 0;
    for (int i = 0; i < 8; i++) {
        s[threadIdx.x] = (float)(threadIdx.x + i);
        sync_block();
        sum += s[(threadIdx.x + 1) % 128];
        sync_block();
    }
    out[threadIdx.x] = sum;
}
KERNEL(128) rounds_no_second_barrier(float* out) {
    SHARED(float, s, 128);
    float sum = 0;
    for (int i = 0; i < 8; i++) {
        s[threadIdx.x] = (float)(threadIdx.x + i);
        sync_block();
        sum += s[(threadIdx.x + 1) % 128];
    }
    out[threadIdx.x] = sum;
}

// Copies from global to shared memory and out again, 4 floats per thread and group, in two groups; the last
// `in_flight` groups are not waited for.
template <int in_flight> DEV void copies(float* out, const float* in) {
    DYN_SHARED(float, s);
    const int t = threadIdx.x;
    cp_async16(s + 4 * t, in + 4 * t, true);
    cp_async_commit();
    cp_async16(s + 512 + 4 * t, in, false);
    cp_async_commit();
    cp_async_wait<in_flight>();
    sync_block();
    for (int i = t; i < 1024; i += 128) out[i] = s[i];
    sync_block();
    cp_async_wait<0>();
}
KERNEL(128) copies_right(float* out, const float* in) { copies<0>(out, in); }
KERNEL(128) copies_no_wait(float* out, const float* in) { copies<1>(out, in); }
KERNEL(128) copies_at_exit(float* out, const float* in) {
    DYN_SHARED(float, s);
    cp_async16(s + 4 * threadIdx.x, in, true);
    out[threadIdx.x] = 0;
}
KERNEL(128) copy_from_beyond(float* out, const float* in) {
    SHARED(float, s, 512);
    cp_async16(s + 4 * threadIdx.x, in + 1024 + 4 * threadIdx.x, true);
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = s[4 * threadIdx.x];
}
KERNEL(128) copy_misaligned(float* out, const float* in) {
    DYN_SHARED(float, s);
    cp_async16(s + threadIdx.x, in, true);
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = s[0];
}
KERNEL(128) copy_overlong(float* out, const float* in) {
    SHARED(float, s, 510);
    cp_async16(s + 4 * threadIdx.x, in, true);
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = s[4 * threadIdx.x];
}

KERNEL(128) barrier_elsewhere(float* out) {
    if (threadIdx.x < 64) sync_block();
    else sync_block();
    out[threadIdx.x] = 1;
}
KERNEL(128) barrier_skipped(float* out) {
    if (threadIdx.x >= 100) return;
    sync_block();
    out[threadIdx.x] = 1;
}
KERNEL(128) collective_skipped(float* out) {
    float v = (float)threadIdx.x;
    if (threadIdx.x % 32 < 16) v = shfl_xor(v, 1);
    out[threadIdx.x] = v;
}
KERNEL(128) collective_elsewhere(float* out) {
    float v = (float)threadIdx.x;
    if (threadIdx.x % 32 < 16) v = shfl_xor(v, 1);
    else v = shfl_xor(v, 2);
    out[threadIdx.x] = v;
}
KERNEL(128) collective_against_barrier(float* out) {
    if (threadIdx.x % 32 < 16) sync_warp();
    sync_block();
    out[threadIdx.x] = 1;
}

KERNEL(128) shared_out_of_bounds(float* out) {
    SHARED(float, s, 128);
    s[threadIdx.x + 1] = 1;
    out[threadIdx.x] = 1;
}
KERNEL(128) dynamic_out_of_bounds(float* out) {
    DYN_SHARED(float, s);
    s[(int)threadIdx.x - 1] = 1;
    out[threadIdx.x] = 1;
}
KERNEL(128) global_out_of_bounds(float* out) { out[threadIdx.x + 1] = 1; }
KERNEL(128) global_far_out_of_bounds(float* out) { out[threadIdx.x + 64] = 1; }
KERNEL(128) global_read_out_of_bounds(float* out, const float* in) { out[threadIdx.x] = in[threadIdx.x + 1024]; }
KERNEL(128) null_pointer(float* out, const float*, const float* null) { out[threadIdx.x] = null[threadIdx.x]; }
KERNEL(128) stack_overflow(float* out) {
    volatile float big[1 << 17];
    big[threadIdx.x] = 1;
    out[threadIdx.x] = big[threadIdx.x];
}
KERNEL(128) uninitialised(float* out) {
    SHARED(float, s, 128);
    if (threadIdx.x > 0) s[threadIdx.x] = 1;
    sync_block();
    out[threadIdx.x] = s[threadIdx.x];
}
KERNEL(128) shared_too_large(float* out) {
    SHARED(float, s, 12289);
    s[threadIdx.x] = 1;
    out[threadIdx.x] = s[threadIdx.x];
}
KERNEL(128) divided_by_zero(float* out) { out[threadIdx.x] = (float)(7 / ((int)threadIdx.x - 5)); }
KERNEL(128) signed_overflow(float* out) { out[threadIdx.x] = (float)(2147483647 - 64 + (int)threadIdx.x); }

// Two blocks that both write all of `out`, with the same values, so that no order changes the result.
KERNEL(128) blocks_race(float* out) {
    for (int i = threadIdx.x; i < 1024; i += 128) out[i] = 1;
}
KERNEL(128) blocks_right(float* out) { out[global_thread()] = 1; }

// Sums over a block, whose last warp may be partial.
KERNEL(1024) sum_right(float* out) {
    SHARED(float, s, 32);
    SHARED(double, d, 32);
    const float total = block_sum((float)(threadIdx.x + 1), s);
    out[threadIdx.x] = total + (float)block_sum((double)threadIdx.x, d);
}
KERNEL(128) ballot_right(float* out) {
    const u32 votes = ballot(threadIdx.x % 3 == 0);
    const int lane = lane_id(), first = threadIdx.x - lane;
    u32 want = 0;
    for (int i = 0; i < 32; i++) want |= (u32)(first + i < (int)blockDim.x && (first + i) % 3 == 0) << i;
    out[threadIdx.x] = votes == want ? 1.f : 0.f;
}
KERNEL(32) matrix_partial(float* out) {
    float d[4] = {0, 0, 0, 0};
    const u32 a[4] = {0, 0, 0, 0};
    mma_bf16_16816(d, a, 0, 0);
    out[threadIdx.x] = d[0];
}
KERNEL(32) matrix_misaligned(float* out) {
    SHARED(bf16, s, 1024);
    u32 r[4];
    ldmatrix_x4(r, s + 8 * threadIdx.x + 1);
    out[threadIdx.x] = 1;
}

// out[16,8] = a[16,16] b[16,8], both given as bf16, row-major. B is loaded transposed, and padded with zeros
// to the four matrices of one load.
KERNEL(32) matrix_product(float* out, const bf16* a, const bf16* b) {
    SHARED(bf16, sa, 256);
    SHARED(bf16, sb, 256);
    const int lane = lane_id();
    for (int i = lane; i < 256; i += 32) sa[i] = a[i];
    for (int i = lane; i < 256; i += 32) sb[i] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : to_bf16(0);
    sync_warp();
    u32 ra[4], rb[4];
    float d[4] = {0, 0, 0, 0};
    ldmatrix_x4(ra, sa + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x4_trans(rb, sb + lane % 16 * 16 + lane / 16 * 8);
    mma_bf16_16816(d, ra, rb[0], rb[1]);
    for (int i = 0; i < 4; i++) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}
