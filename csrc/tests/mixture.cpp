// Each instruction set that runs here against loops in float64.
#include <cmath>

#include "run.h"

namespace {

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
    plain.num_waves = 1;
    const Results slots = compute(shape, x, dtype, plain);
    CHECK(slots.out == other.out && slots.gate_up == other.gate_up && slots.down == other.down, "slots show in plain rows");
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

// Where experts lie and how they come does not show: all at once, in turns, and one by one before a call that only sums.
void check_waves(const Shape& shape, const Dtype& dtype, int isa) {
    const Example x = compute_example(shape, dtype.rounded);
    Run run = {isa, 1, Guard::kBefore, true, true, true, true, true, true};
    const Results whole = compute(shape, x, dtype, run);
    for (int num_waves : {1, 2, shape.num_experts + 1}) {
        run.num_waves = num_waves, run.guard = Guard::kAfter;
        const Results waves = compute(shape, x, dtype, run);
        CHECK(waves.out == whole.out && waves.hidden == whole.hidden && waves.weights == whole.weights, "%d waves show", num_waves);
        CHECK(waves.gate_up == whole.gate_up && waves.down == whole.down, "%d waves show", num_waves);
    }
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
            for (const Shape& shape : shapes) check_shape(shape, dtype, isa), check_waves(shape, dtype, isa);
            check_parts(mixed, dtype, isa);
            check_plain_rows(rows, dtype, isa);
            check_expert_ids(mixed, dtype, isa);
            check_smaller_team(mixed, dtype, isa);
        }
    }
    return 0;
}
