// Eight neighbouring channels of a pixel at a time: 16 bytes of bf16, and a whole byte of an activation mask.
#pragma once
#include "lib/dev.cuh"

// Elements in 16 bytes, the unit of a copy.
template <class T> constexpr int CHUNK = 16 / (int)sizeof(T);

// Loads eight neighbours, or the `count` of them that exist (the others are 0). `aligned` promises that the
// address is a multiple of 16 bytes and that all eight exist.
template <class T> DEV void load_eight(float (&v)[8], const T* from, int count, bool aligned) {
    if (aligned) {
        UNROLL
        for (int i = 0; i < 8; i += CHUNK<T>) {
            const Pack<T, CHUNK<T>> p = load_pack<CHUNK<T>>(from + i);
            UNROLL
            for (int e = 0; e < CHUNK<T>; e++) v[i + e] = to_f32(p.v[e]);
        }
        return;
    }
    UNROLL
    for (int i = 0; i < 8; i++) v[i] = i < count ? to_f32(from[i]) : 0.0f;
}
template <class T> DEV void store_eight(T* to, const float (&v)[8], int count, bool aligned) {
    if (aligned) {
        UNROLL
        for (int i = 0; i < 8; i += CHUNK<T>) {
            Pack<T, CHUNK<T>> p;
            UNROLL
            for (int e = 0; e < CHUNK<T>; e++) p.v[e] = from_f32<T>(v[i + e]);
            store_pack(to + i, p);
        }
        return;
    }
    UNROLL
    for (int i = 0; i < 8; i++) {
        if (i < count) to[i] = from_f32<T>(v[i]);
    }
}
// Eight gradients: added to what is in `from` if `add`, then multiplied by `slope` where the bit is 0 (the last
// writer of a gradient applies the activation mask).
template <class T>
DEV void sum_eight(float (&v)[8], const T* from, int count, bool aligned, int add, u32 bits, float slope) {
    float old[8] = {};
    if (add) load_eight(old, from, count, aligned);
    UNROLL
    for (int i = 0; i < 8; i++) {
        v[i] = add ? old[i] + v[i] : v[i];
        v[i] = bits >> i & 1 ? v[i] : v[i] * slope;
    }
}
// Writes eight gradients, or adds them to what is there.
template <class T> DEV void put_eight(T* to, const float (&v)[8], int count, bool aligned, int add) {
    float sum[8];
    UNROLL
    for (int i = 0; i < 8; i++) sum[i] = v[i];
    sum_eight(sum, to, count, aligned, add, 0xffu, 0.0f);
    store_eight(to, sum, count, aligned);
}
