// Several problems of equal sizes in one launch: blockIdx.y picks the member, whose addresses lie in a structure of pointers.
// Two ResNet-101 teachers and four levels of features give eight convolutions at a time; alone, one of 14x14 leaves a third of
// the multiprocessors without a block in its last wave.
#pragma once
#include "lib/dev.cuh"

// Mirrors `MEMBERS` of src/device/gpu/launch.rs.
constexpr int MEMBERS = 8;

// A kernel's parameter; `S` has nothing but pointers (build.rs counts them). Rows past the launch's members are null.
template <class S> struct Members {
    S of[MEMBERS];

    DEV const S& mine() const { return of[blockIdx.y]; }
};
