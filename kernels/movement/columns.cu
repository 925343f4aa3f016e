// Selects columns: y[n, j] = x[n, index[j]]. See src/ops/movement/columns.rs. One thread per element.
#include "lib/dev.cuh"

KERNEL(256) columns_fwd(float* RESTRICT y,            // [n, picks]
                        const float* RESTRICT x,      // [n, c]
                        const i64* RESTRICT index,    // [picks]
                        int n, int c, int picks) {
    const i64 elements = (i64)n * picks;
    for (i64 e = global_thread(); e < elements; e += global_threads()) y[e] = x[e / picks * c + index[e % picks]];
}
INSTANCE(columns_fwd)

// dx (+)= sum of dy over the columns that read it. A thread searches the index for its column, so no inverse
// list is needed, and sums in the order of the index.
KERNEL(256) columns_bwd(float* RESTRICT dx,           // [n, c]
                        const float* RESTRICT dy,     // [n, picks]
                        const i64* RESTRICT index,    // [picks]
                        int n, int c, int picks, int add) {
    const i64 elements = (i64)n * c;
    for (i64 e = global_thread(); e < elements; e += global_threads()) {
        const i64 row = e / c, column = e % c;
        float sum = add ? dx[e] : 0.f;
        for (int j = 0; j < picks; j++)
            if (index[j] == column) sum += dy[row * picks + j];
        dx[e] = sum;
    }
}
INSTANCE(columns_bwd)
