// Cross-entropy of logits x [n, c] against their own pseudo labels t: see src/ops/losses/one_hot_loss.rs.
// Arithmetic in double.
#include "lib/dev.cuh"
#include "lib/loss.cuh"

// t[i, l] = 1 for the `positives` highest of x[:, l]; among equals the earlier row counts as higher. The
// thread of an element counts the rows that rank before its own: n reads, whose cache lines neighbouring
// threads share. A sort would need shared memory for n rows.
KERNEL(256) one_hot_labels(u8* RESTRICT t,           // [n, c]
                           const float* RESTRICT x,  // [n, c] logits
                           int n, int c, int positives) {
    const i64 elements = (i64)n * c;
    for (i64 e = global_thread(); e < elements; e += global_threads()) {
        const int row = (int)(e / c);
        const float* column = x + e % c;
        const float own = x[e];
        int ahead = 0;
        for (int j = 0; j < row; j++) ahead += column[(i64)j * c] >= own;
        for (int j = row + 1; j < n; j++) ahead += column[(i64)j * c] > own;
        t[e] = ahead < positives;
    }
}
INSTANCE(one_hot_labels)

// Without `t`, a label is present if y >= 1/2, that is, if x >= 0.
DEV double label_of(const u8* t, float x, i64 i) { return t ? (double)t[i] : (double)(x >= 0.f); }

// y = each * sum of the cross-entropies, in one block; `each` is 1 / elements.
KERNEL(1024) one_hot_loss_fwd(float* RESTRICT y,        // scalar
                              const float* RESTRICT x,  // [elements] logits
                              const u8* RESTRICT t,     // [elements], or null
                              i64 elements, double each) {
    SHARED(double, scratch, 32);
    const double total =
        block_total(elements, scratch, [&](i64 i) { return cross_entropy(x[i], label_of(t, x[i], i)); });
    if (threadIdx.x == 0) *y = (float)(total * each);
}
INSTANCE(one_hot_loss_fwd)

// dx (+)= dy * each * (sigmoid(x) - t). One thread per element.
KERNEL(256) one_hot_loss_bwd(float* RESTRICT dx,        // [elements]
                             const float* RESTRICT x,   // [elements] logits
                             const u8* RESTRICT t,      // [elements], or null
                             const float* RESTRICT dy,  // scalar
                             i64 elements, double each, int add) {
    put_slopes(dx, dy, elements, add, [&](i64 i) { return (sigmoid(x[i]) - label_of(t, x[i], i)) * each; });
}
INSTANCE(one_hot_loss_bwd)
