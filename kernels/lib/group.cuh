// Grouped launches: several problems of equal sizes in one launch. A member of the group is a structure of
// pointers; blockIdx.y picks it, except in the wgmma kernels, whose tiles are numbered over all members. Two
// ResNet-101 teachers and four levels of features give eight convolutions at a time; alone, one of 14x14
// leaves a third of the multiprocessors without a block in its last wave.
#pragma once
#include "lib/dev.cuh"

// Most members of a group. Mirrors `MAX_GROUP` of src/device/gpu/launch/arg.rs.
constexpr int MAX_GROUP = 8;

// A kernel's parameter. `S` has no fields but pointers, which the build script counts. Structures after the
// group's last member are null.
template <class S> struct Group {
    S of[MAX_GROUP];

    DEV const S& mine() const { return of[blockIdx.y]; }
};
