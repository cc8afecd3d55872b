// The product of `quant.h` on AMX tiles, laid out as in `product.h`.
#pragma once

#include "../avx512/quant.h"
#include "product.h"

namespace {

template <class T>
struct QuantisedAmx : Quantised512<T, 0> {
    static void begin() { load_tiles(); }
    static void end() { _tile_release(); }

    static void multiply(LeftBlock& left, int64_t strips, const char* panel0, const char* panel1, int32_t* c,
                         Following& following) {
        _tile_zero(0);
        _tile_zero(2);
        if (panel1 == nullptr) {
            for (int64_t s = 0; s < strips; ++s, panel0 += kPanelStripBytes) {
                left.unpack(s + 1 + LeftBlock::kAhead, unpack_strip);
                following.fetch();
                const char* const at = left.strip(s);
                _tile_loadd(6, panel0, 64);
                _tile_loadd(4, at, kStripBytes);
                _tile_dpbssd(0, 4, 6);
                _tile_loadd(5, at + kHalf * kStripBytes, kStripBytes);
                _tile_dpbssd(2, 5, 6);
            }
        } else {
            _tile_zero(1);
            _tile_zero(3);
            for (int64_t s = 0; s < strips; ++s) {
                left.unpack(s + 1 + LeftBlock::kAhead, unpack_strip);
                following.fetch();
                const char* const at = left.strip(s);
                _tile_loadd(4, at, kStripBytes);
                _tile_loadd(6, panel0, 64);
                _tile_dpbssd(0, 4, 6);
                _tile_loadd(7, panel1, 64);
                _tile_dpbssd(1, 4, 7);
                _tile_loadd(5, at + kHalf * kStripBytes, kStripBytes);
                _tile_dpbssd(2, 5, 6);
                _tile_dpbssd(3, 5, 7);
                panel0 += kPanelStripBytes;
                panel1 += kPanelStripBytes;
            }
            _tile_stored(1, c + kLanes, kBlock * 4);
            _tile_stored(3, c + kHalf * kBlock + kLanes, kBlock * 4);
        }
        _tile_stored(0, c, kBlock * 4);
        _tile_stored(2, c + kHalf * kBlock, kBlock * 4);
    }
};

}  // namespace
