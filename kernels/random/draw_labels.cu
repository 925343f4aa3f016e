// Random label sets, y[row, label] = 1 or 0: see src/ops/random/draw_labels.rs.
#include "lib/dev.cuh"
#include "lib/philox.cuh"

// One thread per row, since each label depends on those before it. Lane 0 draws the size of the set, between
// `min` and `max`; lanes 1, 2, ... draw four labels each.
KERNEL(64) draw_labels(float* RESTRICT y,  // [n, labels]
                       int n, int labels, int min, int max, const StepState* RESTRICT step, u32 stream) {
    const Draws draws = Draws::of(step, stream);
    for (i64 row = global_thread(); row < n; row += global_threads()) {
        float* out = y + row * labels;
        u32 to_take = (u32)min + below(draws.words((u32)row, 0).v[0], (u32)(max - min) + 1);
        for (int first = 0; first < labels; first += 4) {
            const Words words = draws.words((u32)row, 1 + (u32)first / 4);
            UNROLL
            for (int k = 0; k < 4; k++) {
                if (first + k >= labels) break;
                // Selection sampling (Knuth, TAOCP 2, algorithm 3.4.2 S): a label is taken with probability
                // (labels still to take) / (labels left).
                const bool takes = below(words.v[k], (u32)(labels - first - k)) < to_take;
                to_take -= takes;
                out[first + k] = takes ? 1.f : 0.f;
            }
        }
    }
}
INSTANCE(draw_labels)
