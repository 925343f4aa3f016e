// The state of the fake driver: injected failures, the queues, and the report at exit.
#include "driver.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

Driver& driver = *new Driver; // never destroyed: `report` reads it when the process ends
thread_local const void* current;
const void* const CONTEXT = &driver;

static void print(const char* format, va_list list) {
    char text[1200];
    vsnprintf(text, sizeof text, format, list);
    fprintf(stderr, "fakecuda: %s\n", text);
}
void say(const char* format, ...) {
    if (QUIET) return;
    va_list list;
    va_start(list, format);
    print(format, list);
    va_end(list);
}
void complain(const char* format, ...) {
    va_list list;
    va_start(list, format);
    print(format, list);
    va_end(list);
}

// FAKECUDA_FAIL="cuMemAlloc_v2@3=2,cuGraphLaunch@1=700": the third allocation fails with error 2, the first
// launch of a graph with error 700.
static int injected(const std::string& name, long call) {
    const char* text = getenv("FAKECUDA_FAIL");
    const std::string wanted = "," + name + "@" + std::to_string(call) + "=";
    const std::string list = std::string(",") + (text ? text : "");
    const size_t at = list.find(wanted);
    return at == std::string::npos ? 0 : atoi(list.c_str() + at + wanted.size());
}

// Whether this thread may not call what is unsafe while `stream` captures: in the relaxed mode (2) every
// thread may, in the thread-local mode (1) other threads may, in the global mode (0) none may.
static bool forbids(const Stream& stream) {
    if (!stream.capture || stream.mode == 2) return false;
    return stream.mode == 0 || stream.capturer == std::this_thread::get_id();
}

Call::Call(const char* name, int needs) : guard(driver.lock), name(name) {
    const long number = ++driver.calls[name];
    if (TRACE) say("%s #%ld", name, number);
    if ((error = injected(name, number))) {
        say("%s #%ld: injected error %d", name, number, error);
        if (error == 700 || error == 702 || (error >= 714 && error <= 719)) driver.sticky = error;
        return;
    }
    if ((needs & INIT) && !driver.initialised) {
        error = refuse(NOT_INITIALIZED, "before cuInit");
    } else if ((needs & CURRENT) && current != CONTEXT) {
        error = refuse(INVALID_CONTEXT, "no context is current on this thread");
    } else if ((needs & HEALTHY) && driver.sticky) {
        error = driver.sticky;
    } else if (needs & UNSAFE) {
        for (auto& [handle, stream] : driver.streams) {
            if (!forbids(*stream)) continue;
            stream->invalid = true;
            error = refuse(CAPTURE_UNSUPPORTED, "not while a stream captures");
        }
    }
}

int Call::refuse(int code, const char* format, ...) {
    char text[500];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    driver.refusals[name]++;
    say("%s: refused (%d): %s", name, code, text);
    return code;
}

// ---- queues ---------------------------------------------------------------------------------------------

int run(Operation& o) {
    if (driver.sticky) return driver.sticky;
    driver.operations++;
    return driver.sticky = o.run();
}

int finish(std::deque<Operation>& queue) {
    const bool waits = !queue.empty();
    while (!queue.empty()) {
        Operation o = std::move(queue.front());
        queue.pop_front();
        run(o);
    }
    if (waits) count_wait();
    return driver.sticky;
}

void count_wait() {
    driver.waits_with_work++;
    for (auto& [handle, stream] : driver.streams) {
        for (auto& operation : stream->queue) {
            if (operation.kernel) return;
        }
    }
    driver.idle_waits++;
}

int finish_all() {
    finish(driver.orphans);
    for (auto& [handle, stream] : driver.streams) finish(stream->queue);
    return driver.sticky;
}

int put(Stream& stream, Operation o) {
    if (stream.capture) {
        stream.capture->nodes.push_back(std::move(o));
        return SUCCESS;
    }
    stream.has_kernels |= o.kernel != nullptr;
    const bool runs_now = EAGER == 1 || (EAGER == 2 && !stream.has_kernels);
    stream.queue.push_back(std::move(o));
    while ((long)stream.queue.size() > (runs_now ? 0 : QUEUE_LIMIT)) {
        // Removed before it runs, because a wait for an event may run the rest of the queue.
        Operation oldest = std::move(stream.queue.front());
        stream.queue.pop_front();
        run(oldest);
    }
    return SUCCESS;
}

const std::pair<const Address, Allocation>* around(const std::map<Address, Allocation>& in, Address p,
                                                   size_t n) {
    auto it = in.upper_bound(p);
    if (it == in.begin()) return nullptr;
    --it;
    const Address end = it->first + it->second.bytes;
    return p < end && n <= end - p ? &*it : nullptr;
}

// ---- the report at exit ---------------------------------------------------------------------------------

// A program that only looks whether there is a driver opens and closes this library, so only a driver that was
// called reports.
__attribute__((destructor)) static void report() {
    if (driver.calls.empty() || !REPORT) return;
    size_t unfinished = driver.orphans.size();
    for (auto& [handle, stream] : driver.streams) unfinished += stream->queue.size();
    fprintf(stderr,
            "fakecuda: at exit: %zu allocations (%zu bytes), %zu pinned, %zu streams, %zu events, %zu graphs, "
            "%zu executables, %zu modules, %zu operations never run; most %.1f MB\n",
            driver.memory.size(), driver.used, driver.pinned.size(), driver.streams.size(),
            driver.events.size(), driver.graphs.size(), driver.executables.size(), driver.modules.size(),
            unfinished, driver.most_used / 1e6);
    fprintf(stderr,
            "fakecuda: %ld operations run; %ld waits found work, %ld of them left no kernel to run; "
            "pageable copies: %ld up, %ld down, %.1f MB; copies of 0 bytes: %ld\n",
            driver.operations, driver.waits_with_work, driver.idle_waits, driver.pageable_up, driver.pageable_down,
            driver.pageable_bytes / 1e6, driver.empty_copies);
    for (auto& [name, count] : driver.calls) {
        const auto refused = driver.refusals.find(name);
        const long n = refused == driver.refusals.end() ? 0 : refused->second;
        fprintf(stderr, "fakecuda: %9ld %s", count, name.c_str());
        fprintf(stderr, n ? "  refused %ld\n" : "\n", n);
    }
}
