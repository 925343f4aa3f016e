// Elementwise activations, with the addition of a residual in front: see src/ops/layers/activation.rs.
// Memory-bound, so a thread loads 16 bytes at a time.
#include "lib/activation.cuh"
#include "lib/eights.cuh"
#include "lib/group.cuh"

// y = act(x + residual); `residual` may be null.
template <class T>
KERNEL(256) activation_fwd(T* RESTRICT y,               // [elements]
                           const T* RESTRICT x,         // [elements]
                           const T* RESTRICT residual,  // [elements] or null
                           i64 elements, Act act) {
    constexpr int width = 16 / sizeof(T);
    const i64 packs = elements / width;
    for (i64 i = global_thread(); i < packs; i += global_threads()) {
        Pack<T, width> v = load_pack<width>(x + i * width), r;
        if (residual) r = load_pack<width>(residual + i * width);
        UNROLL
        for (int j = 0; j < width; j++) {
            const float sum = residual ? to_f32(v.v[j]) + to_f32(r.v[j]) : to_f32(v.v[j]);
            v.v[j] = from_f32<T>(act.value(sum));
        }
        store_pack(y + i * width, v);
    }
    for (i64 i = packs * width + global_thread(); i < elements; i += global_threads())
        y[i] = from_f32<T>(act.value(residual ? to_f32(x[i]) + to_f32(residual[i]) : to_f32(x[i])));
}
INSTANCE(activation_fwd<float>)
INSTANCE(activation_fwd<bf16>)

// dx (+)= dy * act', computed from the output y; y is null without an activation.
template <class T>
KERNEL(256) activation_bwd(T* RESTRICT dx,         // [elements]
                           const T* RESTRICT dy,   // [elements]
                           const T* RESTRICT y,    // [elements] or null
                           i64 elements, Act act, int add) {
    constexpr int width = 16 / sizeof(T);
    const i64 packs = elements / width;
    for (i64 i = global_thread(); i < packs; i += global_threads()) {
        const Pack<T, width> g = load_pack<width>(dy + i * width);
        Pack<T, width> v, to;
        if (y) v = load_pack<width>(y + i * width);
        if (add) to = load_pack<width>(dx + i * width);
        UNROLL
        for (int j = 0; j < width; j++) {
            const float slope = y ? act.slope(to_f32(v.v[j])) : 1.0f;
            put(&to.v[j], to_f32(g.v[j]) * slope, add);
        }
        store_pack(dx + i * width, to);
    }
    for (i64 i = packs * width + global_thread(); i < elements; i += global_threads())
        put(dx + i, to_f32(dy[i]) * (y ? act.slope(to_f32(y[i])) : 1.0f), add);
}
INSTANCE(activation_bwd<float>)
INSTANCE(activation_bwd<bf16>)

// y = act(x + residual) for a piecewise linear activation; `residual` may be null. Also writes `mask`
// [pixels, ceil(c / 8)], the bits of y > 0, which is all that backward needs. A thread has the eight channels
// of one byte of the mask.
template <class T>
KERNEL(256)
activation_step_fwd(T* RESTRICT y, u8* RESTRICT mask, const T* RESTRICT x, const T* RESTRICT residual, i64 pixels, int c, Act act) {
    const int mask_bytes = (c + 7) / 8;
    const bool aligned = c % 8 == 0;
    for (i64 i = global_thread(); i < pixels * mask_bytes; i += global_threads()) {
        const i64 at = aligned ? i * 8 : i / mask_bytes * c + i % mask_bytes * 8;
        const int count = aligned ? 8 : c - (int)(i % mask_bytes) * 8;
        float v[8], more[8] = {};
        load_eight(v, x + at, count, aligned);
        if (residual) load_eight(more, residual + at, count, aligned);
        u32 bits = 0;
        UNROLL
        for (int e = 0; e < 8; e++) {
            const float sum = residual ? v[e] + more[e] : v[e];
            bits |= (u32)(sum > 0.0f && e < count) << e;
            v[e] = act.value(sum);
        }
        mask[i] = (u8)bits;
        store_eight(y + at, v, count, aligned);
    }
}
INSTANCE(activation_step_fwd<float>)
INSTANCE(activation_step_fwd<bf16>)

template <class T> struct StepBackward {
    T* dx;
    T* dresidual;
    const T* dy;
    const u8* mask;
};

// dx (+)= dy * act' and dresidual (+)= dy * act', where act' is 1 or `slope` by the bits of `mask`, or 1
// without a mask. Either gradient may be null, and both may be the same buffer. Maps of equal sizes share a launch:
// blockIdx.y is the member.
template <class T>
KERNEL(256)
activation_step_bwd(Group<StepBackward<T>> members, i64 pixels, int c, float slope, int add, int add_residual) {
    T *const dx = members.mine().dx, *const dresidual = members.mine().dresidual;
    const T* const dy = members.mine().dy;
    const u8* const mask = members.mine().mask;
    const int mask_bytes = (c + 7) / 8;
    const bool aligned = c % 8 == 0;
    for (i64 i = global_thread(); i < pixels * mask_bytes; i += global_threads()) {
        const i64 at = aligned ? i * 8 : i / mask_bytes * c + i % mask_bytes * 8;
        const int count = aligned ? 8 : c - (int)(i % mask_bytes) * 8;
        const u32 bits = mask ? mask[i] : 0xffu;
        float v[8];
        load_eight(v, dy + at, count, aligned);
        UNROLL
        for (int e = 0; e < 8; e++) v[e] = bits >> e & 1 ? v[e] : v[e] * slope;
        if (dx) put_eight(dx + at, v, count, aligned, add);
        if (dresidual) put_eight(dresidual + at, v, count, aligned, add_residual);
    }
}
INSTANCE(activation_step_bwd<float>)
INSTANCE(activation_step_bwd<bf16>)
