// What `quant_forward.h` asks for, with 512-bit registers; the product with VNNI. `amx/` changes the product alone.
#pragma once

#include "../quant.h"
#include "panel.h"

namespace {

// The step between quantised values and its reciprocal, from the bits of the largest magnitudes.
struct Grid {
    __m512 scale, inverse;

    explicit Grid(__m512i bits) {
        // As integers: a comparison of floats would lose a NaN.
        const __mmask16 finite = _mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(kInfinityBits));
        const __m512 most = _mm512_max_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(kMinMagnitude));
        const __m512 steps = _mm512_set1_ps(kMaxToken);
        scale = _mm512_mask_div_ps(_mm512_set1_ps(NAN), finite, most, steps);
        inverse = _mm512_maskz_div_ps(finite, steps, most);
    }
    __m512i quantise(__m512 x) const { return _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)); }
};

inline __m512i lane_numbers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

inline __m512i magnitude(__m512 x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)); }

// A row of a strip of nibbles, of some table of their multiples.
inline __m512i unpack_row(const Multiples& table, const char* strip, int row) {
    const __m512i shift = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4), nibble = _mm512_set1_epi8(15);
    const uint8_t multiplier = uint8_t(strip[kBlock * kNibbleRowBytes + row]);
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(strip + row * kNibbleRowBytes));
    const __m512i nibbles = _mm512_and_si512(_mm512_srlv_epi64(_mm512_broadcast_i64x4(bytes), shift), nibble);
    const __m128i multiples = _mm_load_si128(reinterpret_cast<const __m128i*>(table.of[multiplier]));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(multiples), nibbles);
}

// A strip of 32 rows of nibbles as one of int8.
inline void unpack_strip(const char* strip, char* to) {
#pragma GCC unroll 8
    for (int row = 0; row < kBlock; ++row) _mm512_store_si512(to + row * kStripBytes, unpack_row(kMultiples, strip, row));
}

// A lane of a panel as a row of bytes.
inline void take_lane(const char* panel, int64_t strips, char* row) {
    const __m512i words = _mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32(kLanes));
    for (int64_t s = 0; s < strips; ++s) _mm512_store_si512(row + s * kStripBytes, _mm512_i32gather_epi32(words, panel + s * kPanelStripBytes, 4));
}

// The product of a block, as it is stored, with one token. Weights take the unsigned side of VNNI, 128 too large.
// Memory is what it waits for, so it fetches the next block row by row.
template <int kBits>
inline void multiply_one(const char* weights, int64_t strips, const char* token, uint8_t flip, int32_t* c, Following following) {
    constexpr int64_t kStep = quantised_strip_bytes(kBits), kRowBytes = kBits == 8 ? kStripBytes : kNibbleRowBytes;
    const __m512i offset = _mm512_set1_epi8(-128), flips = _mm512_set1_epi8(int8_t(flip));
    __m512i extra = _mm512_setzero_si512();
    for (int64_t s = 0; s < strips; ++s)
        extra = _mm512_dpbusd_epi32(extra, offset, _mm512_xor_si512(_mm512_load_si512(token + s * kStripBytes), flips));
    const __m512i bias = _mm512_set1_epi32(_mm512_reduce_add_epi32(extra));
    for (int half = 0; half < 2; ++half) {
        __m512i sums[kHalf];
        for (__m512i& sum : sums) sum = _mm512_setzero_si512();
        for (int64_t s = 0; s < strips; ++s) {
            const char* const strip = weights + s * kStep;
            const __m512i bytes = _mm512_xor_si512(_mm512_load_si512(token + s * kStripBytes), flips);
#pragma GCC unroll 16
            for (int r = 0; r < kHalf; ++r) {
                const int row = half * kHalf + r;
                if (r * kRowBytes % kStripBytes == 0) following.fetch_line();
                const __m512i values = kBits == 8 ? _mm512_xor_si512(_mm512_loadu_si512(strip + row * kRowBytes), offset)
                                                  : unpack_row(kOffsetMultiples, strip, row);
                sums[r] = _mm512_dpbusd_epi32(sums[r], values, bytes);
            }
        }
        transpose(sums);
        __m512i total = _mm512_sub_epi32(_mm512_setzero_si512(), bias);
        for (const __m512i& sum : sums) total = _mm512_add_epi32(total, sum);
        const __m512i rows = _mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32(kBlock));
        _mm512_i32scatter_epi32(c + half * kHalf * kBlock, rows, total, 4);
    }
}

// kFlip: what tokens are stored with exclusive-or, 0 or 0x80, which makes them unsigned, 128 too large.
template <class T, uint8_t kFlip>
struct Quantised512 {
    using Element = T;
    using Finish = ::Finish<T>;

    static constexpr auto take_lane = ::take_lane;

    static void begin() {}
    static void end() {}

    static void multiply_one(int bits, const char* weights, int64_t strips, const char* token, int32_t* c, Following& following) {
        if (bits == 8) ::multiply_one<8>(weights, strips, token, kFlip, c, following);
        else ::multiply_one<4>(weights, strips, token, kFlip, c, following);
    }

    // Quantise up to 16 rows into a panel; `bytes` has room for it as well.
    static void pack_tokens(const T* const* rows, int count, int64_t width, char* bytes, char* panel, float* scales) {
        const int64_t padded = round_up(width, kStripBytes);
        const char* at[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
            char* to = bytes + lane * padded;
            at[lane] = to;
            scales[lane] = lane < count ? quantise_row(rows[lane], width, to) : 0.0f;
        }
        pack_lanes(at, count, padded, panel);
    }

    // The same from floats with their lanes in place.
    static void pack_gated(const float* gated, int64_t depth, char* panel, float* scales) {
        __m512i most = _mm512_setzero_si512();
        for (int64_t d = 0; d < depth; ++d) most = _mm512_max_epi32(most, magnitude(_mm512_load_ps(gated + d * kLanes)));
        const Grid grid(most);
        _mm512_store_ps(scales, grid.scale);
        const __m512i low = _mm512_set1_epi32(255), flip = _mm512_set1_epi8(int8_t(kFlip));
        for (int64_t d = 0; d < depth; d += 4, gated += 4 * kLanes, panel += kStripBytes) {
            __m512i word = flip;
            for (int i = 0; i < 4; ++i) {
                const __m512i x = _mm512_and_si512(grid.quantise(_mm512_load_ps(gated + i * kLanes)), low);
                word = _mm512_xor_si512(word, _mm512_slli_epi32(x, 8 * i));
            }
            _mm512_store_si512(panel, word);
        }
    }

    // C holds 16 gate rows over 16 up rows, tokens in lanes. Store silu(gate) * up, a depth after the other.
    static void gate(const int32_t* c, const float* scales, const float* token_scales, int count, float* to) {
        if (count == 1) return gate_one(c, scales, token_scales[0], to);
        const __m512 token = _mm512_load_ps(token_scales);
        for (int f = 0; f < kHalf; ++f) {
            const __m512 gate = scaled(c + f * kBlock, scales[f], token);
            const __m512 up = scaled(c + (kHalf + f) * kBlock, scales[kHalf + f], token);
            _mm512_store_ps(to + f * kLanes, _mm512_mul_ps(silu(gate), up));
        }
    }

    // C holds 32 columns as rows, tokens in lanes. Store each token's columns.
    static void store_tokens(const int32_t* c, const float* scales, const float* token_scales, T* const* rows, int num_tokens,
                             int columns) {
        for (int p = 0; p * kLanes < num_tokens; ++p) {
            const __m512 token = _mm512_load_ps(token_scales + p * kLanes);
            __m512i low[16], high[16];
            for (int i = 0; i < 16; ++i) {
                low[i] = _mm512_castps_si512(scaled(c + i * kBlock + p * kLanes, scales[i], token));
                high[i] = _mm512_castps_si512(scaled(c + (kHalf + i) * kBlock + p * kLanes, scales[kHalf + i], token));
            }
            transpose(low);
            transpose(high);
            for (int lane = 0; lane < 16 && p * kLanes + lane < num_tokens; ++lane)
                store_pair(rows[p * kLanes + lane], columns, {_mm512_castsi512_ps(low[lane]), _mm512_castsi512_ps(high[lane])});
        }
    }

   private:
    // The same for one token: the rows of C in lanes instead.
    static void gate_one(const int32_t* c, const float* scales, float token_scale, float* to) {
        const __m512i rows = _mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32(kBlock));
        const __m512 token = _mm512_set1_ps(token_scale);
        __m512 values[2];
        for (int half = 0; half < 2; ++half) {
            const __m512 sums = _mm512_cvtepi32_ps(_mm512_i32gather_epi32(rows, c + half * kHalf * kBlock, 4));
            values[half] = _mm512_mul_ps(_mm512_mul_ps(sums, _mm512_loadu_ps(scales + half * kHalf)), token);
        }
        const __m512 gated = _mm512_mul_ps(silu(values[0]), values[1]);
        for (int f = 0; f < kHalf; ++f)
            _mm512_store_ps(to + f * kLanes, _mm512_maskz_permutexvar_ps(1, _mm512_set1_epi32(f), gated));
    }

    static __m512 scaled(const int32_t* sums, float scale, __m512 token) {
        return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums)), _mm512_set1_ps(scale)), token);
    }

    // Store `width` values and zeros up to a whole strip; return their scale.
    static float quantise_row(const T* row, int64_t width, char* to) {
        __m512i most = _mm512_setzero_si512();
        for_each_pair(row, width, width, [&](int64_t, Pair x) {
            most = _mm512_max_epi32(most, _mm512_max_epi32(magnitude(x.low), magnitude(x.high)));
        });
        const Grid grid(_mm512_set1_epi32(_mm512_reduce_max_epi32(most)));
        const __m128i flip = _mm_set1_epi8(int8_t(kFlip));
        for_each_pair(row, width, round_up(width, kStripBytes), [&](int64_t at, Pair x) {
            __m128i* const bytes = reinterpret_cast<__m128i*>(to + at);
            _mm_store_si128(bytes, _mm_xor_si128(_mm512_cvtsepi32_epi8(grid.quantise(x.low)), flip));
            _mm_store_si128(bytes + 1, _mm_xor_si128(_mm512_cvtsepi32_epi8(grid.quantise(x.high)), flip));
        });
        return _mm512_cvtss_f32(grid.scale);
    }

    // Call body(at, 32 values) up to `end`, zeros beyond `width`.
    template <class Body>
    static void for_each_pair(const T* row, int64_t width, int64_t end, Body&& body) {
        int64_t at = 0;
        for (; at + 32 <= width; at += 32) body(at, load_pair(row + at, 32));
        for (; at < end; at += 32) body(at, load_pair(row + at, int(width - at)));
    }
};

// The product of 8 rows by 2 panels of sums. VNNI multiplies unsigned by signed: tokens come 128 too large, and 128
// times the sum of a row's weights is taken off.
template <class T>
struct QuantisedVnni : Quantised512<T, 0x80> {
    static void multiply(LeftBlock& left, int64_t strips, const char* panel0, const char* panel1, int32_t* c,
                         Following& following) {
        const char* const panels[2] = {panel0, panel1};
        for (int row = 0; row < kBlock; row += 8) {
            if (panel1 == nullptr) rows8<1>(row, left, strips, panels, c + row * kBlock, following);
            else rows8<2>(row, left, strips, panels, c + row * kBlock, following);
        }
    }

   private:
    template <int kPanels>
    static void rows8(int first, LeftBlock& left, int64_t strips, const char* const* panels, int32_t* c, Following& following) {
        const __m512i one = _mm512_set1_epi8(1);
        __m512i sums[8][kPanels], weights[8];
        for (int row = 0; row < 8; ++row) {
            weights[row] = _mm512_setzero_si512();
            for (int p = 0; p < kPanels; ++p) sums[row][p] = _mm512_setzero_si512();
        }
        for (int64_t s = 0; s < strips; ++s) {
            left.unpack(s + 1 + LeftBlock::kAhead, unpack_strip);
            const char* const at = left.strip(s) + first * kStripBytes;
            if (s % 4 == 0) following.fetch();
            for (int row = 0; row < 8; ++row)
                weights[row] = _mm512_dpbusd_epi32(weights[row], one, _mm512_loadu_si512(at + row * kStripBytes));
            for (int word = 0; word < 16; ++word)
                for (int row = 0; row < 8; ++row) {
                    int32_t value;
                    std::memcpy(&value, at + row * kStripBytes + word * 4, 4);
                    for (int p = 0; p < kPanels; ++p)
                        sums[row][p] = _mm512_dpbusd_epi32(
                            sums[row][p], _mm512_load_si512(panels[p] + s * kPanelStripBytes + word * kStripBytes),
                            _mm512_set1_epi32(value));
                }
        }
        for (int row = 0; row < 8; ++row) {
            const __m512i extra = _mm512_set1_epi32(128 * _mm512_reduce_add_epi32(weights[row]));
            for (int p = 0; p < kPanels; ++p)
                _mm512_store_si512(c + row * kBlock + p * kLanes, _mm512_sub_epi32(sums[row][p], extra));
        }
    }
};

}  // namespace
