// The asynchronous operations of compute capability 9.0: barriers in shared memory (mbarrier), TMA loads,
// wgmma.
//
// A load arrives as late as is legal (when no thread can go on), or at random. Until then its destination
// holds NaN, so that a thread that reads a stage too early, or still reads the previous one, gets a wrong
// result. A product is computed when a thread waits for it, or at random once the whole warpgroup has issued
// it; until a thread's own wait, its accumulators hold NaN.
//
// Nothing here may call memcpy or the like on memory that several fibers use: TSan intercepts these
// functions, and would report races between the fibers' bookkeeping.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

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
    i64 bytes;          // announced and not yet there
    u32 phase;          // parity of the one that is not over
    u32 maker;          // the thread that initialised it
    bool fenced;        // mbar_fence_init
    bool unseen;        // a load has arrived, and no thread has waited for it since
    Queue waiting;
    char order[2]; // TSan's synchronisation objects, by the parity of the phase
};

struct Named {
    u32 threads, arrived;
    u32 generation;
    Place place;
    Queue waiting;
    char order[2];
};

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
    bool trans_b;
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
    u64 done, made; // products, counted
    Product products[MAX_PRODUCTS];
    Sum* sums[MAX_SUMS];
    Queue waiting;
    char order;
};

struct Lane {
    u64 issued;
    u32 group; // of the products issued next
    bool fenced;
};

struct Hopper {
    u32 n_barriers, n_loads;
    Barrier barriers[MAX_BARRIERS];
    Flight flights[MAX_LOADS];
    u8 loads[MAX_LOADS]; // flights in the order of their issue
    Named named[MAX_NAMED];
    Warpgroup groups[MAX_THREADS / WARPGROUP];
    Lane lanes[MAX_THREADS];
    // Shared memory as TMA and wgmma see it: ordinary stores become visible here by fence_async_shared.
    char* view;
    u32 fences;
    u32 seen[SHARED_SIZE / ATOM + 1]; // fences at the last look at each atom
    void* tsan;                       // the fiber that TSan takes for the writer of loaded data
};

static void fill_words(char* p, size_t bytes) {
    volatile u64* q = reinterpret_cast<volatile u64*>(p);
    for (size_t i = 0; i < bytes / 8; i++) q[i] = (u64)POISON << 32 | POISON;
}

// The block's state, reset at the block's first use.
static Hopper& hopper(Context& c) {
    if (!c.hopper) {
        c.hopper = static_cast<Hopper*>(calloc(1, sizeof(Hopper)));
        if (!c.hopper) abort();
        void* p = mmap(nullptr, SHARED_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) abort();
        c.hopper->view = static_cast<char*>(p);
        if (san::THREAD) c.hopper->tsan = san::create_fiber();
    }
    Hopper& h = *c.hopper;
    if (c.hopper_used) return h;
    c.hopper_used = true;
    h.n_barriers = h.n_loads = h.fences = 0;
    for (Flight& f : h.flights) f.used = false;
    for (u32& s : h.seen) s = 0;
    for (Named& b : h.named) b.arrived = b.waiting.n = 0;
    for (u32 i = 0; i < c.threads; i++) h.lanes[i] = {0, 0, false};
    for (Warpgroup& g : h.groups) {
        g.done = g.made = 0;
        g.waiting.n = 0;
        for (Sum* s : g.sums) {
            if (!s) continue;
            s->held = 0;
            for (float*& d : s->d) d = nullptr;
        }
    }
    fill_words(h.view, SHARED_SIZE);
    return h;
}

static void wake(Context& c, Queue& q) {
    for (u32 i = 0; i < q.n; i++) make_ready(c, q.ids[i]);
    q.n = 0;
}

static void wait_in(Context& c, Queue& q, State why, Place p) {
    q.ids[q.n++] = (u16)self->id;
    wait(c, why, p);
}

static u32 offset_of(Context& c, const void* p) { return (u32)(static_cast<const char*>(p) - c.shared); }

// ---- mbarrier ----

static Barrier& barrier_at(Context& c, const u64* bar, const char* what, Place p) {
    Hopper& h = hopper(c);
    for (u32 i = 0; i < h.n_barriers; i++) {
        if (h.barriers[i].at == bar) return h.barriers[i];
    }
    fail("%s at %s:%d: no mbar_init of this barrier before", what, file_name(p), p.line);
}

static void end_phase_if_over(Context& c, Barrier& b) {
    if (b.pending || b.bytes) return;
    b.phase ^= 1;
    b.pending = b.count;
    wake(c, b.waiting);
}

void mbar_init(u64* bar, u32 count, Place p) {
    Context& c = *context;
    Hopper& h = hopper(c);
    if ((uintptr_t)bar % 8 || !array_around(c, bar, 8)) {
        fail("mbar_init at %s:%d: not an aligned u64 of shared memory", file_name(p), p.line);
    }
    if (!count || count > MAX_BYTES) fail("mbar_init at %s:%d: count %u", file_name(p), p.line, count);
    for (u32 i = 0; i < h.n_barriers; i++) {
        if (h.barriers[i].at == bar) fail("mbar_init at %s:%d: initialised before", file_name(p), p.line);
    }
    if (h.n_barriers == MAX_BARRIERS) fail("more than %u mbarriers", MAX_BARRIERS);
    san::writes(bar, 8);
    Barrier& b = h.barriers[h.n_barriers++];
    b.at = bar;
    b.count = b.pending = count;
    b.bytes = 0;
    b.phase = 0;
    b.maker = self->id;
    b.fenced = b.unseen = false;
    b.waiting.n = 0;
}

void mbar_fence_init() {
    Hopper& h = hopper(*context);
    for (u32 i = 0; i < h.n_barriers; i++) h.barriers[i].fenced |= h.barriers[i].maker == self->id;
}

void mbar_arrive(u64* bar, u32 bytes, Place p) {
    Context& c = *context;
    Barrier& b = barrier_at(c, bar, bytes ? "mbar_expect_tx" : "mbar_arrive", p);
    san::reads(bar, 8);
    if (!b.pending) {
        fail("%s at %s:%d: all %u threads have arrived, and %lld bytes of the phase have still to come",
             bytes ? "mbar_expect_tx" : "mbar_arrive", file_name(p), p.line, b.count, b.bytes);
    }
    san::release(&b.order[b.phase]);
    b.bytes += bytes;
    b.pending--;
    if (b.bytes > MAX_BYTES) {
        fail("mbar_expect_tx at %s:%d: %lld bytes, at most %u", file_name(p), p.line, b.bytes, MAX_BYTES);
    }
    end_phase_if_over(c, b);
}

void mbar_wait(u64* bar, u32 parity, Place p) {
    Context& c = *context;
    Barrier& b = barrier_at(c, bar, "mbar_wait", p);
    san::reads(bar, 8);
    while (b.phase == (parity & 1)) {
        running().waits_for = bar;
        wait_in(c, b.waiting, State::InMbarrier, p);
    }
    b.unseen = false;
    san::acquire(&b.order[parity & 1]);
}

void describe_mbarrier(Context& c, const void* bar, char* out, size_t out_len) {
    out[0] = 0;
    const Hopper& h = *c.hopper;
    for (u32 i = 0; i < h.n_barriers; i++) {
        const Barrier& b = h.barriers[i];
        if (b.at != bar) continue;
        const Array* a = array_around(c, bar, 8);
        snprintf(out, out_len, " of `%.40s`+%zu: %u of %u arrivals and %lld bytes missing", a ? a->name : "?",
                 a ? (const char*)bar - a->at : 0, b.pending, b.count, b.bytes);
    }
}

// ---- the two views of shared memory ----

void fence_async_shared() { hopper(*context).fences++; }

// 16 bytes as wgmma sees them. If an ordinary store changed them since TMA wrote them or since the last
// check, there must have been a fence. Any thread's fence counts, because the storing thread is not known.
static inline const char* seen_by_async(Context& c, Hopper& h, u32 offset, const Product& p) {
    const char* at = c.shared + offset;
    u64 now[2], before[2];
    __builtin_memcpy(now, at, 16);
    __builtin_memcpy(before, h.view + offset, 16);
    if (__builtin_expect((now[0] ^ before[0]) | (now[1] ^ before[1]), 0)) {
        u32& seen = h.seen[offset / ATOM];
        const u32 atom = offset / ATOM * ATOM;
        if (seen == h.fences) {
            fail("wgmma at %s:%d: an operand was stored without fence_async_shared", file_name(p.place),
                 p.place.line);
        }
        seen = h.fences;
        for (u32 i = 0; i < ATOM; i += 8) {
            *reinterpret_cast<u64*>(h.view + atom + i) = *reinterpret_cast<const u64*>(c.shared + atom + i);
        }
    }
    return at;
}

// The swizzle: the place of a 16-byte piece within its 128-byte row depends on the row's number in its atom.
static inline u32 swizzled(u32 offset) { return offset ^ (offset >> 7 & 7) << 4; }

// ---- TMA ----

static void put_row(Context& c, Hopper& h, u32 at, const char* from, i64 first, i64 columns) {
    // Elements before `first` or from `columns` on lie outside the tensor.
    const bool inside = from && first >= 0 && first + 64 <= columns;
    for (u32 piece = 0; piece < 8; piece++) {
        const u32 to = swizzled(at + piece * 16);
        u16 v[8];
        if (inside) {
            __builtin_memcpy(v, from + piece * 16, 16);
        } else {
            for (u32 e = 0; e < 8; e++) {
                const i64 column = first + piece * 8 + e;
                v[e] = 0;
                if (from && column >= 0 && column < columns) __builtin_memcpy(&v[e], from + (piece * 8 + e) * 2, 2);
            }
        }
        __builtin_memcpy(c.shared + to, v, 16);
        __builtin_memcpy(h.view + to, v, 16);
    }
}

static void read_check(Flight& f, const char* from, i64 first, i64 columns) {
    const i64 begin = first < 0 ? 0 : first, end = first + 64 < columns ? first + 64 : columns;
    if (!from || begin >= end) return;
    const char* p = from + (begin - first) * 2;
    if (san::poisoned(p, (end - begin) * 2)) {
        fail("TMA at %s:%d: its map names what is not within a device allocation", file_name(f.place), f.place.line);
    }
    san::reads(p, (end - begin) * 2);
}

static void land(Context& c, Hopper& h, u32 index) {
    Flight& f = h.flights[h.loads[index]];
    const Load& l = f.load;
    const CUtensorMap& m = *l.map;
    for (u32 i = index + 1; i < h.n_loads; i++) h.loads[i - 1] = h.loads[i];
    h.n_loads--;
    void* const me = san::current_fiber();
    if (san::THREAD) {
        san::switch_to(h.tsan);
        san::acquire(&f.order);
        san::writes(l.to, f.rows * ROW);
    }
    const u32 to = offset_of(c, l.to);
    const char* base = reinterpret_cast<const char*>(m.address);
    i64 w = l.at[1], y = l.at[2], n = l.at[3]; // im2col: the window's corner
    for (u32 r = 0; r < f.rows; r++) {
        const char* from = nullptr;
        if (m.kind == CUtensorMap::TILED) {
            const i64 row = (i64)l.at[1] + r;
            if (row >= 0 && row < (i64)m.dims[1]) from = base + row * m.strides[0];
        } else {
            const i64 column = w + l.offsets[0], line = y + l.offsets[1];
            if (column >= 0 && column < (i64)m.dims[1] && line >= 0 && line < (i64)m.dims[2] && n >= 0 &&
                n < (i64)m.dims[3]) {
                from = base + column * m.strides[0] + line * m.strides[1] + n * m.strides[2];
            }
            w += m.steps[0];
            if (w > (i64)m.dims[1] - 1 + m.upper[0]) {
                w = m.lower[0];
                y += m.steps[1];
            }
            if (y > (i64)m.dims[2] - 1 + m.upper[1]) {
                y = m.lower[1];
                n++;
            }
        }
        if (from) from += (i64)l.at[0] * 2;
        if (san::ADDRESS || san::THREAD) read_check(f, from, l.at[0], m.dims[0]);
        put_row(c, h, to + r * ROW, from, l.at[0], m.dims[0]);
    }
    Barrier& b = barrier_at(c, l.bar, "TMA", f.place);
    if (san::THREAD) {
        san::release(&b.order[b.phase]);
        san::switch_to(me);
    }
    f.used = false;
    b.unseen = true;
    b.bytes -= f.rows * ROW;
    if (b.bytes < -(i64)MAX_BYTES) fail("TMA at %s:%d: its bytes were not announced", file_name(f.place), f.place.line);
    end_phase_if_over(c, b);
}

bool land_one(Context& c) {
    Hopper& h = *c.hopper;
    if (!h.n_loads) return false;
    land(c, h, c.order == 0 ? 0 : c.order == 1 ? h.n_loads - 1 : random_below(c, h.n_loads));
    return true;
}

void land_at_random(Context& c) {
    // In odd orders loads arrive soon, in even orders late.
    if (c.hopper->n_loads && (random(c) & (c.order & 1 ? 3 : 63)) == 0) land_one(c);
}

static bool overlap(u32 a, u32 a_bytes, u32 b, u32 b_bytes) { return a < b + b_bytes && b < a + a_bytes; }

// Where an operand lies: its first byte, and the bytes to its last.
struct Extent {
    u32 begin, bytes;
};
static Extent extent(u64 desc, u32 rows, bool mn_major) {
    const u32 start = (u32)(desc & 0x3fff) << 4, leading = (u32)(desc >> 16 & 0x3fff) << 4,
              stride = (u32)(desc >> 32 & 0x3fff) << 4, begin = start / ATOM * ATOM;
    if (mn_major) return {begin, (rows / 64 - 1) * leading + stride + ATOM};
    return {begin, (rows / 8 - 1) * stride + ATOM};
}

void tma_load(const Load& l, u32 kind, Place p) {
    Context& c = *context;
    Hopper& h = hopper(c);
    const CUtensorMap& m = *l.map;
    const auto wrong = [p](const char* what) { fail("TMA at %s:%d: %s", file_name(p), p.line, what); };
    if ((uintptr_t)l.map % 64) wrong("tensor map not aligned to 64 bytes");
    if (m.magic != CUtensorMap::MAGIC) wrong("not a tensor map");
    if (m.kind != kind || m.rank != (kind == CUtensorMap::TILED ? 2 : 4)) wrong("a tensor map of another kind or rank");
    if ((uintptr_t)l.to % ATOM) wrong("destination not aligned to 1024 bytes");
    const u32 rows = m.box[1], bytes = rows * ROW, to = offset_of(c, l.to);
    if (!array_around(c, l.to, bytes)) wrong("destination does not lie within one shared array");
    if (kind == CUtensorMap::IM2COL && (l.offsets[0] > 255 || l.offsets[1] > 255)) wrong("an offset above 255");
    Barrier& b = barrier_at(c, l.bar, "TMA", p);
    if (!b.fenced) wrong("mbar_init without mbar_fence_init");
    for (u32 i = 0; i < h.n_loads; i++) {
        const Flight& other = h.flights[h.loads[i]];
        if (overlap(to, bytes, offset_of(c, other.load.to), other.rows * ROW)) {
            fail("TMA at %s:%d: its destination is that of the load at %s:%d, which is still in flight", file_name(p),
                 p.line, file_name(other.place), other.place.line);
        }
    }
    for (const Warpgroup& g : h.groups) {
        for (u64 i = g.done; i < g.made; i++) {
            const Product& o = g.products[i % MAX_PRODUCTS];
            const Extent ea = extent(o.a, 64, false), eb = extent(o.b, o.n, o.trans_b);
            if (overlap(to, bytes, ea.begin, ea.bytes) || overlap(to, bytes, eb.begin, eb.bytes)) {
                fail("TMA at %s:%d: its destination is an operand of the wgmma at %s:%d, which is still in flight",
                     file_name(p), p.line, file_name(o.place), o.place.line);
            }
        }
    }
    if (h.n_loads == MAX_LOADS) fail("more than %u TMA loads in flight", MAX_LOADS);
    u32 slot = 0;
    while (h.flights[slot].used) slot++;
    Flight& f = h.flights[slot];
    f.load.to = l.to;
    f.load.map = l.map;
    for (int i = 0; i < 4; i++) f.load.at[i] = l.at[i];
    for (int i = 0; i < 2; i++) f.load.offsets[i] = l.offsets[i];
    f.load.bar = l.bar;
    f.place = p;
    f.rows = rows;
    f.used = true;
    h.loads[h.n_loads++] = (u8)slot;
    san::writes(l.to, bytes);
    san::release(&f.order);
    fill_words(static_cast<char*>(l.to), bytes);
    fill_words(h.view + to, bytes);
    if (c.order >= 3 && c.order & 1 && random(c) & 1) land(c, h, h.n_loads - 1);
}

// ---- wgmma ----

u64 smem_descriptor(const void* p, u32 leading_bytes, u32 stride_bytes, Place place) {
    Context& c = *context;
    if (!array_around(c, p, 16)) {
        fail("smem_descriptor at %s:%d: does not lie within a shared array", file_name(place), place.line);
    }
    const u32 at = offset_of(c, p);
    if (at % 16 || leading_bytes % 16 || stride_bytes % 16 || leading_bytes >> 18 || stride_bytes >> 18) {
        fail("smem_descriptor at %s:%d: not a multiple of 16 bytes, or too large", file_name(place), place.line);
    }
    if (at >> 18) fail("smem_descriptor at %s:%d: beyond 256 KiB", file_name(place), place.line);
    return (u64)(at >> 4) | (u64)(leading_bytes >> 4) << 16 | (u64)(stride_bytes >> 4) << 32 | (u64)1 << 62;
}

void wgmma_fence() { hopper(*context).lanes[self->id].fenced = true; }

void wgmma_commit() { hopper(*context).lanes[self->id].group++; }

// 64 x n of `d` += a b. Products of bf16 are exact in f32, so that fused multiply-add changes no bit.
__attribute__((optimize("O3,fp-contract=fast"))) static void multiply(float (*d)[256], const float (*a)[16],
                                                                       const float (*b)[256], u32 n) {
    typedef float Eight __attribute__((vector_size(32)));
    for (u32 j = 0; j < n; j += 16) {
        for (u32 i = 0; i < 64; i += 4) {
            Eight sum[4][2];
            for (u32 r = 0; r < 4; r++) {
                for (u32 s = 0; s < 2; s++) sum[r][s] = *reinterpret_cast<const Eight*>(&d[i + r][j + 8 * s]);
            }
            for (u32 k = 0; k < 16; k++) {
                const Eight b0 = *reinterpret_cast<const Eight*>(&b[k][j]);
                const Eight b1 = *reinterpret_cast<const Eight*>(&b[k][j + 8]);
                for (u32 r = 0; r < 4; r++) {
                    sum[r][0] += a[i + r][k] * b0;
                    sum[r][1] += a[i + r][k] * b1;
                }
            }
            for (u32 r = 0; r < 4; r++) {
                for (u32 s = 0; s < 2; s++) *reinterpret_cast<Eight*>(&d[i + r][j + 8 * s]) = sum[r][s];
            }
        }
    }
}

static inline void widen(float* to, const char* from) {
    u16 v[8];
    __builtin_memcpy(v, from, 16);
    for (int e = 0; e < 8; e++) to[e] = bits_to_float((u32)v[e] << 16);
}

__attribute__((optimize("O3"))) static void perform(Context& c, Hopper& h, Warpgroup& g, const Product& p) {
    alignas(64) float a[64][16], b[16][256];
    const u32 at_a = (u32)(p.a & 0x3fff) << 4, stride_a = (u32)(p.a >> 32 & 0x3fff) << 4;
    const u32 at_b = (u32)(p.b & 0x3fff) << 4, stride_b = (u32)(p.b >> 32 & 0x3fff) << 4,
              leading_b = (u32)(p.b >> 16 & 0x3fff) << 4;
    if (san::THREAD) {
        const Extent ea = extent(p.a, 64, false), eb = extent(p.b, p.n, p.trans_b);
        san::reads(c.shared + ea.begin, ea.bytes);
        san::reads(c.shared + eb.begin, eb.bytes);
    }
    for (u32 r = 0; r < 64; r++) {
        for (u32 piece = 0; piece < 2; piece++) {
            const u32 at = swizzled(at_a + r / 8 * stride_a + r % 8 * ROW + piece * 16);
            widen(&a[r][8 * piece], seen_by_async(c, h, at, p));
        }
    }
    if (p.trans_b) {
        for (u32 k = 0; k < 16; k++) {
            for (u32 j = 0; j < p.n; j += 8) {
                const u32 at = at_b + j / 64 * leading_b + k / 8 * stride_b + k % 8 * ROW + j % 64 * 2;
                widen(&b[k][j], seen_by_async(c, h, swizzled(at), p));
            }
        }
    } else {
        for (u32 j = 0; j < p.n; j += 8) {
            for (u32 piece = 0; piece < 2; piece++) {
                float t[8][8];
                for (u32 r = 0; r < 8; r++) {
                    const u32 at = swizzled(at_b + j / 8 * stride_b + r * ROW + piece * 16);
                    widen(t[r], seen_by_async(c, h, at, p));
                }
                for (u32 k = 0; k < 8; k++) {
                    for (u32 r = 0; r < 8; r++) b[8 * piece + k][j + r] = t[r][k];
                }
            }
        }
    }
    multiply(g.sums[p.sum]->values, a, b, p.n);
    san::release(&g.order); // for the next thread that waits: it may overwrite the operands
}

// Computes products in the order of their issue, up to the first that some thread has not issued or whose
// group is `end` or later.
static void perform_up_to(Context& c, Hopper& h, Warpgroup& g, u32 end) {
    while (g.done < g.made) {
        const Product& p = g.products[g.done % MAX_PRODUCTS];
        if (p.issued < WARPGROUP || (i64)p.group >= (i64)end) return;
        perform(c, h, g, p);
        g.done++;
    }
}

// A thread's part of the 64 x n accumulators: row r and r + 8, two columns in every eight.
static void give(Sum& s, u32 lane, u32 n) {
    float* d = s.d[lane];
    const u32 row = lane / 32 * 16 + lane % 32 / 4, column = lane % 4 * 2;
    for (u32 i = 0; i < n / 8; i++) {
        for (u32 j = 0; j < 2; j++) {
            u64* v = reinterpret_cast<u64*>(&d[4 * i + 2 * j]);
            __builtin_memcpy(&s.values[row + 8 * j][8 * i + column], v, 8);
            const u64 poison = (u64)POISON << 32 | POISON;
            __builtin_memcpy(v, &poison, 8);
        }
    }
}
static void take_back(Sum& s, u32 lane, u32 n) {
    float* d = s.d[lane];
    const u32 row = lane / 32 * 16 + lane % 32 / 4, column = lane % 4 * 2;
    for (u32 i = 0; i < n / 8; i++) {
        for (u32 j = 0; j < 2; j++) __builtin_memcpy(&d[4 * i + 2 * j], &s.values[row + 8 * j][8 * i + column], 8);
    }
    s.d[lane] = nullptr;
    s.held--;
}

static void check_operand(Context& c, u64 desc, u32 rows, bool mn_major, const char* name, Place p) {
    const u32 start = (u32)(desc & 0x3fff) << 4, leading = (u32)(desc >> 16 & 0x3fff) << 4,
              stride = (u32)(desc >> 32 & 0x3fff) << 4;
    if (desc >> 62 != 1) fail("wgmma at %s:%d: %s: not a smem_descriptor", file_name(p), p.line, name);
    if (start % ATOM >= (mn_major ? 1 : ROW) || stride % ATOM || (mn_major && rows > 64 && leading % ATOM)) {
        fail("wgmma at %s:%d: %s: start %u, leading %u and stride %u do not fit atoms of 1024 bytes", file_name(p),
             p.line, name, start, leading, stride);
    }
    const Extent e = extent(desc, rows, mn_major);
    if (!array_around(c, c.shared + e.begin, e.bytes)) {
        fail("wgmma at %s:%d: %s does not lie within one shared array", file_name(p), p.line, name);
    }
}

static u32 sum_of(Warpgroup& g, const float* d, u32 lane, u32 n, Place p) {
    for (u32 i = 0; i < MAX_SUMS; i++) {
        if (g.sums[i] && g.sums[i]->d[lane] == d) return i;
    }
    for (u32 i = 0; i < MAX_SUMS; i++) {
        if (g.sums[i] && g.sums[i]->held) continue;
        if (!g.sums[i]) {
            g.sums[i] = static_cast<Sum*>(aligned_alloc(64, sizeof(Sum)));
            if (!g.sums[i]) abort();
            for (float*& x : g.sums[i]->d) x = nullptr;
            g.sums[i]->held = 0;
        }
        g.sums[i]->n = n;
        return i;
    }
    fail("wgmma at %s:%d: more than %u accumulators in flight", file_name(p), p.line, MAX_SUMS);
}

void wgmma(float* d, u32 n, bool trans_b, u64 a, u64 b, Place p) {
    Context& c = *context;
    Hopper& h = hopper(c);
    const u32 id = self->id, lane = id % WARPGROUP;
    if ((id / WARPGROUP + 1) * WARPGROUP > c.threads) {
        fail("wgmma at %s:%d needs a full warpgroup", file_name(p), p.line);
    }
    Warpgroup& g = h.groups[id / WARPGROUP];
    Lane& me = h.lanes[id];
    if (me.issued == g.made) {
        check_operand(c, a, 64, false, "A", p);
        check_operand(c, b, n, trans_b, "B", p);
        if (g.made - g.done == MAX_PRODUCTS) {
            fail("wgmma at %s:%d: more than %u in flight in a warpgroup", file_name(p), p.line, MAX_PRODUCTS);
        }
        Product& o = g.products[g.made++ % MAX_PRODUCTS];
        o.a = a;
        o.b = b;
        o.n = n;
        o.group = me.group;
        o.issued = 0;
        o.trans_b = trans_b;
        o.place = p;
        o.sum = sum_of(g, d, lane, n, p);
    }
    Product& o = g.products[me.issued++ % MAX_PRODUCTS];
    if (o.place.line != p.line || o.place.file != p.file) {
        fail("divergent wgmma: some threads of the warpgroup at %s:%d, this one at %s:%d", file_name(o.place),
             o.place.line, file_name(p), p.line);
    }
    if (o.a != a || o.b != b || o.n != n || o.trans_b != trans_b || o.group != me.group) {
        fail("divergent wgmma at %s:%d: threads of the warpgroup differ in their descriptors, or in their groups",
             file_name(p), p.line);
    }
    Sum& s = *g.sums[o.sum];
    if (!s.d[lane]) {
        if (!me.fenced) {
            fail("wgmma at %s:%d: no wgmma_fence since this thread's accumulators were free", file_name(p), p.line);
        }
        s.d[lane] = d;
        s.held++;
        give(s, lane, n);
    } else if (s.d[lane] != d || s.n != n) {
        fail("wgmma at %s:%d: its accumulators are those of another product in flight, in part", file_name(p), p.line);
    }
    s.group[lane] = me.group;
    san::release(&g.order);
    if (++o.issued < WARPGROUP) return;
    wake(c, g.waiting);
    if (c.order >= 2 && random(c) & 1) perform_up_to(c, h, g, 0x7fffffff);
}

void wgmma_wait(u32 in_flight, Place p) {
    Context& c = *context;
    Hopper& h = hopper(c);
    const u32 id = self->id, lane = id % WARPGROUP;
    Warpgroup& g = h.groups[id / WARPGROUP];
    Lane& me = h.lanes[id];
    if (me.group <= in_flight) return;
    const u32 end = me.group - in_flight; // waits for all groups before this one
    for (;;) {
        perform_up_to(c, h, g, end);
        // Every product of those groups that this thread has issued, all other threads must have issued too.
        if (g.done >= me.issued || g.products[g.done % MAX_PRODUCTS].group >= end) break;
        wait_in(c, g.waiting, State::InProducts, p);
    }
    san::acquire(&g.order);
    for (Sum* s : g.sums) {
        if (!s || !s->d[lane] || s->group[lane] >= end) continue;
        take_back(*s, lane, s->n);
        me.fenced = false;
    }
}

// ---- named barriers ----

void named_barrier(int id, int threads, bool waits, Place p) {
    Context& c = *context;
    Hopper& h = hopper(c);
    if (id < 1 || id >= (int)MAX_NAMED || threads <= 0 || threads % 32 || threads > (int)c.threads) {
        fail("named barrier at %s:%d: number %d of %d threads", file_name(p), p.line, id, threads);
    }
    Named& b = h.named[id];
    if (!b.arrived) {
        b.threads = threads;
        b.place = p;
    } else if (b.threads != (u32)threads) {
        fail("named barrier %d: for %u threads at %s:%d, for %d at %s:%d", id, b.threads, file_name(b.place),
             b.place.line, threads, file_name(p), p.line);
    }
    char* order = &b.order[b.generation & 1];
    san::release(order);
    if (++b.arrived == b.threads) {
        b.arrived = 0;
        b.generation++;
        wake(c, b.waiting);
        if (waits && c.order != 0) yield(c, p);
    } else if (waits) {
        wait_in(c, b.waiting, State::InNamedBarrier, p);
    }
    if (waits) san::acquire(order);
}

// ---- the end of a thread ----

void retire_hopper(Context& c, Fiber& me) {
    Hopper& h = *c.hopper;
    const u32 lane = me.id % WARPGROUP;
    const Warpgroup& g = h.groups[me.id / WARPGROUP];
    for (const Sum* s : g.sums) {
        if (s && s->d[lane]) fail("exited with wgmma still in flight: no wgmma_wait for all");
    }
    if (c.live) return;
    for (u32 i = 0; i < h.n_barriers; i++) {
        const Barrier& b = h.barriers[i];
        for (u32 l = 0; l < h.n_loads && !b.unseen; l++) {
            if (h.flights[h.loads[l]].load.bar == b.at) land(c, h, l);
        }
        if (b.unseen) fail("exited without mbar_wait for the last TMA loads");
    }
}

} // namespace emu
