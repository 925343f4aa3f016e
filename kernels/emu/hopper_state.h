// The state of one block that the asynchronous operations of compute capability 9.0 share: hopper.cpp has the
// barriers and the TMA loads, wgmma.cpp the products.
#pragma once
#include "emu/runtime.h"

namespace emu {

constexpr u32 MAX_BARRIERS = 64, MAX_LOADS = 64, MAX_PRODUCTS = 64, MAX_SUMS = 8, MAX_NAMED = 16;
constexpr u32 WARPGROUP = 128;
constexpr u32 MAX_BYTES = (1 << 20) - 1; // the most that one mbarrier can count
constexpr u32 ATOM = 1024, ROW = 128;    // of the 128-byte swizzle

// Fibers that wait for one thing.
struct Queue {
    u32 n;
    u16 ids[MAX_THREADS];
};

struct Barrier {
    u64* at;
    u32 count, pending; // arrivals of a phase, and those still to come
    i64 bytes;          // announced and not yet copied
    u32 phase;          // parity of the one that is not over
    u32 maker;          // the thread that initialised it
    bool fenced;        // its maker has called mbar_fence_init
    bool unseen;        // a load has arrived, and no thread has waited for it since
    Queue waiting;
    char order[2]; // TSan's synchronisation objects, by the parity of the phase
};

// A named barrier.
struct Named {
    u32 threads, arrived;
    u32 generation;
    Place place;
    Queue waiting;
    char order[2];
};

// A TMA load in flight.
struct Flight {
    Load load;
    Place place;
    u32 rows;
    bool used;
    char order;
};

// A product that not all threads of the warpgroup have issued, or that is not computed yet.
struct Product {
    u64 a, b;
    u32 n, group, issued;
    bool trans_a, trans_b;
    Place place;
    u32 sum;
};

// The accumulators of a warpgroup's products while they are in flight; each thread's own array is NaN
// meanwhile.
struct Sum {
    float* d[WARPGROUP]; // null: not in flight for that thread
    u32 group[WARPGROUP];  // of the thread's last product into it
    u32 held, n;
    alignas(64) float values[64][256];
};

struct Warpgroup {
    u64 done, made; // products that are computed, and that a thread has issued
    Product products[MAX_PRODUCTS];
    Sum* sums[MAX_SUMS];
    Queue waiting;
    char order;
};

// What a thread has issued.
struct Lane {
    u64 issued;
    u32 group;   // of the products issued next
    bool fenced; // wgmma_fence since the accumulators were last free
};

struct Hopper {
    u32 n_barriers, n_loads;
    Barrier barriers[MAX_BARRIERS];
    Flight flights[MAX_LOADS];
    u8 loads[MAX_LOADS]; // flights in the order of their issue
    Named named[MAX_NAMED];
    Warpgroup groups[MAX_THREADS / WARPGROUP];
    Lane lanes[MAX_THREADS];
    // Shared memory as TMA and wgmma see it; fence_async_shared makes ordinary stores visible here.
    char* view;
    u32 fences;
    u32 seen[SHARED_SIZE / ATOM + 1]; // `fences` when each atom was last copied to the view
    void* tsan;                       // the fiber that TSan takes for the writer of loaded data
};

// The block's state, reset at the block's first use.
Hopper& hopper(Context&);

inline void wake(Context& c, Queue& q) {
    for (u32 i = 0; i < q.n; i++) make_ready(c, q.ids[i]);
    q.n = 0;
}

inline void wait_in(Context& c, Queue& q, State why, Place p) {
    q.ids[q.n++] = (u16)self->id;
    wait(c, why, p);
}

inline u32 offset_of(Context& c, const void* p) { return (u32)(static_cast<const char*>(p) - c.shared); }

// The swizzle: the place of a 16-byte piece within its 128-byte row depends on the row's number in its atom.
inline u32 swizzled(u32 offset) { return offset ^ (offset >> 7 & 7) << 4; }

// Where an operand lies: its first byte, and the bytes to its last.
struct Extent {
    u32 begin, bytes;
};
inline Extent extent(u64 desc, u32 rows, bool mn_major) {
    const u32 start = (u32)(desc & 0x3fff) << 4, leading = (u32)(desc >> 16 & 0x3fff) << 4,
              stride = (u32)(desc >> 32 & 0x3fff) << 4, begin = start / ATOM * ATOM;
    if (mn_major) return {begin, (rows / 64 - 1) * leading + stride + ATOM};
    return {begin, (rows / 8 - 1) * stride + ATOM};
}

} // namespace emu
