// The weighted sum of scalar loss terms, and their gradients: see src/ops/losses/weighted_sum.rs. One warp.
#include "lib/dev.cuh"
#include "lib/reduce.cuh"

// One row of the table of terms.
struct Term {
    const float* x;
    double weight;
};
static_assert(sizeof(Term) == 16, "Term must match src/ops/losses/weighted_sum.rs");

// y = sum of weight * x. The lanes load the terms' addresses, and then their values, at the same time.
KERNEL(32) weighted_sum_fwd(float* RESTRICT y,            // scalar
                            const Term* RESTRICT terms,   // [count]
                            int count) {
    double sum = 0.0;
    for (int i = lane_id(); i < count; i += 32) sum += terms[i].weight * (double)*terms[i].x;
    sum = warp_sum(sum);
    if (lane_id() == 0) *y = (float)sum;
}
INSTANCE(weighted_sum_fwd)

// One row of the table of gradients.
struct TermGrad {
    float* dx;
    double weight;
    i64 add;
};
static_assert(sizeof(TermGrad) == 24, "TermGrad must match src/ops/losses/weighted_sum.rs");

// dx (+)= weight * dy. One thread per term that needs a gradient; no two terms share a gradient.
KERNEL(32) weighted_sum_bwd(const TermGrad* RESTRICT terms,  // [count]
                            const float* RESTRICT dy,        // scalar
                            int count) {
    for (int i = lane_id(); i < count; i += 32)
        put(terms[i].dx, (float)(terms[i].weight * (double)*dy), (int)terms[i].add);
}
INSTANCE(weighted_sum_bwd)
