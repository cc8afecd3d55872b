// Low-bit weights: how they lie in memory, and what is computed with them.
//
// A matrix [channels, depth] lies as the left blocks of `block.h`, 32 channels by strips of 64 depths, zeros beyond its
// edges; a block is one piece of memory, and the blocks of an expert follow one another. A channel has one float scale.
//
//     8 bits: a strip is 32 rows of 64 int8, as the products take them
//     4 bits: a strip is 32 rows of 32 bytes, then 32 multipliers, a byte for each row
//             byte i of a row: depth i in the low nibble, depth 32 + i in the high one, both signed
//
// A weight of 4 bits is nibble * multiplier * scale. nibble * multiplier fits into an int8, so both widths share one
// product: int8 by int8, summed in int32 over the whole depth, which is exact whatever the order. Only then come floats:
//     (float(sum) * scale of the channel) * scale of the token
// A token is quantised to -127..127 over its whole width by its largest magnitude, to the nearest, ties to even. One
// with a NaN or an infinity has the scale NaN.
#pragma once

#include <cmath>

#include "block.h"

namespace {

constexpr int kNibbleRowBytes = 32;
constexpr int kMaxMultiplier = 16;
constexpr float kMaxToken = 127.0f;
// Smaller magnitudes count as this one: its reciprocal is still a float, and zeros need no case of their own.
constexpr float kMinMagnitude = 1e-30f;
constexpr uint32_t kInfinityBits = 0x7f800000;

constexpr int64_t quantised_strip_bytes(int bits) { return bits == 8 ? kLeftStripBytes : (kBlock + 1) * kNibbleRowBytes; }

// nibble * multiplier of every nibble, a row a multiplier; plus an offset.
struct Multiples {
    alignas(64) int8_t of[kMaxMultiplier + 1][16];
    explicit constexpr Multiples(int offset) : of() {
        for (int multiplier = 0; multiplier <= kMaxMultiplier; ++multiplier)
            for (int nibble = 0; nibble < 16; ++nibble)
                of[multiplier][nibble] = int8_t((nibble < 8 ? nibble : nibble - 16) * multiplier + offset);
    }
};
constexpr Multiples kMultiples(0), kOffsetMultiples(128);

// The block to fetch into the cache while the present one is multiplied, its quarters side by side: memory answers several
// readers faster than one.
struct Following {
    static constexpr uint64_t kRuns = 4;

    const char* block = nullptr;
    int64_t run = 0;  // bytes of a quarter, in lines
    int64_t lines_per_strip = 0;
    uint64_t line = 0;

    static int64_t run_of(int64_t block_bytes) { return round_up(ceil_div(block_bytes, int64_t(kRuns)), kStripBytes); }

    void fetch_line() {
        __builtin_prefetch(block + int64_t(line % kRuns) * run + int64_t(line / kRuns) * kStripBytes, 0, 2);
        ++line;
    }
    void fetch() {
        for (int64_t i = 0; i < lines_per_strip; ++i) fetch_line();
    }
};

// The left block of a product, strip by strip. One of 4 bits is unpacked on the way, two strips ahead of the product that
// meets it first.
struct LeftBlock {
    static constexpr int64_t kAhead = 2;

    const char* int8 = nullptr;
    const char* nibbles = nullptr;  // null: `int8` is there
    char* room = nullptr;
    int64_t strips = 0, unpacked = 0;

    const char* strip(int64_t s) const { return int8 + s * kLeftStripBytes; }

    // Have the strips before `end` unpacked.
    template <class Unpack>
    void unpack(int64_t end, Unpack&& unpack_strip) {
        for (; unpacked < strips && unpacked < end; ++unpacked)
            unpack_strip(nibbles + unpacked * quantised_strip_bytes(4), room + unpacked * kLeftStripBytes);
    }
};

}  // namespace
