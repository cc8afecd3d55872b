// The backward pass of `mixture.h`.
#pragma once

#include "mixture.h"

namespace {

template <class Isa>
class MixtureBackward : Mixture<Isa> {
    using Base = Mixture<Isa>;
    using typename Base::T;
    using Base::D, Base::F, Base::down_of, Base::gate_up_of, Base::hidden, Base::kSize, Base::kStripValues, Base::m,
        Base::num_threads;
    // Weights are packed in tiles of depth by columns: wide, as memory is fast only along a row, and small enough that
    // the tile, the rows' share of the depth and the sums lie in a level-2 cache of 2 MiB together.
    static constexpr int64_t kColumns = 1024, kDepth = 256;

   public:
    MixtureBackward(const MoesaicMixture& mixture, void* scratch)
        : Base(mixture),
          segments(m, Base::rows_together((D > 2 * F ? D : 2 * F) * kSize), false),
          experts(m, 0, true),
          memory(scratch) {
        row_weights = memory.template take<float>(m.num_rows);
        grad_gate_up_rows = memory.template take<T>(m.num_rows * 2 * F);
        gated_rows = memory.template take<T>(m.num_rows * F);
        grad_rows = m.token_ids == nullptr ? nullptr : memory.template take<T>(m.num_rows * D);
        dots = memory.template take<float>(m.num_rows * ceil_div(F, kBlock));
        const int64_t depth_strips = strips_of((D > 2 * F ? D : 2 * F) * kSize);
        const int64_t row_strips = ceil_div(experts.longest(), Isa::Panel::kStripRows);
        group_of_rows = (int64_t(1) << 19) / (row_strips + 1) / (2 * kPanelStripBytes) * kBlock;
        group_of_rows = group_of_rows < kBlock ? kBlock : group_of_rows > 1024 ? 1024 : group_of_rows;
        const int64_t panels_bytes = kColumns / kLanes * kTilePanelBytes;
        const int64_t num_sums = ceil_div(segments.longest(), kBlock) * kColumns * kBlock;
        const int64_t row_panels_bytes = row_strips * (group_of_rows / kLanes) * kPanelStripBytes;
        const int64_t left_bytes = ceil_div(segments.longest(), kBlock) * depth_strips * kLeftStripBytes;
        const int64_t transposed_bytes = row_strips * kLeftStripBytes;
        for (int i = 0; i < num_threads; ++i)
            threads.push_back({memory.template take<>(left_bytes > transposed_bytes ? left_bytes : transposed_bytes),
                               memory.template take<>(panels_bytes > row_panels_bytes ? panels_bytes : row_panels_bytes),
                               memory.template take<float>(num_sums), -1});
    }

    int64_t scratch_bytes() const { return memory.used(); }

    void run(const MoesaicMixtureGradients& g) {
        grad_out = static_cast<const T*>(g.out);
        for (int64_t p = 0; p < m.num_rows; ++p) row_weights[row_of(p)] = m.weights == nullptr ? 1.0f : m.weights[p];
        const auto cost = [](const Segment& s) { return Base::strip_cost(s); };
        const auto weights_cost = [](const Segment& s) { return 600 + 64.0 * double(s.num_pairs()); };
        Work gated_work(segments, ceil_div(F, kColumns), num_threads, cost);
        Work hidden_work(segments, g.hidden == nullptr ? 0 : ceil_div(D, kColumns), num_threads, cost);
        Work down_work(experts, g.down == nullptr ? 0 : ceil_div(F, group_of_rows), num_threads, weights_cost);
        Work gate_up_work(experts, g.gate_up == nullptr ? 0 : ceil_div(D, group_of_rows), num_threads, weights_cost);
        T* const hidden_rows = grad_rows == nullptr ? static_cast<T*>(g.hidden) : grad_rows;

        run_team(num_threads, [&](int i) {
            Thread& thread = threads[i];
            Isa::begin();
            gated_work.run(i, [&](int64_t s, int64_t block) { gated_group(thread, s, block * kColumns); });
            barrier();
            thread.packed = -1;
            hidden_work.run(i, [&](int64_t s, int64_t block) { hidden_group(thread, s, block * kColumns, hidden_rows); });
            down_work.run(i, [&](int64_t e, int64_t block) {
                weight_group(thread, experts[e], D, [&](int64_t row) { return grad_out + Base::token_of(row) * D; }, F,
                             [&](int64_t row) { return gated_rows + row * F; }, block * group_of_rows,
                             static_cast<T*>(g.down));
            });
            gate_up_work.run(i, [&](int64_t e, int64_t block) {
                weight_group(thread, experts[e], 2 * F, [&](int64_t row) { return grad_gate_up_rows + row * 2 * F; }, D,
                             [&](int64_t row) { return hidden + Base::token_of(row) * D; }, block * group_of_rows,
                             static_cast<T*>(g.gate_up));
            });
            Isa::end();
            barrier();
            if (g.hidden != nullptr && grad_rows != nullptr) Base::sum_tokens(i, grad_rows, nullptr, static_cast<T*>(g.hidden));
            if (g.weights != nullptr) sum_dots(i, g.weights);
        });
    }

   private:
    // Of a panel of such a tile; one line more than it fills, or all panels would share the sets of a cache.
    static constexpr int64_t kTilePanelBytes = kDepth / Isa::Panel::kStripRows * kPanelStripBytes + kStripBytes;

    struct Thread {
        char *left, *panels;
        float* c;
        int64_t packed;  // the segment whose rows are packed on the left
    };

    int64_t row_of(int64_t pair) const { return m.inverse == nullptr ? pair : m.inverse[pair]; }

    // Pack a segment's rows as left blocks of 32, one after another.
    template <class RowAt>
    void pack_rows(Thread& thread, int64_t s, int64_t width, RowAt&& row) const {
        if (thread.packed == s) return;
        const Segment& segment = segments[s];
        const int64_t block_bytes = strips_of(width * kSize) * kLeftStripBytes;
        for (int64_t first = 0; first < segment.num_pairs() * kBlock; first += kHalf) {
            const char* at[kHalf];
            const int64_t left = segment.num_rows - first;
            const int count = left < 0 ? 0 : left < kHalf ? int(left) : kHalf;
            for (int i = 0; i < count; ++i) at[i] = reinterpret_cast<const char*>(row(segment.first_row + first + i));
            pack_half(at, count, width * kSize,
                      thread.left + first / kBlock * block_bytes + first % kBlock * kStripBytes);
        }
        thread.packed = s;
    }

    static constexpr int kPieceRows = 4;

    // What is done with a block of sums: some of its rows a piece.
    template <class Done>
    struct Rows {
        const Done* done;
        const float* c;
        int64_t pair, column;
        int columns;

        void run(int piece) const { (*done)(c + piece * kPieceRows * kBlock, pair, piece * kPieceRows, column, columns); }
    };

    // Multiply a segment's packed rows with columns [begin, begin + kColumns) of weights [depth, width]; in the end
    // done(c, pair, row, column, columns) for kPieceRows rows of each block of sums, from `row` of its pair on.
    template <class Done>
    void multiply_columns(Thread& thread, int64_t s, const T* weights, int64_t depth, int64_t width, int64_t begin,
                          const Done& done) const {
        const int64_t left_strips = ceil_div(depth, Isa::Panel::kStripRows);
        const int64_t columns = width - begin < kColumns ? width - begin : kColumns, num_blocks = ceil_div(columns, kBlock);
        const int64_t num_pairs = segments[s].num_pairs();
        Ahead nothing{};
        Rest<Rows<Done>> rest;
        for (int64_t d = 0; d == 0 || d < depth; d += kDepth) {  // once even without depth, for sums of nothing are zeros
            const int64_t tile_depth = depth - d < kDepth ? depth - d : kDepth;
            const int64_t strips = ceil_div(tile_depth, Isa::Panel::kStripRows), first_strip = d / Isa::Panel::kStripRows;
            Isa::Panel::pack_depth([&](int64_t i) { return weights + (d + i) * width + begin; }, tile_depth, columns,
                                   thread.panels, kTilePanelBytes);
            for (int64_t pair = 0; pair < num_pairs; ++pair) {
                const Left left = Left::packed(thread.left + (pair * left_strips + first_strip) * kLeftStripBytes);
                for (int64_t block = 0; block < num_blocks; ++block) {
                    const char* panel = thread.panels + 2 * block * kTilePanelBytes;
                    float* c = thread.c + (pair * num_blocks + block) * kBlock * kBlock;
                    Isa::multiply(left, strips, panel, panel + kTilePanelBytes, c, d > 0, nothing, rest);
                    if (d + kDepth < depth) continue;
                    rest.finish();
                    const int64_t left_columns = columns - block * kBlock, left_rows = segments[s].num_rows - pair * kBlock;
                    rest.begin({&done, c, pair, begin + block * kBlock, left_columns < kBlock ? int(left_columns) : kBlock},
                               int(ceil_div(left_rows < kBlock ? left_rows : kBlock, kPieceRows)), strips);
                }
            }
        }
        rest.finish();
    }

    // How many of the kPieceRows rows from `row` of a pair on there are: one at least.
    static int rows_of(const Segment& segment, int64_t pair, int row) {
        const int64_t left = segment.num_rows - pair * kBlock - row;
        return left < kPieceRows ? int(left) : kPieceRows;
    }

    void gated_group(Thread& thread, int64_t s, int64_t begin) const {
        const Segment& segment = segments[s];
        pack_rows(thread, s, D, [&](int64_t row) { return grad_out + Base::token_of(row) * D; });
        const int64_t num_blocks = ceil_div(F, kBlock);
        multiply_columns(thread, s, down_of(segment), D, F, begin,
                         [&](const float* c, int64_t pair, int row, int64_t f, int columns) {
                             const T* gates[kPieceRows];
                             T *grads[kPieceRows], *gated[kPieceRows];
                             float* dot[kPieceRows];
                             const int64_t first = segment.first_row + pair * kBlock + row;
                             const int count = rows_of(segment, pair, row);
                             const typename Base::Tile kept = Base::kept_tile(segment, pair, f);
                             for (int i = 0; i < count; ++i) {
                                 gates[i] = kept.gate + (row + i) * kept.step;
                                 grads[i] = grad_gate_up_rows + (first + i) * 2 * F + f;
                                 gated[i] = gated_rows + (first + i) * F + f;
                                 dot[i] = dots + (first + i) * num_blocks + f / kBlock;
                             }
                             Isa::Finish::gate_backward(c, gates, kept.up_at, row_weights + first, grads, F, gated, dot, count, columns);
                         });
    }

    void hidden_group(Thread& thread, int64_t s, int64_t begin, T* to) const {
        const Segment& segment = segments[s];
        pack_rows(thread, s, 2 * F, [&](int64_t row) { return grad_gate_up_rows + row * 2 * F; });
        multiply_columns(thread, s, gate_up_of(segment), 2 * F, D, begin,
                         [&](const float* c, int64_t pair, int row, int64_t d, int columns) {
                             T* at[kPieceRows];
                             const int count = rows_of(segment, pair, row);
                             for (int i = 0; i < count; ++i) at[i] = to + (segment.first_row + pair * kBlock + row + i) * D + d;
                             Isa::Finish::store_rows(c, at, count, columns);
                         });
    }

    // What is done with two neighbouring blocks of a gradient of weights: some of their rows a piece. Two lines of a row
    // one after the other are written twice as fast as one (15 against 8.5 GB/s on one core).
    struct Streaming {
        const float* c;
        T* to;
        int64_t width;
        int count, columns;

        void run(int piece) const {
            const int begin = piece * kPieceRows, end = count - begin < kPieceRows ? count : begin + kPieceRows;
            for (int row = begin; row < end; ++row)
                for (int block = 0; block * kBlock < columns; ++block)
                    Isa::Finish::stream_rows(c + (block * kBlock + row) * kBlock, to + row * width + block * kBlock, width, 1,
                                             columns - block * kBlock);
        }
    };

    // Columns [begin, begin + group_of_rows) of an expert's gradient [height, width]: sum over its rows of
    // left_row^T right_row.
    template <class LeftRow, class RightRow>
    void weight_group(Thread& thread, const Segment& segment, int64_t height, LeftRow&& left_row, int64_t width,
                      RightRow&& right_row, int64_t begin, T* gradient) const {
        const int64_t end = begin + group_of_rows < width ? begin + group_of_rows : width;
        T* const to = gradient + segment.expert * height * width;
        if (segment.num_rows == 0) {
            for (int64_t h = 0; h < height; ++h) std::memset(to + h * width + begin, 0, (end - begin) * kSize);
            return;
        }
        const int64_t strips = ceil_div(segment.num_rows, Isa::Panel::kStripRows), panel_bytes = strips * kPanelStripBytes;
        Isa::Panel::pack_depth([&](int64_t i) { return right_row(segment.first_row + i) + begin; }, segment.num_rows,
                               end - begin, thread.panels, panel_bytes);
        Ahead nothing{};
        Rest<Streaming> rest;
        int turn = 0;
        for (int64_t h = 0; h < height; h += kBlock) {
            const int count = height - h < kBlock ? int(height - h) : kBlock;
            Isa::Panel::pack_transposed([&](int64_t i) { return left_row(segment.first_row + i) + h; }, segment.num_rows, count,
                                        thread.left);
            const char* panel = thread.panels;
            for (int64_t column = begin; column < end; column += 2 * kBlock) {
                float* const c = thread.c + (turn ^= 1) * 2 * kBlock * kBlock;
                for (int block = 0; block < 2 && column + block * kBlock < end; ++block, panel += 2 * panel_bytes)
                    Isa::multiply(Left::packed(thread.left), strips, panel, panel + panel_bytes, c + block * kBlock * kBlock, false,
                                  nothing, rest);
                rest.finish();
                rest.begin({c, to + h * width + column, width, count, end - column < 2 * kBlock ? int(end - column) : 2 * kBlock},
                           int(ceil_div(count, kPieceRows)), 2 * strips);
            }
        }
        rest.finish();
    }

    void sum_dots(int thread, float* grad_weights) const {
        const int64_t blocks = ceil_div(F, kBlock), team = team_size();
        for (int64_t p = m.num_rows * thread / team; p < m.num_rows * (thread + 1) / team; ++p) {
            const float* at = dots + row_of(p) * blocks;
            float sum = 0.0f;
            for (int64_t b = 0; b < blocks; ++b) sum += at[b];
            grad_weights[p] = sum;
        }
    }

    const Segments segments, experts;
    Scratch memory;
    float *row_weights, *dots;
    T *grad_gate_up_rows, *gated_rows, *grad_rows;
    const T* grad_out = nullptr;
    int64_t group_of_rows;
    std::vector<Thread> threads;
};

}  // namespace
