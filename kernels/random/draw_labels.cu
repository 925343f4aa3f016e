// Random label sets: see src/ops/random/draw_labels.rs.
#include "lib/dev.cuh"
#include "lib/philox.cuh"

// A thread a row, since each label depends on those before it. Lane 0 draws the size, lanes 1, 2, ... four labels each.
KERNEL(64) draw_labels(float* RESTRICT y,  // [n, labels]
                       int n, int labels, int min, int max, const StepState* RESTRICT step, u32 stream) {
    const Draws draws = Draws::of(step, stream);
    for (i64 row = global_thread(); row < n; row += global_threads()) {
        float* out = y + row * labels;
        u32 wanted = (u32)min + below(draws.words((u32)row, 0).v[0], (u32)(max - min) + 1);
        for (int first = 0; first < labels; first += 4) {
            const Words words = draws.words((u32)row, 1 + (u32)first / 4);
            UNROLL
            for (int k = 0; k < 4; k++) {
                if (first + k >= labels) break;
                // Selection sampling (Knuth, TAOCP 2, algorithm 3.4.2 S): each label is in with the share of wanted
                // ones among those left.
                const bool takes = below(words.v[k], (u32)(labels - first - k)) < wanted;
                wanted -= takes;
                out[first + k] = takes ? 1.f : 0.f;
            }
        }
    }
}
INSTANCE(draw_labels)
