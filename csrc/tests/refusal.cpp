// What the C interface refuses, by number, before anything is read or written.
#include <cstring>
#include <vector>

#include "../moesaic.h"
#include "check.h"

namespace {

// A routing of 3 tokens on 2 experts, 4 pairs, that fits.
struct Routing {
    std::vector<int64_t> counts{3, 1}, token_ids{0, 1, 2, 1}, inverse{0, 1, 3, 2}, starts{0, 1, 3};
    int64_t num_tokens = 3, num_rows = 4;
    bool has_tokens = true, has_gate_up = true;
    std::vector<int64_t> expert_ids;  // in place of the rest, if there are any, or room for some
    std::vector<int64_t> places;      // none: every expert is in its own
    int64_t num_slots = 0;
    bool has_rows = false;
    int isa = 0, dtype = MOESAIC_FLOAT32;

    // What all four functions answer, which has to be the same, but for rows and products, which have no backward pass.
    int ask() const {
        const std::vector<float> numbers(64, 1.0f);
        MoesaicMixture m = {};
        m.isa = isa, m.dtype = dtype, m.num_threads = 2;
        m.num_tokens = num_tokens, m.num_rows = num_rows, m.width = 2, m.hidden_width = 2, m.num_experts = int64_t(counts.size());
        m.counts = counts.data();
        if (has_tokens) m.token_ids = token_ids.data(), m.inverse = inverse.data(), m.starts = starts.data();
        if (has_tokens) m.weights = numbers.data();
        if (expert_ids.data() != nullptr) m.expert_ids = expert_ids.data(), m.counts = m.token_ids = m.inverse = m.starts = nullptr;
        m.hidden = m.down = numbers.data();
        if (has_gate_up) m.gate_up = numbers.data();
        if (!places.empty()) m.places = places.data();
        m.num_slots = num_slots;
        std::vector<float> rows(8);
        if (has_rows) m.rows = rows.data();
        const MoesaicMixtureGradients none = {};
        int64_t bytes = -1;
        const bool is_forward = has_rows || !has_gate_up;  // alone
        if (is_forward) CHECK(moesaic_mixture_backward_scratch(&m, &bytes) == MOESAIC_BAD_ROUTING, "backward answers");
        if (is_forward) CHECK(moesaic_mixture_backward(&m, &none) == MOESAIC_BAD_ROUTING, "backward answers");
        const int status = moesaic_mixture_forward_scratch(&m, &bytes);
        if (!is_forward) CHECK(status == moesaic_mixture_backward_scratch(&m, &bytes), "forward answers %d", status);
        if (status != MOESAIC_OK) {
            CHECK(bytes == -1, "something was written");
            CHECK(status == moesaic_mixture_forward(&m, nullptr), "the size was answered with %d", status);
            CHECK(status == moesaic_mixture_backward(&m, &none), "the size was answered with %d", status);
        } else {
            CHECK(bytes % 64 == 0, "%d bytes", int(bytes));
        }
        return status;
    }
};

template <class Change>
void check(const char* name, int expected, Change&& change) {
    Routing routing;
    change(routing);
    const int found = routing.ask();
    CHECK(found == expected, "%s: answered %d, not %d", name, found, expected);
}

}  // namespace

int main() {
    const int num_isas = moesaic_num_isas();
    CHECK(num_isas >= 1 && std::strcmp(moesaic_isa_name(0), "portable") == 0, "%d instruction sets", num_isas);
    CHECK(moesaic_isa_refusal(0) == nullptr, "portable is refused");

    for (int isa = 0; isa < num_isas; ++isa) {
        const char* reason = moesaic_isa_refusal(isa);
        std::printf("%s: %s\n", moesaic_isa_name(isa), reason == nullptr ? "runs" : reason);
        check("as it should be", reason == nullptr ? MOESAIC_OK : MOESAIC_BAD_ISA, [&](Routing& r) { r.isa = isa; });
        if (reason == nullptr) check("unknown dtype", MOESAIC_BAD_DTYPE, [&](Routing& r) { r.isa = isa, r.dtype = 2; });
    }
    check("instruction set below", MOESAIC_BAD_ISA, [](Routing& r) { r.isa = -1; });
    check("instruction set beyond", MOESAIC_BAD_ISA, [&](Routing& r) { r.isa = num_isas; });
    check("dtype below", MOESAIC_BAD_DTYPE, [](Routing& r) { r.dtype = -1; });

    const int bad = MOESAIC_BAD_ROUTING;
    check("sum below", bad, [](Routing& r) { r.counts = {3, 0}; });
    check("sum beyond", bad, [](Routing& r) { r.counts = {3, 2}; });
    check("negative count", bad, [](Routing& r) { r.counts = {-1, 5}; });
    check("overflow", bad, [](Routing& r) { r.counts = {INT64_MAX, INT64_MAX, 6}; });
    check("no experts", bad, [](Routing& r) { r.counts = {}; });
    check("token below", bad, [](Routing& r) { r.token_ids[3] = -1; });
    check("token beyond", bad, [](Routing& r) { r.token_ids[3] = 3; });
    check("row below", bad, [](Routing& r) { r.inverse[0] = -1; });
    check("row beyond", bad, [](Routing& r) { r.inverse[0] = 4; });
    check("starts fall", bad, [](Routing& r) { r.starts = {0, 3, 1}; });
    check("start beyond", bad, [](Routing& r) { r.starts = {0, 1, 5}; });
    check("start below", bad, [](Routing& r) { r.starts = {-1, 1, 3}; });
    check("first start", bad, [](Routing& r) { r.starts = {1, 1, 3}; });
    check("rows without tokens", bad, [](Routing& r) { r.num_tokens = 0; });
    check("plain rows", MOESAIC_OK, [](Routing& r) { r.has_tokens = false, r.num_tokens = 4; });
    check("plain rows that are no rows", bad, [](Routing& r) { r.has_tokens = false; });
    check("a product", MOESAIC_OK, [](Routing& r) { r.has_tokens = r.has_gate_up = false, r.num_tokens = 4; });
    check("a product of tokens", bad, [](Routing& r) { r.has_gate_up = false; });
    check("expert ids", MOESAIC_OK, [](Routing& r) { r.expert_ids = {1, 0, 0, 1, 0, 1}, r.num_rows = 6; });
    check("expert id below", bad, [](Routing& r) { r.expert_ids = {1, 0, 0, -1, 0, 1}, r.num_rows = 6; });
    check("expert id beyond", bad, [](Routing& r) { r.expert_ids = {1, 0, 0, 2, 0, 1}, r.num_rows = 6; });
    check("expert ids that are no rows of tokens", bad, [](Routing& r) { r.expert_ids = {1, 0, 0, 1}; });
    check("expert ids without tokens", bad, [](Routing& r) { r.expert_ids = {1, 0, 0, 1}, r.num_tokens = 0; });
    check("places", MOESAIC_OK, [](Routing& r) { r.places = {1, 0}; });
    check("places in a larger pool", MOESAIC_OK, [](Routing& r) { r.places = {4, 2}, r.num_slots = 5; });
    check("place below", bad, [](Routing& r) { r.places = {0, -2}, r.has_rows = true; });
    check("place beyond", bad, [](Routing& r) { r.places = {0, 2}; });
    check("place beyond the slots", bad, [](Routing& r) { r.places = {0, 1}, r.num_slots = 1; });
    check("fewer slots than experts", bad, [](Routing& r) { r.num_slots = 1; });
    check("rows to compute without a place", bad, [](Routing& r) { r.places = {0, -1}; });
    check("rows left to another call", MOESAIC_OK, [](Routing& r) { r.places = {0, -1}, r.has_rows = true; });
    check("no rows, no place", MOESAIC_OK, [](Routing& r) { r.places = {0, 9}, r.counts = {4, 0}; });
    check("rows of plain rows", bad, [](Routing& r) { r.has_tokens = false, r.num_tokens = 4, r.has_rows = true; });
    check("expert ids without a place", bad,
          [](Routing& r) { r.expert_ids = {1, 0, 0, 1, 0, 1}, r.num_rows = 6, r.places = {0, -1}; });
    check("nothing", MOESAIC_OK, [](Routing& r) { r.counts = {0, 0}, r.num_tokens = r.num_rows = 0; });
    check("nobody chooses nothing", MOESAIC_OK,
          [](Routing& r) { r.counts = {}, r.expert_ids.reserve(1), r.num_tokens = r.num_rows = 0, r.has_rows = true; });
    check("no pairs", MOESAIC_OK, [](Routing& r) { r.counts = {0, 0}, r.starts = {0, 0, 0}, r.num_rows = 0; });
    return 0;
}
