// Launches: what the driver refuses at once, and what the device finds when it runs the kernel.
#include <string.h>

#include "driver.h"

extern "C" int emu_launch(void (*)(void**), const unsigned*, const unsigned*, size_t, void**, int, int, char*,
                          size_t);

struct alignas(128) Line {
    char bytes[128];
};
struct Launch {
    const Function* f;
    unsigned grid[3], block[3], shared;
    // The parameters as the driver copies them, each at the offset that the CUBIN gives it.
    std::vector<Line> parameters;

    char* parameter(size_t i) { return parameters.data()->bytes + f->first_parameter + f->parameters[i].offset; }

    // What is wrong with the tensor maps among the parameters, or nothing. The TMA unit reads maps that this
    // driver encoded, of memory that is allocated.
    std::string bad_map() {
        for (size_t i = 0; i < f->parameters.size(); i++) {
            if (f->parameters[i].size != sizeof(TensorMaps)) continue;
            if ((uintptr_t)parameter(i) % 64) return "tensor maps at an address that is no multiple of 64";
            for (auto& map : reinterpret_cast<TensorMaps*>(parameter(i))->of) {
                if (!map.magic && !map.address) continue; // a place that the launch does not use
                if (map.magic != CUtensorMap::MAGIC) return "a tensor map that this driver did not encode";
                Address end = map.address + 2; // of the last bf16 element
                for (u32 d = 0; d < map.rank; d++) end += (map.dims[d] - 1ull) * (d ? map.strides[d - 1] : 2);
                if (!around(driver.memory, map.address, end - map.address)) {
                    return "a tensor map of memory that is not within one allocation";
                }
            }
        }
        return "";
    }

    int run() {
        const std::string bad = bad_map();
        if (!bad.empty()) {
            complain("%s failed: %s", f->symbol.c_str(), bad.c_str());
            return ILLEGAL_ADDRESS;
        }
        if (!f->emulated) return SUCCESS;
        std::vector<void*> arguments;
        for (size_t i = 0; i < f->parameters.size(); i++) arguments.push_back(parameter(i));
        char error[1024] = "";
        const int failed = emu_launch(f->emulated->entry, grid, block, shared, arguments.data(), (int)ORDER,
                                      (int)THREADS, error, sizeof error);
        if (!failed) return SUCCESS;
        complain("%s failed: %s", f->emulated->name, error);
        return ILLEGAL_ADDRESS;
    }
};

API cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, const void* stream, void** parameters, void** extra) {
    ENTER(INIT | CURRENT | HEALTHY);
    if (!driver.functions.count(f)) REFUSE(INVALID_HANDLE, "function %p", (void*)f);
    STREAM(on, stream);
    const char* name = f->symbol.c_str();
    if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 65535 || gz > 65535) {
        REFUSE(INVALID_VALUE, "%s: grid %u x %u x %u", name, gx, gy, gz);
    }
    const u64 threads = (u64)bx * by * bz;
    if (!threads || bx > 1024 || by > 1024 || bz > 64 || threads > 1024 || threads > f->max_threads) {
        REFUSE(INVALID_VALUE, "%s: block %u x %u x %u, at most %u threads", name, bx, by, bz, f->max_threads);
    }
    // Registers are given to a warp in pieces of 256: 8 for each thread. A multiprocessor has 65536.
    const u64 warps = (threads + 31) / 32, registers = (f->registers + 7) / 8 * 8 * 32 * warps;
    if (registers > 65536) REFUSE(OUT_OF_RESOURCES, "%s: %llu registers", name, registers);
    if ((long)shared > f->max_dynamic_shared) {
        REFUSE(INVALID_VALUE, "%s: %u bytes of dynamic shared memory, %d are allowed (static: %d)", name,
               shared, f->max_dynamic_shared, f->static_shared);
    }
    if (extra) REFUSE(INVALID_VALUE, "%s: extra", name);
    if (!parameters && !f->parameters.empty()) REFUSE(INVALID_VALUE, "%s: no parameters", name);
    auto launch = std::make_shared<Launch>(Launch{f, {gx, gy, gz}, {bx, by, bz}, shared, {}});
    launch->parameters.resize((f->first_parameter + f->parameter_bytes) / sizeof(Line) + 1);
    for (size_t i = 0; i < f->parameters.size(); i++) {
        if (!parameters[i]) REFUSE(INVALID_VALUE, "%s: parameter %zu is null", name, i);
        memcpy(launch->parameter(i), parameters[i], f->parameters[i].size);
    }
    // A card accepts the launch and fails when it runs.
    const std::string bad = launch->bad_map();
    if (!bad.empty()) say("%s: %s", name, bad.c_str());
    const char* what = f->emulated ? f->emulated->name : name;
    return put(*on->second, {what, [launch] { return launch->run(); }, f, shared});
}
