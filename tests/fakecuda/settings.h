// What the environment asks of the fake driver. README.md lists the variables.
#pragma once
#include <stdlib.h>

inline long setting(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

// Compute capability times ten.
inline const long SM = setting("FAKECUDA_SM", 90);
// As cuDriverGetVersion reports it: 13000 is CUDA 13.0.
inline const long DRIVER_VERSION = setting("FAKECUDA_DRIVER", 13000);
inline const long DEVICES = setting("FAKECUDA_DEVICES", 1);
inline const long CAPACITY = setting("FAKECUDA_MEMORY_MB", 141000) * 1000000;
// Operations of a stream that wait before the oldest must run.
inline const long QUEUE_LIMIT = setting("FAKECUDA_QUEUE", 100000);
// 1: work runs when it is put into a stream. 2: only in streams that have had no kernel, so that copies overtake kernels.
inline const long EAGER = setting("FAKECUDA_EAGER", 0);
inline const bool TRACE = setting("FAKECUDA_TRACE", 0);
inline const bool REPORT = setting("FAKECUDA_REPORT", 0);
inline const bool QUIET = setting("FAKECUDA_QUIET", 0);
// Thread order within a block, and OS threads, as for the emulator.
inline const long ORDER = setting("FAKECUDA_ORDER", 0);
inline const long THREADS = setting("FAKECUDA_THREADS", 2);

// Figures of NVIDIA's table of compute capabilities and data sheets.
inline const bool HAS_227_KB = SM == 90 || SM == 100 || SM == 103;
inline const bool HAS_163_KB = SM == 80 || SM == 87;
// Static and dynamic shared memory of a block together, once it is asked for.
inline const int SHARED_OPTIN = HAS_227_KB ? 227 << 10 : HAS_163_KB ? 163 << 10 : 99 << 10;
inline const int MULTIPROCESSORS =
    (int)setting("FAKECUDA_MULTIPROCESSORS", SM == 80 ? 108 : SM == 86 ? 84 : SM == 100 ? 148 : 132);
inline const int L2_BYTES = SM == 80 ? 40 << 20 : SM == 86 ? 6 << 20 : SM == 100 ? 126 << 20 : 50 << 20;
