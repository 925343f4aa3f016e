// cuBLASLt without a GPU: a `libcublasLt.so.13` that multiplies matrices on the fake driver, as work in a stream. It knows
// what the program asks for: column-major matrices of f32 or bf16, sums in f32, strided batches. It refuses other types,
// sizes that do not fit each other, and a workspace smaller than an algorithm's.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <string>

#define API extern "C" __attribute__((visibility("default")))

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Type : int32_t { F32 = 0, BF16 = 14 };
constexpr int COMPUTE_F32 = 68;
// The attributes that are set, by their numbers in cublasLt.h.
enum { TRANSPOSE_A = 3, TRANSPOSE_B = 4 };                                            // of a product
enum { BATCH_COUNT = 5, BATCH_STRIDE = 6 };                                           // of a layout
enum { MAX_WORKSPACE = 1, REDUCTION_SCHEMES = 3, ALIGNMENT_A = 5, ALIGNMENT_D = 8 };  // of a preference

struct Product {
    int32_t transposes_a = 0, transposes_b = 0;
};
struct Layout {
    Type type;
    uint64_t rows, columns;
    int64_t leading;
    int32_t count = 1;
    int64_t stride = 0;
};
struct Preference {
    uint64_t workspace = 0;
};
// What this library puts into the eight words of an algorithm.
struct Algorithm {
    uint64_t magic, workspace, unused[6];
};
constexpr uint64_t MAGIC = 0x4c41474f52495448;
constexpr uint64_t NEEDED_WORKSPACE = 1 << 20;
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    Status state;
    float waves;
    int reserved[4];
};

// FAKECUBLASLT_FAIL="cublasLtMatmul@3": the third call fails.
static bool fails(const std::string& name) {
    static std::map<std::string, int> calls;
    const char* text = getenv("FAKECUBLASLT_FAIL");
    return name + "@" + std::to_string(++calls[name]) == (text ? text : "");
}

// ---- the product -------------------------------------------------------------------------------------------

// One product of matrices, kept as long as the process because a graph may repeat it.
struct Work {
    Product product;
    Layout a, b, d;
    const char *from_a, *from_b;
    char* to;
    float alpha, beta;
};

static float load(const char* at, Type type, int64_t i) {
    float value;
    if (type == F32) {
        memcpy(&value, at + 4 * i, 4);
    } else {
        uint16_t half;
        memcpy(&half, at + 2 * i, 2);
        const uint32_t bits = (uint32_t)half << 16;
        memcpy(&value, &bits, 4);
    }
    return value;
}
static void store(char* at, Type type, int64_t i, float value) {
    if (type == F32) {
        memcpy(at + 4 * i, &value, 4);
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint16_t half = value != value ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    memcpy(at + 2 * i, &half, 2);
}

// Runs when the device reaches the product.
static void multiply(void* data) {
    const Work& w = *(Work*)data;
    const uint64_t depth = w.product.transposes_a ? w.a.rows : w.a.columns;
    for (int64_t batch = 0; batch < w.d.count; batch++)
        for (uint64_t column = 0; column < w.d.columns; column++)
            for (uint64_t row = 0; row < w.d.rows; row++) {
                float sum = 0;
                for (uint64_t i = 0; i < depth; i++) {
                    const int64_t in_a = w.product.transposes_a ? i + row * w.a.leading : row + i * w.a.leading;
                    const int64_t in_b = w.product.transposes_b ? column + i * w.b.leading : i + column * w.b.leading;
                    sum += load(w.from_a, w.a.type, batch * w.a.stride + in_a) *
                           load(w.from_b, w.b.type, batch * w.b.stride + in_b);
                }
                const int64_t in_d = batch * w.d.stride + row + column * w.d.leading;
                const float old = w.beta == 0 ? 0 : w.beta * load(w.to, w.d.type, in_d);
                store(w.to, w.d.type, in_d, w.alpha * sum + old);
            }
}

// Whether the matrices fit each other.
static bool fits(const Product& p, const Layout& a, const Layout& b, const Layout& d) {
    const uint64_t rows = p.transposes_a ? a.columns : a.rows, depth = p.transposes_a ? a.rows : a.columns;
    const uint64_t columns = p.transposes_b ? b.rows : b.columns;
    const auto is_whole = [](const Layout& l) { return l.leading >= (int64_t)l.rows; };
    return rows == d.rows && columns == d.columns && depth == (p.transposes_b ? b.columns : b.rows) && a.type == b.type &&
           a.count == d.count && b.count == d.count && is_whole(a) && is_whole(b) && is_whole(d);
}

// ---- cuBLASLt's functions ----------------------------------------------------------------------------------

API size_t cublasLtGetVersion() {
    return 130100;
}
API const char* cublasLtGetStatusString(Status status) {
    switch (status) {
        case SUCCESS: return "success";
        case NOT_INITIALIZED: return "the library was not initialized";
        case INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
        case EXECUTION_FAILED: return "the GPU program failed to execute";
        case NOT_SUPPORTED: return "the functionality requested is not supported";
    }
    return "unknown status";
}
API Status cublasLtCreate(void** handle) {
    if (fails(__func__)) return NOT_INITIALIZED;
    static int made;
    *handle = &made;
    return SUCCESS;
}
API Status cublasLtMatmulDescCreate(Product** made, int compute, Type scale) {
    if (compute != COMPUTE_F32 || scale != F32) return NOT_SUPPORTED;
    *made = new Product;
    return SUCCESS;
}
API Status cublasLtMatmulDescDestroy(Product* product) {
    delete product;
    return SUCCESS;
}
API Status cublasLtMatmulDescSetAttribute(Product* product, int attribute, const void* value, size_t bytes) {
    if (bytes != 4 || (attribute != TRANSPOSE_A && attribute != TRANSPOSE_B)) return INVALID_VALUE;
    memcpy(attribute == TRANSPOSE_A ? &product->transposes_a : &product->transposes_b, value, bytes);
    return SUCCESS;
}
API Status cublasLtMatrixLayoutCreate(Layout** made, Type type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (type != F32 && type != BF16) return NOT_SUPPORTED;
    *made = new Layout{type, rows, columns, leading};
    return SUCCESS;
}
API Status cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return SUCCESS;
}
API Status cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
    if (attribute == BATCH_COUNT && bytes == 4) memcpy(&layout->count, value, bytes);
    else if (attribute == BATCH_STRIDE && bytes == 8) memcpy(&layout->stride, value, bytes);
    else return INVALID_VALUE;
    return SUCCESS;
}
API Status cublasLtMatmulPreferenceCreate(Preference** made) {
    *made = new Preference;
    return SUCCESS;
}
API Status cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return SUCCESS;
}
API Status cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
    if (attribute == MAX_WORKSPACE && bytes == 8) {
        memcpy(&preference->workspace, value, bytes);
        return SUCCESS;
    }
    const bool is_known = attribute == REDUCTION_SCHEMES || (attribute >= ALIGNMENT_A && attribute <= ALIGNMENT_D);
    return is_known && bytes == 4 ? SUCCESS : INVALID_VALUE;
}
API Status cublasLtMatmulAlgoGetHeuristic(void*, const Product* product, const Layout* a, const Layout* b, const Layout* c,
                                          const Layout* d, const Preference* preference, int asked, Heuristic* found,
                                          int* count) {
    if (fails(__func__)) return NOT_SUPPORTED;
    if (asked < 1 || c != d || !fits(*product, *a, *b, *d)) return INVALID_VALUE;
    *count = preference->workspace >= NEEDED_WORKSPACE ? 1 : 0;
    if (*count) *found = Heuristic{{MAGIC, NEEDED_WORKSPACE, {}}, NEEDED_WORKSPACE, SUCCESS, 1.0f, {}};
    return SUCCESS;
}
API Status cublasLtMatmul(void*, const Product* product, const float* alpha, const void* from_a, const Layout* a,
                          const void* from_b, const Layout* b, const float* beta, const void* from_c, const Layout* c, void* to,
                          const Layout* d, const Algorithm* algorithm, void* workspace, size_t bytes, void* stream) {
    if (fails(__func__)) return EXECUTION_FAILED;
    if (!algorithm || algorithm->magic != MAGIC || !workspace || bytes < algorithm->workspace) return INVALID_VALUE;
    if (from_c != to || c != d || !fits(*product, *a, *b, *d)) return INVALID_VALUE;
    using Launch = int (*)(void*, void (*)(void*), void*);
    static void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    static const Launch launch = driver ? (Launch)dlsym(driver, "cuLaunchHostFunc") : nullptr;
    if (!launch) return NOT_INITIALIZED;
    Work* work = new Work{*product, *a, *b, *d, (const char*)from_a, (const char*)from_b, (char*)to, *alpha, *beta};
    return launch(stream, multiply, work) ? EXECUTION_FAILED : SUCCESS;
}
