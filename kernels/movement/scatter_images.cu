// Stores a batch in a bank of images, over the oldest ones: see src/ops/movement/scatter_images.rs.
#include "lib/dev.cuh"

// bank[(step n + i) mod m] = x[i]: consecutive rows, and so consecutive elements, which can wrap around the
// end of the bank once. `image` elements in an image; four per thread where they divide it.
template <class T>
KERNEL(256) scatter_images(float* RESTRICT bank,  // [m, image]
                           const T* RESTRICT x,   // [n, image]
                           i64 m, i64 n, i64 image, const StepState* RESTRICT step) {
    const i64 first = (i64)(step->step % (u64)m * (u64)n % (u64)m) * image;
    const i64 end = m * image, elements = n * image;
    if (image % 4 == 0) {
        for (i64 e = 4 * global_thread(); e < elements; e += 4 * global_threads()) {
            const i64 at = first + e < end ? first + e : first + e - end;
            const Pack<T, 4> v = load_pack<4>(x + e);
            Pack<float, 4> p;
            UNROLL
            for (int k = 0; k < 4; k++) p.v[k] = to_f32(v.v[k]);
            store_pack(bank + at, p);
        }
    } else {
        for (i64 e = global_thread(); e < elements; e += global_threads())
            bank[first + e < end ? first + e : first + e - end] = to_f32(x[e]);
    }
}
INSTANCE(scatter_images<float>)
INSTANCE(scatter_images<bf16>)
