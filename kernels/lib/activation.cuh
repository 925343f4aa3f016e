// The activations, as the pointwise op computes them.
#pragma once
#include "lib/dev.cuh"

// 1 / (1 + e^-v), without overflow on either side.
DEV float sigmoid(float v) {
    const float e = expf(-fabsf(v)), small = e / (1.0f + e);
    return v > 0.0f ? 1.0f - small : small;
}

// Mirrors `DeviceAct` of src/ops/layers/activation.rs.
struct Act {
    int kind;    // 0: piecewise linear with a kink at 0, 1: tanh, 2: sigmoid
    float below; // slope below 0 of a piecewise linear one (1 without an activation, 0 for ReLU)

    // Not a maximum, which would drop a NaN: a diverged network must not look like one whose units are 0.
    DEV float value(float v) const {
        if (kind == 1) return tanhf(v);
        if (kind == 2) return sigmoid(v);
        return v > 0.0f ? v : below == 0.0f ? (v < 0.0f ? 0.0f : v) : v * below;
    }
    // The derivative as a function of the value y.
    DEV float slope(float y) const {
        if (kind == 1) return 1.0f - y * y;
        if (kind == 2) return y * (1.0f - y);
        return y > 0.0f ? 1.0f : below;
    }
};
static_assert(sizeof(Act) == 8, "Act must match src/ops/layers/activation.rs");
