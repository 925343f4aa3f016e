// Barriers in shared memory (mbarrier), TMA loads and named barriers of compute capability 9.0.
//
// A load arrives as late as is legal (when no thread can go on), or at random. Until then its destination
// holds NaN, so that a thread that reads a stage too early, or still reads the previous one, gets a wrong
// result.
//
// Nothing here may call memcpy or the like on memory that several fibers use: TSan intercepts these
// functions, and would report races between the fibers' bookkeeping.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "emu/hopper_state.h"

namespace emu {

static void fill_words(char* p, size_t bytes) {
    volatile u64* q = reinterpret_cast<volatile u64*>(p);
    for (size_t i = 0; i < bytes / 8; i++) q[i] = (u64)POISON << 32 | POISON;
}

Hopper& hopper(Context& c) {
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
