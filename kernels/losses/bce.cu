// Binary cross-entropy of logits against given targets: see src/ops/losses/bce.rs. x, t and dx are [n, c],
// read as n c elements. Targets are logits if `is_logit`, else probabilities. Arithmetic in double. The losses of two tasks
// share a launch: blockIdx.y is the member.
#include "lib/group.cuh"
#include "lib/loss.cuh"

// A probability below 0 marks an entry that is ignored.
DEV bool leaves_out(double t, int is_logit) { return !is_logit && t < 0.0; }

DEV double target_of(double t, int is_logit) { return is_logit ? sigmoid(t) : t; }

// What the positive weight w adds to the slope of one logit's loss, with more = w - 1.
DEV double extra_slope(double x, double t, double more) { return -more * t * sigmoid(-x); }

DEV double entropy_of(double t, int is_logit) {
    return is_logit ? softplus(t) - t * sigmoid(t) : -plogp(t) - plogp(1.0 - t);
}

struct BceForward {
    float* y;       // scalar
    const float* x; // [elements] logits
    const float* t; // [elements] targets
};

// y = each * sum over the elements of the cross-entropy, less the target's entropy if `minus_entropy`. One
// block; `each` is 1 / elements.
KERNEL(1024) bce_fwd(Group<BceForward> members, i64 elements, int is_logit, int minus_entropy, double positive_weight, double each) {
    SHARED(double, scratch, 32);
    const float *const x = members.mine().x, *const t = members.mine().t;
    const double total = block_total(elements, scratch, [&](i64 i) {
        if (leaves_out(t[i], is_logit)) return 0.0;
        const double entropy = minus_entropy ? entropy_of(t[i], is_logit) : 0.0;
        const double target = target_of(t[i], is_logit);
        // w t softplus(-x) + (1 - t) softplus(x)
        const double w = positive_weight;
        return softplus(x[i]) * (1.0 + (w - 1.0) * target) - w * target * x[i] - entropy;
    });
    if (threadIdx.x == 0) *members.mine().y = (float)(total * each);
}
INSTANCE(bce_fwd)

struct BceBackward {
    float* dx;       // [elements]
    const float* x;  // [elements] logits
    const float* t;  // [elements] targets
    const float* dy; // scalar
};

// dx (+)= dy * each * (sigmoid(x) - t - (w - 1) t sigmoid(-x)). One thread per element.
KERNEL(256) bce_bwd(Group<BceBackward> members, i64 elements, int is_logit, double positive_weight, double each, int add) {
    const BceBackward& io = members.mine();
    const float *const x = io.x, *const t = io.t;
    put_slopes(io.dx, io.dy, elements, add, [&](i64 i) {
        if (leaves_out(t[i], is_logit)) return 0.0;
        const double target = target_of(t[i], is_logit);
        return (sigmoid(x[i]) - target + extra_slope(x[i], target, positive_weight - 1.0)) * each;
    });
}
INSTANCE(bce_bwd)
