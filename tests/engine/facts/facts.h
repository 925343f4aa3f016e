// What both programs of tests/engine/facts.rs need: the comparison, and ten convolutions with the plain
// formula of which pixel a tap reads.
#pragma once
#include <stdarg.h>
#include <stdio.h>

// A fact that our code must agree with. Prints how many values were equal, or the first that was not.
struct Fact {
    const char* const name;
    int equal = 0, wrong = 0;

    explicit Fact(const char* name) : name(name) {}
    __attribute__((format(printf, 4, 5))) void same(unsigned long long got, unsigned long long want,
                                                   const char* what, ...) {
        if (got == want) {
            equal++;
            return;
        }
        if (wrong++) return;
        va_list arguments;
        va_start(arguments, what);
        printf("%s: ", name);
        vprintf(what, arguments);
        printf(": found %#llx (%lld), expected %#llx (%lld)\n", got, (long long)got, want, (long long)want);
        va_end(arguments);
    }
    ~Fact() {
        if (wrong) printf("%s: %d of %d wrong\n", name, wrong, wrong + equal);
        else printf("%s: %d equal\n", name, equal);
    }
};

// Images of n, h, w and c; a filter of k channels, r rows and s columns. Where height and width differ, code
// that swaps them gives another result.
struct Geometry {
    int n, h, w, c, k, r, s, stride, pad;

    int p() const { return (h + 2 * pad - r) / stride + 1; } // height of the output
    int q() const { return (w + 2 * pad - s) / stride + 1; } // width
};
static const Geometry GEOMETRIES[] = {
    {2, 14, 14, 256, 256, 3, 3, 1, 1}, {3, 9, 7, 128, 192, 3, 3, 1, 1}, {2, 13, 13, 64, 256, 3, 3, 1, 1},
    {2, 28, 28, 128, 128, 3, 3, 2, 1}, {2, 15, 11, 64, 64, 5, 3, 2, 1}, {2, 8, 8, 64, 128, 1, 1, 2, 0},
    {1, 12, 10, 64, 64, 7, 7, 2, 3},   {2, 10, 6, 64, 64, 3, 5, 1, 1},  {2, 6, 10, 128, 64, 4, 4, 2, 1},
    {1, 14, 14, 64, 64, 2, 4, 1, 1},
};
