// Shared memory of a block, and cp.async into it.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "emu/runtime.h"

namespace emu {

// The compiler must not turn this loop into memset, which a sanitizer intercepts and would count as a write
// of this thread.
__attribute__((optimize("O3,no-tree-loop-distribute-patterns"))) static void fill(char* p, size_t bytes,
                                                                                  u32 word) {
    u32* q = reinterpret_cast<u32*>(p);
    for (size_t i = 0; i < bytes / 4; i++) q[i] = word;
}

static size_t words(size_t bytes) { return (bytes + 3) & ~(size_t)3; }

// Fills the array with NaN, so that a read before the first write shows in the result.
static char* add_array(Context& c, const void* key, const char* name, size_t bytes, size_t align) {
    char* at = c.shared + ((c.shared_top + align - 1) & ~(align - 1));
    fill(at, words(bytes), POISON);
    char* end = at + bytes;
    for (; (uintptr_t)end % 4; end++) *end = canary_at(end);
    fill(end, REDZONE, CANARY);
    san::unpoison(at, bytes);
    c.shared_top = end + REDZONE - c.shared;
    c.arrays[c.n_arrays++] = {key, name, at, bytes};
    return at;
}

void reset_shared(Context& c) {
    if (!c.shared || san::THREAD) {
        // TSan forgets earlier accesses to memory when it is mapped again.
        void* p = mmap(c.shared, SHARED_SIZE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | (c.shared ? MAP_FIXED : 0), -1, 0);
        if (p == MAP_FAILED) abort();
        c.shared = static_cast<char*>(p);
    }
    san::poison(c.shared, SHARED_SIZE);
    c.n_arrays = 0;
    c.static_bytes = 0;
    c.shared_top = SHARED_FRONT;
    fill(c.shared + SHARED_FRONT - REDZONE, REDZONE, CANARY);
    add_array(c, nullptr, "dynamic shared memory", c.launch->dynamic_shared, 1024);
}

void* dynamic_shared() { return context->arrays[0].at; }

void* shared_array(const void* key, const char* name, size_t bytes, size_t align) {
    Context& c = *context;
    for (u32 i = 1; i < c.n_arrays; i++) {
        if (c.arrays[i].key == key) return c.arrays[i].at;
    }
    c.static_bytes += bytes;
    const size_t all_bytes = c.static_bytes + c.launch->dynamic_shared;
    if (c.static_bytes > MAX_STATIC)
        fail("SHARED arrays of %zu bytes, at most 48 KiB may be static", c.static_bytes);
    if (all_bytes > MAX_SHARED) fail("shared memory of %zu bytes, at most 227 KiB", all_bytes);
    if (c.n_arrays == MAX_ARRAYS) fail("more than %zu SHARED arrays", MAX_ARRAYS - 1);
    return add_array(c, key, name, bytes, align < 16 ? 16 : align);
}

const Array* array_around(Context& c, const void* p, size_t n) {
    const char* q = static_cast<const char*>(p);
    for (u32 i = 0; i < c.n_arrays; i++) {
        const Array& a = c.arrays[i];
        if (q >= a.at && q + n <= a.at + a.bytes) return &a;
    }
    return nullptr;
}

bool redzones_intact(Context& c) {
    const char* where = nullptr;
    const Array* which = &c.arrays[0];
    if (!is_canary(c.shared + SHARED_FRONT - REDZONE, REDZONE)) where = "before";
    for (u32 i = 0; i < c.n_arrays && !where; i++) {
        which = &c.arrays[i];
        if (!is_canary(which->at + which->bytes, REDZONE)) where = "behind";
    }
    if (!where) return true;
    snprintf(c.error, sizeof c.error, "block (%u,%u,%u): out-of-bounds write %s shared array `%s` of %zu bytes",
             block.idx.x, block.idx.y, block.idx.z, where, which->name, which->bytes);
    return false;
}

// ---- cp.async ----
//
// Copies as late as is legal, at the wait, so that a missing wait leaves NaN in shared memory. In a random
// order half of the copies happen at once, because a kernel must not rely on late copies either.

static void perform(const Copy& copy) {
    san::writes(copy.to, 16);
    if (copy.from) __builtin_memcpy(copy.to, copy.from, 16);
    else __builtin_memset(copy.to, 0, 16);
}

void cp_async(void* to, const void* from, bool valid, Place p) {
    Context& c = *context;
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) {
        fail("cp.async at %s:%d: %s address not a multiple of 16 bytes", file_name(p), p.line,
             (uintptr_t)to % 16 ? "shared" : "global");
    }
    if (!array_around(c, to, 16)) {
        fail("cp.async at %s:%d: destination does not lie within one shared array", file_name(p), p.line);
    }
    const char* f = static_cast<const char*>(from);
    if (valid && f >= c.shared && f < c.shared + SHARED_SIZE) {
        fail("cp.async at %s:%d: source is shared memory", file_name(p), p.line);
    }
    if (valid && san::poisoned(from, 16)) {
        fail("cp.async at %s:%d: source is not within a device allocation", file_name(p), p.line);
    }
    // TSan sees an access of this thread at both ends of the time in which the copy may happen: here, and in
    // `perform`.
    san::writes(to, 16);
    if (valid) san::reads(from, 16);
    Fiber& me = running();
    const Copy copy{to, valid ? from : nullptr, me.group};
    if (c.order >= 2 && random(c) & 1) perform(copy);
    else me.copies.push_back(copy);
}

void cp_async_commit() { running().group++; }

void cp_async_wait(u32 in_flight) {
    Fiber& me = running();
    size_t done = 0;
    while (done < me.copies.size() && me.copies[done].group + in_flight < me.group) perform(me.copies[done++]);
    me.copies.erase(me.copies.begin(), me.copies.begin() + done);
}

} // namespace emu
