// Concatenates the columns of several operands: see src/ops/movement/concat_columns.rs. One thread per
// element.
#include "lib/dev.cuh"

// One row of the table: an operand x [n, c], which has columns [first, first + c) of the whole.
struct Part {
    float* x;
    i64 first, c, add;
};
static_assert(sizeof(Part) == 32, "Part must match src/ops/movement/concat_columns.rs");

// The part that has column `j`; null for columns whose operand needs no gradient. There are few parts, so a
// search is cheap.
DEV const Part* part_of(const Part* parts, int count, i64 j) {
    for (int k = 0; k < count; k++)
        if (j >= parts[k].first && j < parts[k].first + parts[k].c) return parts + k;
    return nullptr;
}

// y = the parts side by side.
KERNEL(256) concat_columns_fwd(float* RESTRICT y,            // [n, width]
                               const Part* RESTRICT parts,   // [count]
                               int count, int n, int width) {
    for (i64 e = global_thread(); e < (i64)n * width; e += global_threads()) {
        const Part* p = part_of(parts, count, e % width);
        y[e] = p->x[e / width * p->c + e % width - p->first];
    }
}
INSTANCE(concat_columns_fwd)

// The parts' gradients (+)= their columns of dy.
KERNEL(256) concat_columns_bwd(const float* RESTRICT dy,    // [n, width]
                               const Part* RESTRICT parts,  // [count], x is the gradient
                               int count, int n, int width) {
    for (i64 e = global_thread(); e < (i64)n * width; e += global_threads()) {
        const Part* p = part_of(parts, count, e % width);
        if (p) put(p->x + e / width * p->c + e % width - p->first, dy[e], (int)p->add);
    }
}
INSTANCE(concat_columns_bwd)
