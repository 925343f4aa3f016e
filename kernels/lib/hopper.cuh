// The instructions of compute capability 9.0: barriers in shared memory that count threads and bytes
// (mbarrier), copies of boxes of a tensor that complete at such a barrier (TMA), products of a warpgroup that
// read shared memory directly (wgmma), barriers for some of a block's threads, and registers moved from one
// warpgroup to another (setmaxnreg). Only kernels of an `INSTANCE_90A` line may use them.
#pragma once
#include "lib/dev.cuh"

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)

// A tensor map: which tensor, and boxes of which size. The driver encodes it (src/device/gpu/tensor_map.rs).
struct alignas(128) CUtensorMap {
    u64 opaque[16];
};
// The tensor maps of a launch: of[member] for the first operand, of[8 + member] for the second.
struct TensorMaps {
    CUtensorMap of[16];
};
// Declares them as a kernel's parameter: `MAPS_PARAM maps`. They are in constant memory, because TMA takes
// their addresses.
#define MAPS_PARAM const __grid_constant__ TensorMaps

DEV u32 shared_window(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// ---- mbarrier: a phase ends when `count` threads have arrived and all announced bytes have been copied ----

DEV void mbar_init(u64* bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_window(bar)), "r"(count) : "memory");
}
// Makes initialised barriers visible to TMA. The thread that initialised them calls it before sync_block.
DEV void mbar_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Arrives, and announces that `bytes` more will be copied in this phase.
DEV void mbar_expect_tx(u64* bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_window(bar)), "r"(bytes)
                 : "memory");
}
DEV void mbar_arrive(u64* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_window(bar)) : "memory");
}
// Waits for the end of the phase of that parity. The first phase has parity 0; on a new barrier parity 1 does
// not wait.
DEV void mbar_wait(u64* bar, u32 parity) {
    asm volatile(
        "{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra AGAIN;\n}" ::"r"(
            shared_window(bar)),
        "r"(parity)
        : "memory");
}
// Makes what this thread stored in shared memory visible to wgmma and TMA. If other threads issue those, a
// barrier must follow.
DEV void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- TMA: one thread copies a box, with the 128-byte swizzle of its map; its bytes are counted at `bar` ----
//
// Element (r, c) of a box with rows of 128 bytes is stored in `to` (1024-byte aligned) at byte
// r * 128 + ((c / 8) ^ (r % 8)) * 16 + c % 8 * 2. Elements outside the tensor are copied as zeros, and their
// bytes count.

// Copies the box at column x, row y.
DEV void tma_load_2d(void* to, const CUtensorMap* map, int x, int y, u64* bar) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
            "r"(shared_window(to)),
        "l"(map), "r"(x), "r"(y), "r"(shared_window(bar))
        : "memory");
}
// Copies a row for each of several windows: the channels of one tap, from c on. The first window has its
// corner at (w, h, n); the next ones follow at the map's stride, through the map's box of corners, row by row
// and image by image. Each is read at (w + off_w, h + off_h), the filter's tap.
DEV void tma_load_im2col_4d(void* to, const CUtensorMap* map, int c, int w, int h, int n, u16 off_w, u16 off_h,
                            u64* bar) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3, %4, %5}], [%6], {%7, %8};" ::"r"(shared_window(to)),
        "l"(map), "r"(c), "r"(w), "r"(h), "r"(n), "r"(shared_window(bar)), "h"(off_w), "h"(off_h)
        : "memory");
}

// ---- wgmma: products of a warpgroup (four warps, the first a multiple of four) ----

// Orders the first product of a sequence after the threads' accesses to its registers.
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group: the products issued since the last commit.
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `n` groups are in flight. The registers of a group must not be accessed, and its
// operands not overwritten, before it is complete.
template <int n> DEV void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory"); }
// Keeps the compiler from moving accesses to `d` across it. To be called after wgmma_wait and before
// wgmma_fence.
template <int n> DEV void wgmma_hold(float (&d)[n]) {
    UNROLL
    for (int i = 0; i < n; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Describes an operand in shared memory: `p` is 16-byte aligned, in atoms of 8 rows of 128 bytes (1024-byte
// aligned) with the swizzle of TMA. K-major (rows of k): `stride_bytes` from 8 rows of m or n to the next 8;
// `leading_bytes` is ignored. MN-major (rows of 64 m or n): `stride_bytes` from 8 rows of k to the next 8,
// `leading_bytes` from 64 columns to the next 64.
DEV u64 smem_descriptor(const void* p, u32 leading_bytes, u32 stride_bytes) {
    return (u64)((shared_window(p) & 0x3ffff) >> 4) | (u64)(leading_bytes >> 4) << 16 | (u64)(stride_bytes >> 4) << 32 |
           (u64)1 << 62;
}

#define WGMMA_D8(i)                                                                                        \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])

// d[64, N] += a[64, 16] b[16, N], bf16 products added in f32. Each operand is K-major (trans 0) or MN-major (1).
// Warp w of the group holds rows 16 w to 16 w + 15: its lane l has row l / 4
// (d[4 i], d[4 i + 1]) and row l / 4 + 8 (d[4 i + 2], d[4 i + 3]), columns 8 i + 2 (l % 4) and the next.
template <int N, int trans_b, int trans_a = 0> DEV void wgmma_m64k16(float (&d)[N / 2], u64 desc_a, u64 desc_b) {
    static_assert(N == 64 || N == 128 || N == 256, "wgmma_m64k16 takes 64, 128 or 256 columns");
    if constexpr (N == 64) {
        asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"
         "%26,%27,%28,%29,%30,%31}, "
        "%32, %33, p, 1, 1, %35, %34;\n}\n"
        : WGMMA_D8(0), WGMMA_D8(8), WGMMA_D8(16), WGMMA_D8(24)
        : "l"(desc_a), "l"(desc_b), "n"(trans_b), "n"(trans_a));
    } else if constexpr (N == 128) {
        asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"
         "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,"
         "%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "%64, %65, p, 1, 1, %67, %66;\n}\n"
        : WGMMA_D8(0), WGMMA_D8(8), WGMMA_D8(16), WGMMA_D8(24), WGMMA_D8(32), WGMMA_D8(40), WGMMA_D8(48),
          WGMMA_D8(56)
        : "l"(desc_a), "l"(desc_b), "n"(trans_b), "n"(trans_a));
    } else {
        asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"
         "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,"
         "%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,"
         "%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,"
         "%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,"
         "%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
        "%128, %129, p, 1, 1, %131, %130;\n}\n"
        : WGMMA_D8(0), WGMMA_D8(8), WGMMA_D8(16), WGMMA_D8(24), WGMMA_D8(32), WGMMA_D8(40), WGMMA_D8(48),
          WGMMA_D8(56), WGMMA_D8(64), WGMMA_D8(72), WGMMA_D8(80), WGMMA_D8(88), WGMMA_D8(96), WGMMA_D8(104),
          WGMMA_D8(112), WGMMA_D8(120)
        : "l"(desc_a), "l"(desc_b), "n"(trans_b), "n"(trans_a));
    }
}
#undef WGMMA_D8

// ---- some of a block's threads ----

// Waits at barrier `id` (1 to 15; 0 is sync_block's) until `threads` threads, a multiple of 32, have arrived.
DEV void named_barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Arrives there without waiting.
DEV void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Sets the registers of each thread of the warpgroup to N, a multiple of 8 from 24 to 256: more (inc) or
// fewer (dec) than before.
template <int N> DEV void setmaxnreg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEV void setmaxnreg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// Prefetches the cache line at `p` into the L2.
DEV void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p))); }

#endif
