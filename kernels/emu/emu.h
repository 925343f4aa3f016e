// The functions and macros of lib/dev.cuh and lib/mma.cuh for g++: a CUDA thread is a fiber, and one OS
// thread runs a block.
//
// The build script (build/emulator.rs) wraps every kernel file in its own namespace, so that DEV helpers of
// the same name in two files are two functions (DEV is plain `inline`, because `DEV static` members must
// compile). It includes this header before the namespace:
//
//   #include "emu/emu.h"
//   namespace kernels_max_pool {
//   #include "<path>/max_pool.cu"
//   extern "C" void dfka_emu_max_pool_0(void** a) { emu::call(&max_pool_fwd<float, 4>, a); }
//   }
//
// Everything here is `static`: a sanitizer instruments the kernels and not the runtime, and the linker must
// not replace one side's copy of a function by the other's.
#pragma once
#include <math.h> // not <cmath>: this one makes exp(float) float in the global namespace, as CUDA does
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

namespace emu {

struct Dim3 {
    u32 x, y, z;
};
// A kernel's thread and block. The runtime's Fiber derives from Thread.
struct Thread {
    Dim3 idx;
    u32 id; // within the block, x fastest: lane is id % 32, warp is id / 32
};
struct Block {
    Dim3 idx, dim, grid;
};
// __thread and not thread_local, which would check for an initialiser at each of the many reads.
extern __thread Thread* self;
extern __thread Block block;

// A line of a kernel, for messages, and to tell one call of a collective from another.
struct Place {
    const char* file;
    int line;
};

enum class Op : u8 { Shuffle, Ballot, Sync, Ldmatrix, LdmatrixTrans, Mma, Fence };

struct LdmatrixArgs {
    u32* r;
    const void* row;
};
struct MmaArgs {
    float* d;
    const u32* a;
    u32 b0, b1;
};

void sync_block(Place);
// Waits until the whole warp has called; returns the values of all 32 lanes.
const u64* rendezvous(Op op, u64 brought, Place);
u64 shuffle(u64 v, int from_lane, Place);
u32 ballot(bool v, Place);
void* shared_array(const void* key, const char* name, size_t bytes, size_t align);
void* dynamic_shared();
void cp_async(void* to, const void* from, bool valid, Place);
void cp_async_commit();
void cp_async_wait(u32 in_flight);

// args[i] points at the i-th argument, as for cuLaunchKernel.
template <class... A, size_t... i>
static void call_with(void (*kernel)(A...), void** args, std::index_sequence<i...>) {
    (void)args;
    kernel(*static_cast<std::remove_reference_t<A>*>(args[i])...);
}
template <class... A> static void call(void (*kernel)(A...), void** args) {
    call_with(kernel, args, std::index_sequence_for<A...>());
}

template <class T> static u64 to_cell(T v) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "only 4- and 8-byte values are shuffled");
    u64 cell = 0;
    memcpy(&cell, &v, sizeof v);
    return cell;
}
template <class T> static T from_cell(u64 cell) {
    T v;
    memcpy(&v, &cell, sizeof v);
    return v;
}

} // namespace emu

#define DEV inline
#define KERNEL(...) inline void
// The address of a static variable identifies the array. The first thread of a block that gets here creates
// the array.
#define SHARED(T, name, n)            \
    static const char name##_key = 0; \
    T(&name)[n] = *static_cast<T(*)[n]>(emu::shared_array(&name##_key, #name, sizeof(T) * (n), alignof(T)))
#define DYN_SHARED(T, name) T* const name = static_cast<T*>(emu::dynamic_shared())
#define RESTRICT __restrict__
#define IN_PLACE const
#define UNROLL

#define threadIdx (emu::self->idx)
#define blockIdx (emu::block.idx)
#define blockDim (emu::block.dim)
#define gridDim (emu::block.grid)

// Default arguments carry the caller's line into the runtime, so that a kernel's source needs no macro.
#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMU_PLACE (emu::Place{file, line})

struct bf16 {
    u16 bits;
};

static inline float bits_to_float(u32 u) { return emu::from_cell<float>(u); }
static inline u32 float_to_bits(float f) { return (u32)emu::to_cell(f); }
// Rounds to nearest even. The carry of the addition would turn some NaNs into infinity, so a NaN is treated
// separately and made quiet.
static inline bf16 to_bf16(float f) {
    const u32 u = float_to_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {(u16)(u >> 16 | 0x40)};
    return {(u16)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
static inline u32 pack_bf16(float lo, float hi) { return (u32)to_bf16(lo).bits | (u32)to_bf16(hi).bits << 16; }
static inline u32 mul_hi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
static inline int opaque(int v) { return v; }

template <class T> static inline T shfl_xor(T v, int mask, EMU_HERE) {
    return emu::from_cell<T>(emu::shuffle(emu::to_cell(v), (emu::self->id ^ mask) & 31, EMU_PLACE));
}
// A lane whose source would be beyond the warp keeps its own value.
template <class T> static inline T shfl_down(T v, int by, EMU_HERE) {
    const int lane = emu::self->id & 31, from = lane + by;
    return emu::from_cell<T>(emu::shuffle(emu::to_cell(v), from > 31 ? lane : from, EMU_PLACE));
}
template <class T> static inline T shfl(T v, int lane, EMU_HERE) {
    return emu::from_cell<T>(emu::shuffle(emu::to_cell(v), lane & 31, EMU_PLACE));
}
static inline u32 ballot(bool v, EMU_HERE) { return emu::ballot(v, EMU_PLACE); }
static inline void sync_warp(EMU_HERE) { emu::rendezvous(emu::Op::Sync, 0, EMU_PLACE); }
static inline void sync_block(EMU_HERE) { emu::sync_block(EMU_PLACE); }

static inline void ldmatrix_x4(u32 (&r)[4], const void* p, EMU_HERE) {
    emu::LdmatrixArgs args{r, p};
    emu::rendezvous(emu::Op::Ldmatrix, (u64)(uintptr_t)&args, EMU_PLACE);
}
static inline void ldmatrix_x4_trans(u32 (&r)[4], const void* p, EMU_HERE) {
    emu::LdmatrixArgs args{r, p};
    emu::rendezvous(emu::Op::LdmatrixTrans, (u64)(uintptr_t)&args, EMU_PLACE);
}
static inline void mma_bf16_16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, EMU_HERE) {
    emu::MmaArgs args{d, a, b0, b1};
    emu::rendezvous(emu::Op::Mma, (u64)(uintptr_t)&args, EMU_PLACE);
}
static inline void cp_async16(void* to, const void* from, bool valid, EMU_HERE) {
    emu::cp_async(to, from, valid, EMU_PLACE);
}
static inline void cp_async_commit() { emu::cp_async_commit(); }
template <int n> static inline void cp_async_wait() { emu::cp_async_wait(n); }

#include "emu/hopper.h"
