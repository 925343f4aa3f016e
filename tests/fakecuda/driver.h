// The state of the fake driver, and how its calls begin.
#pragma once
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "emu/emu.h" // CUtensorMap as the emulator reads it
#include "settings.h"

using Address = unsigned long long;

// The values of CUresult that this driver returns.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX = 222,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    OUT_OF_RESOURCES = 701,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908
};

// ---- objects behind the handles -------------------------------------------------------------------------

// A kernel of the project's, compiled for the emulator.
struct Emulated {
    const char* symbol; // its mangled name, as a CUBIN has it
    void (*entry)(void**);
    const char* name; // its instance, for messages
};

struct Parameter {
    unsigned offset, size;
};

// A kernel as the loaded CUBIN or PTX describes it.
struct Function {
    std::string symbol;
    const Emulated* emulated; // null: launches do nothing
    std::vector<Parameter> parameters;
    unsigned parameter_bytes = 0, max_threads = 1024, registers = 0;
    // Where the parameters begin in the constant bank, modulo 128: alignments count from there.
    unsigned first_parameter = 0;
    // Bytes. The second is what launches may ask for, which cuFuncSetAttribute raises.
    int static_shared = 0, max_dynamic_shared = 0;
};
struct Module {
    std::map<std::string, Function> functions;
};

// Work in a stream: what the device does when it gets there.
struct Operation {
    const char* what;
    std::function<int()> run;
    const Function* kernel = nullptr;
    unsigned shared = 0; // dynamic shared memory of a launch
};
struct Graph {
    std::vector<Operation> nodes;
};
struct Stream;
// One cuEventRecord: the stream that holds it, and when the device reached it.
struct Recording {
    std::shared_ptr<const Stream> stream; // kept, so that no later stream gets its address
    bool done;
    std::chrono::steady_clock::time_point at;
};
struct Event {
    std::shared_ptr<Recording> last; // null: never recorded
    bool captured = false, timed = true;
};
struct Stream {
    std::deque<Operation> queue;
    bool has_kernels = false; // whether one was ever put into it
    // While the stream captures: what it captured, from which thread, in which mode, and whether an illegal
    // call has spoilt it.
    std::unique_ptr<Graph> capture;
    std::thread::id capturer;
    int mode = 0;
    bool invalid = false;
};
struct Allocation {
    size_t bytes;
};

// ---- the driver -----------------------------------------------------------------------------------------

struct Driver {
    std::recursive_mutex lock;
    bool initialised = false;
    int sticky = 0; // the error of a kernel that failed: every later call returns it
    int retained = 0, device = -1; // of the one primary context
    std::map<Address, Allocation> memory, pinned, freed;
    size_t used = 0, most_used = 0;
    std::map<const void*, std::shared_ptr<Stream>> streams;
    std::map<const void*, std::shared_ptr<Event>> events;
    std::map<const void*, std::shared_ptr<Graph>> graphs, executables;
    std::map<const void*, std::unique_ptr<Module>> modules;
    std::set<const void*> functions;
    std::deque<Operation> orphans; // work of destroyed streams
    // Counters for the report.
    std::map<std::string, long> calls, refusals;
    long operations = 0, waits_with_work = 0, idle_waits = 0, pageable_up = 0, pageable_down = 0, empty_copies = 0;
    double pageable_bytes = 0;
};
extern Driver& driver;
// The context that is current on this thread.
extern thread_local const void* current;
// The handle of the one primary context.
extern const void* const CONTEXT;

// Writes a line to stderr, unless FAKECUDA_QUIET is set; `complain` writes it even then.
__attribute__((format(printf, 1, 2))) void say(const char* format, ...);
__attribute__((format(printf, 1, 2))) void complain(const char* format, ...);

// Appends an operation to a stream, or to the graph that the stream captures.
int put(Stream&, Operation);
// Runs an operation, unless the context is unusable. Returns the context's error.
int run(Operation&);
// Runs a queue to its end.
int finish(std::deque<Operation>&);
// Runs all queues to their ends.
int finish_all();
// Counts a wait of the host that found work, and whether the device has no kernel left to run after it.
void count_wait();
// The block that holds all of these bytes, or null.
const std::pair<const Address, Allocation>* around(const std::map<Address, Allocation>&, Address, size_t);
const Emulated* find_emulated(const std::string& symbol);

// ---- every call begins with this ------------------------------------------------------------------------

// What a call needs: a started driver, a current context, a context in which no kernel has failed. A call
// that is UNSAFE is refused while its thread captures a stream.
enum Needs { NOTHING = 0, INIT = 1, CURRENT = 2, HEALTHY = 4, UNSAFE = 8 };

struct Call {
    std::unique_lock<std::recursive_mutex> guard;
    const char* name;
    int error = 0; // the error with which the call ends before it begins
    Call(const char* name, int needs);
    // Counts and prints a refusal; returns `code`.
    __attribute__((format(printf, 3, 4))) int refuse(int code, const char* format, ...);
};
#define API extern "C" __attribute__((visibility("default"))) int
#define ENTER(needs)            \
    Call call(__func__, needs); \
    if (call.error) return call.error
#define REFUSE(...) return call.refuse(__VA_ARGS__)
#define STREAM(it, handle)                  \
    auto it = driver.streams.find(handle); \
    if (it == driver.streams.end()) REFUSE(INVALID_HANDLE, "stream %p", handle)
#define EVENT(it, handle)                  \
    auto it = driver.events.find(handle); \
    if (it == driver.events.end()) REFUSE(INVALID_HANDLE, "event %p", handle)
