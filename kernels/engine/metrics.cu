// Collects the losses of many steps on the device, so that the host reads them in one transfer.
#include "lib/dev.cuh"

// ring[step % rows, i] = *scalars[i]. One block.
KERNEL(256) push_metrics(float* RESTRICT ring,                   // [rows, count]
                         const float* const* RESTRICT scalars,   // [count]
                         int count, int rows, const StepState* RESTRICT step) {
    float* row = ring + (i64)(step->step % (u64)rows) * count;
    for (int i = threadIdx.x; i < count; i += blockDim.x) row[i] = *scalars[i];
}
INSTANCE(push_metrics)
