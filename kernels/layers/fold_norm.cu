// A batch norm with running estimates, folded into the filter in front of it: see src/ops/layers/fold_norm.rs. The kernels
// have a table of filters, of any number and sizes: a student folds all of its hundred filters in one launch. A block has
// one output channel of one filter.
#include "lib/reduce.cuh"

// A row of the table of forward. T is the type that convolutions multiply with.
template <class T> struct FoldForward {
    T* filter;   // [channels][depth]
    float* bias; // [channels], as all vectors
    const float* w;
    const float* gamma;
    const float* beta;
    const float* mean;
    const float* var;
    i64 channels, depth;
};
static_assert(sizeof(FoldForward<float>) == 72, "FoldForward must match src/ops/layers/fold_norm.rs");

// filter = w s and bias = beta - mean s, with s = gamma / sqrt(var + eps). Grid: (most channels, filters).
template <class T> KERNEL(128) fold_norm_fwd(const FoldForward<T>* RESTRICT filters, float eps) {
    const FoldForward<T> f = filters[blockIdx.y];
    const i64 k = blockIdx.x;
    if (k >= f.channels) return;
    const float scale = f.gamma[k] / sqrtf(f.var[k] + eps);
    const float* RESTRICT w = f.w + k * f.depth;
    T* RESTRICT filter = f.filter + k * f.depth;
    for (i64 i = threadIdx.x; i < f.depth; i += blockDim.x) filter[i] = from_f32<T>(w[i] * scale);
    if (threadIdx.x == 0) f.bias[k] = f.beta[k] - f.mean[k] * scale;
}
INSTANCE(fold_norm_fwd<float>)
INSTANCE(fold_norm_fwd<bf16>)

// A row of the table of backward. A gradient that is not needed is null.
struct FoldBackward {
    float* dw; // [channels][depth]
    float* dgamma;
    float* dbeta;
    const float* dfilter; // [channels][depth]
    const float* dbias;
    const float* w;
    const float* gamma;
    const float* mean;
    const float* var;
    i64 channels, depth;
    i64 adds; // bits 0 to 2: whether dw, dgamma and dbeta have a first term already
};
static_assert(sizeof(FoldBackward) == 96, "FoldBackward must match src/ops/layers/fold_norm.rs");

// dw = s dfilter, dgamma = (sum of w dfilter - mean dbias) / sqrt(var + eps), dbeta = dbias. The sum is in double, because
// what mean dbias leaves of it may be small. Grid: (most channels, filters).
KERNEL(128) fold_norm_bwd(const FoldBackward* RESTRICT filters, float eps) {
    SHARED(double, scratch, 4);
    const FoldBackward f = filters[blockIdx.y];
    const i64 k = blockIdx.x;
    if (k >= f.channels) return;
    const float std = sqrtf(f.var[k] + eps), scale = f.gamma[k] / std;
    const float* RESTRICT w = f.w + k * f.depth;
    const float* RESTRICT dfilter = f.dfilter + k * f.depth;
    double product = 0.0;
    for (i64 i = threadIdx.x; i < f.depth; i += blockDim.x) {
        const float g = dfilter[i];
        product += (double)w[i] * (double)g;
        if (f.dw) put(f.dw + k * f.depth + i, g * scale, f.adds & 1);
    }
    product = block_sum(product, scratch);
    if (threadIdx.x > 0) return;
    const float dbias = f.dbias[k];
    if (f.dgamma) {
        put(f.dgamma + k, (float)((product - (double)f.mean[k] * (double)dbias) / (double)std), (f.adds & 2) != 0);
    }
    if (f.dbeta) put(f.dbeta + k, dbias, (f.adds & 4) != 0);
}
INSTANCE(fold_norm_bwd)
