// Packs of neighbouring elements as f32 numbers: a load or store has up to 16 bytes, arithmetic is in f32.
#pragma once
#include "lib/dev.cuh"

template <int n> using Floats = Pack<float, n>;

template <int n, class T> DEV Floats<n> load_f32(const T* p) {
    const Pack<T, n> from = load_pack<n>(p);
    Floats<n> v;
    UNROLL
    for (int i = 0; i < n; i++) v.v[i] = to_f32(from.v[i]);
    return v;
}
template <int n, class T> DEV void store_f32(T* p, const Floats<n>& v) {
    Pack<T, n> to;
    UNROLL
    for (int i = 0; i < n; i++) to.v[i] = from_f32<T>(v.v[i]);
    store_pack<n>(p, to);
}
// The bits of a pack in an activation mask, which has ceil(c / 8) bytes per pixel; all set if the mask is
// null.
template <int n> DEV u32 mask_bits(const u8* mask, i64 pixel, int channel, int c) {
    static_assert(8 % n == 0, "the bits of a pack are in one byte");
    return mask ? mask[pixel * ((c + 7) / 8) + channel / 8] >> channel % 8 : 0xffu;
}
// `put` for a pack. Elements whose bit is 0 are multiplied by `slope` after the addition: the last writer of
// a gradient applies the activation mask.
template <int n, class T> DEV void put_f32(T* p, Floats<n> v, int add, u32 bits = 0xffu, float slope = 0.0f) {
    if (add) {
        const Floats<n> old = load_f32<n>(p);
        UNROLL
        for (int i = 0; i < n; i++) v.v[i] += old.v[i];
    }
    UNROLL
    for (int i = 0; i < n; i++) v.v[i] = bits >> i & 1 ? v.v[i] : v.v[i] * slope;
    store_f32<n>(p, v);
}
template <int n> DEV Floats<n> floats(float value) {
    Floats<n> v;
    UNROLL
    for (int i = 0; i < n; i++) v.v[i] = value;
    return v;
}
