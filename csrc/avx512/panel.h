// Packing and the work on finished sums, with 512-bit registers. One struct an element type; the product itself is
// added by `avx512/` or `amx/`.
#pragma once

#include "vector.h"

namespace {

// Pack up to 16 rows, one a lane (null rows past `count`: zeros), into a panel: words of depth by lanes.
inline void pack_lanes(const char* const* rows, int count, int64_t row_bytes, char* panel) {
    for (int64_t at = 0; at < row_bytes; at += kStripBytes, panel += kPanelStripBytes) {
        const __mmask64 mask = first64(row_bytes - at);
        __m512i r[16];
        for (int lane = 0; lane < 16; ++lane)
            r[lane] = lane < count ? _mm512_maskz_loadu_epi8(mask, rows[lane] + at) : _mm512_setzero_si512();
        transpose(r);
        for (int word = 0; word < 16; ++word) _mm512_store_si512(panel + word * 64, r[word]);
    }
}

template <class RowAt>
auto row_or_null(RowAt&& row, int64_t d, int64_t depth) {
    return d < depth ? row(d) : nullptr;
}

// Packing reads short pieces of rows that lie pages apart, and the processor looks ahead within a page only.
constexpr int64_t kRowsAhead = 4;

inline bool is_line(const void* at) { return reinterpret_cast<uintptr_t>(at) % 64 == 0; }
inline void fetch(const void* line) { __builtin_prefetch(line, 0, 2); }

template <class T>
struct Panel;

template <>
struct Panel<float> {
    static constexpr int kStripRows = 16;  // depth of a strip

    // Pack rows [0, depth), one a depth, columns [0, columns), into panels `panel_step` bytes apart, an even number.
    template <class RowAt>
    static void pack_depth(RowAt&& row, int64_t depth, int64_t columns, char* panels, int64_t panel_step) {
        for (int64_t d = 0; d < round_up(depth, kStripRows); ++d) {
            const float *from = row_or_null(row, d, depth), *ahead = row_or_null(row, d + kRowsAhead, depth);
            char* to = panels + d * 64;
            for (int64_t column = 0; column < columns; column += kBlock, to += 2 * panel_step) {
                if (ahead != nullptr) fetch(ahead + column), fetch(ahead + column + kBlock / 2);
                const Pair x = load_pair(from + (d < depth ? column : 0), d < depth ? int(columns - column) : 0);
                _mm512_store_ps(to, x.low);
                _mm512_store_ps(to + panel_step, x.high);
            }
        }
    }

    // Pack the same as a left block: one row a column, the depth along it.
    template <class RowAt>
    static void pack_transposed(RowAt&& row, int64_t depth, int columns, char* block) {
        for (int64_t d = 0; d < depth; d += kStripRows, block += kLeftStripBytes) {
            __m512i half0[16], half1[16];
            for (int i = 0; i < 16; ++i) {
                const bool inside = d + i < depth;
                const Pair x = load_pair(inside ? reinterpret_cast<const float*>(row(d + i)) : nullptr, inside ? columns : 0);
                half0[i] = _mm512_castps_si512(x.low), half1[i] = _mm512_castps_si512(x.high);
            }
            transpose(half0);
            transpose(half1);
            for (int i = 0; i < 16; ++i) {
                _mm512_store_si512(block + i * 64, half0[i]);
                _mm512_store_si512(block + (16 + i) * 64, half1[i]);
            }
        }
    }

    // Row `r` of C where lanes are columns that pack_depth made.
    static Pair columns(const float* c, int r) {
        return {_mm512_load_ps(c + r * kBlock), _mm512_load_ps(c + r * kBlock + 16)};
    }

    // Store two depths of 16 lanes where a panel keeps them; depth even.
    static void store_lanes(char* panel, int64_t depth, __m512 first, __m512 second) {
        _mm512_store_ps(panel + depth * 64, first);
        _mm512_store_ps(panel + (depth + 1) * 64, second);
    }

    static void store16(float* to, int count, __m512 x) { _mm512_mask_storeu_ps(to, first16(count), x); }

    static void stream_pair(float* to, int count, Pair x) { store_pair(to, count, x); }

    // As of bfloat16.
    struct Lines {
        __m512i low[16], high[16];

        explicit Lines(const float* c) {
            for (int i = 0; i < 16; ++i) low[i] = _mm512_load_si512(c + i * kBlock), high[i] = _mm512_load_si512(c + (16 + i) * kBlock);
            transpose(low);
            transpose(high);
        }
        void store(int token, float* to, int count, bool) const {
            store_pair(to, count, {_mm512_castsi512_ps(low[token]), _mm512_castsi512_ps(high[token])});
        }
    };
};

template <>
struct Panel<bfloat16> {
    static constexpr int kStripRows = 32;

    // Two rows of 32 columns as words (first row low), columns in the order that unpacking leaves:
    // 0-3 8-11 16-19 24-27 and 4-7 12-15 20-23 28-31.
    struct Words {
        __m512i low, high;
    };
    // A missing row (null) is zeros.
    static Words pair_rows(const bfloat16* first, const bfloat16* second, int64_t column, __mmask32 mask) {
        const __m512i a = first == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, first + column);
        const __m512i b = second == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, second + column);
        return {_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)};
    }
    template <class RowAt>
    static void pack_depth(RowAt&& row, int64_t depth, int64_t columns, char* panels, int64_t panel_step) {
        for (int64_t d = 0; d < round_up(depth, kStripRows); d += 2, panels += 64) {
            const bfloat16 *first = row_or_null(row, d, depth), *second = row_or_null(row, d + 1, depth);
            const bfloat16* ahead0 = row_or_null(row, d + kRowsAhead, depth);
            const bfloat16* ahead1 = row_or_null(row, d + 1 + kRowsAhead, depth);
            char* to = panels;
            for (int64_t column = 0; column < columns; column += kBlock, to += 2 * panel_step) {
                if (ahead1 != nullptr) fetch(ahead0 + column), fetch(ahead1 + column);
                const Words words = pair_rows(first, second, column, first32(int(columns - column)));
                _mm512_store_si512(to, words.low);
                _mm512_store_si512(to + panel_step, words.high);
            }
        }
    }

    template <class RowAt>
    static void pack_transposed(RowAt&& row, int64_t depth, int columns, char* block) {
        const __mmask32 mask = first32(columns);
        for (int64_t d = 0; d < depth; d += kStripRows, block += kLeftStripBytes) {
            __m512i low[16], high[16];
            for (int i = 0; i < 16; ++i) {
                const Words words = pair_rows(row_or_null(row, d + 2 * i, depth), row_or_null(row, d + 2 * i + 1, depth), 0, mask);
                low[i] = words.low, high[i] = words.high;
            }
            transpose(low);
            transpose(high);
            for (int i = 0; i < 16; ++i) {
                const int column = i / 4 * 8 + i % 4;
                _mm512_store_si512(block + column * 64, low[i]);
                _mm512_store_si512(block + (column + 4) * 64, high[i]);
            }
        }
    }

    static Pair columns(const float* c, int r) {
        const __m512i low = _mm512_load_si512(c + r * kBlock), high = _mm512_load_si512(c + r * kBlock + 16);
        const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        return {_mm512_castsi512_ps(_mm512_permutex2var_epi64(low, first, high)),
                _mm512_castsi512_ps(_mm512_permutex2var_epi64(low, second, high))};
    }

    // The values of two vectors side by side: words of which the lower half is of the first.
    static __m512i words(__m512 first, __m512 second) {
        alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), narrow(first, second));
    }

    static void store_lanes(char* panel, int64_t depth, __m512 first, __m512 second) {
        _mm512_store_si512(panel + depth / 2 * 64, words(first, second));
    }

    // Turn 32 columns that stand as rows of C, tokens in lanes, into a line of each token.
    struct Lines {
        __m512i line[16];

        explicit Lines(const float* c) {
            for (int i = 0; i < 16; ++i)
                line[i] = words(_mm512_load_ps(c + 2 * i * kBlock), _mm512_load_ps(c + (2 * i + 1) * kBlock));
            transpose(line);
        }
        void store(int token, bfloat16* to, int count, bool past_caches) const {
            if (past_caches && count >= 32 && is_line(to)) _mm512_stream_si512((__m512i*)to, line[token]);
            else _mm512_mask_storeu_epi16(to, first32(count), line[token]);
        }
    };

    static void store16(bfloat16* to, int count, __m512 x) {
        _mm512_mask_storeu_epi16(to, first32(count < 16 ? count : 16), narrow(x, _mm512_setzero_ps()));
    }

    // Past the caches where a whole line is written.
    static void stream_pair(bfloat16* to, int count, Pair x) {
        if (count >= 32 && is_line(to)) _mm512_stream_si512((__m512i*)to, narrow(x.low, x.high));
        else store_pair(to, count, x);
    }
};

// What is done with finished sums.
template <class T>
struct Finish {
    // C, from a lane of its first row on, holds gate rows over up rows, tokens in lanes: of two neighbouring rows and one
    // panel store silu(gate) * up at `depth`, an even number, of the panel.
    static void gate(const float* c, int64_t depth, char* panel) {
        const __m512 first = _mm512_mul_ps(silu(_mm512_load_ps(c)), _mm512_load_ps(c + kHalf * kBlock));
        const __m512 second = _mm512_mul_ps(silu(_mm512_load_ps(c + kBlock)), _mm512_load_ps(c + kBlock + kHalf * kBlock));
        Panel<T>::store_lanes(panel, depth, first, second);
    }

    // C holds 16 columns as rows, tokens in the lanes of one panel. Store `count` columns of each token.
    static void store_half(const float* c, T* first, int64_t row_step, int num_tokens, int count) {
        __m512i r[16];
        for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(c + i * kBlock);
        transpose(r);
        for (int token = 0; token < num_tokens; ++token)
            Panel<T>::store16(first + token * row_step, count, _mm512_castsi512_ps(r[token]));
    }

    // The same with up to 64 columns, those from 32 on in the next block of C; past the caches if there is no hope that
    // they are still there when they are read. Then two lines of a row follow each other, which memory likes.
    static void store_tokens(const float* c, T* first, int64_t row_step, int num_tokens, int columns, bool past_caches) {
        const typename Panel<T>::Lines near(c);
        if (columns <= kBlock) {
            for (int token = 0; token < num_tokens; ++token) near.store(token, first + token * row_step, columns, past_caches);
            return;
        }
        const typename Panel<T>::Lines far(c + kBlock * kBlock);
        for (int token = 0; token < num_tokens; ++token, first += row_step) {
            near.store(token, first, kBlock, past_caches);
            far.store(token, first + kBlock, columns - kBlock, past_caches);
        }
    }

    // C holds rows, columns in lanes as pack_depth left them.
    static void store_rows(const float* c, T* const* rows, int num_rows, int columns) {
        for (int r = 0; r < num_rows; ++r) store_pair(rows[r], columns, Panel<T>::columns(c, r));
    }
    static void stream_rows(const float* c, T* first, int64_t row_step, int num_rows, int columns) {
        for (int r = 0; r < num_rows; ++r) Panel<T>::stream_pair(first + r * row_step, columns, Panel<T>::columns(c, r));
    }

    // C holds, for each row, the gradient of the gated values before the routing weight. Given gate and up, store the
    // gradients of gate and up and the weighted gated values; return in `dots` the row's share of the gradient of its weight.
    static void gate_backward(const float* c, const T* const* gates, int64_t up_at, const float* weights, T* const* grads, int64_t grad_up_at,
                              T* const* gated, float* const* dots, int num_rows, int columns) {
        for (int r = 0; r < num_rows; ++r) {
            const Pair grad = Panel<T>::columns(c, r), gate = load_pair(gates[r], columns);
            const Pair up = load_pair(gates[r] + up_at, columns);
            Pair grad_gate, grad_up, value;
            const __m512 weight = _mm512_set1_ps(weights[r]);
            const __m512 dot0 = half_backward(grad.low, gate.low, up.low, weight, grad_gate.low, grad_up.low, value.low);
            const __m512 dot1 = half_backward(grad.high, gate.high, up.high, weight, grad_gate.high, grad_up.high, value.high);
            store_pair(grads[r], columns, grad_gate);
            store_pair(grads[r] + grad_up_at, columns, grad_up);
            store_pair(gated[r], columns, value);
            // Beyond the columns everything is zero, for the panels are.
            *dots[r] = _mm512_reduce_add_ps(_mm512_add_ps(dot0, dot1));
        }
    }

    // to = sum over the `count` rows that `ids` name of weight * row (weights null: 1), in their order.
    static void sum_rows(const T* rows, const int64_t* ids, const float* weights, int64_t count, int64_t width, T* to) {
        for (int64_t at = 0; at < width; at += 32) {
            const int columns = width - at < 32 ? int(width - at) : 32;
            Pair sum = {_mm512_setzero_ps(), _mm512_setzero_ps()};
            for (int64_t i = 0; i < count; ++i) {
                const Pair x = load_pair(rows + ids[i] * width + at, columns);
                const __m512 weight = _mm512_set1_ps(weights == nullptr ? 1.0f : weights[i]);
                sum.low = _mm512_fmadd_ps(x.low, weight, sum.low);
                sum.high = _mm512_fmadd_ps(x.high, weight, sum.high);
            }
            store_pair(to + at, columns, sum);
        }
    }

   private:
    static __m512 half_backward(__m512 grad, __m512 gate, __m512 up, __m512 weight, __m512& grad_gate, __m512& grad_up,
                                __m512& value) {
        const __m512 one = _mm512_set1_ps(1.0f), s = sigmoid(gate), activated = _mm512_mul_ps(gate, s);
        const __m512 gated = _mm512_mul_ps(activated, up), weighted = _mm512_mul_ps(grad, weight);
        const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one));
        grad_up = _mm512_mul_ps(weighted, activated);
        grad_gate = _mm512_mul_ps(_mm512_mul_ps(weighted, up), slope);
        value = _mm512_mul_ps(gated, weight);
        return _mm512_mul_ps(grad, gated);
    }
};

}  // namespace
