// The mixture of experts with low-bit weights, forward only, for any instruction set.
//
// As `mixture_forward.h`, but tokens are int8. The gated values of a row share one scale, which is known when the whole
// row is: gate_up leaves floats, lane by lane as they come, and down quantises them into panels when it takes a segment.
// With many segments each is one thread's from end to end, and its floats stay in that thread's cache; else threads share
// the blocks of all. A grouped product takes its rows to down as they come.
#pragma once

#include "mixture.h"
#include "quant.h"

namespace {

template <class Isa>
class QuantisedForward : Mixture<Isa> {
    using Base = Mixture<Isa>;
    using typename Base::T;
    using Base::D, Base::F, Base::hidden, Base::m, Base::num_threads;

   public:
    QuantisedForward(const MoesaicQuantised& quantised, void* scratch)
        : Base(quantised.mixture),
          bits(quantised.bits),
          is_product(m.gate_up == nullptr),
          in_width(is_product ? F : D),
          in_strips(strips_of(in_width)),
          mid_strips(strips_of(F)),
          gate_up(m.gate_up, m.gate_up_stride, quantised.gate_up_scales, quantised.gate_up_scales_stride, in_strips,
                  is_product ? 0 : mid_strips * 4, bits),
          down(m.down, m.down_stride, quantised.down_scales, quantised.down_scales_stride, mid_strips, strips_of(D) * 2, bits),
          segments(m, Base::rows_together((in_strips > mid_strips ? in_strips : mid_strips) * kStripBytes), false),
          by_segment(segments.size() >= 8 * num_threads),
          memory(scratch) {
        const int64_t most_strips = in_strips > mid_strips ? in_strips : mid_strips;
        const int64_t most_panels = ceil_div(segments.longest(), kBlock) * 2;
        gated = by_segment ? nullptr : memory.template take<float>(segments.num_panels() * gated_floats());
        rows = Base::rows_in(memory);
        for (int i = 0; i < num_threads; ++i)
            threads.push_back({memory.template take<>(most_panels * most_strips * kPanelStripBytes),
                               memory.template take<>(most_strips * kPanelStripBytes),
                               bits == 8 ? nullptr : memory.template take<>(most_strips * kLeftStripBytes),
                               memory.template take<float>(most_panels * kLanes),
                               memory.template take<int32_t>(kBlock * kBlock),
                               by_segment ? memory.template take<float>(most_panels * gated_floats()) : nullptr, -1});
    }

    int64_t scratch_bytes() const { return memory.used(); }

    void run(T* out) {
        const auto cost = [](const Segment& s) { return strip_cost(s); };
        const int64_t down_blocks = ceil_div(D, kBlock);
        Work whole(segments, by_segment ? 1 : 0, num_threads, cost);
        Work gate_work(segments, by_segment ? 0 : gate_up.blocks, num_threads, cost);
        Work down_work(segments, by_segment ? 0 : down_blocks, num_threads, cost);
        T* const to = rows == nullptr ? out : rows;
        run_team(num_threads, [&](int i) {
            Thread& thread = threads[i];
            Isa::begin();
            whole.run(i, [&](int64_t s, int64_t) {
                for (int64_t block = 0; block < gate_up.blocks; ++block)
                    gate_block(thread, s, block, block + 1 < gate_up.blocks ? at(gate_up, s, block + 1) : at(down, s, 0));
                for (int64_t block = 0; block < down_blocks; ++block)
                    down_block(thread, s, block, block + 1 < down_blocks ? at(down, s, block + 1) : first_of(s + 1), to);
            });
            gate_work.run(i, [&](int64_t s, int64_t block) { gate_block(thread, s, block, next(gate_work, gate_up, s, block)); });
            if (!by_segment) barrier();
            down_work.run(i, [&](int64_t s, int64_t block) { down_block(thread, s, block, next(down_work, down, s, block), to); });
            Isa::end();
            if (rows == nullptr || out == nullptr) return;
            barrier();
            Base::sum_tokens(i, rows, m.weights, out);
        });
    }

   private:
    struct Thread {
        char *tokens, *bytes, *left;  // panels; rows of bytes, or the one token there is; an unpacked block
        float* scales;  // of the packed tokens
        int32_t* c;
        float* gated;
        int64_t packed;  // the segment whose tokens are packed: 2 s its hidden ones, 2 s + 1 the gated
    };

    // One of the two matrices of all experts.
    struct Matrix {
        Slots data, scales;
        int64_t strips, blocks, block_bytes;  // of an expert

        Matrix(const void* first, int64_t stride, const float* scale, int64_t scales_stride, int64_t num_strips,
               int64_t num_blocks, int bits)
            : strips(num_strips), blocks(num_blocks), block_bytes(num_strips * quantised_strip_bytes(bits)) {
            data = {first, stride_or(stride, blocks * block_bytes)};
            scales = {scale, stride_or(scales_stride, blocks * kBlock * int64_t(sizeof(float)))};
        }
        const char* block(const Segment& s, int64_t b) const { return static_cast<const char*>(data.of(s)) + b * block_bytes; }
        const float* scales_of(const Segment& s, int64_t b) const { return static_cast<const float*>(scales.of(s)) + b * kBlock; }
    };

    // Cycles that a strip of a block costs, as in Base, of half the bytes and four times the products.
    static double strip_cost(const Segment& s) {
        const double stream = 200, product = 64.0 * double(s.num_pairs());
        return stream > product ? stream : product;
    }

    int64_t gated_floats() const { return is_product ? 0 : mid_strips * kStripBytes * kLanes; }  // of a panel

    float* gated_at(const Thread& thread, int64_t s, int64_t panel) const {
        return by_segment ? thread.gated + panel * gated_floats() : gated + (segments[s].first_panel + panel) * gated_floats();
    }

    void pack_hidden(Thread& thread, int64_t s) const {
        if (thread.packed == 2 * s) return;
        const Segment& segment = segments[s];
        for (int64_t panel = 0; panel < segment.num_panels(); ++panel) {
            const T* lanes[kLanes];
            const int64_t first = panel * kLanes, left = segment.num_rows - first;
            const int count = left < kLanes ? int(left) : kLanes;
            for (int lane = 0; lane < count; ++lane) lanes[lane] = hidden + Base::token_of(segment.first_row + first + lane) * in_width;
            Isa::pack_tokens(lanes, count, in_width, thread.bytes, thread.tokens + panel * in_strips * kPanelStripBytes,
                             thread.scales + first);
        }
        if (segment.num_rows == 1) Isa::take_lane(thread.tokens, in_strips, thread.bytes);
        thread.packed = 2 * s;
    }

    void pack_gated(Thread& thread, int64_t s) const {
        if (thread.packed == 2 * s + 1) return;
        for (int64_t panel = 0; panel < segments[s].num_panels(); ++panel)
            Isa::pack_gated(gated_at(thread, s, panel), mid_strips * kStripBytes,
                            thread.tokens + panel * mid_strips * kPanelStripBytes, thread.scales + panel * kLanes);
        if (segments[s].num_rows == 1) Isa::take_lane(thread.tokens, mid_strips, thread.bytes);
        thread.packed = 2 * s + 1;
    }

    const char* at(const Matrix& w, int64_t s, int64_t block) const {
        return w.block(segments[s], block);
    }

    // What comes after a block, if there is anything.
    const char* next(const Work& work, const Matrix& w, int64_t s, int64_t block) const {
        return work.next(s, block) ? at(w, s, block) : nullptr;
    }
    const char* first_of(int64_t s) const { return s < segments.size() ? at(is_product ? down : gate_up, s, 0) : nullptr; }

    // Multiply a block with the packed tokens and call finish(pair, panels of the pair) after each pair of panels.
    template <class Done>
    void multiply(const Matrix& w, Thread& thread, int64_t s, int64_t block, const char* next, Done&& finish) const {
        const Segment& segment = segments[s];
        const char* weights = at(w, s, block);
        const int64_t strip_bytes = quantised_strip_bytes(bits);
        Following following = {next == nullptr ? weights : next, Following::run_of(w.block_bytes),
                               ceil_div(ceil_div(strip_bytes, kStripBytes), segment.num_pairs())};
        if (segment.num_rows == 1) {
            Isa::multiply_one(bits, weights, w.strips, thread.bytes, thread.c, following);
            return finish(0, 1);
        }
        LeftBlock left = {weights};
        if (bits == 4) left = {thread.left, weights, thread.left, w.strips};
        for (int64_t pair = 0; pair < segment.num_pairs(); ++pair) {
            const bool both = 2 * pair + 1 < segment.num_panels();
            const char* tokens = thread.tokens + 2 * pair * w.strips * kPanelStripBytes;
            Isa::multiply(left, w.strips, tokens, both ? tokens + w.strips * kPanelStripBytes : nullptr, thread.c,
                          following);
            finish(pair, both ? 2 : 1);
        }
    }

    void gate_block(Thread& thread, int64_t s, int64_t block, const char* next) const {
        pack_hidden(thread, s);
        multiply(gate_up, thread, s, block, next, [&](int64_t pair, int num_panels) {
            for (int p = 0; p < num_panels; ++p) {
                const int64_t panel = 2 * pair + p, left = segments[s].num_rows - panel * kLanes;
                float* to = gated_at(thread, s, panel) + block * kHalf * kLanes;
                Isa::gate(thread.c + p * kLanes, gate_up.scales_of(segments[s], block), thread.scales + panel * kLanes,
                          left < kLanes ? int(left) : kLanes, to);
            }
        });
    }

    void down_block(Thread& thread, int64_t s, int64_t block, const char* next, T* to) const {
        if (is_product) pack_hidden(thread, s);
        else pack_gated(thread, s);
        const int64_t d = block * kBlock;
        const int columns = D - d < kBlock ? int(D - d) : kBlock;
        multiply(down, thread, s, block, next, [&](int64_t pair, int) {
            T* to_rows[kBlock];
            const int64_t first = pair * kBlock, left = segments[s].num_rows - first;
            const int num_tokens = left < kBlock ? int(left) : kBlock;
            for (int i = 0; i < num_tokens; ++i) to_rows[i] = to + (segments[s].first_row + first + i) * D + d;
            Isa::store_tokens(thread.c, down.scales_of(segments[s], block), thread.scales + first, to_rows, num_tokens, columns);
        });
    }

    const int bits;
    const bool is_product;
    const int64_t in_width, in_strips, mid_strips;  // of hidden; of it and of what down takes
    const Matrix gate_up, down;
    const Segments segments;
    const bool by_segment;
    Scratch memory;
    float* gated;  // by panels: depth, lane
    T* rows;
    std::vector<Thread> threads;
};

}  // namespace
