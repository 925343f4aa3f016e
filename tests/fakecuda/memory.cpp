// Device memory, pinned host memory, and copies between host and device.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "driver.h"

extern "C" void* emu_alloc(size_t);
extern "C" void emu_free(void*);

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER(INIT | CURRENT | HEALTHY);
    *free = CAPACITY - driver.used;
    *total = CAPACITY;
    return SUCCESS;
}
// The emulator fills new memory with NaN.
API cuMemAlloc_v2(Address* address, size_t bytes) {
    ENTER(INIT | CURRENT | HEALTHY | UNSAFE);
    if (!bytes) REFUSE(INVALID_VALUE, "0 bytes");
    if (bytes > CAPACITY - driver.used) {
        REFUSE(OUT_OF_MEMORY, "%zu bytes, %zu of %ld used", bytes, driver.used, CAPACITY);
    }
    void* p = emu_alloc(bytes);
    if (!p) REFUSE(OUT_OF_MEMORY, "%zu bytes: the host has no more", bytes);
    *address = (Address)p;
    driver.memory[*address] = {bytes};
    driver.freed.erase(*address);
    driver.used += bytes;
    driver.most_used = std::max(driver.most_used, driver.used);
    return SUCCESS;
}
// Waits for all work first, as CUDA's does.
API cuMemFree_v2(Address address) {
    ENTER(INIT | CURRENT | UNSAFE);
    auto it = driver.memory.find(address);
    if (it == driver.memory.end()) {
        const bool twice = driver.freed.count(address);
        REFUSE(INVALID_VALUE, "%#llx %s", address, twice ? "was freed before" : "is no allocation");
    }
    finish_all();
    const size_t bytes = it->second.bytes, page = 4096;
    driver.used -= bytes;
    driver.freed[address] = it->second;
    driver.memory.erase(it);
    emu_free((void*)address);
    // Keeps the pages without access, so that their addresses are never used again and an access to them
    // faults. Under AddressSanitizer memory comes from malloc, and the mapping fails because the pages are
    // still there.
    char* const first = (char*)(address / page * page);
    char* const end = (char*)((address + bytes + page - 1) / page * page);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    mmap(first, end - first, PROT_NONE, flags, -1, 0);
    return driver.sticky;
}
API cuMemHostAlloc(void** p, size_t bytes, unsigned flags) {
    ENTER(INIT | CURRENT | HEALTHY | UNSAFE);
    if (!bytes || flags > 7) REFUSE(INVALID_VALUE, "%zu bytes, flags %u", bytes, flags);
    if (posix_memalign(p, 4096, bytes)) REFUSE(OUT_OF_MEMORY, "%zu bytes", bytes);
    memset(*p, 0xff, bytes);
    driver.pinned[(Address)*p] = {bytes};
    return SUCCESS;
}
API cuMemFreeHost(void* p) {
    ENTER(INIT | CURRENT | UNSAFE);
    if (!driver.pinned.count((Address)p)) REFUSE(INVALID_VALUE, "%p is no pinned memory", p);
    finish_all();
    driver.pinned.erase((Address)p);
    free(p);
    return driver.sticky;
}

enum Direction { UP, DOWN };

static int copy(Call& call, Address device, void* host, size_t bytes, const void* handle, Direction way) {
    STREAM(it, handle);
    if (!bytes) {
        driver.empty_copies++;
        say("%s: a copy of 0 bytes", call.name);
    }
    if (bytes && !around(driver.memory, device, bytes)) {
        const bool was = around(driver.freed, device, 1);
        REFUSE(INVALID_VALUE, "%zu bytes at %#llx are not within one allocation%s", bytes, device,
               was ? ", and were freed" : "");
    }
    if (!around(driver.pinned, (Address)host, bytes)) {
        (way == UP ? driver.pageable_up : driver.pageable_down)++;
        driver.pageable_bytes += bytes;
        if (it->second->capture) {
            it->second->invalid = true;
            REFUSE(CAPTURE_UNSUPPORTED, "pageable memory in a capturing stream");
        }
    }
    return put(*it->second, {call.name, [=]() -> int {
                                 if (bytes && !around(driver.memory, device, bytes)) {
                                     say("a copy of %zu bytes ran after its memory was freed", bytes);
                                     return ILLEGAL_ADDRESS;
                                 }
                                 if (way == UP) memcpy((void*)device, host, bytes);
                                 if (way == DOWN) memcpy(host, (void*)device, bytes);
                                 return SUCCESS;
                             }});
}
API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, const void* stream) {
    ENTER(INIT | CURRENT | HEALTHY);
    return copy(call, to, const_cast<void*>(from), bytes, stream, UP);
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, const void* stream) {
    ENTER(INIT | CURRENT | HEALTHY);
    return copy(call, from, to, bytes, stream, DOWN);
}
