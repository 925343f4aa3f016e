// Sums in a fixed order: a tree over lanes, then warps in order. No atomics, so two runs give the same bits.
#pragma once
#include "lib/dev.cuh"

template <class T> DEV T warp_sum(T v) {
    UNROLL
    for (int by = 16; by > 0; by >>= 1) v += shfl_xor(v, by);
    return v;
}

// The sum over the block, in every thread. `scratch` holds one T per warp and is free again after the call.
// All threads must call.
template <class T> DEV T block_sum(T v, T* scratch) {
    v = warp_sum(v);
    if (lane_id() == 0) scratch[warp_id()] = v;
    sync_block();
    T total = 0;
    for (int w = 0; w < (int)(blockDim.x + 31) / 32; w++) total += scratch[w];
    sync_block();
    return total;
}

// `n` sums over the slices of a block of THREADS threads, in which neighbouring threads have neighbouring channels:
// thread t has channel t % CHANNELS. Every thread gets the sums of its channel, in a tree whose shape depends on the two
// numbers alone. `scratch`: n * THREADS. All threads must call.
template <int THREADS, int CHANNELS, int n> DEV void sum_slices(double (&sums)[n], double* scratch) {
    const int me = threadIdx.x;
    UNROLL
    for (int i = 0; i < n; i++) scratch[i * THREADS + me] = sums[i];
    for (int half = THREADS / 2; half >= CHANNELS; half /= 2) {
        sync_block();
        if (me < half) {
            UNROLL
            for (int i = 0; i < n; i++) scratch[i * THREADS + me] += scratch[i * THREADS + me + half];
        }
    }
    sync_block();
    UNROLL
    for (int i = 0; i < n; i++) sums[i] = scratch[i * THREADS + me % CHANNELS];
}
