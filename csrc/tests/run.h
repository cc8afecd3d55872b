// One run of the kernels over an example, in memory that has no byte to spare.
#pragma once

#include <algorithm>
#include <memory>

#include "../moesaic.h"
#include "dtype.h"
#include "example.h"

namespace {

// One run of forward and backward: how, and what came of it.
struct Run {
    int isa, num_threads;
    Guard guard;
    bool fused;                                       // a mixture, or plain rows
    bool out_kept, hidden, weights, gate_up, down;    // what is asked for
    bool ids = false;                                 // the experts of each token for a routing, and no scratch
    int num_waves = 0;                                // experts in slots, that come in so many waves; 0: one after another
};
struct Results {
    Bytes out, hidden, weights, gate_up, down;
};

// The slots that experts come to: gate_up and down side by side, the last expert first, and one slot that stays empty.
struct Pool {
    Pool(const Shape& shape, const Dtype& dtype, Guard guard)
        : gap(3 * dtype.size),
          gate_up_bytes(2 * shape.hidden_width * shape.width * dtype.size),
          slot_bytes(gate_up_bytes / 2 * 3 + gap),
          places(shape.num_experts, -1),
          memory((shape.num_experts + 1) * slot_bytes - gap, guard) {}

    void point(MoesaicMixture& m) const {
        m.gate_up = memory.data(), m.down = memory.data() + gate_up_bytes;
        m.gate_up_stride = m.down_stride = slot_bytes;
        m.places = places.data(), m.num_slots = int64_t(places.size()) + 1;
    }
    // Bring every num_waves-th expert, and leave nothing of the others.
    void bring(const Bytes& gate_up, const Bytes& down, int wave, int num_waves) {
        if (memory.size() > 0) std::memset(memory.data(), 0xff, memory.size());
        const int num_experts = int(places.size()), down_bytes = int(gate_up_bytes / 2);
        for (int e = 0; e < num_experts; ++e) {
            places[e] = e % num_waves == wave ? num_experts - e : -1;
            if (places[e] < 0) continue;
            unsigned char* const slot = memory.data() + places[e] * slot_bytes;
            std::copy_n(gate_up.begin() + e * gate_up_bytes, gate_up_bytes, slot);
            std::copy_n(down.begin() + e * down_bytes, down_bytes, slot + gate_up_bytes);
        }
    }

    int64_t gap, gate_up_bytes, slot_bytes;
    std::vector<int64_t> places;
    Guarded<unsigned char> memory;
};

Results compute(const Shape& shape, const Example& x, const Dtype& dtype, const Run& run) {
    const Routing routing = group_by_expert(shape);
    const Guard guard = run.guard;
    const auto place = [&](const Doubles& values) { return std::make_unique<Guarded<unsigned char>>(encode(values, dtype), guard); };
    const Guarded<int64_t> counts(routing.counts, guard), ids(routing.token_ids, guard), inverse(routing.inverse, guard);
    const Guarded<int64_t> starts(routing.starts, guard);
    const Guarded<float> weights(std::vector<float>(x.weights.begin(), x.weights.end()), guard);
    const auto hidden = place(x.hidden), gate_up = place(x.gate_up), down = place(x.down), grad_out = place(x.grad_out);
    const int64_t N = int64_t(routing.token_ids.size());
    const Guarded<unsigned char> kept(N * 2 * shape.hidden_width * dtype.size, guard);

    MoesaicMixture m = {};
    m.isa = run.isa, m.dtype = dtype.number, m.num_threads = run.num_threads;
    m.num_tokens = int64_t(shape.chosen.size()), m.num_rows = N;
    m.width = shape.width, m.hidden_width = shape.hidden_width, m.num_experts = shape.num_experts;
    std::vector<int64_t> chosen;
    for (const auto& experts : shape.chosen) chosen.insert(chosen.end(), experts.begin(), experts.end());
    const Guarded<int64_t> expert_ids(chosen, guard);
    if (run.ids) m.expert_ids = expert_ids.data(), m.weights = weights.data();
    else m.counts = counts.data();
    if (run.fused && !run.ids) m.token_ids = ids.data(), m.inverse = inverse.data(), m.starts = starts.data(), m.weights = weights.data();
    m.hidden = hidden->data(), m.gate_up = gate_up->data(), m.down = down->data();
    m.gate_up_rows = run.out_kept ? kept.data() : nullptr;

    int64_t bytes;
    const auto forward = [&](void* out) {
        CHECK(moesaic_mixture_forward_scratch(&m, &bytes) == MOESAIC_OK, "refused");
        const Guarded<unsigned char> scratch(bytes, guard);
        m.scratch = run.ids ? nullptr : scratch.data();
        CHECK(moesaic_mixture_forward(&m, out) == MOESAIC_OK, "refused");
    };
    const Guarded<unsigned char> out(int64_t(x.out.size()) * dtype.size, guard), rows(N * shape.width * dtype.size, guard);
    Pool pool(shape, dtype, guard);
    if (run.num_waves > 0) {
        pool.point(m);
        m.rows = run.fused ? rows.data() : nullptr;
        for (int wave = 0; wave < run.num_waves; ++wave) {
            pool.bring(copy(*gate_up), copy(*down), wave, run.num_waves);
            forward(wave + 1 < run.num_waves ? nullptr : out.data());
        }
        m.rows = nullptr;
        pool.bring(copy(*gate_up), copy(*down), 0, 1);
    } else {
        forward(out.data());
    }
    if (!run.out_kept) return {copy(out), {}, {}, {}, {}};

    CHECK(moesaic_mixture_backward_scratch(&m, &bytes) == MOESAIC_OK, "refused");
    const Guarded<unsigned char> more(bytes, guard), grad_hidden(hidden->size(), guard), grad_weights(4 * N, guard);
    const Guarded<unsigned char> grad_gate_up(gate_up->size(), guard), grad_down(down->size(), guard);
    m.scratch = run.ids ? nullptr : more.data();
    MoesaicMixtureGradients g = {};
    g.out = grad_out->data();
    if (run.hidden) g.hidden = grad_hidden.data();
    if (run.weights) g.weights = reinterpret_cast<float*>(grad_weights.data());
    if (run.gate_up) g.gate_up = grad_gate_up.data();
    if (run.down) g.down = grad_down.data();
    CHECK(moesaic_mixture_backward(&m, &g) == MOESAIC_OK, "refused");
    return {copy(out), copy(grad_hidden), copy(grad_weights), copy(grad_gate_up), copy(grad_down)};
}

}  // namespace
