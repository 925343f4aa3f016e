// wgmma, and shared memory as it sees it.
//
// A product is computed when a thread waits for it, or at random once the whole warpgroup has issued it.
// Until a thread's own wait, its accumulators hold NaN, so that a thread that reads them too early gets a
// wrong result.
//
// Nothing here may call memcpy or the like on memory that several fibers use: TSan intercepts these
// functions, and would report races between the fibers' bookkeeping.
#include <stdlib.h>

#include "emu/hopper_state.h"

namespace emu {

// ---- the two views of shared memory ----

void fence_async_shared() { hopper(*context).fences++; }

// 16 bytes as wgmma sees them. If an ordinary store has changed them since TMA wrote them or since their atom
// was last copied to the view, there must have been a fence since that copy. Any thread's fence counts,
// because the storing thread is not known.
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

// `.sync.aligned`: a lane waits here for its whole warp. Without that, the first lane could multiply and arrive at a
// barrier while other lanes of its warp still wait for an earlier phase. The other warpgroup could then end that phase,
// and those lanes, which test only a phase's parity, would wait for one that never comes.
void wgmma_fence(Place p) {
    rendezvous(Op::Fence, 0, p);
    hopper(*context).lanes[self->id].fenced = true;
}

void wgmma_commit() { hopper(*context).lanes[self->id].group++; }

// 64 x n of `d` += a b. Products of bf16 are exact in f32, so fused multiply-add changes no bit.
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
    const auto widen_from = [&](float* to, u32 offset) { widen(to, seen_by_async(c, h, swizzled(offset), p)); };
    if (san::THREAD) {
        const Extent ea = extent(p.a, 64, p.trans_a), eb = extent(p.b, p.n, p.trans_b);
        san::reads(c.shared + ea.begin, ea.bytes);
        san::reads(c.shared + eb.begin, eb.bytes);
    }
    if (p.trans_a) {
        for (u32 k = 0; k < 16; k++) {
            float row[64];
            for (u32 r = 0; r < 64; r += 8) widen_from(&row[r], at_a + k / 8 * stride_a + k % 8 * ROW + r * 2);
            for (u32 r = 0; r < 64; r++) a[r][k] = row[r];
        }
    } else {
        for (u32 r = 0; r < 64; r++) {
            for (u32 piece = 0; piece < 2; piece++) {
                widen_from(&a[r][8 * piece], at_a + r / 8 * stride_a + r % 8 * ROW + piece * 16);
            }
        }
    }
    if (p.trans_b) {
        for (u32 k = 0; k < 16; k++) {
            for (u32 j = 0; j < p.n; j += 8) {
                widen_from(&b[k][j], at_b + j / 64 * leading_b + k / 8 * stride_b + k % 8 * ROW + j % 64 * 2);
            }
        }
    } else {
        for (u32 j = 0; j < p.n; j += 8) {
            for (u32 piece = 0; piece < 2; piece++) {
                float t[8][8];
                for (u32 r = 0; r < 8; r++) {
                    widen_from(t[r], at_b + j / 8 * stride_b + r * ROW + piece * 16);
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

// Moves a thread's part of the 64 x n accumulators to the sum (`give`) and back: rows r and r + 8, two
// columns in every eight.
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

void wgmma(float* d, u32 n, bool trans_a, bool trans_b, u64 a, u64 b, Place p) {
    Context& c = *context;
    Hopper& h = hopper(c);
    const u32 id = self->id, lane = id % WARPGROUP;
    if ((id / WARPGROUP + 1) * WARPGROUP > c.threads) {
        fail("wgmma at %s:%d needs a full warpgroup", file_name(p), p.line);
    }
    Warpgroup& g = h.groups[id / WARPGROUP];
    Lane& me = h.lanes[id];
    if (me.issued == g.made) {
        check_operand(c, a, 64, trans_a, "A", p);
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
        o.trans_a = trans_a;
        o.trans_b = trans_b;
        o.place = p;
        o.sum = sum_of(g, d, lane, n, p);
    }
    Product& o = g.products[me.issued++ % MAX_PRODUCTS];
    if (o.place.line != p.line || o.place.file != p.file) {
        fail("divergent wgmma: some threads of the warpgroup at %s:%d, this one at %s:%d", file_name(o.place),
             o.place.line, file_name(p), p.line);
    }
    if (o.a != a || o.b != b || o.n != n || o.trans_a != trans_a || o.trans_b != trans_b || o.group != me.group) {
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
        // Waits for other threads that have not yet issued a product of these groups that this one has.
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

} // namespace emu
