// Joining along the batch axis: one launch for all operands, an operand a row of blocks. Offsets count packs.
#include "lib/packs.cuh"

// A row of the table that src/ops/concat.rs makes: 8-byte cells.
template <class T> struct ConcatPart {
    T* data;
    i64 first, packs, add;
};

// y [sum of packs]
template <class T, int n> KERNEL(256) concat_fwd(T* RESTRICT y, const ConcatPart<const T>* RESTRICT parts) {
    const ConcatPart<const T> part = parts[blockIdx.y];
    for (i64 i = global_thread(); i < part.packs; i += global_threads()) {
        store_pack<n>(y + (part.first + i) * n, load_pack<n>(part.data + i * n));
    }
}
INSTANCE(concat_fwd<float, 4>)
INSTANCE(concat_fwd<float, 1>)
INSTANCE(concat_fwd<bf16, 8>)
INSTANCE(concat_fwd<bf16, 1>)

// The gradients that are wanted, each dy's part
template <class T, int n> KERNEL(256) concat_bwd(const ConcatPart<T>* RESTRICT parts, const T* RESTRICT dy) {
    const ConcatPart<T> part = parts[blockIdx.y];
    for (i64 i = global_thread(); i < part.packs; i += global_threads()) {
        put_f32<n>(part.data + i * n, load_f32<n>(dy + (part.first + i) * n), (int)part.add);
    }
}
INSTANCE(concat_bwd<float, 4>)
INSTANCE(concat_bwd<float, 1>)
INSTANCE(concat_bwd<bf16, 8>)
INSTANCE(concat_bwd<bf16, 1>)
