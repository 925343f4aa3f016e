// Elementwise activation, and the residual addition in front of it. Memory-bound: 16 bytes a thread a load.
#include "lib/activation.cuh"

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

// dx (+)= dy * act'(y); without an activation `y` is null.
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
