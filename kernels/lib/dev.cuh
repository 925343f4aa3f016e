// The vocabulary of every kernel. Intrinsics and PTX occur only here and in lib/mma.cuh and lib/hopper.cuh.
//
// NVRTC compiles these names to intrinsics and PTX; for the emulator g++ takes the same names from emu/emu.h,
// where a fiber is a CUDA thread.
//
//   template <class T> KERNEL(256) max_pool_fwd(T* RESTRICT y, const T* RESTRICT x, int n) { ... }
//   INSTANCE(max_pool_fwd<float>)
//   INSTANCE(max_pool_fwd<bf16>)
//
// `INSTANCE` names a kernel that the program launches, in exactly this spelling. The build script reads these
// lines and the parameter lists (src/device/gpu/source.rs).
#pragma once

// Names an instance of a template (or a plain kernel) to compile. The build script reads it; to the compiler
// it is empty.
#define INSTANCE(...)
// The same for kernels that use lib/hopper.cuh, which are compiled for sm_90a and the emulator only.
#define INSTANCE_90A(...)

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEV __device__ __forceinline__
// KERNEL(threads): a kernel of at most that many threads per block. KERNEL(threads, blocks): with registers
// for so many blocks on a multiprocessor, as setmaxnreg and `each_pack` of lib/channels.cuh need it.
#define KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
// Before a parameter that is a structure: the kernel reads it where the launch has put it. Without it NVRTC copies a
// structure of up to 128 bytes to local memory if an index into it is a variable, as that of a group's member is.
#define IN_PLACE const __grid_constant__
// A static shared array, whose contents are undefined at entry.
#define SHARED(T, name, n) __shared__ T name[n]
// The dynamic shared memory of the launch, 1024-byte aligned as swizzled TMA boxes need it. One name per
// kernel file.
#define DYN_SHARED(T, name)                                  \
    extern __shared__ __align__(1024) unsigned char name##_raw[]; \
    T* const name = reinterpret_cast<T*>(name##_raw)
#define RESTRICT __restrict__
#define UNROLL _Pragma("unroll")

struct bf16 {
    u16 bits;
};

DEV float bits_to_float(u32 u) { return __uint_as_float(u); }
DEV u32 float_to_bits(float f) { return __float_as_uint(f); }
// Rounds to nearest even, as PyTorch and the CPU's code do.
DEV bf16 to_bf16(float f) {
    bf16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(f));
    return r;
}
DEV u32 pack_bf16(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
// v, as a number that the compiler cannot know. It repeats a load whose address is made of it, where it would
// otherwise keep the first load's result in registers.
DEV int opaque(int v) {
    asm volatile("" : "+r"(v));
    return v;
}
DEV u32 mul_hi(u32 a, u32 b) { return __umulhi(a, b); }

// Shuffles and votes of a whole warp: every lane must call.
template <class T> DEV T shfl_xor(T v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
template <class T> DEV T shfl_down(T v, int by) { return __shfl_down_sync(0xffffffffu, v, by); }
template <class T> DEV T shfl(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
DEV u32 ballot(bool v) { return __ballot_sync(0xffffffffu, v); }
DEV void sync_warp() { __syncwarp(); }
DEV void sync_block() { __syncthreads(); }

#else
#include "emu/emu.h"
#endif

DEV float to_f32(float v) { return v; }
DEV float to_f32(bf16 v) { return bits_to_float((u32)v.bits << 16); }
template <class T> DEV T from_f32(float v);
template <> DEV float from_f32<float>(float v) { return v; }
template <> DEV bf16 from_f32<bf16>(float v) { return to_bf16(v); }

// `n` neighbours moved by one instruction; the address must be a multiple of its size.
template <class T, int n> struct alignas(sizeof(T) * n) Pack {
    T v[n];
};
template <int n, class T> DEV Pack<T, n> load_pack(const T* p) { return *reinterpret_cast<const Pack<T, n>*>(p); }
template <int n, class T> DEV void store_pack(T* p, const Pack<T, n>& v) { *reinterpret_cast<Pack<T, n>*>(p) = v; }

// Writes a gradient: the first writer stores, later ones add. The plan decides `add`.
template <class T> DEV void put(T* at, float v, int add) { *at = from_f32<T>(add ? to_f32(*at) + v : v); }

DEV i64 global_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
DEV i64 global_threads() { return (i64)gridDim.x * blockDim.x; }
DEV int lane_id() { return threadIdx.x & 31; }
DEV int warp_id() { return threadIdx.x >> 5; }

// The numbers that change from step to step. They are in device memory, so that a captured graph needs no new
// arguments. Mirrors `StepState` of src/device/step_state.rs.
struct StepState {
    u64 seed;
    u64 step;
    float lr[4];
};
static_assert(sizeof(StepState) == 32, "StepState must match src/device/step_state.rs");
