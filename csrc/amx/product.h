// The product of `block.h` on AMX tiles: tile 4 and 5 are the left halves, 6 and 7 the panels, 0 to 3 the sums.
#pragma once

#include "../avx512/panel.h"

namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};
};

// Through assembly: the compiler's intrinsic reads eight bytes as far as the optimizer knows.
inline void load_tiles() {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) config.bytes_per_row[tile] = 64, config.rows[tile] = 16;
    asm volatile("ldtilecfg %0" ::"m"(config));
}

struct AmxBfloat16 {
    using Element = bfloat16;
    using Panel = ::Panel<bfloat16>;
    using Finish = ::Finish<bfloat16>;
    static constexpr auto pack_lanes = ::pack_lanes;

    static void begin() { load_tiles(); }
    static void end() {
        _tile_release();
        _mm_sfence();  // what was streamed is seen by all
    }

    static bool wants_packed(int64_t) { return false; }

    template <class Rest>
    static void multiply(const Left& left, int64_t strips, const char* panel0, const char* panel1, float* c, bool accumulate,
                         Ahead& ahead, Rest& rest) {
        const char *a0 = left.half[0], *a1 = left.half[1];
        if (accumulate) {
            _tile_loadd(0, c, kBlock * 4);
            _tile_loadd(2, c + kHalf * kBlock, kBlock * 4);
        } else {
            _tile_zero(0);
            _tile_zero(2);
        }
        if (panel1 == nullptr) {
            for (int64_t s = 0; s < strips; ++s, a0 += left.strip_step, a1 += left.strip_step, panel0 += kPanelStripBytes) {
                ahead.fetch();
                _tile_loadd(6, panel0, 64);
                _tile_loadd(4, a0, left.row_step);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(5, a1, left.row_step);
                _tile_dpbf16ps(2, 5, 6);
                rest.step();
            }
        } else {
            if (accumulate) {
                _tile_loadd(1, c + kLanes, kBlock * 4);
                _tile_loadd(3, c + kHalf * kBlock + kLanes, kBlock * 4);
            } else {
                _tile_zero(1);
                _tile_zero(3);
            }
            for (int64_t s = 0; s < strips; ++s, a0 += left.strip_step, a1 += left.strip_step) {
                ahead.fetch();
                _tile_loadd(4, a0, left.row_step);
                _tile_loadd(6, panel0, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, panel1, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a1, left.row_step);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
                panel0 += kPanelStripBytes;
                panel1 += kPanelStripBytes;
                rest.step();
            }
            _tile_stored(1, c + kLanes, kBlock * 4);
            _tile_stored(3, c + kHalf * kBlock + kLanes, kBlock * 4);
        }
        _tile_stored(0, c, kBlock * 4);
        _tile_stored(2, c + kHalf * kBlock, kBlock * 4);
    }
};

}  // namespace
