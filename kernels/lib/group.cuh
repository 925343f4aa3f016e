// Grouped launches: several problems of equal sizes in one launch. blockIdx.y picks the member of the group,
// whose addresses lie in a structure of pointers. Two ResNet-101 teachers and four levels of features give
// eight convolutions at a time; alone, one of 14x14 leaves a third of the multiprocessors without a block in
// its last wave.
#pragma once
#include "lib/dev.cuh"

// Most members of a group. Mirrors `MAX_GROUP` of src/device/gpu/launch/arg.rs.
constexpr int MAX_GROUP = 8;

// A kernel's parameter. `S` has no fields but pointers, which build.rs counts. Structures after the group's
// last member are null.
template <class S> struct Group {
    S of[MAX_GROUP];

    DEV const S& mine() const { return of[blockIdx.y]; }
};
