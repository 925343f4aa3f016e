// Grouped launches: several problems of equal sizes in one launch. The addresses of each member of the group
// lie in a structure of pointers. In the kernels of lib/tile.cuh (mma.sync, f32) blockIdx.y picks the member.
// The kernels with wgmma have a one-dimensional grid; a block derives the member from the number of the tile
// (`MemberTile::of`). Two ResNet-101 teachers and four levels of features give eight convolutions at a time;
// alone, one of 14x14 pixels and 256 channels at batch 64 has 66 tiles of 192x256 for 132 multiprocessors.
#pragma once
#include "lib/dev.cuh"

// Most members of a group. Mirrors `MAX_GROUP` of src/device/gpu/launch/arg.rs.
constexpr int MAX_GROUP = 8;

// A kernel's parameter. `S` has no fields but pointers, which the build script counts. Structures after the
// group's last member are null.
template <class S> struct Group {
    S of[MAX_GROUP];

    // For kernels whose blockIdx.y is the member.
    DEV const S& mine() const { return of[blockIdx.y]; }
};
