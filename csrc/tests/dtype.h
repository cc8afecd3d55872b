// Numbers as the bytes of a dtype, and back.
#pragma once

#include <cstring>

#include "../moesaic.h"
#include "example.h"
#include "guarded.h"

namespace {

using Bytes = std::vector<unsigned char>;

inline uint16_t to_bfloat16(double value) {
    const float single = float(value);
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline double from_bfloat16(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float single;
    std::memcpy(&single, &bits, 4);
    return single;
}
inline double round_to_float(double value) { return float(value); }
inline double round_to_bfloat16(double value) { return from_bfloat16(to_bfloat16(value)); }

struct Dtype {
    int number;
    const char* name;
    int64_t size;
    double tolerance;
    double (*rounded)(double);
};
constexpr Dtype kDtypes[] = {{MOESAIC_FLOAT32, "float32", 4, 1e-5, round_to_float},
                             {MOESAIC_BFLOAT16, "bfloat16", 2, 2e-2, round_to_bfloat16}};

inline Bytes encode(const Doubles& values, const Dtype& dtype) {
    Bytes bytes(values.size() * dtype.size);
    for (size_t i = 0; i < values.size(); ++i) {
        const float single = float(values[i]);
        const uint16_t half = to_bfloat16(values[i]);
        std::memcpy(&bytes[i * dtype.size], dtype.size == 4 ? static_cast<const void*>(&single) : &half, dtype.size);
    }
    return bytes;
}

inline double decode(const unsigned char* at, const Dtype& dtype) {
    if (dtype.size == 2) {
        uint16_t half;
        std::memcpy(&half, at, 2);
        return from_bfloat16(half);
    }
    float single;
    std::memcpy(&single, at, 4);
    return single;
}

inline Bytes copy(const Guarded<unsigned char>& from) { return Bytes(from.data(), from.data() + from.size()); }

}  // namespace
