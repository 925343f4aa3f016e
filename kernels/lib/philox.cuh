// Philox4x32-10 (Salmon et al. 2011), the same bits as src/device/philox.rs on every device.
#pragma once
#include "lib/dev.cuh"

struct Words {
    u32 v[4];
};

DEV Words philox(Words c, u32 k0, u32 k1) {
    for (int round = 0; round < 10; round++) {
        if (round > 0) {
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        const u32 a = 0xD2511F53u, b = 0xCD9E8D57u;
        c = {{mul_hi(b, c.v[2]) ^ c.v[1] ^ k0, b * c.v[2], mul_hi(a, c.v[0]) ^ c.v[3] ^ k1, a * c.v[0]}};
    }
    return c;
}

// The random draws of one op (`stream`) in one step.
struct Draws {
    u32 k0, k1, stream, step;

    DEV static Draws of(const StepState* s, u32 stream) {
        return {(u32)s->seed, (u32)(s->seed >> 32), stream, (u32)s->step};
    }
    // Four words for `index`; `lane` distinguishes several groups of draws of one op.
    DEV Words words(u32 index, u32 lane) const { return philox({{index, lane, step, stream}}, k0, k1); }
};

// A word as a uniform number in (0, 1): the centre of one of 2^24 equal bins.
DEV double unit(u32 word) { return ((double)(word >> 8) + 0.5) / 16777216.0; }
// A word as an integer below n.
DEV u32 below(u32 word, u32 n) { return mul_hi(word, n); }
