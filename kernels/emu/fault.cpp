// Turns a fault inside a kernel into an error of the launch; otherwise it would end the process.
//
// Not under a sanitizer, whose own report says more. On x86-64 only; elsewhere a fault ends the process.
#include "emu/runtime.h"

#if defined(__x86_64__) && !EMU_ASAN && !EMU_TSAN
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

namespace emu {

constexpr size_t HANDLER_STACK = 64 << 10;
constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE};

static struct sigaction previous[3];
static __thread int fault_signal;
static __thread const void* fault_address;
static __thread bool ready_here;

// Runs after the handler has returned, as if the fiber had called it, on a separate stack, because the
// fiber's own may have overflowed.
[[noreturn]] static void land() {
    if (fault_signal == SIGFPE) fail("integer division by zero or overflow");
    char where[200];
    describe_address(fault_address, where, sizeof where);
    const char* stack = running().stack;
    const char* p = static_cast<const char*>(fault_address);
    if (stack && p >= stack - PAGE && p < stack) fail("stack overflow (%zu KiB a thread)", STACK >> 10);
    fail("invalid access to address %p%s", fault_address, where);
}

static void on_fault(int number, siginfo_t* info, void* state) {
    if (!self) { // not in a kernel: restore the handler that was installed before
        for (int i = 0; i < 3; i++) {
            if (SIGNALS[i] == number) sigaction(number, &previous[i], nullptr);
        }
        return; // the instruction faults again
    }
    fault_signal = number;
    fault_address = info->si_addr;
    auto& registers = static_cast<ucontext_t*>(state)->uc_mcontext.gregs;
    registers[REG_RIP] = (greg_t)land;
    registers[REG_RSP] = (greg_t)(context->landing + sizeof context->landing - 8); // as after a call
}

void catch_faults() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &action, &previous[i]);
}

// The handler cannot run on a fiber's stack. Rust gives its threads an alternate stack; other threads get
// one here, which is never freed.
void catch_faults_here() {
    if (ready_here) return;
    ready_here = true;
    stack_t old;
    sigaltstack(nullptr, &old);
    if (!(old.ss_flags & SS_DISABLE)) return;
    stack_t own = {};
    own.ss_sp = malloc(HANDLER_STACK);
    own.ss_size = HANDLER_STACK;
    sigaltstack(&own, nullptr);
}

} // namespace emu
#else
namespace emu {
void catch_faults() {}
void catch_faults_here() {}
} // namespace emu
#endif
