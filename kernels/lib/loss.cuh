// Functions that the losses share. All compute in double, as on the CPU: rows are tiny (64 x 20), so double
// costs nothing, and in float the rounding of sums and cancellations would show.
#pragma once
#include "lib/reduce.cuh"

// 1 / (1 + e^-v), without overflow on either side.
DEV double sigmoid(double v) {
    const double e = exp(-fabs(v));
    const double small = e / (1.0 + e);
    return v > 0.0 ? 1.0 - small : small;
}
// The derivative of sigmoid: sigmoid(v) sigmoid(-v).
DEV double sigmoid_slope(double v) {
    const double e = exp(-fabs(v));
    const double large = 1.0 / (1.0 + e);
    return e * large * large;
}
// log(1 + e^v), without overflow.
DEV double softplus(double v) { return (v > 0.0 ? v : 0.0) + log1p(exp(-fabs(v))); }
// Binary cross-entropy of the prediction sigmoid(logit) against the target t.
DEV double cross_entropy(double logit, double t) { return softplus(logit) - logit * t; }
// p log p, 0 at 0.
DEV double plogp(double p) { return p > 0.0 ? p * log(p) : 0.0; }
// -1, 0 or 1; 0 for NaN.
DEV double sign_of(float v) { return (double)(v > 0.f) - (double)(v < 0.f); }

// The sum of term(i) over i < n, in every thread of a grid of one block. `scratch` holds one double per warp.
template <class F> DEV double block_total(i64 n, double* scratch, F term) {
    double v = 0.0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) v += term(i);
    return block_sum(v, scratch);
}

// dx[i] (+)= dy slope(i) for i < n, by the whole grid. `dy` is the gradient of the loss, one number.
template <class F> DEV void put_slopes(float* dx, const float* dy, i64 n, int add, F slope) {
    const double d = *dy;
    for (i64 i = global_thread(); i < n; i += global_threads()) put(dx + i, (float)(d * slope(i)), add);
}
