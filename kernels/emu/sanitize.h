// Calls that tell the sanitizers about fibers and about memory that the runtime accesses for a kernel.
//
// The runtime is compiled without -fsanitize and the kernels with it. EMU_ASAN or EMU_TSAN names the
// sanitizer; without either, all of these functions are empty.
#pragma once
#include <stddef.h>

#if EMU_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
void __asan_poison_memory_region(const volatile void*, size_t);
void __asan_unpoison_memory_region(const volatile void*, size_t);
void* __asan_region_is_poisoned(void*, size_t);
}
#endif
#if EMU_TSAN
extern "C" {
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned no_sync);
void* __tsan_get_current_fiber();
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_read_range(void*, size_t);
void __tsan_write_range(void*, size_t);
}
#endif

namespace san {

#if EMU_ASAN
constexpr bool ADDRESS = true;
inline void poison(const void* p, size_t n) { __asan_poison_memory_region(p, n); }
inline void unpoison(const void* p, size_t n) { __asan_unpoison_memory_region(p, n); }
// Whether a kernel could not have accessed all of these bytes itself.
inline bool poisoned(const void* p, size_t n) { return __asan_region_is_poisoned(const_cast<void*>(p), n); }
// Before leaving a stack for another. A null `save` means that the stack that is left is not used again.
inline void before_switch(void** save, const void* bottom, size_t size) {
    __sanitizer_start_switch_fiber(save, bottom, size);
}
// After arriving; returns the bounds of the stack that was left.
inline void after_switch(void* save, const void** bottom, size_t* size) {
    __sanitizer_finish_switch_fiber(save, bottom, size);
}
#else
constexpr bool ADDRESS = false;
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
inline bool poisoned(const void*, size_t) { return false; }
inline void before_switch(void**, const void*, size_t) {}
inline void after_switch(void*, const void**, size_t*) {}
#endif

#if EMU_TSAN
constexpr bool THREAD = true;
inline void* create_fiber() { return __tsan_create_fiber(0); }
// A switch does not order memory; only barriers do, through release and acquire.
inline void switch_to(void* f) { __tsan_switch_to_fiber(f, 1); }
inline void* current_fiber() { return __tsan_get_current_fiber(); }
inline void acquire(void* p) { __tsan_acquire(p); }
inline void release(void* p) { __tsan_release(p); }
inline void reads(const void* p, size_t n) { __tsan_read_range(const_cast<void*>(p), n); }
inline void writes(void* p, size_t n) { __tsan_write_range(p, n); }
#else
constexpr bool THREAD = false;
inline void* create_fiber() { return nullptr; }
inline void switch_to(void*) {}
inline void* current_fiber() { return nullptr; }
inline void acquire(void*) {}
inline void release(void*) {}
inline void reads(const void*, size_t) {}
inline void writes(void*, size_t) {}
#endif

} // namespace san
