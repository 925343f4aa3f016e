// The mean of sigmoid(x): see src/ops/losses/discrete_loss.rs. x and dx are [n, c], read as n c elements.
// Arithmetic in double.
#include "lib/dev.cuh"
#include "lib/loss.cuh"

// y = each * sum of sigmoid(x), in one block; `each` is 1 / elements.
KERNEL(1024) discrete_loss_fwd(float* RESTRICT y,        // scalar
                               const float* RESTRICT x,  // [elements] logits
                               i64 elements, double each) {
    SHARED(double, scratch, 32);
    const double total = block_total(elements, scratch, [&](i64 i) { return sigmoid(x[i]); });
    if (threadIdx.x == 0) *y = (float)(total * each);
}
INSTANCE(discrete_loss_fwd)

// dx (+)= dy * each * y (1 - y) with y = sigmoid(x). One thread per element.
KERNEL(256) discrete_loss_bwd(float* RESTRICT dx,        // [elements]
                              const float* RESTRICT x,   // [elements] logits
                              const float* RESTRICT dy,  // scalar
                              i64 elements, double each, int add) {
    put_slopes(dx, dy, elements, add, [&](i64 i) { return sigmoid_slope(x[i]) * each; });
}
INSTANCE(discrete_loss_bwd)
