// Device memory: every allocation is followed by a guard page, so that an access past it faults.
//
// Addresses are multiples of 256, as cuMemAlloc's are, so up to 255 bytes remain between the end of an
// allocation and the guard page. They hold CANARY, and so do the bytes from the start of the first page to
// the allocation. After every launch the bytes behind the allocation and the last 64 before it are checked.
// Under ASan memory comes from malloc instead, whose redzones begin right at the end.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <mutex>

#include "emu/runtime.h"

namespace emu {

struct Allocation {
    size_t bytes;
    char* pages; // mapped, with the guard page
    size_t mapped;
    const void* owner; // the OS thread that made it
};

struct Registry {
    std::mutex lock;
    std::map<char*, Allocation> all;
};
static Registry& registry = *new Registry; // never destroyed: other threads outlive main

static __thread char this_thread; // its address tells OS threads apart

// Whether the allocations of all threads are checked after every launch.
static bool checks_all;

constexpr size_t ALIGN = 256, CHECKED_BEFORE = 64;

static void lay_canaries(char* at, const Allocation& a) {
    for (char* p = a.pages; p < at; p++) *p = canary_at(p);
    for (char* p = at + a.bytes; p < a.pages + a.mapped - PAGE; p++) *p = canary_at(p);
}

static const char* damage(const char* at, const Allocation& a) {
    const size_t before = at - a.pages;
    const size_t checked = before < CHECKED_BEFORE ? before : CHECKED_BEFORE;
    if (!is_canary(at - checked, checked)) return "before";
    const char* end = at + a.bytes;
    if (!is_canary(end, a.pages + a.mapped - PAGE - end)) return "behind";
    return nullptr;
}

static void report(const char* at, const Allocation& a, const char* side, char* out, size_t out_len) {
    snprintf(out, out_len, "out-of-bounds write %s the device allocation of %zu bytes at %p", side, a.bytes, at);
}

bool allocations_intact(char* error, size_t error_len) {
    if (san::ADDRESS) return true;
    std::lock_guard<std::mutex> guard(registry.lock);
    for (auto& [at, a] : registry.all) {
        if (!checks_all && a.owner != &this_thread) continue; // the other thread checks its own
        if (const char* side = damage(at, a)) {
            report(at, a, side, error, error_len);
            // Repairs the canaries, so that the next launch is not blamed too.
            lay_canaries(at, a);
            return false;
        }
    }
    return true;
}

void describe_address(const void* address, char* out, size_t out_len) {
    out[0] = 0;
    const char* p = static_cast<const char*>(address);
    if ((uintptr_t)p < PAGE) {
        snprintf(out, out_len, " (a null pointer)");
        return;
    }
    std::lock_guard<std::mutex> guard(registry.lock);
    auto it = registry.all.upper_bound(const_cast<char*>(p));
    if (it == registry.all.begin()) return;
    --it;
    const Allocation& a = it->second;
    const size_t past = p - (it->first + a.bytes);
    if (p >= it->first + a.bytes && past < 64 * PAGE) {
        snprintf(out, out_len, ", %zu bytes past the end of a device allocation of %zu bytes", past, a.bytes);
    }
}

} // namespace emu

using namespace emu;

// Filled with NaN, so that a read of memory that was never written shows in the result.
extern "C" void* emu_alloc(size_t bytes) {
    if (san::ADDRESS) {
        void* p = nullptr;
        if (posix_memalign(&p, ALIGN, bytes ? bytes : 1)) return nullptr;
        return memset(p, 0xff, bytes);
    }
    const size_t room = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    const size_t data = (room + PAGE - 1) / PAGE * PAGE;
    void* pages = mmap(nullptr, data + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return nullptr;
    char *const first = static_cast<char*>(pages), *const at = first + (data - room);
    memset(at, 0xff, bytes);
    const Allocation a = {bytes, first, data + PAGE, &this_thread};
    lay_canaries(at, a);
    mprotect(first + data, PAGE, PROT_NONE);
    std::lock_guard<std::mutex> guard(registry.lock);
    registry.all[at] = a;
    return at;
}

extern "C" void emu_free(void* p) {
    if (!p) return;
    if (san::ADDRESS) return free(p);
    char* const at = static_cast<char*>(p);
    Allocation a;
    const char* side;
    {
        std::lock_guard<std::mutex> guard(registry.lock);
        auto it = registry.all.find(at);
        if (it == registry.all.end()) {
            fprintf(stderr, "emu_free: %p is no allocation, or was freed before\n", p);
            abort();
        }
        a = it->second;
        side = damage(at, a);
        registry.all.erase(it);
    }
    if (side) { // another thread made it than launched the kernel, or the host wrote outside it
        char text[200];
        report(at, a, side, text, sizeof text);
        fprintf(stderr, "emu_free: %s\n", text);
        abort();
    }
    munmap(a.pages, a.mapped);
}

// For a driver that launches under one lock, on whichever thread waits: no other thread writes meanwhile.
extern "C" void emu_check_all_allocations() { checks_all = true; }
