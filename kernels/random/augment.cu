// Random augmentation of images: see src/ops/random/augment.rs. A first launch draws the choices of every
// sample, with the same Philox words as the host; forward and backward read them. Grid [samples, parts of an
// image].
#include "lib/dev.cuh"
#include "lib/philox.cuh"

// Mirrors `AugmentDims` of src/ops/random/augment.rs: x, y [n, h, w, c].
struct AugmentDims {
    int n, h, w, c, max_shift;
    u32 stream;
    float fill, flip, mix_max, cutmix;
};
static_assert(sizeof(AugmentDims) == 40, "AugmentDims must match src/ops/random/augment.rs");

enum AugmentMix : int { ALONE, MAXIMUM, PASTE };

// How a sample is shifted and mirrored, and how it is mixed with sample `with`.
struct AugmentChoice {
    int down, across, mirrored, mix, with, top, bottom, left, right;

    // The index of the pixel that appears at (p, q), or -1 if the fill value does.
    DEV int source(int p, int q, const AugmentDims& d) const {
        const int row = p - down, column = (mirrored ? d.w - 1 - q : q) - across;
        return row >= 0 && row < d.h && column >= 0 && column < d.w ? row * d.w + column : -1;
    }
    // Whether (p, q) lies in the pasted rectangle.
    DEV bool pastes(int p, int q) const { return mix == PASTE && p >= top && p < bottom && q >= left && q < right; }
};
static_assert(sizeof(AugmentChoice) == 36, "CHOICE_BYTES of src/ops/random/augment.rs must match");

// A random range on a side of `length`, of up to half of it (rounded up).
DEV void draw_side(int& start, int& end, int length, u32 size_word, u32 start_word) {
    const int size = 1 + (int)below(size_word, (length + 1) / 2);
    start = (int)below(start_word, length - size + 1);
    end = start + size;
}

// choices [n]. One thread per sample.
KERNEL(256) augment_choices(AugmentChoice* RESTRICT choices, const StepState* RESTRICT step, AugmentDims d) {
    const i64 i = global_thread();
    if (i >= d.n) return;
    const Draws draws = Draws::of(step, d.stream);
    const Words first = draws.words((u32)i, 0);
    AugmentChoice choice = {};
    choice.down = (int)below(first.v[0], 2 * d.max_shift + 1) - d.max_shift;
    choice.across = (int)below(first.v[1], 2 * d.max_shift + 1) - d.max_shift;
    choice.mirrored = unit(first.v[2]) < (double)d.flip;
    choice.mix = ALONE;
    choice.with = -1;
    const double maximum = d.mix_max, paste = d.cutmix, u = unit(first.v[3]);
    if (u < maximum + paste) {
        choice.mix = u < maximum ? MAXIMUM : PASTE;
        choice.with = (int)((i + 1 + below(draws.words((u32)i, 1).v[0], d.n - 1)) % d.n);
        const Words sides = draws.words((u32)i, 2);
        draw_side(choice.top, choice.bottom, d.h, sides.v[0], sides.v[2]);
        draw_side(choice.left, choice.right, d.w, sides.v[1], sides.v[3]);
    }
    choices[i] = choice;
}
INSTANCE(augment_choices)

// The value of a pixel, or the fill value for -1.
template <class T> DEV float seen(const T* RESTRICT image, int pixel, int channel, const AugmentDims& d) {
    return pixel < 0 ? d.fill : to_f32(image[(i64)pixel * d.c + channel]);
}

// y, x [n, h, w, c]. One thread per element.
template <class T>
KERNEL(256) augment_fwd(T* RESTRICT y, const T* RESTRICT x, const AugmentChoice* RESTRICT choices, AugmentDims d) {
    const i64 image = (i64)d.h * d.w * d.c;
    const AugmentChoice own = choices[blockIdx.x];
    // A sample that is not mixed gets itself as partner, which is never read.
    const int partner = own.mix == ALONE ? (int)blockIdx.x : own.with;
    const AugmentChoice other = choices[partner];
    const T *const mine = x + blockIdx.x * image, *const theirs = x + partner * image;
    for (u32 e = blockIdx.y * blockDim.x + threadIdx.x; e < image; e += gridDim.y * blockDim.x) {
        const int channel = e % d.c, q = e / d.c % d.w, p = e / d.c / d.w;
        const bool pastes = own.pastes(p, q);
        float v = 0.0f;
        if (!pastes) v = seen(mine, own.source(p, q, d), channel, d);
        if (pastes || own.mix == MAXIMUM) {
            const float rival = seen(theirs, other.source(p, q, d), channel, d);
            // The maximum of a number and NaN is the number, as on the host.
            if (pastes || rival > v || v != v) v = rival;
        }
        y[blockIdx.x * image + e] = from_f32<T>(v);
    }
}
INSTANCE(augment_fwd<float>)
INSTANCE(augment_fwd<bf16>)

// dx [n, h, w, c] (+)= the sample's own dy, then those of the samples that it was mixed into, in order. One
// thread per element. Shared memory: one bit per sample, (n + 31) / 32 words. `x` is read for the maximum
// only.
template <class T>
KERNEL(256) augment_bwd(T* RESTRICT dx, const T* RESTRICT x, const T* RESTRICT dy, const AugmentChoice* RESTRICT choices,
                        AugmentDims d, int add) {
    DYN_SHARED(u32, mixed);
    const i64 image = (i64)d.h * d.w * d.c;
    const int j = blockIdx.x, words = d.mix_max + d.cutmix > 0.0f ? (d.n + 31) / 32 : 0;
    for (int w = warp_id(); w < words; w += blockDim.x / 32) {
        const int i = w * 32 + lane_id();
        const u32 bits = ballot(i < d.n && choices[i].with == j);
        if (lane_id() == 0) mixed[w] = bits;
    }
    sync_block();
    const AugmentChoice own = choices[j];
    for (u32 e = blockIdx.y * blockDim.x + threadIdx.x; e < image; e += gridDim.y * blockDim.x) {
        const int channel = e % d.c, column = e / d.c % d.w, row = e / d.c / d.w;
        // Where this pixel appears: the same place in every output that sample j contributes to.
        const int p = row + own.down, shifted = column + own.across, q = own.mirrored ? d.w - 1 - shifted : shifted;
        float sum = 0.0f;
        const auto collect = [&](int i, const AugmentChoice& choice) {
            if (choice.mix == PASTE && choice.pastes(p, q) == (i == j)) return;
            if (choice.mix == MAXIMUM) {
                const int rival = i == j ? choice.with : i;
                const float mine = to_f32(x[j * image + e]);
                const float theirs = seen(x + rival * image, choices[rival].source(p, q, d), channel, d);
                // At a tie, the gradient goes to the output's own sample.
                if (mine < theirs || (i != j && mine == theirs)) return;
            }
            sum += to_f32(dy[i * image + ((i64)p * d.w + q) * d.c + channel]);
        };
        if (p >= 0 && p < d.h && q >= 0 && q < d.w) {
            collect(j, own);
            for (int w = 0; w < words; w++) {
                u32 bits = mixed[w];
                for (int i = w * 32; bits != 0; i++, bits >>= 1) {
                    if (bits & 1) collect(i, choices[i]);
                }
            }
        }
        put(dx + j * image + e, sum, add);
    }
}
INSTANCE(augment_bwd<float>)
INSTANCE(augment_bwd<bf16>)
