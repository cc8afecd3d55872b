// The forward pass of `mixture.h`.
#pragma once

#include "mixture.h"

namespace {

template <class Isa>
class MixtureForward : Mixture<Isa> {
    using Base = Mixture<Isa>;
    using typename Base::T;
    using Base::D, Base::F, Base::down_of, Base::gate_up_of, Base::hidden, Base::kSize, Base::kStripValues, Base::m,
        Base::num_threads;

   public:
    MixtureForward(const MoesaicMixture& mixture, void* scratch)
        : Base(mixture),
          in_strips(m.gate_up == nullptr ? 0 : strips_of(D * kSize)),
          mid_strips(strips_of(F * kSize)),
          segments(m, Base::rows_together((m.gate_up == nullptr ? F : D) * kSize), false),
          down_segments(m, Base::rows_together(F * kSize), false),
          memory(scratch) {
        gated = memory.template take<>(segments.num_panels() * mid_strips * kPanelStripBytes);
        rows = Base::rows_in(memory);
        const int64_t most_panels = ceil_div(segments.longest(), kLanes);
        for (int i = 0; i < num_threads; ++i)
            threads.push_back({memory.template take<>(most_panels * in_strips * kPanelStripBytes),
                               memory.template take<>((in_strips > 2 * mid_strips ? in_strips : 2 * mid_strips) * kLeftStripBytes),
                               memory.template take<float>(4 * kBlock * kBlock), 0, -1, {}, {}});
    }

    int64_t scratch_bytes() const { return memory.used(); }

    void run(T* out) {
        const auto cost = [](const Segment& s) { return Base::strip_cost(s); };
        Work gate_work(segments, m.gate_up == nullptr ? 0 : mid_strips * kStripValues / kHalf, num_threads, cost);
        Work down_work(down_segments, ceil_div(D, kColumns), num_threads, cost);
        T* const to = rows == nullptr ? out : rows;
        run_team(num_threads, [&](int i) {
            Isa::begin();
            if (m.gate_up == nullptr) pack_gated(i);
            gate_work.run(i, [&](int64_t s, int64_t block) { gate_block(gate_work, threads[i], s, block); });
            threads[i].gating.finish();
            barrier();
            down_work.run(i, [&](int64_t s, int64_t block) { down_block(down_work, threads[i], s, block, to); });
            threads[i].storing.finish();
            Isa::end();
            if (rows == nullptr || out == nullptr) return;
            barrier();
            Base::sum_tokens(i, rows, m.weights, out);
        });
    }

   private:
    static constexpr int kColumns = 2 * kBlock;               // of down, that are computed together
    static constexpr int64_t kCacheBytes = int64_t(1) << 22;  // rows beyond this are not found in a cache again

    // What is done with sums of gate and up: the gating of two rows a piece, then, where they are kept, a half a piece.
    struct Gating {
        const float* c;
        int64_t depth;
        char* panels;
        int64_t panel_bytes;
        typename Base::Tile kept;  // of the first token; without memory where nothing is kept
        int num_panels, num_tokens, count;

        int num_pieces() const { return num_panels * (kept.gate == nullptr ? kHalf / 2 : kHalf / 2 + 2); }
        void run(int piece) const {
            const int p = piece % num_panels, f = piece / num_panels * 2;
            const float* at = c + p * kLanes;
            if (f < kHalf) return Isa::Finish::gate(at + f * kBlock, depth + f, panels + p * panel_bytes);
            const int half = (f - kHalf) / 2, left = num_tokens - p * kLanes;
            Isa::Finish::store_half(at + half * kHalf * kBlock, kept.gate + p * kLanes * kept.step + half * kept.up_at, kept.step,
                                    left < kLanes ? left : kLanes, count);
        }
    };

    // What is done with sums of down: a panel of tokens a piece.
    struct Storing {
        const float* c;
        T* to;
        int64_t D;
        int num_tokens, columns;
        bool past_caches;

        int num_pieces() const { return int(ceil_div(num_tokens, kLanes)); }
        void run(int piece) const {
            const int first = piece * kLanes, left = num_tokens - first;
            Isa::Finish::store_tokens(c + first, to + first * D, D, left < kLanes ? left : kLanes, columns, past_caches);
        }
    };

    struct Thread {
        char *tokens, *left;
        float* c;        // of the present product and of the one before, two blocks each
        int turn;        // which of them is the present one's
        int64_t packed;  // the segment whose tokens are packed
        Rest<Gating> gating;
        Rest<Storing> storing;

        float* next_sums() { return c + (turn ^= 1) * 2 * kBlock * kBlock; }
    };

    void pack_panel(const Segment& segment, int64_t panel, int64_t width, char* to) const {
        const char* at[kLanes];
        const int64_t first = panel * kLanes, left = segment.num_rows - first;
        const int count = left < kLanes ? int(left) : kLanes;
        for (int lane = 0; lane < count; ++lane)
            at[lane] = reinterpret_cast<const char*>(hidden + Base::token_of(segment.first_row + first + lane) * width);
        Isa::pack_lanes(at, count, width * kSize, to);
    }

    void pack_tokens(Thread& thread, int64_t s) const {
        if (thread.packed == s) return;
        for (int64_t panel = 0; panel < segments[s].num_panels(); ++panel)
            pack_panel(segments[s], panel, D, thread.tokens + panel * in_strips * kPanelStripBytes);
        thread.packed = s;
    }

    // Where rows come as what down is multiplied with: a thread's share of them, as the gating leaves them.
    void pack_gated(int thread) const {
        for (int64_t s = 0; s < down_segments.size(); ++s)
            for (int64_t panel = 0; panel < down_segments[s].num_panels(); ++panel) {
                const int64_t index = down_segments[s].first_panel + panel;
                if (index % team_size() == thread)
                    pack_panel(down_segments[s], panel, F, gated + index * mid_strips * kPanelStripBytes);
            }
    }

    // A left block of two runs of `count` rows, to be multiplied with some pairs: in place where it fills its tiles, else,
    // or if the product wants it, copied to `room` with zeros around.
    static Left left_block(char* room, const T* half0, int count0, const T* half1, int count1, int64_t width, int64_t num_pairs) {
        if (count0 == kHalf && count1 == kHalf && width % kStripValues == 0 && !Isa::wants_packed(num_pairs))
            return Left::in_place(reinterpret_cast<const char*>(half0), reinterpret_cast<const char*>(half1), width * kSize);
        const char* at[kHalf];
        for (int half = 0; half < 2; ++half) {
            const T* first = half == 0 ? half0 : half1;
            const int count = half == 0 ? count0 : count1;
            for (int row = 0; row < count; ++row) at[row] = reinterpret_cast<const char*>(first + row * width);
            pack_half(at, count, width * kSize, room + half * kHalf * kStripBytes);
        }
        return Left::packed(room);
    }

    static Ahead ahead_of(const T* half0, const T* half1, int64_t half_values, const Segment& present) {
        return Ahead::block(reinterpret_cast<const char*>(half0), reinterpret_cast<const char*>(half1), half_values * kSize,
                            present.num_pairs());
    }

    void gate_block(const Work& work, Thread& thread, int64_t s, int64_t block) const {
        pack_tokens(thread, s);
        const Segment& segment = segments[s];
        const int64_t f = block * kHalf, left_rows = F - f;
        const int count = left_rows < 0 ? 0 : left_rows < kHalf ? int(left_rows) : kHalf;
        const T* gate = gate_up_of(segment) + f * D;
        const Left left = left_block(thread.left, gate, count, gate + F * D, count, D, segment.num_pairs());

        Ahead ahead{};
        int64_t next_s = s, next_block = block;
        if (work.next(next_s, next_block)) {
            const T* next = gate_up_of(segments[next_s]) + next_block * kHalf * D;
            ahead = ahead_of(next, next + F * D, kHalf * D, segment);
        }
        for (int64_t pair = 0; pair < segment.num_pairs(); ++pair) {
            const int64_t panel = 2 * pair;
            const bool both = panel + 1 < segment.num_panels();
            const char* tokens = thread.tokens + panel * in_strips * kPanelStripBytes;
            float* const c = thread.next_sums();
            Isa::multiply(left, in_strips, tokens, both ? tokens + in_strips * kPanelStripBytes : nullptr, c, false, ahead,
                          thread.gating);
            thread.gating.finish();

            const int64_t num_left = segment.num_rows - pair * kBlock;
            typename Base::Tile kept{};
            if (m.gate_up_rows != nullptr) {
                kept = Base::kept_tile(segment, pair, f / kBlock * kBlock);
                kept.gate += f % kBlock;
            }
            const int64_t panel_bytes = mid_strips * kPanelStripBytes;
            const Gating rest = {c, f, gated + (segment.first_panel + panel) * panel_bytes, panel_bytes, kept, both ? 2 : 1,
                                 num_left < kBlock ? int(num_left) : kBlock, count};
            thread.gating.begin(rest, rest.num_pieces(), in_strips);
        }
    }

    void down_block(const Work& work, Thread& thread, int64_t s, int64_t block, T* to) const {
        const Segment& segment = down_segments[s];
        const int64_t d = block * kColumns;
        const int columns = D - d < kColumns ? int(D - d) : kColumns;
        const T* weights = down_of(segment) + d * F;
        Left left[2];
        for (int i = 0; i * kBlock < columns; ++i) {
            const int num = columns - i * kBlock, count0 = num < kHalf ? num : kHalf, count1 = num - count0;
            const T* rows0 = weights + i * kBlock * F;
            left[i] = left_block(thread.left + i * mid_strips * kLeftStripBytes, rows0, count0, rows0 + kHalf * F,
                                 count1 < kHalf ? count1 : kHalf, F, segment.num_pairs());
        }

        Ahead ahead{};
        int64_t next_s = s, next_block = block;
        if (work.next(next_s, next_block)) {
            const T* next = down_of(down_segments[next_s]) + next_block * kColumns * F;
            ahead = ahead_of(next, next + kBlock * F, kBlock * F, segment);
        }
        for (int64_t pair = 0; pair < segment.num_pairs(); ++pair) {
            const int64_t panel = segment.first_panel + 2 * pair;
            const bool both = 2 * pair + 1 < segment.num_panels();
            const char* tokens = gated + panel * mid_strips * kPanelStripBytes;
            float* const c = thread.next_sums();
            for (int i = 0; i * kBlock < columns; ++i)
                Isa::multiply(left[i], mid_strips, tokens, both ? tokens + mid_strips * kPanelStripBytes : nullptr,
                              c + i * kBlock * kBlock, false, ahead, thread.storing);
            thread.storing.finish();

            const int64_t num_left = segment.num_rows - pair * kBlock;
            const Storing rest = {c, to + (segment.first_row + pair * kBlock) * D + d, D,
                                  num_left < kBlock ? int(num_left) : kBlock, columns, m.num_rows * D * kSize > kCacheBytes};
            thread.storing.begin(rest, rest.num_pieces(), mid_strips);
        }
    }

    const int64_t in_strips, mid_strips;
    const Segments segments, down_segments;  // cut where whole panels end, so that both number them alike
    Scratch memory;
    char* gated;
    T* rows;
    std::vector<Thread> threads;
};

}  // namespace
