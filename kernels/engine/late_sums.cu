// Gradients of trained tensors and folded filters, from the parts that backward has left: see src/ops/launch/late_sums.rs. One launch adds the parts
// of all gradients, in the order of their instructions, and without atomics.
#include "lib/chunks.cuh"
#include "lib/reduce.cuh"

// A row of the table of gradients.
struct LateGradient {
    float* to;
    i64 len;
    i64 first, sources; // its rows in the table of sources
    i64 add;            // whether `to` has a first term already
};
static_assert(sizeof(LateGradient) == 40, "LateGradient must match src/ops/launch/late_sums.rs");

// A row of the table of sources: one for each instruction that has left parts of a gradient.
struct LateParts {
    const float* parts;
    i64 stride, count;
};
static_assert(sizeof(LateParts) == 24, "LateParts must match src/ops/launch/late_sums.rs");

// Few parts: a thread adds those of an element one after the other.
KERNEL(256) late_sums_few(const LateGradient* RESTRICT gradients, // [gradients]
                          const LateParts* RESTRICT sources,      // [sources]
                          const Chunk* RESTRICT chunks,           // [count]
                          int count, int chunk_elements) {
    for (int c = blockIdx.x; c < count; c += gridDim.x) {
        const LateGradient g = gradients[chunks[c].tensor];
        const i64 first = chunks[c].first;
        const i64 end = g.len < first + chunk_elements ? g.len : first + chunk_elements;
        for (i64 i = first + threadIdx.x; i < end; i += blockDim.x) {
            for (i64 s = g.first; s < g.first + g.sources; s++) {
                const LateParts from = sources[s];
                float sum = 0.0f;
                for (i64 p = 0; p < from.count; p++) sum += from.parts[p * from.stride + i];
                put(g.to + i, sum, g.add || s > g.first);
            }
        }
    }
}
INSTANCE(late_sums_few)

// Many parts: 32 threads add those of an element, in double. A chunk is the 8 elements of a block.
KERNEL(256) late_sums_many(const LateGradient* RESTRICT gradients, const LateParts* RESTRICT sources,
                           const Chunk* RESTRICT chunks, int count, int chunk_elements) {
    constexpr int ELEMENTS = 8, SLICES = 32;
    SHARED(double, scratch, ELEMENTS * SLICES);
    const int slice = threadIdx.x / ELEMENTS;
    for (int c = blockIdx.x; c < count; c += gridDim.x) {
        const LateGradient g = gradients[chunks[c].tensor];
        const i64 i = chunks[c].first + threadIdx.x % ELEMENTS;
        for (i64 s = g.first; s < g.first + g.sources; s++) {
            const LateParts from = sources[s];
            double sum[1] = {0.0};
            if (i < g.len) {
                for (i64 p = slice; p < from.count; p += SLICES) sum[0] += from.parts[p * from.stride + i];
            }
            sum_slices<ELEMENTS * SLICES, ELEMENTS>(sum, scratch);
            if (slice == 0 && i < g.len) put(g.to + i, (float)sum[0], g.add || s > g.first);
            sync_block();
        }
    }
}
INSTANCE(late_sums_many)
