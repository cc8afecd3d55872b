// A check that stays where asserts are compiled away: prints what failed and ends the program.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition, ...)                                          \
    do {                                                               \
        if (!(condition)) {                                            \
            std::fprintf(stderr, "%s:%d: %s\n    ", __FILE__, __LINE__, #condition); \
            std::fprintf(stderr, __VA_ARGS__);                         \
            std::fprintf(stderr, "\n");                                \
            std::abort();                                              \
        }                                                              \
    } while (false)

// What ctest counts as skipped.
constexpr int kSkipped = 77;
