// Everything that an instruction set offers, in plain C++: the slow and obvious kernels, which run anywhere.
#pragma once

#include <cmath>

#include "../block.h"

namespace {

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
    const uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline void narrow(float x, float& to) { to = x; }
inline void narrow(float x, bfloat16& to) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to = x != x ? 0x7fc0 : bfloat16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
}

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

template <class T>
struct Portable {
    using Element = T;
    static constexpr int kValues = 4 / sizeof(T);  // in a word

    static void begin() {}
    static void end() {}

    static T* at(char* panel, int64_t depth, int lane) {
        return reinterpret_cast<T*>(panel) + (depth / kValues * kLanes + lane) * kValues + depth % kValues;
    }

    static void pack_lanes(const char* const* rows, int count, int64_t row_bytes, char* panel) {
        const int64_t width = row_bytes / int64_t(sizeof(T));
        std::memset(panel, 0, strips_of(row_bytes) * kPanelStripBytes);
        for (int lane = 0; lane < count; ++lane)
            for (int64_t d = 0; d < width; ++d) *at(panel, d, lane) = reinterpret_cast<const T*>(rows[lane])[d];
    }

    static bool wants_packed(int64_t) { return false; }

    template <class Rest>
    static void multiply(const Left& left, int64_t strips, const char* panel0, const char* panel1, float* c, bool accumulate,
                         Ahead&, Rest&) {
        const char* const panels[2] = {panel0, panel1};
        for (int row = 0; row < kBlock; ++row)
            for (int p = 0; p < (panel1 == nullptr ? 1 : 2); ++p) {
                float sums[kLanes] = {};
                if (accumulate) std::memcpy(sums, c + row * kBlock + p * kLanes, sizeof(sums));
                const char* strip = left.half[row / kHalf] + row % kHalf * left.row_step;
                const T* right = reinterpret_cast<const T*>(panels[p]);
                for (int64_t s = 0; s < strips; ++s, strip += left.strip_step)
                    for (int word = 0; word < 16; ++word, right += kLanes * kValues)
                        for (int value = 0; value < kValues; ++value) {
                            const float a = widen(reinterpret_cast<const T*>(strip)[word * kValues + value]);
                            for (int lane = 0; lane < kLanes; ++lane) sums[lane] += a * widen(right[lane * kValues + value]);
                        }
                std::memcpy(c + row * kBlock + p * kLanes, sums, sizeof(sums));
            }
    }

    struct Panel {
        static constexpr int kStripRows = kStripBytes / int(sizeof(T));

        template <class RowAt>
        static void pack_depth(RowAt&& row, int64_t depth, int64_t columns, char* panels, int64_t panel_step) {
            for (int64_t panel = 0; panel < 2 * ceil_div(columns, kBlock); ++panel)
                std::memset(panels + panel * panel_step, 0, ceil_div(depth, kStripRows) * kPanelStripBytes);
            for (int64_t d = 0; d < depth; ++d)
                for (int64_t i = 0; i < columns; ++i) *at(panels + i / kLanes * panel_step, d, int(i % kLanes)) = row(d)[i];
        }

        template <class RowAt>
        static void pack_transposed(RowAt&& row, int64_t depth, int columns, char* block) {
            std::memset(block, 0, ceil_div(depth, kStripRows) * kLeftStripBytes);
            for (int64_t d = 0; d < depth; ++d)
                for (int i = 0; i < columns; ++i)
                    reinterpret_cast<T*>(block + d / kStripRows * kLeftStripBytes + i * kStripBytes)[d % kStripRows] = row(d)[i];
        }
    };

    struct Finish {
        static void gate(const float* c, int64_t depth, char* panel) {
            for (int f = 0; f < 2; ++f)
                for (int lane = 0; lane < kLanes; ++lane) {
                    const float gate = c[f * kBlock + lane], up = c[(kHalf + f) * kBlock + lane];
                    narrow(gate * sigmoid(gate) * up, *at(panel, depth + f, lane));
                }
        }

        static void store_half(const float* c, T* first, int64_t row_step, int num_tokens, int count) {
            for (int token = 0; token < num_tokens; ++token)
                for (int i = 0; i < count; ++i) narrow(c[i * kBlock + token], first[token * row_step + i]);
        }

        static void store_tokens(const float* c, T* first, int64_t row_step, int num_tokens, int columns, bool) {
            for (int token = 0; token < num_tokens; ++token)
                for (int i = 0; i < columns; ++i) narrow(c[i * kBlock + token], first[token * row_step + i]);
        }

        static void store_rows(const float* c, T* const* rows, int num_rows, int columns) {
            for (int r = 0; r < num_rows; ++r)
                for (int i = 0; i < columns; ++i) narrow(c[r * kBlock + i], rows[r][i]);
        }

        static void stream_rows(const float* c, T* first, int64_t row_step, int num_rows, int columns) {
            for (int r = 0; r < num_rows; ++r)
                for (int i = 0; i < columns; ++i) narrow(c[r * kBlock + i], first[r * row_step + i]);
        }

        static void gate_backward(const float* c, const T* const* gates, int64_t up_at, const float* weights, T* const* grads, int64_t grad_up_at,
                                  T* const* gated, float* const* dots, int num_rows, int columns) {
            for (int r = 0; r < num_rows; ++r) {
                float dot = 0.0f;
                for (int i = 0; i < columns; ++i) {
                    const float grad = c[r * kBlock + i], gate = widen(gates[r][i]), up = widen(gates[r][i + up_at]);
                    const float s = sigmoid(gate), activated = gate * s, weighted = grad * weights[r];
                    narrow(weighted * up * s * (1.0f + gate * (1.0f - s)), grads[r][i]);
                    narrow(weighted * activated, grads[r][i + grad_up_at]);
                    narrow(activated * up * weights[r], gated[r][i]);
                    dot += grad * activated * up;
                }
                *dots[r] = dot;
            }
        }

        static void sum_rows(const T* rows, const int64_t* ids, const float* weights, int64_t count, int64_t width, T* to) {
            for (int64_t i = 0; i < width; ++i) {
                float sum = 0.0f;
                for (int64_t p = 0; p < count; ++p) sum += widen(rows[ids[p] * width + i]) * (weights == nullptr ? 1.0f : weights[p]);
                narrow(sum, to[i]);
            }
        }
    };
};

}  // namespace
