// Normal noise: see src/ops/random/noise.rs. A thread draws four neighbouring elements from one Philox block,
// in double like src/device/philox.rs.
#include "lib/dev.cuh"
#include "lib/philox.cuh"

// The draws of one thread.
struct Four {
    double v[4];
};

// Elements [4 block, 4 block + 4) of y, as far as there are any.
template <class T> DEV void store_four(T* y, i64 elements, u32 block, const Four& four) {
    const i64 at = 4 * (i64)block;
    if (at + 4 <= elements) {
        Pack<T, 4> p;
        UNROLL
        for (int k = 0; k < 4; k++) p.v[k] = from_f32<T>((float)four.v[k]);
        store_pack(y + at, p);
    } else {
        UNROLL
        for (int k = 0; k < 3; k++)
            if (at + k < elements) y[at + k] = from_f32<T>((float)four.v[k]);
    }
}

// y = standard normals, by Box-Muller.
template <class T> KERNEL(256) noise_normal(T* RESTRICT y,  // [elements]
                                            i64 elements, const StepState* RESTRICT step, u32 stream) {
    const Draws draws = Draws::of(step, stream);
    for (i64 block = global_thread(); 4 * block < elements; block += global_threads()) {
        const Words w = draws.words((u32)block, 0);
        Four four;
        UNROLL
        for (int k = 0; k < 4; k += 2) {
            const double r = sqrt(-2.0 * log(unit(w.v[k])));
            const double t = 6.283185307179586 * unit(w.v[k + 1]);
            four.v[k] = r * cos(t);
            four.v[k + 1] = r * sin(t);
        }
        store_four(y, elements, (u32)block, four);
    }
}
INSTANCE(noise_normal<float>)
INSTANCE(noise_normal<bf16>)
