// The shapes that all kernels share.
//
// Every product here is C = left * right over 64-byte *strips* of the depth, with float32 sums taken in the order of
// the depth. The left operand is read by rows; a *block* of it is two halves of 16 rows. The right operand is packed
// into *panels* of 16 lanes: a strip of a panel is 16 words of depth by 16 lanes, a word being one float or two
// neighbouring bfloat16.
//
//      left: 32 rows                    right: 2 panels                 C: 32 rows x 32 lanes, float32
//      half 0  [16 x strips x 64 B]     [strips][16 words][16 lanes]    [c0 | c1]
//      half 1  [16 x strips x 64 B]     [strips][16 words][16 lanes]    [c2 | c3]
//
// Weights that are multiplied along their rows are the left operand where they lie: the checkpoint's own layout needs
// no copy. Only tokens are packed. In the products of the backward pass the weights' rows are the depth; then the
// weights are packed panel by panel, and each panel serves all tokens of its expert.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = 16;
constexpr int kHalf = 16;
constexpr int kBlock = 32;
constexpr int kStripBytes = 64;                           // of one left row
constexpr int kPanelStripBytes = kStripBytes * kLanes;    // of one panel
constexpr int kLeftStripBytes = kStripBytes * kBlock;     // of a packed left block

using bfloat16 = uint16_t;  // the upper half of a float's bits

// Where the rows of a left block stand: as they lie in a matrix, or packed strip by strip.
struct Left {
    const char* half[2];
    ptrdiff_t row_step, strip_step;

    static Left packed(const char* block) {
        return {{block, block + kHalf * kStripBytes}, kStripBytes, kLeftStripBytes};
    }
    static Left in_place(const char* half0, const char* half1, ptrdiff_t row_bytes) {
        return {{half0, half1}, row_bytes, kStripBytes};
    }
};

// Weights to fetch into the cache while the present block is multiplied: a block's quarters, side by side, some lines a
// strip. Four runs at once, as memory answers several readers faster than one (28 against 26 GB/s on two cores).
struct Ahead {
    const char* quarters[4];
    int64_t quarter_bytes = 0, at = 0;
    int lines_per_strip = 0;

    static Ahead block(const char* half0, const char* half1, int64_t half_bytes, int64_t num_pairs) {
        const int64_t quarter = half_bytes / 2;
        return {{half0, half0 + quarter, half1, half1 + quarter}, quarter, 0, int(kBlock / num_pairs)};
    }

    void fetch() {
        for (int lines = 0; lines < lines_per_strip && at < quarter_bytes; lines += 4, at += kStripBytes)
            for (const char* quarter : quarters) __builtin_prefetch(quarter + at, 0, 2);
    }
};

// What is left to do with finished sums, in pieces: tiles leave the vector units idle, so a product on tiles does some
// pieces of the last one's rest after each strip. `finish` does what found no room.
template <class Piece>
class Rest {
   public:
    void begin(const Piece& piece, int num_pieces, int64_t strips) {
        piece_ = piece, at_ = 0, end_ = num_pieces;
        per_strip_ = strips > 0 ? int((num_pieces + strips - 1) / strips) : 0;
    }
    void step() {
        for (int i = 0; i < per_strip_ && at_ < end_; ++i) piece_.run(at_++);
    }
    void finish() {
        while (at_ < end_) piece_.run(at_++);
    }

   private:
    Piece piece_{};
    int at_ = 0, end_ = 0, per_strip_ = 0;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline int64_t strips_of(int64_t row_bytes) { return ceil_div(row_bytes, kStripBytes); }

// Copy up to 16 rows (null: zeros) into a half of a packed left block, zeros after their end.
inline void pack_half(const char* const* rows, int count, int64_t row_bytes, char* half) {
    const int64_t strips = strips_of(row_bytes);
    for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t begin = strip * kStripBytes;
        const int64_t bytes = row_bytes - begin < kStripBytes ? row_bytes - begin : kStripBytes;
        char* to = half + strip * kLeftStripBytes;
        for (int row = 0; row < kHalf; ++row, to += kStripBytes) {
            if (row >= count) std::memset(to, 0, kStripBytes);
            else if (bytes == kStripBytes) std::memcpy(to, rows[row] + begin, kStripBytes);
            else {
                std::memcpy(to, rows[row] + begin, bytes);
                std::memset(to + bytes, 0, kStripBytes - bytes);
            }
        }
    }
}

}  // namespace
