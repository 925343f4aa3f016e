// Modules: what a CUBIN or PTX says about its kernels, and where it may be loaded.
#include <stdio.h>
#include <string.h>

#include "driver.h"

// build.sh writes kernels.inc from the kernel table of the program: KERNEL_ENTRY(symbol, entry, instance).
#define KERNEL_ENTRY(symbol, entry, instance) extern "C" void entry(void**);
#include "kernels.inc"
#undef KERNEL_ENTRY
#define KERNEL_ENTRY(symbol, entry, instance) {symbol, entry, instance},
static const Emulated EMULATED[] = {
#include "kernels.inc"
};
#undef KERNEL_ENTRY

const Emulated* find_emulated(const std::string& symbol) {
    for (auto& e : EMULATED) {
        if (symbol == e.symbol) return &e;
    }
    return nullptr;
}

// ---- CUBINs ---------------------------------------------------------------------------------------------

template <class T> static T at(const char* p) {
    T v;
    memcpy(&v, p, sizeof v);
    return v;
}
static bool starts(const char* name, const char* with) { return strncmp(name, with, strlen(with)) == 0; }

struct Section {
    const char *name, *data;
    size_t size;
    unsigned type, link;
};

constexpr int EM_CUDA = 190;      // the machine of an ELF file with NVIDIA's code
constexpr unsigned SHT_SYMTAB = 2;
constexpr int CUDA_13_ABI = 8;    // the ELF ABI version that CUDA 13 began with
// Attributes of an .nv.info section.
enum : unsigned char { MAX_THREADS = 0x05, PARAM_CBANK = 0x0a, KPARAM_INFO = 0x17, CBANK_PARAM_SIZE = 0x19, REGCOUNT = 0x2f };
constexpr unsigned char HAS_BYTES = 4; // the format of an entry that `value` more bytes follow

static std::vector<Section> sections_of(const char* f) {
    std::vector<Section> sections(at<u16>(f + 60));
    const char* headers = f + at<u64>(f + 40);
    const char* names = f + at<u64>(headers + 64 * at<u16>(f + 62) + 24);
    for (size_t i = 0; i < sections.size(); i++) {
        const char* h = headers + 64 * i;
        sections[i] = {names + at<unsigned>(h), f + at<u64>(h + 24), (size_t)at<u64>(h + 32),
                       at<unsigned>(h + 4), at<unsigned>(h + 40)};
    }
    return sections;
}

// Calls `each(attribute, bytes, value)` for every entry of an .nv.info section.
template <class F> static void each_entry(const Section& section, F each) {
    for (const char *p = section.data, *end = p + section.size; p < end;) {
        const unsigned char format = p[0], attribute = p[1];
        const u16 value = at<u16>(p + 2);
        p += 4;
        each(attribute, p, value);
        if (format == HAS_BYTES) p += value;
    }
}

// The kernel that an .nv.info.<symbol> section describes.
static Function function_of(const Section& section) {
    Function fn;
    fn.symbol = section.name + strlen(".nv.info.");
    fn.emulated = find_emulated(fn.symbol);
    each_entry(section, [&](unsigned char attribute, const char* p, unsigned value) {
        if (attribute == KPARAM_INFO) {
            const unsigned ordinal = at<u16>(p + 4);
            if (fn.parameters.size() <= ordinal) fn.parameters.resize(ordinal + 1);
            fn.parameters[ordinal] = {at<u16>(p + 6), at<unsigned>(p + 8) >> 18};
        }
        if (attribute == MAX_THREADS) fn.max_threads = at<unsigned>(p) * at<unsigned>(p + 4) * at<unsigned>(p + 8);
        if (attribute == CBANK_PARAM_SIZE) fn.parameter_bytes = value;
        if (attribute == PARAM_CBANK) fn.first_parameter = at<u16>(p + 4) % 128;
    });
    return fn;
}

static int read_cubin(Call& call, const char* f, Module& module) {
    const int abi = (unsigned char)f[8], flags = at<int>(f + 48), machine = at<u16>(f + 18);
    const int sm = abi >= CUDA_13_ABI ? flags >> 8 & 0xff : flags & 0xff;
    if (machine != EM_CUDA) REFUSE(INVALID_IMAGE, "an ELF file for machine %d", machine);
    if (abi >= CUDA_13_ABI && DRIVER_VERSION < 13000) {
        REFUSE(INVALID_IMAGE, "a CUBIN of CUDA 13 (ABI %d), the driver is CUDA %ld.%ld's", abi, DRIVER_VERSION / 1000,
               DRIVER_VERSION % 1000 / 10);
    }
    if (sm / 10 != SM / 10 || sm % 10 > SM % 10) REFUSE(NO_BINARY, "a CUBIN for sm_%d on sm_%ld", sm, SM);
    const std::vector<Section> sections = sections_of(f);
    std::map<unsigned, std::string> symbols;
    for (auto& section : sections) {
        if (section.type == SHT_SYMTAB) {
            for (size_t i = 0; i < section.size / 24; i++) {
                symbols[i] = sections[section.link].data + at<unsigned>(section.data + 24 * i);
            }
        }
        if (starts(section.name, ".nv.info._")) {
            Function fn = function_of(section);
            module.functions[fn.symbol] = fn;
        }
    }
    for (auto& section : sections) {
        if (strcmp(section.name, ".nv.info") == 0) {
            each_entry(section, [&](unsigned char attribute, const char* p, unsigned) {
                if (attribute != REGCOUNT) return;
                auto it = module.functions.find(symbols[at<unsigned>(p)]);
                if (it != module.functions.end()) it->second.registers = at<unsigned>(p + 4);
            });
        }
        if (starts(section.name, ".nv.shared._")) {
            auto it = module.functions.find(section.name + strlen(".nv.shared."));
            // From 9.0 on the section includes 1 KB that the system keeps for each block.
            const size_t system = sm >= 90 && section.size >= 1024 ? 1024 : 0;
            if (it != module.functions.end()) it->second.static_shared = (int)(section.size - system);
        }
    }
    return SUCCESS;
}

// ---- PTX ------------------------------------------------------------------------------------------------

// The newest PTX version times ten that the driver compiles: 12.0 to 12.5 know 8.0 to 8.5, 12.6 is 8.5 too,
// 12.7 to 12.9 know 8.6 to 8.8, and 13.0 begins at 9.0.
static int newest_ptx() {
    const int cuda = (int)DRIVER_VERSION / 10, minor = cuda % 100;
    if (cuda >= 1300) return 90 + minor;
    return 80 + minor - (minor >= 6);
}

// Reads `.version` and `.target`, and of each `.entry` its parameters and `.maxntid`.
static int read_ptx(Call& call, const std::string& text, Module& module) {
    auto after = [&](const char* word) {
        const size_t p = text.find(word);
        return p == std::string::npos ? "" : text.c_str() + p + strlen(word);
    };
    int major = 0, minor = 0, sm = 0;
    char suffix = 0;
    if (sscanf(after(".version "), "%d.%d", &major, &minor) != 2 ||
        sscanf(after(".target sm_"), "%d%c", &sm, &suffix) < 1) {
        REFUSE(INVALID_IMAGE, "neither a CUBIN nor PTX");
    }
    if (major * 10 + minor > newest_ptx()) {
        REFUSE(UNSUPPORTED_PTX, "PTX %d.%d, the driver knows %d.%d", major, minor, newest_ptx() / 10,
               newest_ptx() % 10);
    }
    // PTX for sm_90a runs on 9.0 alone.
    if (sm > SM || (suffix == 'a' && sm != SM)) REFUSE(INVALID_PTX, "PTX for sm_%d%c on sm_%ld", sm, suffix, SM);
    for (size_t p = text.find(".entry "); p != std::string::npos; p = text.find(".entry ", p + 1)) {
        const size_t open = text.find('(', p), close = text.find(')', open), body = text.find('{', close);
        Function fn;
        fn.symbol = text.substr(p + 7, open - p - 7);
        fn.emulated = find_emulated(fn.symbol);
        for (size_t q = text.find(".param ", open); q < close; q = text.find(".param ", q + 1)) {
            unsigned align = 0, bits = 0, count = 1;
            const char* t = text.c_str() + q + 7;
            if (sscanf(t, ".align %u .b8 %*[^[][%u]", &align, &count) == 2) {
                bits = 8;
            } else if (sscanf(t, ".%*1[a-z]%u", &bits) == 1) {
                align = bits / 8;
            } else {
                REFUSE(INVALID_PTX, "%s: a parameter that this driver cannot read", fn.symbol.c_str());
            }
            const unsigned offset = (fn.parameter_bytes + align - 1) / align * align;
            fn.parameters.push_back({offset, bits / 8 * count});
            fn.parameter_bytes = offset + bits / 8 * count;
        }
        const size_t bound = text.find(".maxntid ", close);
        if (bound < body) fn.max_threads = atoi(text.c_str() + bound + 9);
        module.functions[fn.symbol] = fn;
    }
    return SUCCESS;
}

// ---- calls ----------------------------------------------------------------------------------------------

API cuModuleLoadData(const void** handle, const void* image) {
    ENTER(INIT | CURRENT | HEALTHY | UNSAFE);
    auto module = std::make_unique<Module>();
    const char* f = static_cast<const char*>(image);
    const bool is_elf = starts(f, "\x7f" "ELF");
    if (int e = is_elf ? read_cubin(call, f, *module) : read_ptx(call, f, *module)) return e;
    for (auto& [symbol, fn] : module->functions) {
        fn.max_dynamic_shared = (48 << 10) - fn.static_shared;
        if (!fn.emulated) say("%s has no emulated kernel: launches of it do nothing", symbol.c_str());
    }
    *handle = module.get();
    driver.modules[*handle] = std::move(module);
    return SUCCESS;
}
API cuModuleGetFunction(const void** handle, const void* module, const char* name) {
    ENTER(INIT | CURRENT | HEALTHY | UNSAFE);
    auto it = driver.modules.find(module);
    if (it == driver.modules.end()) REFUSE(INVALID_HANDLE, "module %p", module);
    auto fn = it->second->functions.find(name);
    if (fn == it->second->functions.end()) REFUSE(NOT_FOUND, "%s", name);
    driver.functions.insert(*handle = &fn->second);
    return SUCCESS;
}
// Attribute 8 is the dynamic shared memory that launches may ask for, 9 the preferred carveout in percent.
API cuFuncSetAttribute(Function* f, int attribute, int value) {
    ENTER(INIT | CURRENT | HEALTHY);
    if (!driver.functions.count(f)) REFUSE(INVALID_HANDLE, "function %p", (void*)f);
    if (attribute == 9 && value >= -1 && value <= 100) return SUCCESS;
    if (attribute != 8) REFUSE(INVALID_VALUE, "attribute %d", attribute);
    if (value < 0 || value + f->static_shared > SHARED_OPTIN) {
        REFUSE(INVALID_VALUE, "%s: %d bytes of dynamic beside %d of static shared memory, at most %d",
               f->symbol.c_str(), value, f->static_shared, SHARED_OPTIN);
    }
    f->max_dynamic_shared = value;
    return SUCCESS;
}
