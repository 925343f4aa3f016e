// Binary cross-entropy of logits against given targets: see src/ops/losses/bce.rs. x, t and dx are [n, c],
// read as n c elements. Targets are logits if `is_logit`, else probabilities. Arithmetic in double.
#include "lib/dev.cuh"
#include "lib/loss.cuh"

// A probability below 0 marks an entry that is ignored.
DEV bool leaves_out(double t, int is_logit) { return !is_logit && t < 0.0; }

DEV double target_of(double t, int is_logit) { return is_logit ? sigmoid(t) : t; }

// What the positive weight w adds to the slope of one logit's loss, with more = w - 1.
DEV double extra_slope(double x, double t, double more) { return -more * t * sigmoid(-x); }

DEV double entropy_of(double t, int is_logit) {
    return is_logit ? softplus(t) - t * sigmoid(t) : -plogp(t) - plogp(1.0 - t);
}

// y = each * sum over the elements of the cross-entropy, less the target's entropy if `minus_entropy`. One
// block; `each` is 1 / elements.
KERNEL(1024) bce_fwd(float* RESTRICT y,        // scalar
                     const float* RESTRICT x,  // [elements] logits
                     const float* RESTRICT t,  // [elements] targets
                     i64 elements, int is_logit, int minus_entropy, double positive_weight, double each) {
    SHARED(double, scratch, 32);
    const double total = block_total(elements, scratch, [&](i64 i) {
        if (leaves_out(t[i], is_logit)) return 0.0;
        const double entropy = minus_entropy ? entropy_of(t[i], is_logit) : 0.0;
        const double target = target_of(t[i], is_logit);
        // w t softplus(-x) + (1 - t) softplus(x)
        const double w = positive_weight;
        return softplus(x[i]) * (1.0 + (w - 1.0) * target) - w * target * x[i] - entropy;
    });
    if (threadIdx.x == 0) *y = (float)(total * each);
}
INSTANCE(bce_fwd)

// dx (+)= dy * each * (sigmoid(x) - t - (w - 1) t sigmoid(-x)). One thread per element.
KERNEL(256) bce_bwd(float* RESTRICT dx,        // [elements]
                    const float* RESTRICT x,   // [elements] logits
                    const float* RESTRICT t,   // [elements] targets
                    const float* RESTRICT dy,  // scalar
                    i64 elements, int is_logit, double positive_weight, double each, int add) {
    put_slopes(dx, dy, elements, add, [&](i64 i) {
        if (leaves_out(t[i], is_logit)) return 0.0;
        const double target = target_of(t[i], is_logit);
        return (sigmoid(x[i]) - target + extra_slope(x[i], target, positive_weight - 1.0)) * each;
    });
}
INSTANCE(bce_bwd)
