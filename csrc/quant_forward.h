// The mixture of experts with low-bit weights, forward only, for any instruction set.
//
// As `mixture_forward.h`, but tokens are int8. The gated values of a row share one scale, which is known when the whole
// row is: gate_up leaves floats, lane by lane as they come, and down quantises them into panels when it takes a segment.
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
          in_strips(strips_of(D)),
          mid_strips(strips_of(F)),
          gate_up{static_cast<const char*>(m.gate_up), quantised.gate_up_scales, in_strips, mid_strips * 4},
          down{static_cast<const char*>(m.down), quantised.down_scales, mid_strips, in_strips * 2},
          segments(m, Base::rows_together((in_strips > mid_strips ? in_strips : mid_strips) * kStripBytes), false),
          memory(scratch) {
        const int64_t most_strips = in_strips > mid_strips ? in_strips : mid_strips;
        const int64_t most_panels = ceil_div(segments.longest(), kBlock) * 2;
        gated = memory.template take<float>(segments.num_panels() * gated_floats());
        rows = m.token_ids == nullptr ? nullptr : memory.template take<T>(m.num_rows * D);
        for (int i = 0; i < num_threads; ++i)
            threads.push_back({memory.template take<>(most_panels * most_strips * kPanelStripBytes),
                               memory.template take<>(most_strips * kPanelStripBytes),
                               bits == 8 ? nullptr : memory.template take<>(most_strips * kLeftStripBytes),
                               memory.template take<float>(most_panels * kLanes),
                               memory.template take<int32_t>(kBlock * kBlock), -1});
    }

    int64_t scratch_bytes() const { return memory.used(); }

    void run(T* out) {
        const auto cost = [](const Segment& s) { return strip_cost(s); };
        Work gate_work(segments, gate_up.blocks, num_threads, cost);
        Work down_work(segments, ceil_div(D, kBlock), num_threads, cost);
        T* const to = rows == nullptr ? out : rows;
        run_team(num_threads, [&](int i) {
            Thread& thread = threads[i];
            Isa::begin();
            gate_work.run(i, [&](int64_t s, int64_t block) { gate_block(gate_work, thread, s, block); });
            thread.packed = -1;
            barrier();
            down_work.run(i, [&](int64_t s, int64_t block) { down_block(down_work, thread, s, block, to); });
            Isa::end();
            if (rows == nullptr) return;
            barrier();
            Base::sum_tokens(i, rows, m.weights, out);
        });
    }

   private:
    struct Thread {
        char *tokens, *bytes, *left;
        float* scales;  // of the packed tokens
        int32_t* c;
        int64_t packed;  // the segment whose tokens are packed
    };

    // One of the two matrices of all experts.
    struct Matrix {
        const char* data;
        const float* scales;
        int64_t strips, blocks;  // of an expert
    };

    // Cycles that a strip of a block costs, as in Base, of half the bytes and four times the products.
    static double strip_cost(const Segment& s) {
        const double stream = 200, product = 64.0 * double(s.num_pairs());
        return stream > product ? stream : product;
    }

    int64_t gated_floats() const { return mid_strips * kStripBytes * kLanes; }  // of a panel

    void pack_hidden(Thread& thread, int64_t s) const {
        if (thread.packed == s) return;
        const Segment& segment = segments[s];
        for (int64_t panel = 0; panel < segment.num_panels(); ++panel) {
            const T* at[kLanes];
            const int64_t first = panel * kLanes, left = segment.num_rows - first;
            const int count = left < kLanes ? int(left) : kLanes;
            for (int lane = 0; lane < count; ++lane) at[lane] = hidden + Base::token_of(segment.first_row + first + lane) * D;
            Isa::pack_tokens(at, count, D, thread.bytes, thread.tokens + panel * in_strips * kPanelStripBytes,
                             thread.scales + first);
        }
        thread.packed = s;
    }

    void pack_gated(Thread& thread, int64_t s) const {
        if (thread.packed == s) return;
        for (int64_t panel = 0; panel < segments[s].num_panels(); ++panel)
            Isa::pack_gated(gated + (segments[s].first_panel + panel) * gated_floats(), mid_strips * kStripBytes,
                            thread.tokens + panel * mid_strips * kPanelStripBytes, thread.scales + panel * kLanes);
        thread.packed = s;
    }

    const char* block_at(const Matrix& w, int64_t s, int64_t block) const {
        return w.data + (segments[s].expert * w.blocks + block) * w.strips * quantised_strip_bytes(bits);
    }

    // Multiply a block with the packed tokens and call finish(pair, panels of the pair) after each pair of panels.
    template <class Done>
    void multiply(const Matrix& w, const Work& work, Thread& thread, int64_t s, int64_t block, Done&& finish) const {
        const Segment& segment = segments[s];
        const char* weights = block_at(w, s, block);
        Following following;
        int64_t next_s = s, next_block = block;
        if (work.next(next_s, next_block)) {
            const int64_t lines = ceil_div(quantised_strip_bytes(bits), kStripBytes);
            following = {block_at(w, next_s, next_block), ceil_div(lines, segment.num_pairs())};
        }
        Nibbles nibbles;
        if (bits == 4) nibbles = {weights, w.strips, thread.left};
        const char* const left = bits == 4 ? thread.left : weights;
        for (int64_t pair = 0; pair < segment.num_pairs(); ++pair) {
            const bool both = 2 * pair + 1 < segment.num_panels();
            const char* tokens = thread.tokens + 2 * pair * w.strips * kPanelStripBytes;
            Isa::multiply(left, nibbles, w.strips, tokens, both ? tokens + w.strips * kPanelStripBytes : nullptr, thread.c,
                          following);
            finish(pair, both ? 2 : 1);
        }
    }

    const float* scales_of(const Matrix& w, int64_t s, int64_t block) const {
        return w.scales + (segments[s].expert * w.blocks + block) * kBlock;
    }

    void gate_block(const Work& work, Thread& thread, int64_t s, int64_t block) const {
        pack_hidden(thread, s);
        multiply(gate_up, work, thread, s, block, [&](int64_t pair, int num_panels) {
            for (int p = 0; p < num_panels; ++p) {
                const int64_t panel = 2 * pair + p, left = segments[s].num_rows - panel * kLanes;
                float* to = gated + (segments[s].first_panel + panel) * gated_floats() + block * kHalf * kLanes;
                Isa::gate(thread.c + p * kLanes, scales_of(gate_up, s, block), thread.scales + panel * kLanes,
                          left < kLanes ? int(left) : kLanes, to);
            }
        });
    }

    void down_block(const Work& work, Thread& thread, int64_t s, int64_t block, T* to) const {
        pack_gated(thread, s);
        const int64_t d = block * kBlock;
        const int columns = D - d < kBlock ? int(D - d) : kBlock;
        multiply(down, work, thread, s, block, [&](int64_t pair, int) {
            T* at[kBlock];
            const int64_t first = pair * kBlock, left = segments[s].num_rows - first;
            const int num_tokens = left < kBlock ? int(left) : kBlock;
            for (int i = 0; i < num_tokens; ++i) at[i] = to + (segments[s].first_row + first + i) * D + d;
            Isa::store_tokens(thread.c, scales_of(down, s, block), thread.scales + first, at, num_tokens, columns);
        });
    }

    const int bits;
    const int64_t in_strips, mid_strips;
    const Matrix gate_up, down;
    const Segments segments;
    Scratch memory;
    float* gated;  // by panels: depth, lane
    T* rows;
    std::vector<Thread> threads;
};

}  // namespace
