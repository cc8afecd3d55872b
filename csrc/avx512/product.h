// The product of `block.h` with 512-bit registers: 12 rows by 2 panels of sums at a time, or what is left of a block.
#pragma once

#include "panel.h"

namespace {

// Rows in groups of 4: within a group each is a multiple of the step away that an address can hold.
template <int kGroups>
struct Groups {
    static constexpr int kRows = 4 * kGroups;
    const char* first[kGroups];
    ptrdiff_t step;

    const char* operator[](int row) const { return first[row / 4] + row % 4 * step; }
    void move(ptrdiff_t bytes) {
        for (const char*& at : first) at += bytes;
    }
};

// One word of depth: the sums of some rows and the panels' lanes.
template <class T>
struct Step;

template <>
struct Step<float> {
    template <int kGroups, int kPanels>
    static void add(const Groups<kGroups>& left, const char* const* panels, __m512 (&sums)[4 * kGroups][kPanels]) {
        __m512 right[kPanels];
        for (int p = 0; p < kPanels; ++p) right[p] = _mm512_load_ps(panels[p]);
        for (int row = 0; row < left.kRows; ++row) {
            const __m512 value = _mm512_set1_ps(*reinterpret_cast<const float*>(left[row]));
            for (int p = 0; p < kPanels; ++p) sums[row][p] = _mm512_fmadd_ps(value, right[p], sums[row][p]);
        }
    }
};

template <>
struct Step<bfloat16> {
    template <int kGroups, int kPanels>
    static void add(const Groups<kGroups>& left, const char* const* panels, __m512 (&sums)[4 * kGroups][kPanels]) {
#ifdef __AVX512BF16__
        for (int row = 0; row < left.kRows; ++row) {
            int32_t word;
            std::memcpy(&word, left[row], 4);
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
        for (int row = 0; row < left.kRows; ++row) {
            uint32_t word;
            std::memcpy(&word, left[row], 4);
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

    // Rows that lie apart share the sets of a cache: copying them pays when they are multiplied a few times.
    static bool wants_packed(int64_t num_pairs) { return num_pairs >= 3; }

    // These products fill the vector units, and leave the rest to who comes after.
    template <class Rest>
    static void multiply(const Left& left, int64_t strips, const char* panel0, const char* panel1, float* c, bool accumulate,
                         Ahead& ahead, Rest&) {
        const char* const panels[2] = {panel0, panel1};
        if (panel1 == nullptr) accumulate ? block<1, true>(left, strips, panels, c, ahead) : block<1, false>(left, strips, panels, c, ahead);
        else accumulate ? block<2, true>(left, strips, panels, c, ahead) : block<2, false>(left, strips, panels, c, ahead);
    }

   private:
    template <int kPanels, bool kAccumulate>
    static void block(const Left& left, int64_t strips, const char* const* panels, float* c, Ahead& ahead) {
        rows<3, kPanels, kAccumulate>(left, 0, strips, panels, c, ahead);
        rows<3, kPanels, kAccumulate>(left, 12, strips, panels, c, ahead);
        rows<2, kPanels, kAccumulate>(left, 24, strips, panels, c, ahead);
    }

    // By itself: among the registers of who calls, addresses would wait in vectors, and to fetch one from there takes a
    // turn of the units that multiply.
    template <int kGroups, int kPanels, bool kAccumulate>
    __attribute__((noinline)) static void rows(const Left& left, int begin, int64_t strips, const char* const* panels, float* c,
                                               Ahead& ahead) {
        Groups<kGroups> at;
        at.step = left.row_step;
        for (int group = 0; group < kGroups; ++group) {
            const int row = begin + 4 * group;
            at.first[group] = left.half[row / kHalf] + row % kHalf * left.row_step;
        }
        c += begin * kBlock;
        __m512 sums[4 * kGroups][kPanels];
        for (int row = 0; row < 4 * kGroups; ++row)
            for (int p = 0; p < kPanels; ++p)
                sums[row][p] = kAccumulate ? _mm512_load_ps(c + row * kBlock + p * kLanes) : _mm512_setzero_ps();
        const char* right[kPanels];
        for (int p = 0; p < kPanels; ++p) right[p] = panels[p];
        for (int64_t s = 0; s < strips; ++s) {
            if (s % 4 == 0) ahead.fetch();
            for (int word = 0; word < 16; ++word) {
                Step<T>::template add<kGroups, kPanels>(at, right, sums);
                at.move(4);
                for (int p = 0; p < kPanels; ++p) right[p] += 64;
            }
            at.move(left.strip_step - kStripBytes);
        }
        for (int row = 0; row < 4 * kGroups; ++row)
            for (int p = 0; p < kPanels; ++p) _mm512_store_ps(c + row * kBlock + p * kLanes, sums[row][p]);
    }
};

}  // namespace
