// Packing against index arithmetic, each value told from the others by its bits. Compiled for each kind of registers.
#include <cstdint>
#include <vector>

#ifdef __AVX512F__
#include "../avx512/product.h"
#else
#include "../portable/product.h"
#endif
#include "../cpu.h"
#include "check.h"
#include "guarded.h"

namespace {

#ifdef __AVX512F__
template <class T>
using Isa = Avx512<T>;
constexpr bool kDealt = true;
#else
template <class T>
using Isa = Portable<T>;
constexpr bool kDealt = false;
#endif

// Rows of a matrix, [height, width] of values that all differ (as far as 16 bits go) and none of which is zero.
template <class T>
std::vector<T> count_up(int64_t height, int64_t width) {
    std::vector<T> values(height * width);
    for (size_t i = 0; i < values.size(); ++i) values[i] = T(1 + i % 65535);
    return values;
}

template <class T>
void check_packed_rows(int count, int64_t width, Guard guard) {
    const int64_t values = kStripBytes / sizeof(T), in_word = 4 / sizeof(T), strips = strips_of(width * sizeof(T));
    const Guarded<T> matrix(count_up<T>(count, width), guard);
    const char* rows[kLanes] = {};
    for (int i = 0; i < count; ++i) rows[i] = reinterpret_cast<const char*>(matrix.data() + i * width);

    const Guarded<T> panel(strips * values * kLanes, guard), half(strips * values * kBlock, guard);
    Isa<T>::pack_lanes(rows, count, width * sizeof(T), reinterpret_cast<char*>(panel.data()));
    pack_half(rows, count, width * sizeof(T), reinterpret_cast<char*>(half.data()));
    for (int row = 0; row < kLanes; ++row)
        for (int64_t d = 0; d < strips * values; ++d) {
            const T expected = row < count && d < width ? matrix[row * width + d] : T(0);
            const T lane = panel[(d / in_word * kLanes + row) * in_word + d % in_word];
            const T left = half[d / values * kBlock * values + row * values + d % values];
            CHECK(lane == expected, "pack_lanes: row %d of %d, value %d of %d", row, count, int(d), int(width));
            CHECK(left == expected, "pack_half: row %d of %d, value %d of %d", row, count, int(d), int(width));
        }
}

// Where pack_depth puts a column: sixteen neighbours share a panel, but unpacking bfloat16 deals them out by fours.
template <class T>
void place_column(int64_t column, int64_t& panel, int64_t& lane) {
    const int64_t within = column % kBlock;
    const bool dealt = kDealt && sizeof(T) == 2;
    panel = column / kBlock * 2 + (dealt ? within / 4 % 2 : within / kLanes);
    lane = dealt ? within / 8 * 4 + within % 4 : within % kLanes;
}

template <class T>
void check_packed_depth(int64_t depth, int64_t columns, Guard guard) {
    const int64_t width = columns + 3, in_word = 4 / sizeof(T), strip_rows = Isa<T>::Panel::kStripRows;
    const int64_t padded = round_up(depth, strip_rows), num_panels = 2 * ceil_div(columns, kBlock);
    const int64_t step = padded * kLanes + kStripBytes / int64_t(sizeof(T));  // one line more than a panel fills
    // The last row ends with the last column, so that reading on is seen.
    std::vector<T> values = count_up<T>(depth, width);
    values.resize(values.size() - 3);
    const Guarded<T> matrix(values, guard);
    const Guarded<T> panels((num_panels - 1) * step + padded * kLanes, guard);
    Isa<T>::Panel::pack_depth([&](int64_t d) { return matrix.data() + d * width; }, depth, columns,
                              reinterpret_cast<char*>(panels.data()), step * int64_t(sizeof(T)));
    for (int64_t column = 0; column < num_panels * kLanes; ++column)
        for (int64_t d = 0; d < padded; ++d) {
            int64_t panel, lane;
            place_column<T>(column, panel, lane);
            const T expected = column < columns && d < depth ? matrix[d * width + column] : T(0);
            const T found = panels[panel * step + (d / in_word * kLanes + lane) * in_word + d % in_word];
            CHECK(found == expected, "pack_depth: column %d of %d, depth %d of %d", int(column), int(columns), int(d), int(depth));
        }
}

template <class T>
void check_packed_transposed(int64_t depth, int columns, Guard guard) {
    const int64_t width = columns + 3, strip_rows = Isa<T>::Panel::kStripRows, padded = round_up(depth, strip_rows);
    std::vector<T> values = count_up<T>(depth, width);
    values.resize(values.size() - 3);
    const Guarded<T> matrix(values, guard), block(padded * kBlock, guard);
    Isa<T>::Panel::pack_transposed([&](int64_t d) { return matrix.data() + d * width; }, depth, columns,
                                   reinterpret_cast<char*>(block.data()));
    for (int column = 0; column < kBlock; ++column)
        for (int64_t d = 0; d < padded; ++d) {
            const T expected = column < columns && d < depth ? matrix[d * width + column] : T(0);
            const T found = block[(d / strip_rows * kBlock + column) * strip_rows + d % strip_rows];
            CHECK(found == expected, "pack_transposed: column %d of %d, depth %d of %d", column, columns, int(d), int(depth));
        }
}

template <class T>
void check_all(Guard guard) {
    for (int64_t width : {1, 15, 16, 17, 31, 32, 33, 64, 65, 100})
        for (int count : {1, 2, 15, 16}) check_packed_rows<T>(count, width, guard);
    for (int64_t depth : {1, 2, 15, 16, 17, 31, 32, 33, 64, 65}) {
        for (int64_t columns : {1, 15, 16, 17, 31, 32, 33, 64, 100}) check_packed_depth<T>(depth, columns, guard);
        for (int columns : {1, 15, 16, 17, 31, 32}) check_packed_transposed<T>(depth, columns, guard);
    }
}

}  // namespace

int main() {
#ifdef __AVX512F__
    if (const char* reason = refuse_avx512()) {
        std::printf("%s\n", reason);
        return kSkipped;
    }
#endif
    for (Guard guard : {Guard::kBefore, Guard::kAfter}) {
        check_all<float>(guard);
        check_all<bfloat16>(guard);
    }
    return 0;
}
