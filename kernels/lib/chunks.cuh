// One launch covers many tensors: it takes a table of tensors and a table of chunks, one row for each few elements of
// a tensor. A block finds its chunk with one load. A search through the tensors' sizes would cost log2(tensors)
// dependent loads instead, and save only 16 bytes per chunk: an optimiser's chunk of 4096 elements moves 100 KB.
#pragma once
#include "lib/dev.cuh"

struct Chunk {
    i64 tensor, first;
};
static_assert(sizeof(Chunk) == 16, "Chunk must match src/ops/launch/chunks.rs");
