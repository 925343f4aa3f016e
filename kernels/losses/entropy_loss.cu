// The negative entropy of each label's mean prediction over the batch, averaged over the labels: see
// src/ops/losses/entropy_loss.rs. A warp takes a label, its lanes the rows. Arithmetic in double.
#include "lib/dev.cuh"
#include "lib/loss.cuh"

struct Means {
    double p, q;
};

// The mean of one label's predictions over the batch, and of their complements. All lanes of the warp get
// both.
DEV Means means_of(const float* x, int n, int c, int label) {
    double p = 0.0, q = 0.0;
    for (int row = lane_id(); row < n; row += 32) {
        const double v = x[(i64)row * c + label];
        p += sigmoid(v);
        q += sigmoid(-v);
    }
    return {warp_sum(p) / n, warp_sum(q) / n};
}

// y = mean over the labels of p log p + q log q. One block; each of its up to 16 warps takes every 16th
// label.
KERNEL(512) entropy_loss_fwd(float* RESTRICT y,        // scalar
                              const float* RESTRICT x,  // [n, c] logits
                              int n, int c) {
    SHARED(double, scratch, 16);
    double total = 0.0;
    for (int label = warp_id(); label < c; label += (int)blockDim.x / 32) {
        const Means m = means_of(x, n, c, label);
        total += plogp(m.p) + plogp(m.q);
    }
    total = block_sum(lane_id() == 0 ? total : 0.0, scratch);
    if (threadIdx.x == 0) *y = (float)(total / c);
}
INSTANCE(entropy_loss_fwd)

// dx (+)= dy * each * log(p / q) * y (1 - y) with y = sigmoid(x). One warp per label; `each` is 1 / (n c).
KERNEL(128) entropy_loss_bwd(float* RESTRICT dx,        // [n, c]
                             const float* RESTRICT x,   // [n, c] logits
                             const float* RESTRICT dy,  // scalar
                             int n, int c, double each, int add) {
    const int label = (int)blockIdx.x * ((int)blockDim.x / 32) + warp_id();
    if (label >= c) return;
    const Means m = means_of(x, n, c, label);
    // Where p underflows, y (1 - y) is 0 too; the lower limit avoids 0 * infinity.
    const double tiny = 2.2250738585072014e-308;
    const double slope = log(m.p > tiny ? m.p : tiny) - log(m.q > tiny ? m.q : tiny);
    for (int row = lane_id(); row < n; row += 32) {
        const i64 at = (i64)row * c + label;
        put(dx + at, (float)((double)*dy * (slope * sigmoid_slope(x[at]) * each)), add);
    }
}
INSTANCE(entropy_loss_bwd)
