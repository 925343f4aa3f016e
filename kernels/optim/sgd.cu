// Stochastic gradient descent with momentum, for all parameters in one launch: see src/ops/optim/sgd.rs.
#include "lib/dev.cuh"
#include "lib/optimiser.cuh"

// One row of the launch's table. `bf16_copy`, the parameter's bf16 copy, may be null.
struct SgdTensor {
    float* p;
    const float* g;
    float* m;
    bf16* bf16_copy;
    i64 count;
};
static_assert(sizeof(SgdTensor) == 40, "SgdTensor must match src/ops/optim/sgd.rs");

// The update of one element.
struct SgdUpdate {
    float rate, momentum, decay;

    DEV void apply(float& p, float g, float& m) const {
        const float d = g + decay * p;
        m = momentum * m + d;
        p -= rate * m;
    }
};

// Blocks stride over the chunks.
KERNEL(256) sgd(const SgdTensor* RESTRICT tensors,  // [tensors]
                const Chunk* RESTRICT chunks,       // [count]
                int count, int chunk_elements, const StepState* RESTRICT step, int lr_slot, float momentum,
                float weight_decay) {
    const SgdUpdate update = {step->lr[lr_slot], momentum, weight_decay};
    for (int c = blockIdx.x; c < count; c += gridDim.x) {
        const SgdTensor t = tensors[chunks[c].tensor];
        const i64 first = chunks[c].first;
        const i64 end = t.count < first + chunk_elements ? t.count : first + chunk_elements;
        for_chunk(
            first, end,
            [&](i64 at) {
                const Pack<float, 4> g = load_pack<4>(t.g + at);
                Pack<float, 4> p = load_pack<4>(t.p + at), m = load_pack<4>(t.m + at);
                UNROLL
                for (int k = 0; k < 4; k++) update.apply(p.v[k], g.v[k], m.v[k]);
                store_pack(t.p + at, p);
                store_pack(t.m + at, m);
                if (t.bf16_copy) store_bf16(t.bf16_copy + at, p);
            },
            [&](i64 i) {
                update.apply(t.p[i], t.g[i], t.m[i]);
                if (t.bf16_copy) t.bf16_copy[i] = to_bf16(t.p[i]);
            });
    }
}
INSTANCE(sgd)
