// The predictions of several networks side by side: see src/ops/movement/concat_columns.rs.
#include "lib/dev.cuh"

// One row of the launch's table: an operand and the columns it takes, `[first, first + c)`.
struct Part {
    float* x;
    i64 first, c, add;
};
static_assert(sizeof(Part) == 32, "Part must match src/ops/movement/concat_columns.rs");

// The part that holds column `j`, or null if none does (its gradient is not wanted). A few parts: a search costs nothing.
DEV const Part* part_of(const Part* parts, int count, i64 j) {
    for (int k = 0; k < count; k++)
        if (j >= parts[k].first && j < parts[k].first + parts[k].c) return parts + k;
    return nullptr;
}

KERNEL(256) concat_columns_fwd(float* RESTRICT y,            // [n, width]
                               const Part* RESTRICT parts,   // [count]
                               int count, int n, int width) {
    for (i64 e = global_thread(); e < (i64)n * width; e += global_threads()) {
        const Part* p = part_of(parts, count, e % width);
        y[e] = p->x[e / width * p->c + e % width - p->first];
    }
}
INSTANCE(concat_columns_fwd)

KERNEL(256) concat_columns_bwd(const float* RESTRICT dy,    // [n, width]
                               const Part* RESTRICT parts,  // [count], x is the gradient
                               int count, int n, int width) {
    for (i64 e = global_thread(); e < (i64)n * width; e += global_threads()) {
        const Part* p = part_of(parts, count, e % width);
        if (p) put(p->x + e / width * p->c + e % width - p->first, dy[e], (int)p->add);
    }
}
INSTANCE(concat_columns_bwd)
