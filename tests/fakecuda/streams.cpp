// Streams, events, and captured graphs.
#include "driver.h"

API cuStreamCreate(const void** handle, unsigned flags) {
    ENTER(INIT | CURRENT | HEALTHY);
    if (flags > 1) REFUSE(INVALID_VALUE, "flags %u", flags);
    auto made = std::make_shared<Stream>();
    driver.streams[*handle = made.get()] = made;
    return SUCCESS;
}
API cuStreamDestroy_v2(const void* handle) {
    ENTER(INIT | CURRENT);
    STREAM(it, handle);
    if (it->second->capture) REFUSE(ILLEGAL_STATE, "the stream captures");
    // CUDA returns at once, and the device finishes the stream's work later.
    for (auto& o : it->second->queue) driver.orphans.push_back(std::move(o));
    driver.streams.erase(it);
    return SUCCESS;
}
API cuStreamSynchronize(const void* handle) {
    ENTER(INIT | CURRENT | HEALTHY);
    STREAM(it, handle);
    if (it->second->capture) {
        it->second->invalid = true;
        REFUSE(CAPTURE_UNSUPPORTED, "the stream captures");
    }
    return finish(it->second->queue);
}

// Runs a function of the host when the device gets there: what NCCL's stand-in does in place of a kernel.
API cuLaunchHostFunc(const void* handle, void (*function)(void*), void* data) {
    ENTER(INIT | CURRENT | HEALTHY);
    STREAM(it, handle);
    return put(*it->second, {"host function", [function, data] {
                                 function(data);
                                 return (int)SUCCESS;
                             }});
}

// ---- events ---------------------------------------------------------------------------------------------

// Runs the recording's stream until the device has reached it, and no further.
static int reach(const Recording& recording) {
    auto it = driver.streams.find(recording.stream.get());
    auto& queue = it == driver.streams.end() ? driver.orphans : it->second->queue;
    while (!recording.done && !queue.empty()) {
        Operation o = std::move(queue.front());
        queue.pop_front();
        if (int e = run(o)) return e;
    }
    return driver.sticky;
}

API cuEventCreate(const void** handle, unsigned flags) {
    ENTER(INIT | CURRENT | HEALTHY);
    if (flags > 7) REFUSE(INVALID_VALUE, "flags %u", flags);
    auto made = std::make_shared<Event>();
    made->timed = !(flags & 2); // CU_EVENT_DISABLE_TIMING
    driver.events[*handle = made.get()] = made;
    return SUCCESS;
}
API cuEventRecord(const void* handle, const void* stream) {
    ENTER(INIT | CURRENT | HEALTHY);
    EVENT(it, handle);
    STREAM(on, stream);
    auto recording = std::make_shared<Recording>(Recording{on->second, false, {}});
    it->second->last = recording;
    it->second->captured = bool(on->second->capture);
    return put(*on->second, {"event", [recording] {
                                 recording->done = true;
                                 recording->at = std::chrono::steady_clock::now();
                                 return (int)SUCCESS;
                             }});
}
API cuEventQuery(const void* handle) {
    ENTER(INIT | CURRENT | HEALTHY);
    EVENT(it, handle);
    if (it->second->captured) REFUSE(CAPTURED_EVENT, "recorded in a capture");
    return !it->second->last || it->second->last->done ? SUCCESS : NOT_READY;
}
API cuEventSynchronize(const void* handle) {
    ENTER(INIT | CURRENT | HEALTHY | UNSAFE);
    EVENT(it, handle);
    if (it->second->captured) REFUSE(CAPTURED_EVENT, "recorded in a capture");
    const auto last = it->second->last;
    if (!last || last->done) return driver.sticky;
    const int error = reach(*last);
    count_wait();
    return error;
}
// Work that is put into the stream after this call begins when the device has reached the event's last
// recording before it.
API cuStreamWaitEvent(const void* stream, const void* handle, unsigned flags) {
    ENTER(INIT | CURRENT | HEALTHY);
    STREAM(on, stream);
    EVENT(it, handle);
    if (flags > 1) REFUSE(INVALID_VALUE, "flags %u", flags);
    if (on->second->capture || it->second->captured) REFUSE(NOT_SUPPORTED, "this driver captures no waits");
    auto recording = it->second->last;
    if (!recording) return SUCCESS;
    return put(*on->second, {"wait for an event", [recording] { return reach(*recording); }});
}
API cuEventElapsedTime(float* ms, const void* first, const void* last) {
    ENTER(INIT | HEALTHY);
    EVENT(a, first);
    EVENT(b, last);
    if (!a->second->timed || !b->second->timed) REFUSE(INVALID_HANDLE, "an event without timing");
    const auto begin = a->second->last, end = b->second->last;
    if (!begin || !end) REFUSE(INVALID_HANDLE, "an event was never recorded");
    if (!begin->done || !end->done) REFUSE(NOT_READY, "the device has not reached an event");
    *ms = std::chrono::duration<float, std::milli>(end->at - begin->at).count();
    return SUCCESS;
}
API cuEventDestroy_v2(const void* handle) {
    ENTER(INIT);
    EVENT(it, handle);
    driver.events.erase(it);
    return SUCCESS;
}

// ---- graphs ---------------------------------------------------------------------------------------------

API cuStreamBeginCapture_v2(const void* handle, int mode) {
    ENTER(INIT | CURRENT | HEALTHY);
    STREAM(it, handle);
    if (mode < 0 || mode > 2) REFUSE(INVALID_VALUE, "mode %d", mode);
    if (it->second->capture) REFUSE(ILLEGAL_STATE, "the stream captures already");
    it->second->capture = std::make_unique<Graph>();
    it->second->capturer = std::this_thread::get_id();
    it->second->mode = mode;
    it->second->invalid = false;
    return SUCCESS;
}
// A failure that is injected ends the capture too.
API cuStreamEndCapture(const void* handle, const void** graph) {
    Call call(__func__, INIT | CURRENT | HEALTHY);
    *graph = nullptr;
    if (call.error) {
        auto capturing = driver.streams.find(handle);
        if (capturing != driver.streams.end()) capturing->second->capture.reset();
        return call.error;
    }
    STREAM(it, handle);
    Stream& stream = *it->second;
    if (!stream.capture) REFUSE(CAPTURE_UNMATCHED, "the stream does not capture");
    if (stream.mode != 2 && stream.capturer != std::this_thread::get_id()) {
        REFUSE(CAPTURE_WRONG_THREAD, "begun on another thread");
    }
    std::shared_ptr<Graph> made = std::move(stream.capture);
    if (stream.invalid) REFUSE(CAPTURE_INVALIDATED, "after an illegal call");
    driver.graphs[*graph = made.get()] = made;
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(const void** executable, const void* graph, u64 flags) {
    ENTER(INIT | CURRENT | HEALTHY | UNSAFE);
    auto it = driver.graphs.find(graph);
    if (it == driver.graphs.end()) REFUSE(INVALID_HANDLE, "graph %p", graph);
    if (flags) REFUSE(INVALID_VALUE, "flags %llu", flags);
    for (auto& node : it->second->nodes) {
        if (node.kernel && (int)node.shared > node.kernel->max_dynamic_shared) {
            REFUSE(INVALID_VALUE, "%s asks for %u bytes of shared memory, by now %d are allowed", node.what,
                   node.shared, node.kernel->max_dynamic_shared);
        }
    }
    auto made = std::make_shared<Graph>(*it->second);
    driver.executables[*executable = made.get()] = made;
    return SUCCESS;
}
API cuGraphDestroy(const void* graph) {
    ENTER(INIT);
    return driver.graphs.erase(graph) ? SUCCESS : call.refuse(INVALID_HANDLE, "graph %p", graph);
}
API cuGraphLaunch(const void* executable, const void* handle) {
    ENTER(INIT | CURRENT | HEALTHY);
    STREAM(it, handle);
    auto found = driver.executables.find(executable);
    if (found == driver.executables.end()) REFUSE(INVALID_HANDLE, "executable %p", executable);
    if (it->second->capture) REFUSE(CAPTURE_UNSUPPORTED, "into a stream that captures");
    for (auto& node : found->second->nodes) put(*it->second, node);
    return SUCCESS;
}
API cuGraphExecDestroy(const void* executable) {
    ENTER(INIT);
    return driver.executables.erase(executable) ? SUCCESS
                                                : call.refuse(INVALID_HANDLE, "executable %p", executable);
}
