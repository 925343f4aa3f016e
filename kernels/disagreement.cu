// The log of the mean |a - b|: see src/ops/disagreement.rs.
#include "lib/dev.cuh"
#include "lib/loss.cuh"

// One block. A mean below `floor` (or NaN) counts as `floor` and has slope 0.
KERNEL(1024) disagreement_fwd(float* RESTRICT y,        // scalar
                              double* RESTRICT slope,   // 1 / sum |a - b|, saved for backward, or null
                              const float* RESTRICT a,  // [elements]
                              const float* RESTRICT b,  // [elements]
                              i64 elements, double floor) {
    SHARED(double, scratch, 32);
    const double total =
        block_total(elements, scratch, [&](i64 i) { return fabs((double)a[i] - (double)b[i]); });
    const double mean = total / (double)elements;
    if (threadIdx.x == 0) {
        *y = (float)log(mean > floor ? mean : floor);
        if (slope) *slope = mean > floor ? 1.0 / total : 0.0;
    }
}
INSTANCE(disagreement_fwd)

// da and db may each be null.
KERNEL(256) disagreement_bwd(float* RESTRICT da,            // [elements]
                             float* RESTRICT db,            // [elements]
                             const float* RESTRICT a,       // [elements]
                             const float* RESTRICT b,       // [elements]
                             const double* RESTRICT slope,  // as saved
                             const float* RESTRICT dy,      // scalar
                             i64 elements, int add_a, int add_b) {
    const double d = (double)*dy * *slope;
    for (i64 i = global_thread(); i < elements; i += global_threads()) {
        const float toward_a = (float)(d * ((double)(a[i] > b[i]) - (double)(a[i] < b[i])));
        if (da) put(da + i, toward_a, add_a);
        if (db) put(db + i, -toward_a, add_b);
    }
}
INSTANCE(disagreement_bwd)
