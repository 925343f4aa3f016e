// The pointwise functions that end a convolution, a batch norm, or stand alone.
#pragma once
#include "lib/dev.cuh"

// 1 / (1 + e^-v), without overflow on either side.
DEV float sigmoid(float v) {
    const float e = expf(-fabsf(v)), small = e / (1.0f + e);
    return v > 0.0f ? 1.0f - small : small;
}

// Mirrors `DeviceAct` of src/ops/layers/activation.rs.
struct Act {
    int kind;           // 0 a step of the slope at 0, 1 tanh, 2 sigmoid
    float below;        // of the step: the slope below 0 (1 for no activation, 0 for ReLU)

    // Not a maximum: a NaN must pass through, or a diverged network would look like a dead one.
    DEV float value(float v) const {
        if (kind == 1) return tanhf(v);
        if (kind == 2) return sigmoid(v);
        return v > 0.0f ? v : below == 0.0f ? (v < 0.0f ? 0.0f : v) : v * below;
    }
    // The derivative, from the function's value.
    DEV float slope(float y) const {
        if (kind == 1) return 1.0f - y * y;
        if (kind == 2) return y * (1.0f - y);
        return y > 0.0f ? 1.0f : below;
    }
};
static_assert(sizeof(Act) == 8, "Act must match src/ops/layers/activation.rs");
