// The state of one block on one OS thread, and the functions that the files of the runtime share.
#pragma once
#include <vector>

#include "emu/emu.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include "emu/sanitize.h"

namespace emu {

constexpr u32 MAX_THREADS = 1024;        // of a block
constexpr size_t MAX_SHARED = 227 << 10; // of a block, on compute capability 9.0
constexpr size_t MAX_STATIC = 48 << 10;  // of which arrays declared with SHARED may take this
// A sanitizer's frames are several times larger. A page of a stack is committed when first touched.
constexpr size_t STACK = san::ADDRESS || san::THREAD ? 256 << 10 : 64 << 10;
constexpr size_t PAGE = 4096;
// Shared memory of the emulator: 1 KiB in front, so that dynamic shared memory can be aligned to 1 KiB, then
// the arrays, with REDZONE bytes behind each.
constexpr size_t SHARED_FRONT = 1024, REDZONE = 128, MAX_ARRAYS = 64;
constexpr size_t SHARED_SIZE = (SHARED_FRONT + MAX_SHARED + MAX_ARRAYS * (REDZONE + 1024)) / PAGE * PAGE + PAGE;
// NaN as float, as double and as either bf16 half, so that an uninitialised or stray read shows in the
// result.
constexpr u32 POISON = 0xffffffffu;
constexpr u32 CANARY = 0xfffafffau; // in redzones; not POISON, so that copying poison there shows

enum class State : u8 { Ready, InSyncBlock, InCollective, InMbarrier, InNamedBarrier, InProducts, Exited };

// A cp.async that has been issued and has not copied yet.
struct Copy {
    void* to;
    const void* from; // null: zeros
    u32 group;
};

// One CUDA thread.
struct Fiber : Thread {
    void* sp;    // stack pointer where it stopped; null before its first switch
    char* stack; // lowest usable byte; null until it starts
    State state;
    Place place; // where it waits
    const void* waits_for; // which mbarrier
    u32 group;   // of the copies issued next
    std::vector<Copy> copies;
    void* tsan;
    void* fake_stack;
};

struct Warp {
    u32 lanes;   // those that exist: the last warp of a block may be partial
    u32 arrived; // at the collective that is being gathered
    u32 exited;
    // Its parity picks the cells: a lane may be at the next collective before all have read these.
    u32 generation;
    Op op;
    Place place;
    u64 cells[2][32];
    char order[2]; // TSan's synchronisation objects of sync_warp
};

struct Array {
    const void* key;
    const char* name;
    char* at;
    size_t bytes;
};

// What all blocks of a launch share.
struct Launch {
    void (*entry)(void**);
    void** args;
    Dim3 grid, block;
    size_t dynamic_shared;
    // The order in which things happen that CUDA leaves open.
    //             0                        1                        from 2 on (the seed of a random order)
    // threads     as released              the last released first  at random
    // blocks      from first to last       from last to first       from some block on, in a circle
    // cp.async    at the wait              at the wait              half of them at once, half at the wait
    // TMA loads   when no thread can go    as 0, but the newest     at random: soon in odd orders (from 3 on
    //             on, the oldest first     first                    half of them at once), late in even ones
    // wgmma       at the wait              at the wait              half of them at once, half at the wait
    int order;
};

struct Context {
    const Launch* launch;
    u32 threads; // of the block
    u32 live;    // not exited
    int order;
    u64 random;

    // Threads that may go on, in a ring: a thread is in it at most once.
    u32 head, tail;
    u16 ready[MAX_THREADS];

    u32 waiting; // in sync_block
    Place barrier;
    u32 barrier_generation;
    // TSan's synchronisation objects, by the parity of the generation: a thread that leaves one barrier late
    // must not acquire what the next one released.
    char barrier_order[2];

    Fiber fibers[MAX_THREADS];
    Warp warps[MAX_THREADS / 32];

    char* shared;
    size_t shared_top, static_bytes;
    u32 n_arrays;
    Array arrays[MAX_ARRAYS]; // the first is the dynamic one

    char* stacks;    // MAX_THREADS of STACK bytes, guard page included
    u32 made_stacks; // with their guard pages in place
    u32 n_free;
    char* free_stacks[MAX_THREADS];
    bool abandoned; // the last block failed, and sanitizers still take its stack frames for live

    void* main_sp; // the OS thread, while a fiber runs
    void* main_tsan;
    void* main_fake_stack;
    const void* main_stack; // as ASan reports it
    size_t main_stack_size;
    char launch_order, done_order; // for TSan

    struct Hopper* hopper; // made at its first use, kept
    bool hopper_used;      // by this block

    bool failed;
    char error[1024];

    alignas(64) char landing[16 << 10]; // stack after a fault, because the fiber's may have overflowed
};

extern __thread Context* context;

inline Fiber& running() { return *static_cast<Fiber*>(self); }
inline u32 random(Context& c) { // xorshift64
    u64& s = c.random;
    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (u32)(s >> 32);
}
inline u32 random_below(Context& c, u32 n) { return (u32)((u64)random(c) * n >> 32); }
inline void make_ready(Context& c, u32 id) {
    c.fibers[id].state = State::Ready;
    c.ready[c.tail++ % MAX_THREADS] = (u16)id;
}
// The byte of a run of CANARY at `p`, wherever the run begins.
inline char canary_at(const char* p) { return (char)(CANARY >> (uintptr_t)p % 4 * 8); }
inline bool is_canary(const char* p, size_t n) {
    const char* end = p + n;
    for (; p < end && (uintptr_t)p % 8; p++) {
        if (*p != canary_at(p)) return false;
    }
    // Eight at a time: after every launch, some 200 bytes of each allocation are checked.
    for (; p + 8 <= end; p += 8) {
        if (*reinterpret_cast<const u64*>(p) != ((u64)CANARY << 32 | CANARY)) return false;
    }
    for (; p < end; p++) {
        if (*p != canary_at(p)) return false;
    }
    return true;
}
inline const char* file_name(Place p) {
    const char* slash = strrchr(p.file, '/');
    return slash ? slash + 1 : p.file;
}

// scheduler.cpp
// Ends the block with a message that names the thread and the block. Its fibers are abandoned.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);
// Suspends the running fiber and continues in a ready one.
void wait(Context&, State, Place);
// The same, but the running fiber stays ready.
void yield(Context&, Place);
// Runs one block; sets c.failed, and c.error if it failed.
void run_block(Context&, const Launch&, Dim3 at, u64 number);

// shared.cpp
void reset_shared(Context&);
const Array* array_around(Context&, const void* p, size_t n); // null if the bytes do not lie within one array
bool redzones_intact(Context&);                               // writes c.error if not

// hopper.cpp; to be called only if c.hopper_used
bool land_one(Context&);        // completes one TMA load; false if none is in flight
void land_at_random(Context&);  // completes one TMA load, or does nothing
void retire_hopper(Context&, Fiber&);
void describe_mbarrier(Context&, const void* bar, char* out, size_t out_len);

// stack.cpp
char* take_stack(Context&);
void* first_frame(char* stack, u32 colour, void (*entry)()); // a stack pointer for emu_switch
extern "C" void emu_switch(void** save, void* to);

// fault.cpp
void catch_faults();      // once a process
void catch_faults_here(); // once an OS thread

// memory.cpp
bool allocations_intact(char* error, size_t error_len); // those made by this OS thread
void describe_address(const void* p, char* out, size_t out_len);

} // namespace emu
