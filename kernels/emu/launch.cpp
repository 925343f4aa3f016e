// A launch: checks that a GPU would accept it, and distributes its blocks over OS threads.
#include <semaphore.h>
#include <stdio.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "emu/runtime.h"

namespace emu {

// A launch uses one OS thread for each so many CUDA threads: waking an OS thread takes about 10 us, as long
// as running this many CUDA threads that do next to nothing.
constexpr u64 WORTH_A_WORKER = 4096;

struct Job {
    const Launch* launch;
    u64 blocks;
    u32 workers;
    std::atomic<u64> next{0};
    std::atomic<bool> failed{false};
    char error[sizeof(Context::error)];
};

// Threads and contexts are kept for the next launch; there are as many as ever ran at the same time.
struct Worker {
    Context context{};
    sem_t start, done;
    Job* job;
    u32 index;
};
struct Pool {
    std::mutex lock;
    std::vector<Context*> contexts;
    std::vector<Worker*> workers;
};
static Pool& pool = *new Pool; // never destroyed: workers still wait after main has returned

static u64 hash(u64 v) {
    v = (v ^ v >> 31) * 0x9e3779b97f4a7c15ull;
    return (v ^ v >> 29) * 0xbf58476d1ce4e5b9ull >> 8;
}

static void run_share(Context& c, Job& job, u32 index) {
    const Launch& l = *job.launch;
    const u64 shift = l.order >= 2 ? hash(l.order) % job.blocks : 0;
    for (u64 i = index; !job.failed.load(std::memory_order_relaxed); i += job.workers) {
        // TSan takes the blocks of one OS thread for ordered and finds no race between them. With TSan,
        // blocks are therefore dealt out in turn, so that neighbours run on different OS threads.
        if (!san::THREAD) i = job.next.fetch_add(1, std::memory_order_relaxed);
        if (i >= job.blocks) break;
        const u64 n = l.order == 1 ? job.blocks - 1 - i : (i + shift) % job.blocks;
        const u64 row = n / l.grid.x;
        run_block(c, l, {(u32)(n % l.grid.x), (u32)(row % l.grid.y), (u32)(row / l.grid.y)}, n);
        if (c.failed && !job.failed.exchange(true)) {
            for (size_t k = 0; k < sizeof job.error; k++) job.error[k] = c.error[k];
        }
    }
}

// One pair of semaphores per worker: TSan would take blocks for ordered by a mutex that workers share.
static void work(Worker* w) {
    catch_faults_here();
    for (;;) {
        while (sem_wait(&w->start)) continue; // interrupted
        run_share(w->context, *w->job, w->index);
        sem_post(&w->done);
    }
}

static Worker* take_worker() {
    {
        std::lock_guard<std::mutex> guard(pool.lock);
        if (!pool.workers.empty()) {
            Worker* w = pool.workers.back();
            pool.workers.pop_back();
            return w;
        }
    }
    Worker* w = new Worker;
    sem_init(&w->start, 0, 0);
    sem_init(&w->done, 0, 0);
    std::thread(work, w).detach();
    return w;
}

static Context* take_context() {
    std::lock_guard<std::mutex> guard(pool.lock);
    if (pool.contexts.empty()) return new Context{};
    Context* c = pool.contexts.back();
    pool.contexts.pop_back();
    return c;
}

static void run(Job& job) {
    std::vector<Worker*> workers;
    for (u32 i = 1; i < job.workers; i++) {
        Worker* w = take_worker();
        w->job = &job;
        w->index = i;
        sem_post(&w->start);
        workers.push_back(w);
    }
    Context* c = take_context();
    run_share(*c, job, 0);
    for (Worker* w : workers) {
        while (sem_wait(&w->done)) continue;
    }
    std::lock_guard<std::mutex> guard(pool.lock);
    pool.contexts.push_back(c);
    pool.workers.insert(pool.workers.end(), workers.begin(), workers.end());
}

// Describes the mistakes that the driver reports as CUDA_ERROR_INVALID_VALUE.
static bool valid(const Launch& l, char* error, size_t error_len) {
    const Dim3 b = l.block, g = l.grid;
    if (!b.x || !b.y || !b.z || b.x > 1024 || b.y > 1024 || b.z > 64 || (u64)b.x * b.y * b.z > MAX_THREADS) {
        snprintf(error, error_len, "invalid launch: block of %ux%ux%u threads", b.x, b.y, b.z);
        return false;
    }
    if (!g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) {
        snprintf(error, error_len, "invalid launch: grid of %ux%ux%u blocks", g.x, g.y, g.z);
        return false;
    }
    if (l.dynamic_shared > MAX_SHARED) {
        snprintf(error, error_len, "invalid launch: %zu bytes of shared memory, at most 227 KiB",
                 l.dynamic_shared);
        return false;
    }
    return true;
}

} // namespace emu

using namespace emu;

// `threads` is how many OS threads may share the blocks. Returns 0, or 1 and the message in `error`.
extern "C" int emu_launch(void (*entry)(void**), const unsigned grid[3], const unsigned block[3],
                          size_t dynamic_shared, void** args, int order, int threads, char* error,
                          size_t error_len) {
    static std::once_flag once;
    std::call_once(once, catch_faults);
    catch_faults_here();
    Launch launch{};
    launch.entry = entry;
    launch.args = args;
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.block = {block[0], block[1], block[2]};
    launch.dynamic_shared = dynamic_shared;
    launch.order = order;
    if (!valid(launch, error, error_len)) return 1;
    Job job;
    job.launch = &launch;
    job.blocks = (u64)grid[0] * grid[1] * grid[2];
    u64 workers = threads < 1 ? 1 : threads;
    if (san::THREAD) {
        if (workers < 2) workers = 2;
    } else {
        const u64 worth = job.blocks * block[0] * block[1] * block[2] / WORTH_A_WORKER;
        if (workers > worth) workers = worth ? worth : 1;
    }
    job.workers = (u32)(workers < job.blocks ? workers : job.blocks);
    run(job);
    if (job.failed) {
        snprintf(error, error_len, "%s", job.error);
        return 1;
    }
    return allocations_intact(error, error_len) ? 0 : 1;
}
