// Products and convolutions with the functions of lib/hopper.cuh, right ones and wrong ones. The emulator
// must compute the right ones and find the mistakes (tests/engine/emulator.rs), and NVRTC must compile the
// functions to wgmma and TMA instructions (tests/engine/kernels.rs).
#include "lib/hopper.cuh"

// out[m, N] = a[m, k] b[k, N] in blocks of 128 rows. As a convolution (im2col) m is an output pixel (n, p,
// q) and k = (tap, c); `channels` is c, otherwise k.
struct ProductDims {
    int rows, channels, taps, filter_width, p, q, stride, pad;
};

enum class Bug {
    None,
    NoFullWait,     // reads a stage before TMA has filled it
    NoEmptyWait,    // fills a stage that is still to be read
    NoProductWait,  // reads the accumulators of products in flight
    NoFence,        // wgmma on registers that were just written
    NoInitFence,    // TMA may not see that the barrier is initialised
    NoInitBarrier,  // other threads use barriers before they are initialised
    TooFewBytes,    // announces fewer bytes than are copied
    TooManyBytes,
    NoLastWait,     // ends with groups in flight
    LoadsLeft,      // ends with loads in flight
    WrongParity,
    OtherOperands,  // one warp's descriptors differ
    ReleasedEarly,  // gives a stage back before the products that read it are done
};

// 256 threads multiply, thread 256 loads; two stages of A (128 rows of 64) and B.
template <int N, int trans_b, bool im2col, Bug bug>
DEV void pipeline(const TensorMaps& maps, float* out, const ProductDims& s) {
    constexpr int A_BYTES = 128 * 128, B_BYTES = N * 128, STAGE = A_BYTES + B_BYTES;
    DYN_SHARED(char, shared);
    SHARED(u64, full, 2);
    SHARED(u64, empty, 2);
    const int t = threadIdx.x, row0 = blockIdx.x * 128, chunks = (s.channels + 63) / 64, steps = s.taps * chunks;
    if (t == 256) {
        for (int i = 0; i < 2; i++) {
            mbar_init(&full[i], 1);
            mbar_init(&empty[i], 2);
        }
        if (bug != Bug::NoInitFence) mbar_fence_init();
    }
    if (bug != Bug::NoInitBarrier) sync_block();
    if (t >= 256) {
        if (t > 256) return;
        const int q0 = row0 % s.q, p0 = row0 / s.q % s.p, n0 = row0 / s.q / s.p;
        for (int i = 0; i < steps + (bug == Bug::LoadsLeft); i++) {
            const int stage = i % 2, tap = i / chunks, c = i % chunks * 64;
            char* const a = shared + stage * STAGE;
            u64* const bar = &full[stage];
            if (bug != Bug::NoEmptyWait) mbar_wait(&empty[stage], (i / 2 & 1) ^ 1);
            mbar_expect_tx(bar, STAGE + (bug == Bug::TooManyBytes ? 16 : bug == Bug::TooFewBytes ? -16 : 0));
            if (im2col) {
                tma_load_im2col_4d(a, &maps.of[0], c, q0 * s.stride - s.pad, p0 * s.stride - s.pad, n0,
                                   (u16)(tap % s.filter_width), (u16)(tap / s.filter_width), bar);
            } else {
                tma_load_2d(a, &maps.of[0], c, row0, bar);
            }
            if (trans_b) {
                for (int j = 0; j < N / 64; j++) {
                    tma_load_2d(a + A_BYTES + j * 8192, &maps.of[8], j * 64, tap * s.channels + c, bar);
                }
            } else {
                tma_load_2d(a + A_BYTES, &maps.of[8], tap * s.channels + c, 0, bar);
            }
        }
        return;
    }
    const int group = t / 128, warp = t % 128 / 32, lane = t % 32;
    float d[N / 2];
    UNROLL
    for (int i = 0; i < N / 2; i++) d[i] = 0;
    for (int i = 0; i < steps; i++) {
        const int stage = i % 2;
        const char *const a = shared + stage * STAGE + group * 8192, *const b = shared + stage * STAGE + A_BYTES;
        if (bug != Bug::NoFullWait) mbar_wait(&full[stage], (i / 2 & 1) ^ (bug == Bug::WrongParity));
        wgmma_hold(d);
        if (bug != Bug::NoFence) wgmma_fence();
        UNROLL
        for (int k = 0; k < 4; k++) {
            const int skewed = bug == Bug::OtherOperands && warp == 1 ? (k ^ 1) : k;
            wgmma_m64k16<N, trans_b>(d, smem_descriptor(a + skewed * 32, 16, 1024),
                                     trans_b ? smem_descriptor(b + k * 2048, 8192, 1024)
                                             : smem_descriptor(b + k * 32, 16, 1024));
        }
        wgmma_commit();
        if (bug == Bug::ReleasedEarly) {
            if (t % 128 == 0) mbar_arrive(&empty[stage]);
            wgmma_wait<1>();
        } else {
            // The products of the step before are computed, and its stage is free.
            wgmma_wait<1>();
            if (i > 0 && t % 128 == 0) mbar_arrive(&empty[stage ^ 1]);
        }
    }
    if (bug != Bug::NoProductWait) wgmma_wait<0>();
    wgmma_hold(d);
    const int row = row0 + group * 64 + warp * 16 + lane / 4, column = lane % 4 * 2;
    UNROLL
    for (int i = 0; i < N / 2; i++) {
        const int r = row + i % 4 / 2 * 8, c = column + i / 4 * 8 + i % 2;
        if (r < s.rows) out[(i64)r * N + c] = d[i];
    }
    if (bug == Bug::NoProductWait) wgmma_wait<0>();
    if (bug == Bug::NoLastWait) {
        wgmma_fence();
        wgmma_m64k16<N, 0>(d, smem_descriptor(shared + group * 8192, 16, 1024), smem_descriptor(shared, 16, 1024));
        wgmma_commit();
    }
}
template <int N, int trans_b, bool im2col, Bug bug>
KERNEL(288, 1) product(float* out, MAPS_PARAM maps, ProductDims s) {
    pipeline<N, trans_b, im2col, bug>(maps, out, s);
}

// Two warpgroups and no ring: thread 0 loads every step when all threads have finished the one before, which
// the barrier at the end of a step ensures. With `early` it loads before its own products are done.
template <bool last_barrier, bool early> DEV void one_stage(const TensorMaps& maps, float* out, const ProductDims& s) {
    DYN_SHARED(char, shared);
    SHARED(u64, full, 1);
    const int t = threadIdx.x, group = t / 128, row0 = blockIdx.x * 128, steps = (s.channels + 63) / 64;
    const auto load = [&](int i) {
        mbar_expect_tx(&full[0], 16384 + 8192);
        tma_load_2d(shared, &maps.of[0], i * 64, row0, &full[0]);
        tma_load_2d(shared + 16384, &maps.of[8], i * 64, 0, &full[0]);
    };
    if (t == 0) {
        mbar_init(&full[0], 1);
        mbar_fence_init();
        load(0);
    }
    sync_block();
    float d[32];
    UNROLL
    for (int i = 0; i < 32; i++) d[i] = 0;
    for (int i = 0; i < steps; i++) {
        mbar_wait(&full[0], i & 1);
        wgmma_hold(d);
        wgmma_fence();
        UNROLL
        for (int k = 0; k < 4; k++) {
            wgmma_m64k16<64, 0>(d, smem_descriptor(shared + group * 8192 + k * 32, 16, 1024),
                                smem_descriptor(shared + 16384 + k * 32, 16, 1024));
        }
        wgmma_commit();
        if (early && t == 0 && i + 1 < steps) load(i + 1);
        wgmma_wait<0>();
        wgmma_hold(d);
        if (last_barrier) sync_block();
        if (!early && t == 0 && i + 1 < steps) load(i + 1);
    }
    const int row = row0 + group * 64 + t % 128 / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
    UNROLL
    for (int i = 0; i < 32; i++) {
        const int r = row + i % 4 / 2 * 8, c = column + i / 4 * 8 + i % 2;
        if (r < s.rows) out[(i64)r * 64 + c] = d[i];
    }
}
template <bool last_barrier, bool early>
KERNEL(256, 1) product_one_stage(float* out, MAPS_PARAM maps, ProductDims s) {
    one_stage<last_barrier, early>(maps, out, s);
}

// One step of 64. The threads themselves store A and B where TMA would have put them.
template <bool fenced> KERNEL(128, 1) product_stored(float* out, const bf16* a, const bf16* b) {
    DYN_SHARED(char, shared);
    for (int i = threadIdx.x; i < 64 * 64; i += 128) {
        const int r = i / 64, c = i % 64, at = r * 128 + ((c / 8) ^ (r % 8)) * 16 + c % 8 * 2;
        *reinterpret_cast<bf16*>(shared + at) = a[i];
        *reinterpret_cast<bf16*>(shared + 8192 + at) = b[i];
    }
    if (fenced) fence_async_shared();
    sync_block();
    float d[32];
    UNROLL
    for (int i = 0; i < 32; i++) d[i] = 0;
    wgmma_hold(d);
    wgmma_fence();
    UNROLL
    for (int k = 0; k < 4; k++) {
        wgmma_m64k16<64, 0>(d, smem_descriptor(shared + k * 32, 16, 1024),
                            smem_descriptor(shared + 8192 + k * 32, 16, 1024));
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(d);
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    UNROLL
    for (int i = 0; i < 32; i++) out[(row + i % 4 / 2 * 8) * 64 + column + i / 4 * 8 + i % 2] = d[i];
}

// The first warp passes its numbers to the other three, twice. It waits for them to have read the first, but
// not the second.
template <bool right> DEV void handed(float* out) {
    SHARED(float, s, 64);
    const int t = threadIdx.x, warp = t / 32;
    for (int i = 0; i < 2; i++) {
        if (warp == 0) {
            if (i > 0) named_barrier_sync(2, 128);
            s[t] = (float)(t + i);
            s[t + 32] = (float)(t - i);
            named_barrier_arrive(1, 128);
            out[t] = 1;
        } else {
            if (right || warp != 3) named_barrier_sync(1, 128);
            const float sum = s[(t + 1) % 32] + s[(t + 1) % 32 + 32];
            out[t] = sum == (float)((t + 1) % 32 * 2) ? 1.f : sum;
            if (i == 0) named_barrier_arrive(2, 128);
        }
    }
}
KERNEL(128) handed_right(float* out) { handed<true>(out); }
KERNEL(128) handed_unawaited(float* out) { handed<false>(out); }
