// The product of `block.h` with 512-bit registers: 8 rows by 2 panels of sums at a time.
#pragma once

#include "panel.h"

namespace {

// One word of depth: the sums of 8 rows and the panels' lanes. `words` are the left rows' words, one strip apart.
template <class T>
struct Step;

template <>
struct Step<float> {
    template <int kPanels>
    static void add(const char* left, ptrdiff_t row_step, const char* const* panels, __m512 (&sums)[8][kPanels]) {
        __m512 right[kPanels];
        for (int p = 0; p < kPanels; ++p) right[p] = _mm512_load_ps(panels[p]);
        for (int row = 0; row < 8; ++row) {
            const __m512 value = _mm512_set1_ps(*reinterpret_cast<const float*>(left + row * row_step));
            for (int p = 0; p < kPanels; ++p) sums[row][p] = _mm512_fmadd_ps(value, right[p], sums[row][p]);
        }
    }
};

template <>
struct Step<bfloat16> {
    template <int kPanels>
    static void add(const char* left, ptrdiff_t row_step, const char* const* panels, __m512 (&sums)[8][kPanels]) {
#ifdef __AVX512BF16__
        for (int row = 0; row < 8; ++row) {
            int32_t word;
            std::memcpy(&word, left + row * row_step, 4);
            for (int p = 0; p < kPanels; ++p)
                sums[row][p] = _mm512_dpbf16_ps(sums[row][p], (__m512bh)_mm512_set1_epi32(word),
                                                (__m512bh)_mm512_load_si512(panels[p]));
        }
#else
        const __m512i upper = _mm512_set1_epi32(int(0xffff0000));
        __m512 first[kPanels], second[kPanels];
        for (int p = 0; p < kPanels; ++p) {
            const __m512i words = _mm512_load_si512(panels[p]);
            first[p] = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
            second[p] = _mm512_castsi512_ps(_mm512_and_si512(words, upper));
        }
        for (int row = 0; row < 8; ++row) {
            uint32_t word;
            std::memcpy(&word, left + row * row_step, 4);
            const __m512i words = _mm512_set1_epi32(int(word));
            const __m512 a = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
            const __m512 b = _mm512_castsi512_ps(_mm512_and_si512(words, upper));
            for (int p = 0; p < kPanels; ++p) {
                sums[row][p] = _mm512_fmadd_ps(a, first[p], sums[row][p]);
                sums[row][p] = _mm512_fmadd_ps(b, second[p], sums[row][p]);
            }
        }
#endif
    }
};

template <class T>
struct Avx512 {
    using Element = T;
    using Panel = ::Panel<T>;
    using Finish = ::Finish<T>;
    static constexpr auto pack_lanes = ::pack_lanes;

    static void begin() {}
    static void end() { _mm_sfence(); }  // what was streamed is seen by all

    // These products fill the vector units, and leave the rest to who comes after.
    template <class Rest>
    static void multiply(const Left& left, int64_t strips, const char* panel0, const char* panel1, float* c, bool accumulate,
                         Ahead& ahead, Rest&) {
        const char* const panels[2] = {panel0, panel1};
        for (int row = 0; row < kBlock; row += 8) {
            const char* at = left.half[row / kHalf] + row % kHalf * left.row_step;
            if (panel1 == nullptr) rows8<1>(at, left, strips, panels, c + row * kBlock, accumulate, ahead);
            else rows8<2>(at, left, strips, panels, c + row * kBlock, accumulate, ahead);
        }
    }

   private:
    template <int kPanels>
    static void rows8(const char* at, const Left& left, int64_t strips, const char* const* panels, float* c, bool accumulate,
                      Ahead& ahead) {
        __m512 sums[8][kPanels];
        for (int row = 0; row < 8; ++row)
            for (int p = 0; p < kPanels; ++p)
                sums[row][p] = accumulate ? _mm512_load_ps(c + row * kBlock + p * kLanes) : _mm512_setzero_ps();
        const char* right[kPanels];
        for (int p = 0; p < kPanels; ++p) right[p] = panels[p];
        for (int64_t s = 0; s < strips; ++s, at += left.strip_step) {
            if (s % 4 == 0) ahead.fetch();
            for (int word = 0; word < 16; ++word) {
                Step<T>::template add<kPanels>(at + word * 4, left.row_step, right, sums);
                for (int p = 0; p < kPanels; ++p) right[p] += 64;
            }
        }
        for (int row = 0; row < 8; ++row)
            for (int p = 0; p < kPanels; ++p) _mm512_store_ps(c + row * kBlock + p * kLanes, sums[row][p]);
    }
};

}  // namespace
