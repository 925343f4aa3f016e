// Start of the driver, its devices, the primary context, and the texts of errors.
#include <stdio.h>

#include "driver.h"

extern "C" void emu_check_all_allocations();

API cuInit(unsigned flags) {
    ENTER(NOTHING);
    if (flags) REFUSE(INVALID_VALUE, "flags %u", flags);
    if (DEVICES == 0) REFUSE(NO_DEVICE, "FAKECUDA_DEVICES=0");
    driver.initialised = true;
    emu_check_all_allocations();
    return SUCCESS;
}
API cuDriverGetVersion(int* version) {
    ENTER(NOTHING);
    *version = (int)DRIVER_VERSION;
    return SUCCESS;
}
// NVRTC calls this function of a loaded driver. It crashes if the function is missing, and works without a driver
// if the call fails.
API cuGetExportTable(const void** table, const void*) {
    ENTER(NOTHING);
    *table = nullptr;
    return INVALID_VALUE;
}
API cuGetErrorString(int error, const char** text) {
    ENTER(NOTHING);
    static const std::map<int, const char*> known = {
        {0, "no error"},
        {1, "invalid argument"},
        {2, "out of memory"},
        {3, "initialization error"},
        {34, "CUDA driver is a stub library"},
        {100, "no CUDA-capable device is detected"},
        {101, "invalid device ordinal"},
        {200, "device kernel image is invalid"},
        {201, "invalid device context"},
        {209, "no kernel image is available for execution on the device"},
        {218, "a PTX JIT compilation failed"},
        {222, "the provided PTX was compiled with an unsupported toolchain."},
        {400, "invalid resource handle"},
        {401, "the operation cannot be performed in the present state"},
        {500, "named symbol not found"},
        {600, "device not ready"},
        {700, "an illegal memory access was encountered"},
        {701, "too many resources requested for launch"},
        {719, "unspecified launch failure"},
        {801, "operation not supported"},
        {900, "operation not permitted when stream is capturing"},
        {901, "operation failed due to a previous error during capture"},
        {903, "the stream was not capturing"},
        {907, "operation not permitted on an event last recorded in a capturing stream"},
        {908, "attempt to terminate a thread-local capture sequence from another thread"},
    };
    auto it = known.find(error);
    *text = it == known.end() ? nullptr : it->second;
    return it == known.end() ? INVALID_VALUE : SUCCESS;
}

API cuDeviceGetCount(int* count) {
    ENTER(INIT);
    *count = (int)DEVICES;
    return SUCCESS;
}
API cuDeviceGet(int* device, int index) {
    ENTER(INIT);
    if (index < 0 || index >= DEVICES) REFUSE(INVALID_DEVICE, "device %d of %ld", index, DEVICES);
    *device = index;
    return SUCCESS;
}
API cuDeviceGetName(char* name, int size, int device) {
    ENTER(INIT);
    if (device < 0 || device >= DEVICES) REFUSE(INVALID_DEVICE, "device %d", device);
    const char* card = SM == 90 ? "H200" : SM == 80 ? "A100-SXM4-80GB" : SM == 100 ? "B200" : "card";
    snprintf(name, size, "NVIDIA %s (fake)", card);
    return SUCCESS;
}
API cuDeviceTotalMem_v2(size_t* bytes, int device) {
    ENTER(INIT);
    if (device < 0 || device >= DEVICES) REFUSE(INVALID_DEVICE, "device %d", device);
    *bytes = CAPACITY;
    return SUCCESS;
}
API cuDeviceGetAttribute(int* value, int attribute, int device) {
    ENTER(INIT);
    if (device < 0 || device >= DEVICES) REFUSE(INVALID_DEVICE, "device %d", device);
    const std::map<int, int> known = {
        {1, 1024},              // threads of a block
        {10, 32},               // threads of a warp
        {16, MULTIPROCESSORS},  //
        {38, L2_BYTES},         //
        {75, (int)SM / 10},     // compute capability, major
        {76, (int)SM % 10},     // and minor
        {81, HAS_227_KB ? 228 << 10 : HAS_163_KB ? 164 << 10 : 100 << 10}, // shared memory of a multiprocessor
        {97, SHARED_OPTIN},     // shared memory that a block may ask for
    };
    auto it = known.find(attribute);
    if (it == known.end()) REFUSE(INVALID_VALUE, "this driver does not know attribute %d", attribute);
    *value = it->second;
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(const void** context, int device) {
    ENTER(INIT);
    if (device < 0 || device >= DEVICES) REFUSE(INVALID_DEVICE, "device %d", device);
    if (driver.retained && driver.device != device) {
        // Another device's context has a handle of its own, and no call here accepts it.
        *context = &driver.device;
        return SUCCESS;
    }
    driver.retained++;
    driver.device = device;
    *context = CONTEXT;
    return SUCCESS;
}
API cuCtxSetCurrent(const void* context) {
    ENTER(INIT);
    if (context && (context != CONTEXT || !driver.retained)) {
        REFUSE(INVALID_CONTEXT, "not the primary context");
    }
    current = context;
    return SUCCESS;
}
API cuProfilerStart() {
    ENTER(INIT | CURRENT);
    return SUCCESS;
}
API cuProfilerStop() {
    ENTER(INIT | CURRENT);
    return SUCCESS;
}
