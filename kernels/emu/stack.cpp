// Stacks of fibers, and the switch from one to another.
#include <stdlib.h>
#include <sys/mman.h>

#include "emu/runtime.h"

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
// The registers that a call must preserve are saved on the stack that is left, so that a switch is a call
// that returns elsewhere. It takes about 3 ns; swapcontext would need two system calls.
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch,.-emu_switch
)");
#else
#include <ucontext.h>
extern "C" void emu_switch(void** save, void* to) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}
#endif

namespace emu {

void* first_frame(char* stack, u32 colour, void (*entry)()) {
    // Stacks are a power of two apart. With all tops at the same offset, the threads of a block would
    // compete for the 8 to 12 ways of one set of the L1 cache; the colour spreads them over its 64 sets.
    char* top = stack + (STACK - PAGE) - (colour * 7 % 64) * 64;
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
    void** sp = reinterpret_cast<void**>(top);
    *--sp = nullptr; // where `entry` would return to; also aligns the stack as a call does
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    return sp;
#else
    // The context itself lies at the top of the stack.
    ucontext_t* c = reinterpret_cast<ucontext_t*>(top) - 1;
    getcontext(c);
    c->uc_stack.ss_sp = stack;
    c->uc_stack.ss_size = ((char*)c - stack) & ~(size_t)63;
    c->uc_link = nullptr;
    makecontext(c, entry, 0);
    return c;
#endif
}

char* take_stack(Context& c) {
    if (c.n_free) return c.free_stacks[--c.n_free];
    if (!c.stacks) {
        void* p = mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) abort(); // 64 MiB of addresses, 256 MiB with a sanitizer
        c.stacks = static_cast<char*>(p);
    }
    char* stack = c.stacks + c.made_stacks++ * STACK;
    mprotect(stack, PAGE, PROT_NONE); // an overflow faults rather than running into the next stack
    return stack + PAGE;
}

} // namespace emu
