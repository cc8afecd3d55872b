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

// nibble * multiplier of every nibble, a row a multiplier.
struct Multiples {
    alignas(64) int8_t of[kMaxMultiplier + 1][16];
    constexpr Multiples() : of() {
        for (int multiplier = 0; multiplier <= kMaxMultiplier; ++multiplier)
            for (int nibble = 0; nibble < 16; ++nibble)
                of[multiplier][nibble] = int8_t((nibble < 8 ? nibble : nibble - 16) * multiplier);
    }
};
constexpr Multiples kMultiples;

// The block to fetch into the cache while the present one is multiplied: one piece of memory, some lines a strip.
struct Following {
    const char* line = nullptr;
    int64_t lines_per_strip = 0;

    void fetch() {
        for (int64_t i = 0; i < lines_per_strip; ++i) __builtin_prefetch(line + i * kStripBytes, 0, 2);
        line += lines_per_strip * kStripBytes;
    }
};

// A block of 4 bits on its way to the int8 that a product reads: one strip ahead of the product that meets it first.
// By default there is nothing to unpack.
struct Nibbles {
    const char* from = nullptr;
    int64_t strips = 0;
    char* to = nullptr;

    // Unpack the next strip, if there is one.
    template <class Unpack>
    void next(Unpack&& unpack_strip) {
        if (strips == 0) return;
        unpack_strip(from, to);
        --strips, from += quantised_strip_bytes(4), to += kLeftStripBytes;
    }
};

}  // namespace
