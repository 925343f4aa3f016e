// Draws a random batch from a bank of images, with replacement: see src/ops/movement/gather_images.rs.
#include "lib/dev.cuh"
#include "lib/philox.cuh"

// y[i] = bank[row i], with `rows` rows in the bank and `image` elements in an image. Grid [parts of an image,
// images]. Each thread draws its image's row itself: 80 instructions, for four packs per thread in large
// images.
template <class T>
KERNEL(256) gather_images(T* RESTRICT y,               // [n, image]
                          const float* RESTRICT bank,  // [m, image]
                          int n, i64 image, u32 rows, const StepState* RESTRICT step, u32 stream) {
    const Draws draws = Draws::of(step, stream);
    for (int i = blockIdx.y; i < n; i += gridDim.y) {
        const i64 row = below(draws.words((u32)i, 0).v[0], rows);
        const float* from = bank + row * image;
        T* to = y + i * image;
        if (image % 4 == 0) {
            for (i64 at = 4 * global_thread(); at < image; at += 4 * global_threads()) {
                const Pack<float, 4> v = load_pack<4>(from + at);
                Pack<T, 4> p;
                UNROLL
                for (int k = 0; k < 4; k++) p.v[k] = from_f32<T>(v.v[k]);
                store_pack(to + at, p);
            }
        } else {
            for (i64 at = global_thread(); at < image; at += global_threads()) to[at] = from_f32<T>(from[at]);
        }
    }
}
INSTANCE(gather_images<float>)
INSTANCE(gather_images<bf16>)
