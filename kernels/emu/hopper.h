// The functions of lib/hopper.cuh for g++; emu/hopper.cpp and emu/wgmma.cpp implement them. The last part of
// emu.h, which is included outside the namespace of a kernel file.
#pragma once

// As src/device/gpu/tensor_map.rs encodes it for the emulator; for a GPU the driver encodes it.
struct alignas(128) CUtensorMap {
    static constexpr u64 MAGIC = 0x50414d20414b4644; // "DFKA MAP"
    enum : u32 { TILED = 0, IM2COL = 1 };
    u64 magic, address;
    u32 kind, rank;
    u32 dims[4];        // innermost first, in elements: columns, rows; or c, w, h, n
    u64 strides[3];     // bytes, of all dimensions but the innermost
    u32 box[2];         // columns, rows; or channels, pixels
    int lower[2];       // im2col: where the window's corner starts, in w and h
    int upper[2];       // and, added to the last w and h, where it ends
    u32 steps[2];       // from one window to the next, in w and h
};
static_assert(sizeof(CUtensorMap) == 128, "as large as the driver's");
struct TensorMaps {
    CUtensorMap of[16];
};
// By reference: each thread of a block would copy 2 KiB, and the maps must outlive the thread that loads.
#define MAPS_PARAM const TensorMaps&

namespace emu {

struct Load {
    void* to;
    const CUtensorMap* map;
    int at[4]; // x, y; or c, w, h, n
    u32 offsets[2];
    u64* bar;
};

void mbar_init(u64* bar, u32 count, Place);
void mbar_fence_init();
void mbar_arrive(u64* bar, u32 bytes, Place);
void mbar_wait(u64* bar, u32 parity, Place);
void fence_async_shared();
void tma_load(const Load&, u32 kind, Place);
u64 smem_descriptor(const void* p, u32 leading_bytes, u32 stride_bytes, Place);
void wgmma_fence(Place);
void wgmma(float* d, u32 n, bool trans_a, bool trans_b, u64 a, u64 b, Place);
void wgmma_commit();
void wgmma_wait(u32 in_flight, Place);
void named_barrier(int id, int threads, bool waits, Place);

} // namespace emu

static inline void mbar_init(u64* bar, u32 count, EMU_HERE) { emu::mbar_init(bar, count, EMU_PLACE); }
static inline void mbar_fence_init() { emu::mbar_fence_init(); }
static inline void mbar_expect_tx(u64* bar, u32 bytes, EMU_HERE) { emu::mbar_arrive(bar, bytes, EMU_PLACE); }
static inline void mbar_arrive(u64* bar, EMU_HERE) { emu::mbar_arrive(bar, 0, EMU_PLACE); }
static inline void mbar_wait(u64* bar, u32 parity, EMU_HERE) { emu::mbar_wait(bar, parity, EMU_PLACE); }
static inline void fence_async_shared() { emu::fence_async_shared(); }
static inline void tma_load_2d(void* to, const CUtensorMap* map, int x, int y, u64* bar, EMU_HERE) {
    emu::tma_load({to, map, {x, y, 0, 0}, {0, 0}, bar}, CUtensorMap::TILED, EMU_PLACE);
}
static inline void tma_load_im2col_4d(void* to, const CUtensorMap* map, int c, int w, int h, int n, u16 off_w,
                                      u16 off_h, u64* bar, EMU_HERE) {
    emu::tma_load({to, map, {c, w, h, n}, {off_w, off_h}, bar}, CUtensorMap::IM2COL, EMU_PLACE);
}
static inline u64 smem_descriptor(const void* p, u32 leading_bytes, u32 stride_bytes, EMU_HERE) {
    return emu::smem_descriptor(p, leading_bytes, stride_bytes, EMU_PLACE);
}
static inline void wgmma_fence(EMU_HERE) { emu::wgmma_fence(EMU_PLACE); }
static inline void wgmma_commit() { emu::wgmma_commit(); }
template <int n> static inline void wgmma_wait(EMU_HERE) { emu::wgmma_wait(n, EMU_PLACE); }
template <int n> static inline void wgmma_hold(float (&)[n]) {}
template <int N, int trans_b, int trans_a = 0>
static inline void wgmma_m64k16(float (&d)[N / 2], u64 desc_a, u64 desc_b, EMU_HERE) {
    static_assert(N == 64 || N == 128 || N == 256, "wgmma_m64k16 takes 64, 128 or 256 columns");
    emu::wgmma(d, N, trans_a, trans_b, desc_a, desc_b, EMU_PLACE);
}
static inline void named_barrier_sync(int id, int threads, EMU_HERE) {
    emu::named_barrier(id, threads, true, EMU_PLACE);
}
static inline void named_barrier_arrive(int id, int threads, EMU_HERE) {
    emu::named_barrier(id, threads, false, EMU_PLACE);
}
template <int N> static inline void setmaxnreg_inc() { static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg"); }
template <int N> static inline void setmaxnreg_dec() { static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg"); }
static inline void prefetch_l2(const void*) {}
