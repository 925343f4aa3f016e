// Adam with decoupled weight decay, for all parameters in one launch: see src/ops/optim/adam.rs.
#include "lib/dev.cuh"
#include "lib/optimiser.cuh"

// One row of the launch's table. `bf16_copy`, the parameter's bf16 copy, may be null.
struct AdamTensor {
    float* p;
    const float* g;
    float* m;
    float* v;
    bf16* bf16_copy;
    i64 count;
};
static_assert(sizeof(AdamTensor) == 48, "AdamTensor must match src/ops/optim/adam.rs");

// The factors that do not depend on the element: p = keep p - rate m / (sqrt(v) root + eps).
struct AdamRates {
    float rate, root, keep;
};

// The layout of `AdamDims` in src/ops/optim/adam.rs.
struct AdamDims {
    double beta1, beta2, eps, weight_decay;
};
static_assert(sizeof(AdamDims) == 32, "AdamDims must match src/ops/optim/adam.rs");

// The update of one element.
struct AdamUpdate {
    float b1, b2, c1, c2, eps;
    AdamRates r;

    DEV void apply(float& p, float g, float& m, float& v) const {
        m = b1 * m + c1 * g;
        v = b2 * v + c2 * g * g;
        p = r.keep * p - r.rate * m / (sqrtf(v) * r.root + eps);
    }
};

// Blocks stride over the chunks, so that one thread of each block computes the two powers once, which takes
// about 2 us.
KERNEL(256) adam(const AdamTensor* RESTRICT tensors,  // [tensors]
                 const Chunk* RESTRICT chunks,        // [count]
                 int count, int chunk_elements, const StepState* RESTRICT step, int lr_slot, AdamDims d) {
    SHARED(AdamRates, rates, 1);
    if (threadIdx.x == 0) {
        const double t = (double)step->step + 1.0, lr = step->lr[lr_slot];
        rates[0] = {(float)(lr / (1.0 - pow(d.beta1, t))), (float)(1.0 / sqrt(1.0 - pow(d.beta2, t))),
                    (float)(1.0 - lr * d.weight_decay)};
    }
    sync_block();
    const AdamUpdate update = {(float)d.beta1,         (float)d.beta2, (float)(1.0 - d.beta1),
                               (float)(1.0 - d.beta2), (float)d.eps,   rates[0]};
    for (int c = blockIdx.x; c < count; c += gridDim.x) {
        const AdamTensor t = tensors[chunks[c].tensor];
        const i64 first = chunks[c].first;
        const i64 end = t.count < first + chunk_elements ? t.count : first + chunk_elements;
        for_chunk(
            first, end,
            [&](i64 at) {
                const Pack<float, 4> g = load_pack<4>(t.g + at);
                Pack<float, 4> p = load_pack<4>(t.p + at), m = load_pack<4>(t.m + at), v = load_pack<4>(t.v + at);
                UNROLL
                for (int k = 0; k < 4; k++) update.apply(p.v[k], g.v[k], m.v[k], v.v[k]);
                store_pack(t.p + at, p);
                store_pack(t.m + at, m);
                store_pack(t.v + at, v);
                if (t.bf16_copy) store_bf16(t.bf16_copy + at, p);
            },
            [&](i64 i) {
                update.apply(t.p[i], t.g[i], t.m[i], t.v[i]);
                if (t.bf16_copy) t.bf16_copy[i] = to_bf16(t.p[i]);
            });
    }
}
INSTANCE(adam)
