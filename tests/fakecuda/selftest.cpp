// Calls the fake driver as CUDA's manual allows and as it does not, and compares the results with those that the
// manual promises. tests/program/fake_driver.rs builds and runs it:
//
//   selftest cast.sm_90a.*.cubin conv2d_fwd.sm_90a.*.cubin
#include <stdio.h>
#include <string.h>

#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

typedef unsigned long long u64;
extern "C" {
int cuInit(unsigned);
int cuDeviceGetCount(int*);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuMemAlloc_v2(u64*, size_t);
int cuMemFree_v2(u64);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemFreeHost(void*);
int cuMemcpyHtoDAsync_v2(u64, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, u64, size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamDestroy_v2(void*);
int cuStreamSynchronize(void*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuGraphInstantiateWithFlags(void**, void*, u64);
int cuGraphLaunch(void*, void*);
int cuGraphDestroy(void*);
int cuGraphExecDestroy(void*);
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, void*);
int cuEventQuery(void*);
int cuEventSynchronize(void*);
int cuEventElapsedTime(float*, void*, void*);
int cuEventDestroy_v2(void*);
int cuLaunchHostFunc(void*, void (*)(void*), void*);
int cuTensorMapEncodeTiled(void*, int, unsigned, void*, const u64*, const u64*, const unsigned*, const unsigned*, int,
                           int, int, int);
}

static int right, wrong;
#define EXPECT(code, call) \
    ((call) == (code) ? right++ : (wrong++, printf("line %d: %s: expected %d\n", __LINE__, #call, code)))

static std::string read(const char* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// What the parts below share: 1000 bytes of device memory, two streams, and the kernel `fill(p, value, elements)`.
static void *context, *s, *other, *fill;
static u64 p;
static std::vector<float> host(1000, 2.0f);
static float value = 3;
static long long elements = 250;

static int launch(unsigned x, unsigned y, unsigned block, unsigned shared) {
    void* parameters[] = {&p, &value, &elements};
    return cuLaunchKernel(fill, x, y, 1, block, 1, 1, shared, s, parameters, nullptr);
}

static void start_and_memory() {
    int n;
    EXPECT(3, cuDeviceGetCount(&n)); // before cuInit
    EXPECT(0, cuInit(0));
    EXPECT(201, cuMemAlloc_v2(&p, 64)); // no context
    EXPECT(0, cuDevicePrimaryCtxRetain(&context, 0));
    EXPECT(201, cuCtxSetCurrent(&n));
    EXPECT(0, cuCtxSetCurrent(context));
    std::thread([&] { EXPECT(201, cuMemAlloc_v2(&p, 64)); }).join(); // a context is current on one thread
    EXPECT(1, cuMemAlloc_v2(&p, 0));
    EXPECT(2, cuMemAlloc_v2(&p, 1ull << 50));
    EXPECT(0, cuMemAlloc_v2(&p, 1000));
    EXPECT(0, cuStreamCreate(&s, 1));
    EXPECT(0, cuStreamCreate(&other, 1));
    EXPECT(1, cuMemcpyHtoDAsync_v2(p, host.data(), 1001, s));
    EXPECT(1, cuMemcpyHtoDAsync_v2(p - 4, host.data(), 8, s));
    EXPECT(400, cuMemcpyHtoDAsync_v2(p, host.data(), 8, &n)); // no stream
    EXPECT(0, cuMemcpyHtoDAsync_v2(p, host.data(), 1000, s));
    EXPECT(0, cuStreamSynchronize(s));
}

static void modules_and_launches(const std::string& cast, const std::string& conv2d) {
    void *module, *conv, *wide;
    std::string other_card = cast;
    other_card[other_card[8] >= 8 ? 49 : 48] = 80; // e_flags: sm_80
    EXPECT(209, cuModuleLoadData(&module, other_card.data()));
    EXPECT(200, cuModuleLoadData(&module, "neither"));
    EXPECT(0, cuModuleLoadData(&module, cast.data()));
    EXPECT(500, cuModuleGetFunction(&fill, module, "fill")); // not the mangled name
    EXPECT(0, cuModuleGetFunction(&fill, module, "_Z4fillPffx"));
    EXPECT(0, cuModuleLoadData(&conv, conv2d.data()));
    const char* name = "_Z10conv2d_fwdIfLi64ELi64EEv5GroupI13Conv2dForwardIT_EE10Conv2dDimsf";
    EXPECT(0, cuModuleGetFunction(&wide, conv, name));
    long long nothing[100] = {};
    void *zeros[] = {nothing, nothing, nothing}, *holes[] = {&p, nullptr, &elements};
    EXPECT(1, launch(0, 1, 256, 0));
    EXPECT(1, launch(1, 65536, 256, 0));
    EXPECT(1, launch(1, 1, 288, 0)); // over __launch_bounds__(256)
    EXPECT(1, launch(1, 1, 256, (48 << 10) + 4));
    EXPECT(1, cuLaunchKernel(fill, 1, 1, 1, 32, 1, 1, 0, s, holes, nullptr));
    EXPECT(1, cuLaunchKernel(wide, 1, 1, 1, 256, 1, 1, 55296, s, zeros, nullptr)); // above 48 KB unasked
    EXPECT(1, cuFuncSetAttribute(wide, 8, (227 << 10) + 1));
    EXPECT(0, cuFuncSetAttribute(wide, 8, 55296));
    void* graph;
    EXPECT(0, cuStreamBeginCapture_v2(s, 1));
    EXPECT(0, cuLaunchKernel(wide, 1, 1, 1, 256, 1, 1, 55296, s, zeros, nullptr)); // captured, and never run
    EXPECT(0, cuStreamEndCapture(s, &graph));
    EXPECT(0, cuGraphDestroy(graph));
}

static void capture(const std::string& cast) {
    void *graph, *exec;
    u64 q;
    EXPECT(0, cuStreamBeginCapture_v2(s, 1));
    EXPECT(0, launch(1, 1, 256, 0));
    EXPECT(0, cuStreamEndCapture(s, &graph));
    EXPECT(903, cuStreamEndCapture(s, &exec));
    EXPECT(0, cuGraphInstantiateWithFlags(&exec, graph, 0));
    EXPECT(0, cuMemcpyDtoHAsync_v2(host.data(), p, 1000, s));
    EXPECT(0, cuStreamSynchronize(s));
    EXPECT(1, host[7] == 2.0f); // what was captured has not run
    EXPECT(0, cuGraphLaunch(exec, s));
    void* pinned;
    EXPECT(0, cuMemHostAlloc(&pinned, 1000, 0));
    const float* landed = static_cast<float*>(pinned);
    EXPECT(0, cuMemcpyDtoHAsync_v2(pinned, p, 1000, s));
    EXPECT(1, landed[7] != 3.0f); // nobody has waited
    EXPECT(0, cuStreamSynchronize(s));
    EXPECT(1, landed[7] == 3.0f);
    EXPECT(0, cuMemFreeHost(pinned));
    EXPECT(0, cuGraphDestroy(graph));
    EXPECT(400, cuGraphDestroy(graph));

    // A function of the host runs when the device gets there, and again with every launch of a graph that holds it.
    int count = 0;
    void* counting;
    auto add = [](void* data) { ++*static_cast<int*>(data); };
    EXPECT(0, cuLaunchHostFunc(s, add, &count));
    EXPECT(1, count == 0);
    EXPECT(0, cuStreamSynchronize(s));
    EXPECT(1, count == 1);
    EXPECT(0, cuStreamBeginCapture_v2(s, 1));
    EXPECT(0, cuLaunchHostFunc(s, add, &count));
    EXPECT(0, cuStreamEndCapture(s, &graph));
    EXPECT(0, cuGraphInstantiateWithFlags(&counting, graph, 0));
    EXPECT(0, cuGraphLaunch(counting, s));
    EXPECT(0, cuGraphLaunch(counting, s));
    EXPECT(0, cuStreamSynchronize(s));
    EXPECT(1, count == 3);
    EXPECT(0, cuGraphExecDestroy(counting));
    EXPECT(0, cuGraphDestroy(graph));

    // Calls that invalidate a capture.
    void* made;
    auto forbidden = [&](int i) {
        switch (i) {
            case 0: return cuStreamSynchronize(s);
            case 1: return cuMemAlloc_v2(&q, 8);
            case 2: return cuMemFree_v2(p);
            case 3: return cuMemcpyHtoDAsync_v2(p, host.data(), 8, s); // pageable
            default: return cuModuleLoadData(&made, cast.data());
        }
    };
    for (int i = 0; i < 5; i++) {
        EXPECT(0, cuStreamBeginCapture_v2(s, 1));
        EXPECT(900, forbidden(i));
        EXPECT(901, cuStreamEndCapture(s, &graph));
    }
    EXPECT(0, cuStreamBeginCapture_v2(s, 1));
    EXPECT(900, cuGraphLaunch(exec, s));
    // A capture in the thread-local mode leaves other threads free, but they cannot end it.
    std::thread([&] {
        EXPECT(0, cuCtxSetCurrent(context));
        EXPECT(0, cuMemAlloc_v2(&q, 8));
        EXPECT(0, cuMemFree_v2(q));
        EXPECT(908, cuStreamEndCapture(s, &graph));
    }).join();
    EXPECT(0, cuStreamEndCapture(s, &graph));
    EXPECT(0, cuGraphExecDestroy(exec));
}

static void events() {
    float ms;
    void* e[2];
    EXPECT(0, cuEventCreate(&e[0], 0));
    EXPECT(0, cuEventCreate(&e[1], 0));
    EXPECT(0, cuEventRecord(e[0], s));
    EXPECT(400, cuEventElapsedTime(&ms, e[0], e[1])); // never recorded
    EXPECT(0, cuEventRecord(e[1], s));
    EXPECT(600, cuEventElapsedTime(&ms, e[0], e[1])); // not reached
    EXPECT(600, cuEventQuery(e[0]));
    EXPECT(0, cuStreamSynchronize(s));
    EXPECT(0, cuEventQuery(e[0]));
    EXPECT(0, cuEventElapsedTime(&ms, e[0], e[1]));

    // A stream that waits for an event runs the other stream's work first, but only as far as the event.
    value = 4;
    EXPECT(0, launch(1, 1, 256, 0));
    EXPECT(0, cuEventRecord(e[0], s));
    value = 5;
    EXPECT(0, launch(1, 1, 256, 0));
    EXPECT(0, cuStreamWaitEvent(other, e[0], 0));
    EXPECT(0, cuMemcpyDtoHAsync_v2(host.data(), p, 1000, other));
    EXPECT(0, cuStreamSynchronize(other));
    EXPECT(1, host[7] == 4.0f);
    EXPECT(0, cuEventSynchronize(e[0]));
    EXPECT(0, cuEventDestroy_v2(e[0]));
    EXPECT(400, cuEventDestroy_v2(e[0]));
    EXPECT(0, cuEventDestroy_v2(e[1]));
}

static void tensor_maps() {
    alignas(128) char map[256];
    const u64 dims[] = {64, 64}, stride[] = {128}, odd[] = {136}, large[] = {1ull << 40};
    const unsigned box[] = {64, 64}, tall[] = {64, 257}, broad[] = {128, 64}, ones[] = {1, 1};
    auto tiled = [&](void* out, u64 at, const u64* strides, const unsigned* b) {
        return cuTensorMapEncodeTiled(out, 9, 2, (void*)at, dims, strides, b, ones, 0, 3, 3, 0);
    };
    EXPECT(0, tiled(map, p / 16 * 16, stride, box));
    EXPECT(1, tiled(map + 8, p, stride, box)); // the map's alignment
    EXPECT(1, tiled(map, p + 8, stride, box)); // the tensor's
    EXPECT(1, tiled(map, 0, stride, box));
    EXPECT(1, tiled(map, p, odd, box));
    EXPECT(1, tiled(map, p, large, box));
    EXPECT(1, tiled(map, p, stride, tall));
    EXPECT(1, tiled(map, p, stride, broad));
}

static void end() {
    void* pinned;
    EXPECT(0, cuMemHostAlloc(&pinned, 64, 0));
    EXPECT(1, cuMemFreeHost(host.data()));
    EXPECT(0, cuMemFreeHost(pinned));
    EXPECT(0, cuStreamDestroy_v2(other));
    EXPECT(400, cuStreamSynchronize(other));
    elements = 10000; // past the end of the allocation
    EXPECT(0, launch(1, 1, 256, 0));
    EXPECT(700, cuStreamSynchronize(s));
    EXPECT(700, cuMemAlloc_v2(&p, 64)); // the context stays unusable
}

int main(int, char** arguments) {
    const std::string cast = read(arguments[1]), conv2d = read(arguments[2]);
    start_and_memory();
    modules_and_launches(cast, conv2d);
    capture(cast);
    events();
    tensor_maps();
    end();
    printf("%d as expected, %d not\n", right, wrong);
    return wrong != 0;
}
