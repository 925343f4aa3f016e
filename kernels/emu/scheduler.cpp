// A block: its fibers, the choice of the next one, sync_block, and how a failure ends it.
#include <stdarg.h>
#include <stdio.h>

#include "emu/runtime.h"

namespace emu {

__thread Thread* self;
__thread Block block;
__thread Context* context;

// ---- leaving a block ----

[[noreturn]] static void to_main(Context& c) {
    san::before_switch(nullptr, c.main_stack, c.main_stack_size);
    san::switch_to(c.main_tsan);
    void* never_resumed;
    emu_switch(&never_resumed, c.main_sp);
    __builtin_unreachable();
}

void fail(const char* format, ...) {
    Context& c = *context;
    const Dim3 b = block.idx, t = self->idx;
    const char* where = "block (%u,%u,%u) thread (%u,%u,%u): ";
    const int n = snprintf(c.error, sizeof c.error, where, b.x, b.y, b.z, t.x, t.y, t.z);
    va_list list;
    va_start(list, format);
    vsnprintf(c.error + n, sizeof c.error - n, format, list);
    va_end(list);
    c.failed = true;
    to_main(c);
}

static const char* in_words(State s) {
    switch (s) {
        case State::InSyncBlock: return "sync_block";
        case State::InMbarrier: return "mbar_wait";
        case State::InNamedBarrier: return "named barrier";
        case State::InProducts: return "wgmma_wait";
        default: return "warp collective";
    }
}

// No thread can go on: some wait in sync_block, some in a collective of their warp, some at a barrier.
[[noreturn]] static void deadlock(Context& c) {
    char text[700] = "";
    size_t n = 0;
    const Fiber* last = nullptr;
    for (u32 i = 0; i < c.threads && n + 280 < sizeof text; i++) {
        const Fiber& f = c.fibers[i];
        const bool same = last && last->state == f.state && last->place.line == f.place.line;
        if (same && (f.state != State::InMbarrier || last->waits_for == f.waits_for)) continue;
        last = &f;
        if (f.state == State::Exited) continue;
        char what[120] = "";
        if (f.state == State::InMbarrier) describe_mbarrier(c, f.waits_for, what, sizeof what);
        n += snprintf(text + n, sizeof text - n, " [from thread %u on: %s at %.80s:%d%s]", i, in_words(f.state),
                      file_name(f.place), f.place.line, what);
    }
    fail("divergence, no thread can go on:%s", text);
}

// ---- the next thread ----

static Fiber& next_ready(Context& c) {
    if (c.hopper_used) {
        if (c.order >= 2) land_at_random(c);
        while (c.head == c.tail && land_one(c)) continue;
    }
    if (c.head == c.tail) deadlock(c);
    if (c.order == 0) return c.fibers[c.ready[c.head++ % MAX_THREADS]];
    if (c.order >= 2) { // any of them to the tail
        const u32 chosen = c.head + random_below(c, c.tail - c.head);
        std::swap(c.ready[chosen % MAX_THREADS], c.ready[(c.tail - 1) % MAX_THREADS]);
    }
    return c.fibers[c.ready[--c.tail % MAX_THREADS]];
}

static void fiber_main();

// Continues in `to`; returns when another fiber switches back. `over`: `from` has ended, and none will.
static void switch_fiber(Context& c, Fiber& from, Fiber& to, bool over) {
    if (!to.stack) {
        to.stack = take_stack(c);
        to.sp = first_frame(to.stack, to.id, fiber_main);
    }
    self = &to;
    san::before_switch(over ? nullptr : &from.fake_stack, to.stack, STACK - PAGE);
    san::switch_to(to.tsan);
    emu_switch(&from.sp, to.sp);
    san::after_switch(from.fake_stack, nullptr, nullptr);
}

void wait(Context& c, State why, Place p) {
    Fiber& me = running();
    me.state = why;
    me.place = p;
    Fiber& next = next_ready(c);
    if (&next != &me) switch_fiber(c, me, next, false);
}

void yield(Context& c, Place p) {
    make_ready(c, self->id);
    wait(c, State::Ready, p);
}

void sync_block(Place p) {
    Context& c = *context;
    if (c.live < c.threads) {
        fail("divergent sync_block at %s:%d: %u thread(s) of the block have exited", file_name(p), p.line,
             c.threads - c.live);
    }
    if (c.waiting == 0) {
        c.barrier = p;
    } else if (c.barrier.line != p.line || c.barrier.file != p.file) {
        fail("divergent sync_block: some threads at %s:%d, this one at %s:%d", file_name(c.barrier),
             c.barrier.line, file_name(p), p.line);
    }
    char* order = &c.barrier_order[c.barrier_generation & 1];
    san::release(order);
    if (++c.waiting == c.threads) {
        c.waiting = 0;
        c.barrier_generation++;
        for (u32 i = 0; i < c.threads; i++) make_ready(c, i);
        wait(c, State::Ready, p);
    } else {
        wait(c, State::InSyncBlock, p);
    }
    san::acquire(order);
}

// ---- the life of a fiber ----

// The running thread has returned from the kernel.
static void retire(Context& c, Fiber& me) {
    Warp& w = c.warps[me.id / 32];
    me.state = State::Exited;
    c.live--;
    w.exited |= 1u << me.id % 32;
    if (!me.copies.empty()) fail("exited with cp.async still in flight (%zu copies)", me.copies.size());
    if (c.waiting) {
        fail("divergent sync_block: exited while %u thread(s) wait at %s:%d", c.waiting, file_name(c.barrier),
             c.barrier.line);
    }
    if (w.arrived) {
        fail("divergent warp collective: exited while lanes %#x wait at %s:%d", w.arrived, file_name(w.place),
             w.place.line);
    }
    if (c.hopper_used) retire_hopper(c, me);
    san::release(&c.done_order);
}

static void fiber_main() {
    const void* left;
    size_t left_size;
    san::after_switch(nullptr, &left, &left_size);
    Context& c = *context;
    if (san::ADDRESS && !c.main_stack) { // the block's first fiber is the one that comes from the OS thread
        c.main_stack = left;
        c.main_stack_size = left_size;
    }
    for (;;) {
        san::acquire(&c.launch_order);
        c.launch->entry(c.launch->args);
        Fiber& me = running();
        retire(c, me);
        if (c.live == 0) to_main(c);
        Fiber& next = next_ready(c);
        if (!san::THREAD) {
            // A thread that has not started reuses this stack, which is in the cache, without a switch. All
            // threads of an elementwise kernel run like this. (TSan would report a race between the two uses
            // of the stack.)
            if (!next.stack) {
                next.stack = me.stack;
                self = &next;
                continue;
            }
            c.free_stacks[c.n_free++] = me.stack;
        }
        switch_fiber(c, me, next, true);
    }
}

static void forget_abandoned(Context& c) {
    c.abandoned = false;
    san::unpoison(c.stacks, c.made_stacks * STACK);
    for (Fiber& f : c.fibers) f.copies.clear();
}

static void start_block(Context& c, const Launch& l, Dim3 at, u64 number) {
    context = &c;
    block = {at, l.block, l.grid};
    c.launch = &l;
    c.threads = c.live = l.block.x * l.block.y * l.block.z;
    c.order = l.order;
    // The seed depends on the block and not on earlier blocks of this OS thread, so that a failure can be
    // repeated.
    c.random = (number + 1) * 0x9e3779b97f4a7c15ull ^ (u64)l.order << 40;
    for (int i = 0; i < 4; i++) random(c);
    c.head = c.tail = c.waiting = 0;
    c.failed = c.hopper_used = false;
    c.main_stack = nullptr;
    if (c.abandoned) forget_abandoned(c);
    // All stacks are free again, the lowest on top.
    c.n_free = c.made_stacks;
    for (u32 i = 0; i < c.n_free; i++) c.free_stacks[i] = c.stacks + (c.n_free - 1 - i) * STACK + PAGE;

    Dim3 idx = {0, 0, 0};
    for (u32 i = 0; i < c.threads; i++) {
        Fiber& f = c.fibers[i];
        f.idx = idx;
        f.id = i;
        f.sp = f.stack = nullptr;
        f.fake_stack = nullptr;
        f.group = 0;
        if (san::THREAD && !f.tsan) f.tsan = san::create_fiber(); // kept: making one takes 0.8 ms
        make_ready(c, i);
        if (++idx.x == l.block.x) {
            idx.x = 0;
            if (++idx.y == l.block.y) {
                idx.y = 0;
                idx.z++;
            }
        }
    }
    for (u32 w = 0; w * 32 < c.threads; w++) {
        const u32 lanes = c.threads - w * 32;
        c.warps[w].lanes = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
        c.warps[w].arrived = c.warps[w].exited = 0;
    }
}

void run_block(Context& c, const Launch& l, Dim3 at, u64 number) {
    start_block(c, l, at, number);
    reset_shared(c);
    Fiber& first = next_ready(c);
    first.stack = take_stack(c);
    first.sp = first_frame(first.stack, first.id, fiber_main);
    self = &first;
    san::release(&c.launch_order);
    c.main_tsan = san::current_fiber();
    san::before_switch(&c.main_fake_stack, first.stack, STACK - PAGE);
    san::switch_to(first.tsan);
    emu_switch(&c.main_sp, first.sp);
    san::after_switch(c.main_fake_stack, nullptr, nullptr);
    if (c.failed && san::THREAD) { // also order the accesses of abandoned threads before what follows
        for (u32 i = 0; i < c.threads; i++) {
            san::switch_to(c.fibers[i].tsan);
            san::release(&c.done_order);
        }
        san::switch_to(c.main_tsan);
    }
    san::acquire(&c.done_order);
    self = nullptr;
    if (c.failed) c.abandoned = true;
    else c.failed = !redzones_intact(c);
}

} // namespace emu
