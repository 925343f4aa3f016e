// A loss as the weighted sum of its terms, and their gradients: see src/ops/losses/weighted_sum.rs.
#include "lib/dev.cuh"
#include "lib/reduce.cuh"

// One row of the launch's table.
struct Term {
    const float* x;
    double weight;
};
static_assert(sizeof(Term) == 16, "Term must match src/ops/losses/weighted_sum.rs");

// One warp, so that the terms' addresses, and then their values, are fetched side by side.
KERNEL(32) weighted_sum_fwd(float* RESTRICT y,            // scalar
                            const Term* RESTRICT terms,   // [count]
                            int count) {
    double sum = 0.0;
    for (int i = lane_id(); i < count; i += 32) sum += terms[i].weight * (double)*terms[i].x;
    sum = warp_sum(sum);
    if (lane_id() == 0) *y = (float)sum;
}
INSTANCE(weighted_sum_fwd)

struct TermGrad {
    float* dx;
    double weight;
    i64 add;
};
static_assert(sizeof(TermGrad) == 24, "TermGrad must match src/ops/losses/weighted_sum.rs");

// A thread a term that wants a gradient; no two share one.
KERNEL(32) weighted_sum_bwd(const TermGrad* RESTRICT terms,  // [count]
                            const float* RESTRICT dy,        // scalar
                            int count) {
    for (int i = lane_id(); i < count; i += 32)
        put(terms[i].dx, (float)(terms[i].weight * (double)*dy), (int)terms[i].add);
}
INSTANCE(weighted_sum_bwd)
