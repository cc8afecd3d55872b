// The mixture of experts, forward and backward, for any instruction set.
//
// Forward, two grouped products with a barrier between:
//     gate_up:  left = 16 gate rows over 16 up rows of an expert, right = its tokens; ends in silu(gate) * up as panels
//     down:     left = 32 rows of down, twice, right = those panels; ends in rows, which are summed token by token
// Backward, with g the gradient of a token's output and w its routing weight:
//     gated:    left = tokens' g, right = down;  the gradient of the gated values, from it those of gate, up and w:
//               dw = sum_f gated_f * (g down)_f, so that no expert output is kept
//     hidden:   left = gradients of gate and up, right = gate_up; rows summed token by token
//     weights:  left = transposed g (or gradients of gate and up), right = w * gated (or the tokens); the depth is the rows
// Every output value is computed by one thread in one order, so threads never show in the bits.
#pragma once

#include <vector>

#include "block.h"
#include "moesaic.h"
#include "team.h"

namespace {

// Rows of one expert that are worked on together.
struct Segment {
    int64_t expert, slot, first_row, num_rows, first_panel;
    int64_t num_panels() const { return ceil_div(num_rows, kLanes); }
    int64_t num_pairs() const { return ceil_div(num_rows, kBlock); }
};

// One matrix of every expert, in slots.
struct Slots {
    const void* first;
    int64_t stride;  // in bytes

    const void* of(const Segment& s) const { return static_cast<const char*>(first) + s.slot * stride; }
};
inline int64_t stride_or(int64_t given, int64_t contiguous) { return given == 0 ? contiguous : given; }

class Segments {
   public:
    // Of the experts that have a place; those without rows appear only if `with_empty`. Rows count through all experts,
    // panels through the segments. max_rows 0: experts are not cut.
    Segments(const MoesaicMixture& m, int64_t max_rows, bool with_empty) {
        int64_t row = 0, panel = 0;
        for (int64_t expert = 0; expert < m.num_experts; ++expert) {
            const int64_t slot = m.places == nullptr ? expert : m.places[expert];
            int64_t left = m.counts[expert];
            if (left == 0 && with_empty) list_.push_back({expert, slot, row, 0, panel});
            if (slot < 0) row += left, left = 0;
            while (left > 0) {
                const int64_t rows = max_rows > 0 && left > max_rows ? max_rows : left;
                list_.push_back({expert, slot, row, rows, panel});
                row += rows, left -= rows, panel += ceil_div(rows, kLanes);
                if (rows > longest_) longest_ = rows;
            }
        }
        num_panels_ = panel;
    }
    const Segment& operator[](int64_t i) const { return list_[i]; }
    int64_t size() const { return int64_t(list_.size()); }
    int64_t num_panels() const { return num_panels_; }
    int64_t longest() const { return longest_; }

   private:
    std::vector<Segment> list_;
    int64_t num_panels_ = 0, longest_ = 0;
};

// In a type of this file, so that no container of a plain type is shared with code for another instruction set.
struct Before {
    double cost;
};

// A list of items, `blocks` to a segment, shared by cost.
class Work {
   public:
    // cost(rows) of one block; in any unit.
    template <class Cost>
    Work(const Segments& segments, int64_t blocks, int num_threads, Cost&& cost) : segments_(segments), blocks_(blocks) {
        if (blocks == 0 || segments.size() == 0) return;
        std::vector<Before> before(segments.size() + 1, Before{0.0});
        for (int64_t s = 0; s < segments.size(); ++s) before[s + 1].cost = before[s].cost + cost(segments[s]) * double(blocks);
        queue_.share(num_threads, uint32_t(segments.size() * blocks), [&](uint32_t item) {
            const int64_t s = item / blocks, block = item % blocks;
            return block == 0 ? before[s].cost : before[s].cost + (before[s + 1].cost - before[s].cost) / double(blocks) * double(block);
        });
    }
    // Call body(segment, block) for items until none is left.
    template <class Body>
    void run(int thread, Body&& body) {
        for (int64_t item = queue_.take(thread); item >= 0; item = queue_.take(thread)) body(item / blocks_, item % blocks_);
    }
    // The item after this one, if there is one: what to fetch ahead.
    bool next(int64_t& segment, int64_t& block) const {
        if (++block == blocks_) block = 0, ++segment;
        return segment < segments_.size();
    }

   private:
    const Segments& segments_;
    int64_t blocks_;
    Queue queue_;
};

// Hands out 64-byte aligned pieces of the caller's scratch, or, without one, only counts them.
class Scratch {
   public:
    explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}
    template <class U = char>
    U* take(int64_t count) {
        char* piece = base_ == nullptr ? nullptr : base_ + used_;
        used_ += round_up(count * int64_t(sizeof(U)), 64);
        return reinterpret_cast<U*>(piece);
    }
    int64_t used() const { return used_; }

   private:
    char* base_;
    int64_t used_ = 0;
};

template <class Isa>
class Mixture {
   protected:
    using T = typename Isa::Element;
    static constexpr int64_t kSize = sizeof(T);
    static constexpr int64_t kStripValues = kStripBytes / kSize;

    explicit Mixture(const MoesaicMixture& mixture)
        : m(mixture),
          D(m.width),
          F(m.hidden_width),
          num_threads(clamp_threads(m.num_threads)),
          hidden(static_cast<const T*>(m.hidden)),
          gate_up{m.gate_up, stride_or(m.gate_up_stride, 2 * F * D * kSize)},
          down{m.down, stride_or(m.down_stride, D * F * kSize)} {}

    const T* gate_up_of(const Segment& s) const { return static_cast<const T*>(gate_up.of(s)); }
    const T* down_of(const Segment& s) const { return static_cast<const T*>(down.of(s)); }

    // Where the products before the gating of some rows of a pair are kept: what is written and read together lies
    // together. A pair of `height` rows has a tile for every 32 columns, gate [height, columns] and then up; rows of a
    // whole matrix would lie pages apart.
    struct Tile {
        T* gate;             // of the pair's first row, first column
        int64_t step, up_at;  // from a row to the next, and from a gate to its up
    };
    Tile kept_tile(const Segment& segment, int64_t pair, int64_t column) const {
        const int64_t left_rows = segment.num_rows - pair * kBlock, height = left_rows < kBlock ? left_rows : kBlock;
        const int64_t left = F - column, columns = left < kBlock ? left : kBlock;
        T* const first = static_cast<T*>(m.gate_up_rows) + (segment.first_row + pair * kBlock) * 2 * F;
        return {first + column * 2 * height, columns, height * columns};
    }

    int64_t token_of(int64_t row) const { return m.token_ids == nullptr ? row : m.token_ids[row]; }

    // Where expert outputs go to be summed: to the caller's rows, or to our own; null: plain rows are not summed.
    T* rows_in(Scratch& memory) const {
        if (m.token_ids == nullptr) return nullptr;
        return m.rows == nullptr ? memory.template take<T>(m.num_rows * D) : static_cast<T*>(m.rows);
    }

    // How many rows to take together so that, `row_bytes` long, they fill half of a level-2 cache of 2 MiB: then each
    // weight is fetched once for many rows.
    static int64_t rows_together(int64_t row_bytes) {
        const int64_t rows = (int64_t(1) << 20) / (row_bytes > 0 ? row_bytes : 1) / kBlock * kBlock;
        return rows < 128 ? 128 : rows > 512 ? 512 : rows;
    }

    // Cycles that a strip of a block costs: streaming its 2 KiB from memory, or multiplying it with all pairs.
    static double strip_cost(const Segment& s) {
        const double stream = 400, product = 64.0 * double(s.num_pairs());
        return stream > product ? stream : product;
    }

    // Sum each token's rows, weighted or not, on all threads.
    void sum_tokens(int thread, const T* rows, const float* weights, T* out) const {
        const int64_t team = team_size(), begin = m.num_tokens * thread / team, end = m.num_tokens * (thread + 1) / team;
        for (int64_t t = begin; t < end; ++t) {
            const int64_t first = m.starts[t], last = t + 1 < m.num_tokens ? m.starts[t + 1] : m.num_rows;
            Isa::Finish::sum_rows(rows, m.inverse + first, weights == nullptr ? nullptr : weights + first, last - first, D,
                                  out + t * D);
        }
    }

    const MoesaicMixture& m;
    const int64_t D, F;
    const int num_threads;
    const T* const hidden;
    const Slots gate_up, down;
};

}  // namespace
