// Collectives of a warp: the last lane to arrive computes the result for all.
#include "emu/runtime.h"

namespace emu {

// d[16x8] += a[16x16] b[16x8]. The order of the sum is not that of a tensor core, which is not documented.
static void mma(const u64* cells) {
    alignas(32) float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const MmaArgs& m = *reinterpret_cast<const MmaArgs*>(cells[lane]);
        const int g = lane / 4, t = lane % 4 * 2;
        // The halves of a register are an element and its right (a, d) or lower (b) neighbour.
        for (int h = 0; h < 2; h++) {
            const auto half = [h](u32 r) { return bits_to_float(r >> 16 * h << 16); };
            a[g][t + h] = half(m.a[0]);
            a[g + 8][t + h] = half(m.a[1]);
            a[g][t + 8 + h] = half(m.a[2]);
            a[g + 8][t + 8 + h] = half(m.a[3]);
            b[t + h][g] = half(m.b0);
            b[t + 8 + h][g] = half(m.b1);
            d[g][t + h] = m.d[h];
            d[g + 8][t + h] = m.d[2 + h];
        }
    }
    for (int i = 0; i < 16; i++) {
        for (int k = 0; k < 16; k++) {
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        float* out = reinterpret_cast<const MmaArgs*>(cells[lane])->d;
        const int g = lane / 4, t = lane % 4 * 2;
        out[0] = d[g][t];
        out[1] = d[g][t + 1];
        out[2] = d[g + 8][t];
        out[3] = d[g + 8][t + 1];
    }
}

static void ldmatrix(const u64* cells, bool transposed) {
    const auto args = [cells](int lane) { return reinterpret_cast<const LdmatrixArgs*>(cells[lane]); };
    for (int i = 0; i < 4; i++) {
        u16 m[8][8];
        for (int row = 0; row < 8; row++) __builtin_memcpy(m[row], args(i * 8 + row)->row, 16);
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4 * 2;
            args(lane)->r[i] = transposed ? m[t][g] | (u32)m[t + 1][g] << 16 : m[g][t] | (u32)m[g][t + 1] << 16;
        }
    }
}

// Checks each lane's row while that lane runs, so that the message names it.
static void check_row(Context& c, const void* row, Place p) {
    if ((uintptr_t)row % 16) {
        fail("ldmatrix at %s:%d: row address not a multiple of 16 bytes", file_name(p), p.line);
    }
    if (!array_around(c, row, 16)) {
        fail("ldmatrix at %s:%d: row does not lie within one shared array", file_name(p), p.line);
    }
    san::reads(row, 16);
}

const u64* rendezvous(Op op, u64 brought, Place p) {
    Context& c = *context;
    const u32 id = self->id, lane = id % 32;
    Warp& w = c.warps[id / 32];
    if (w.exited) {
        fail("divergent warp collective at %s:%d: lanes %#x of the warp have exited", file_name(p), p.line,
             w.exited);
    }
    if (w.arrived == 0) {
        w.op = op;
        w.place = p;
    } else if (w.op != op || w.place.line != p.line || w.place.file != p.file) {
        fail("divergent warp collective: lanes %#x at %s:%d, this one at %s:%d", w.arrived, file_name(w.place),
             w.place.line, file_name(p), p.line);
    }
    const bool matrix = op == Op::Ldmatrix || op == Op::LdmatrixTrans;
    if ((matrix || op == Op::Mma) && w.lanes != 0xffffffffu) {
        fail("%s:%d needs a full warp, but this one has lanes %#x", file_name(p), p.line, w.lanes);
    }
    if (matrix) check_row(c, reinterpret_cast<const LdmatrixArgs*>(brought)->row, p);
    u64* cells = w.cells[w.generation & 1];
    char* order = &w.order[w.generation & 1];
    if (op == Op::Sync) san::release(order); // of the collectives, only sync_warp orders memory
    cells[lane] = brought;
    w.arrived |= 1u << lane;
    if (w.arrived != w.lanes) {
        wait(c, State::InCollective, p);
    } else {
        w.arrived = 0;
        w.generation++;
        if (op == Op::Mma) mma(cells);
        if (matrix) ldmatrix(cells, op == Op::LdmatrixTrans);
        for (u32 others = w.lanes & ~(1u << lane); others; others &= others - 1) {
            make_ready(c, id - lane + __builtin_ctz(others));
        }
        if (c.order != 0) yield(c, p); // in order 0 the last lane continues at once, which saves a switch
    }
    if (op == Op::Sync) san::acquire(order);
    return cells;
}

u64 shuffle(u64 v, int from_lane, Place p) {
    const u32 lanes = context->warps[self->id / 32].lanes;
    const u64* cells = rendezvous(Op::Shuffle, v, p);
    // The value of a lane that does not exist is undefined: NaN, as float and as double.
    return lanes >> from_lane & 1 ? cells[from_lane] : ((u64)CANARY << 32 | CANARY);
}

u32 ballot(bool v, Place p) {
    const u32 lanes = context->warps[self->id / 32].lanes;
    const u64* cells = rendezvous(Op::Ballot, v, p);
    u32 votes = 0;
    for (int i = 0; i < 32; i++) {
        if (lanes >> i & 1) votes |= (u32)cells[i] << i;
    }
    return votes;
}

} // namespace emu
