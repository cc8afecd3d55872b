// Each instruction set that runs here against loops in float64, in memory that has no byte to spare.
#include <cmath>
#include <cstring>
#include <memory>

#include "../moesaic.h"
#include "check.h"
#include "example.h"
#include "guarded.h"

namespace {

using Bytes = std::vector<unsigned char>;

uint16_t to_bfloat16(double value) {
    const float single = float(value);
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
double from_bfloat16(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float single;
    std::memcpy(&single, &bits, 4);
    return single;
}
double round_to_float(double value) { return float(value); }
double round_to_bfloat16(double value) { return from_bfloat16(to_bfloat16(value)); }

struct Dtype {
    int number;
    const char* name;
    int64_t size;
    double tolerance;
    double (*rounded)(double);
};
constexpr Dtype kDtypes[] = {{MOESAIC_FLOAT32, "float32", 4, 1e-5, round_to_float},
                             {MOESAIC_BFLOAT16, "bfloat16", 2, 2e-2, round_to_bfloat16}};

Bytes encode(const Doubles& values, const Dtype& dtype) {
    Bytes bytes(values.size() * dtype.size);
    for (size_t i = 0; i < values.size(); ++i) {
        const float single = float(values[i]);
        const uint16_t half = to_bfloat16(values[i]);
        std::memcpy(&bytes[i * dtype.size], dtype.size == 4 ? static_cast<const void*>(&single) : &half, dtype.size);
    }
    return bytes;
}

double decode(const unsigned char* at, const Dtype& dtype) {
    if (dtype.size == 2) {
        uint16_t half;
        std::memcpy(&half, at, 2);
        return from_bfloat16(half);
    }
    float single;
    std::memcpy(&single, at, 4);
    return single;
}

// One run of forward and backward: how, and what came of it.
struct Run {
    int isa, num_threads;
    Guard guard;
    bool fused;                                       // a mixture, or plain rows
    bool out_kept, hidden, weights, gate_up, down;    // what is asked for
    bool ids = false;                                 // the experts of each token for a routing, and no scratch
};
struct Results {
    Bytes out, hidden, weights, gate_up, down;
};

Bytes copy(const Guarded<unsigned char>& from) { return Bytes(from.data(), from.data() + from.size()); }

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
    CHECK(moesaic_mixture_forward_scratch(&m, &bytes) == MOESAIC_OK, "refused");
    const Guarded<unsigned char> scratch(bytes, guard), out(int64_t(x.out.size()) * dtype.size, guard);
    m.scratch = run.ids ? nullptr : scratch.data();
    CHECK(moesaic_mixture_forward(&m, out.data()) == MOESAIC_OK, "refused");
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

void check_near(const char* what, const Bytes& found, const Doubles& expected, const Dtype& format, double tolerance) {
    double largest = 0;
    for (double value : expected) largest = std::fmax(largest, std::fabs(value));
    CHECK(found.size() == expected.size() * format.size, "%s has %d bytes", what, int(found.size()));
    for (size_t i = 0; i < expected.size(); ++i) {
        const double value = decode(&found[i * format.size], format);
        CHECK(std::fabs(value - expected[i]) <= tolerance * largest, "%s[%d] is %g, not %g", what, int(i), value, expected[i]);
    }
}

bool is_untouched(const Bytes& bytes) {
    for (unsigned char byte : bytes)
        if (byte != 0xff) return false;
    return true;
}

void check_shape(const Shape& shape, const Dtype& dtype, int isa) {
    std::printf("%s %s: %s\n", moesaic_isa_name(isa), dtype.name, shape.name.c_str());
    std::fflush(stdout);
    const Example x = compute_example(shape, dtype.rounded);
    const Run everything = {isa, 1, Guard::kAfter, true, true, true, true, true, true};
    const Results found = compute(shape, x, dtype, everything);
    check_near("out", found.out, x.out, dtype, dtype.tolerance);
    check_near("grad of hidden", found.hidden, x.grad_hidden, dtype, dtype.tolerance);
    check_near("grad of weights", found.weights, x.grad_weights, kDtypes[0], dtype.tolerance);
    check_near("grad of gate_up", found.gate_up, x.grad_gate_up, dtype, dtype.tolerance);
    check_near("grad of down", found.down, x.grad_down, dtype, dtype.tolerance);

    Run run = everything;
    run.num_threads = 3, run.guard = Guard::kBefore;
    const Results other = compute(shape, x, dtype, run);
    CHECK(other.out == found.out && other.hidden == found.hidden && other.weights == found.weights, "threads show");
    CHECK(other.gate_up == found.gate_up && other.down == found.down, "threads show");
    run.out_kept = false;
    CHECK(compute(shape, x, dtype, run).out == found.out, "what is kept shows");
}

void check_parts(const Shape& shape, const Dtype& dtype, int isa) {
    const Example x = compute_example(shape, dtype.rounded);
    const Run everything = {isa, 2, Guard::kAfter, true, true, true, true, true, true};
    const Results whole = compute(shape, x, dtype, everything);
    const auto same = [](bool asked, const Bytes& part, const Bytes& all) { return asked ? part == all : is_untouched(part); };
    for (int asked = 0; asked < 16; ++asked) {
        Run run = everything;
        run.hidden = asked & 1, run.weights = asked & 2, run.gate_up = asked & 4, run.down = asked & 8;
        const Results part = compute(shape, x, dtype, run);
        CHECK(same(run.hidden, part.hidden, whole.hidden) && same(run.weights, part.weights, whole.weights), "asked %d", asked);
        CHECK(same(run.gate_up, part.gate_up, whole.gate_up) && same(run.down, part.down, whole.down), "asked %d", asked);
    }
}

// Plain rows are a mixture of tokens that choose once, in order, with weight one.
void check_plain_rows(const Shape& shape, const Dtype& dtype, int isa) {
    Example x = compute_example(shape, dtype.rounded);
    const Run fused = {isa, 2, Guard::kAfter, true, true, true, true, true, true};
    Run plain = fused;
    plain.fused = false;
    std::fill(x.weights.begin(), x.weights.end(), 1.0);
    const Results one = compute(shape, x, dtype, fused), other = compute(shape, x, dtype, plain);
    CHECK(one.out == other.out && one.hidden == other.hidden, "plain rows differ");
    CHECK(one.gate_up == other.gate_up && one.down == other.down && one.weights == other.weights, "plain rows differ");
}

// Grouping and scratch may be left to the call.
void check_expert_ids(const Shape& shape, const Dtype& dtype, int isa) {
    const Example x = compute_example(shape, dtype.rounded);
    const Run given = {isa, 2, Guard::kAfter, true, true, true, true, true, true};
    Run left = given;
    left.ids = true;
    const Results one = compute(shape, x, dtype, given), other = compute(shape, x, dtype, left);
    CHECK(one.out == other.out && one.hidden == other.hidden && one.weights == other.weights, "expert ids differ");
    CHECK(one.gate_up == other.gate_up && one.down == other.down, "expert ids differ");
}

// Within somebody's parallel region a team has one thread, however many are asked for.
void check_smaller_team(const Shape& shape, const Dtype& dtype, int isa) {
    const Example x = compute_example(shape, dtype.rounded);
    const Run run = {isa, 4, Guard::kAfter, true, true, true, true, true, true};
    const Results alone = compute(shape, x, dtype, run);
#pragma omp parallel num_threads(2)
    {
        const Results found = compute(shape, x, dtype, run);
        CHECK(found.out == alone.out && found.hidden == alone.hidden && found.weights == alone.weights, "the team's size shows");
        CHECK(found.gate_up == alone.gate_up && found.down == alone.down, "the team's size shows");
    }
}

}  // namespace

int main() {
    const std::vector<Shape> shapes = list_shapes();
    const Shape& rows = shapes[1];
    const Shape& mixed = shapes[4];
    CHECK(rows.name == "rows beside a tile" && mixed.name == "odd widths", "the shapes were reordered");
    for (int isa = 0; isa < moesaic_num_isas(); ++isa) {
        if (moesaic_isa_refusal(isa) != nullptr) continue;
        for (const Dtype& dtype : kDtypes) {
            for (const Shape& shape : shapes) check_shape(shape, dtype, isa);
            check_parts(mixed, dtype, isa);
            check_plain_rows(rows, dtype, isa);
            check_expert_ids(mixed, dtype, isa);
            check_smaller_team(mixed, dtype, isa);
        }
    }
    return 0;
}
