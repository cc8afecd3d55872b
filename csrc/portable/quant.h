// What `quant_forward.h` asks for, in plain C++.
#pragma once

#include "../quant.h"
#include "product.h"

namespace {

// The step between quantised values and its reciprocal.
struct Grid {
    float scale, inverse;

    explicit Grid(float most) {
        most = most < kMinMagnitude ? kMinMagnitude : most;
        scale = most / kMaxToken, inverse = kMaxToken / most;
    }
};

template <class T>
struct QuantisedPortable {
    using Element = T;
    using Finish = typename Portable<T>::Finish;

    static void begin() {}
    static void end() {}

    static void pack_tokens(const T* const* rows, int count, int64_t width, char*, char* panel, float* scales) {
        std::memset(panel, 0, strips_of(width) * kPanelStripBytes);
        for (int lane = 0; lane < kLanes; ++lane)
            scales[lane] = lane < count ? pack(width, panel, lane, [&](int64_t d) { return widen(rows[lane][d]); }) : 0.0f;
    }

    static void pack_gated(const float* gated, int64_t depth, char* panel, float* scales) {
        for (int lane = 0; lane < kLanes; ++lane)
            scales[lane] = pack(depth, panel, lane, [&](int64_t d) { return gated[d * kLanes + lane]; });
    }

    static void multiply(LeftBlock& left, int64_t strips, const char* panel0, const char* panel1, int32_t* c,
                         Following&) {
        left.unpack(strips, unpack_strip);
        for (int row = 0; row < kBlock; ++row)
            for (int p = 0; p < (panel1 == nullptr ? 1 : 2); ++p) {
                int32_t sums[kLanes] = {};
                const int8_t* token = reinterpret_cast<const int8_t*>(p == 0 ? panel0 : panel1);
                for (int64_t s = 0; s < strips; ++s) {
                    const char* const strip = left.strip(s) + row * kStripBytes;
                    for (int word = 0; word < 16; ++word, token += kLanes * 4)
                        for (int lane = 0; lane < kLanes; ++lane)
                            for (int i = 0; i < 4; ++i) sums[lane] += int8_t(strip[word * 4 + i]) * token[lane * 4 + i];
                }
                std::memcpy(c + row * kBlock + p * kLanes, sums, sizeof(sums));
            }
    }

    static void take_lane(const char* panel, int64_t strips, char* row) {
        for (int64_t word = 0; word < strips * 16; ++word) std::memcpy(row + word * 4, panel + word * kLanes * 4, 4);
    }

    static void multiply_one(int bits, const char* weights, int64_t strips, const char* token, int32_t* c, Following&) {
        for (int row = 0; row < kBlock; ++row) c[row * kBlock] = 0;
        for (int64_t s = 0; s < strips; ++s, weights += quantised_strip_bytes(bits)) {
            char unpacked[kLeftStripBytes];
            if (bits == 4) unpack_strip(weights, unpacked);
            const char* const strip = bits == 4 ? unpacked : weights;
            for (int row = 0; row < kBlock; ++row)
                for (int i = 0; i < kStripBytes; ++i)
                    c[row * kBlock] += int8_t(strip[row * kStripBytes + i]) * int8_t(token[s * kStripBytes + i]);
        }
    }

    static void gate(const int32_t* c, const float* scales, const float* token_scales, int count, float* to) {
        for (int f = 0; f < kHalf; ++f)
            for (int lane = 0; lane < kLanes; ++lane) {
                const float gate = float(c[f * kBlock + lane]) * scales[f] * token_scales[lane];
                const float up = float(c[(kHalf + f) * kBlock + lane]) * scales[kHalf + f] * token_scales[lane];
                to[f * kLanes + lane] = lane < count ? gate * sigmoid(gate) * up : 0.0f;
            }
    }

    static void store_tokens(const int32_t* c, const float* scales, const float* token_scales, T* const* rows, int num_tokens,
                             int columns) {
        for (int token = 0; token < num_tokens; ++token)
            for (int i = 0; i < columns; ++i)
                narrow(float(c[i * kBlock + token]) * scales[i] * token_scales[token], rows[token][i]);
    }

   private:
    static void unpack_strip(const char* strip, char* to) {
        for (int row = 0; row < kBlock; ++row, to += kStripBytes) {
            const int8_t* multiples = kMultiples.of[int(strip[kBlock * kNibbleRowBytes + row])];
            for (int i = 0; i < kNibbleRowBytes; ++i) {
                const uint8_t byte = uint8_t(strip[row * kNibbleRowBytes + i]);
                to[i] = multiples[byte & 15], to[i + kNibbleRowBytes] = multiples[byte >> 4];
            }
        }
    }

    // Quantise a lane of a panel; return its scale.
    template <class At>
    static float pack(int64_t depth, char* panel, int lane, At&& at) {
        float most = 0.0f;
        bool finite = true;
        for (int64_t d = 0; d < depth; ++d) {
            const float size = std::fabs(at(d));
            finite = finite && size <= __FLT_MAX__;  // false for a NaN
            most = size > most ? size : most;
        }
        const Grid grid(most);
        for (int64_t d = 0; d < depth; ++d)
            panel[(d / 4 * kLanes + lane) * 4 + d % 4] = finite ? char(int(std::nearbyint(at(d) * grid.inverse))) : 0;
        return finite ? grid.scale : NAN;
    }
};

}  // namespace
