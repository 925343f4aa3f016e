// What follows the product of a 1x1 convolution or a linear layer that a library has computed
// (src/ops/layers/conv2d/matmul.rs): the epilogues of conv2d_fwd.cu and conv2d_dgrad.cu, on sums in f32 in memory. For
// comparisons, so they are as plain as they can be: a thread for each eight channels of a pixel, in a grid of any size. A group
// has a single member, because each member's sums would be an argument of their own; its type is that of the other kernels.
#include "lib/conv2d_dims.cuh"
#include "lib/eights.cuh"
#include "lib/group.cuh"

// Calls each(row, channel, v, count, aligned) for every eight channels, or the `count` of them that exist, of sums
// [rows, channels].
template <class Each> DEV void each_eight(const float* RESTRICT sums, i64 rows, int channels, const Each& each) {
    const int eights = (channels + 7) / 8;
    const bool aligned = channels % 8 == 0;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < rows * eights; i += (i64)gridDim.x * blockDim.x) {
        const i64 row = i / eights;
        const int channel = (int)(i % eights) * 8, count = channels - channel;
        float v[8];
        load_eight(v, sums + row * channels + channel, count, aligned);
        each(row, channel, v, count, aligned);
    }
}

// Computes y = act(bias + residual + sums) as conv2d_fwd does, where sums is [n p q, k]. It writes no channel statistics.
template <class T>
KERNEL(256) conv2d_matmul_fwd(Group<Conv2dForward<T>> members, const float* RESTRICT sums, Conv2dDims d, float slope) {
    const Conv2dForward<T>& io = members.mine();
    const int mask_bytes = (d.k + 7) / 8;
    each_eight(sums, (i64)d.n * d.p * d.q, d.k, [&](i64 m, int k, float(&v)[8], int count, bool aligned) {
        float more[8];
        if (io.bias) {
            load_eight(more, io.bias + k, count, aligned);
            UNROLL
            for (int i = 0; i < 8; i++) v[i] += more[i];
        }
        if (io.pre_activation) store_eight(io.pre_activation + m * d.k + k, v, count, aligned);
        if (io.residual) {
            load_eight(more, io.residual + m * d.k + k, count, aligned);
            UNROLL
            for (int i = 0; i < 8; i++) v[i] += more[i];
        }
        u32 bits = 0;
        UNROLL
        for (int i = 0; i < 8; i++) {
            // Bits past the last channel stay 0, as on the CPU.
            bits |= (u32)(v[i] > 0.0f && i < count) << i;
            v[i] = v[i] > 0.0f ? v[i] : v[i] * slope;
        }
        if (io.mask) io.mask[m * mask_bytes + k / 8] = (u8)bits;
        store_eight(io.y + m * d.k + k, v, count, aligned);
    });
}
INSTANCE(conv2d_matmul_fwd<float>)
INSTANCE(conv2d_matmul_fwd<bf16>)

// dx (+)= sums, multiplied by the slope of the activation that produced x, and with `u` the gradient of u, as
// conv2d_dgrad; sums [n h w, c].
template <class T>
KERNEL(256)
conv2d_matmul_dgrad(Group<Conv2dInputGradient<T>> members, const float* RESTRICT sums, Conv2dDims d, int add, float slope) {
    const Conv2dInputGradient<T>& io = members.mine();
    const int mask_bytes = (d.c + 7) / 8;
    each_eight(sums, (i64)d.n * d.h * d.w, d.c, [&](i64 m, int c, float(&v)[8], int count, bool aligned) {
        const u32 bits = io.mask ? io.mask[m * mask_bytes + c / 8] : 0xffu;
        const i64 element = m * d.c + c;
        sum_eight(v, io.dx + element, count, aligned, add, bits, slope);
        if (!io.u || io.du) store_eight(io.dx + element, v, count, aligned);
        if (!io.u) return;
        float u[8];
        load_eight(u, io.u + element, count, aligned);
        const float scale = *io.dloss;
        UNROLL
        for (int i = 0; i < 8; i++) {
            if (i >= count) break;
            const float shift = io.coefficients[c + i];
            v[i] += scale * fmaf(io.coefficients[d.c + c + i], u[i] - shift, io.coefficients[2 * d.c + c + i]);
        }
        store_eight((io.du ? io.du : io.dx) + element, v, count, aligned);
    });
}
INSTANCE(conv2d_matmul_dgrad<float>)
INSTANCE(conv2d_matmul_dgrad<bf16>)
