// The C interface: finds the kernels of an instruction set and a dtype.
#include "moesaic.h"

#include <cstddef>
#include <new>
#include <vector>

#include "cpu.h"
#include "kernels.h"

namespace {

const char* accept() { return nullptr; }
[[maybe_unused]] const char* refuse_unbuilt() { return "the compiler of this installation could not build it"; }

struct InstructionSet {
    const char* name;
    const char* (*refusal)();
    const Kernels* (*find)(int dtype);
};

#ifdef MOESAIC_WITHOUT_AVX512
constexpr InstructionSet kAvx512 = {"avx512", refuse_unbuilt, nullptr};
#else
constexpr InstructionSet kAvx512 = {"avx512", refuse_avx512, avx512_kernels};
#endif
#ifdef MOESAIC_WITHOUT_AVX512_BF16
constexpr InstructionSet kAvx512Bf16 = {"avx512_bf16", refuse_unbuilt, nullptr};
#else
constexpr InstructionSet kAvx512Bf16 = {"avx512_bf16", refuse_avx512_bf16, avx512_bf16_kernels};
#endif
#ifdef MOESAIC_WITHOUT_AMX
constexpr InstructionSet kAmx = {"amx", refuse_unbuilt, nullptr};
#else
constexpr InstructionSet kAmx = {"amx", refuse_amx, amx_kernels};
#endif

constexpr InstructionSet kSets[] = {{"portable", accept, portable_kernels}, kAvx512, kAvx512Bf16, kAmx};
constexpr int kNumSets = sizeof(kSets) / sizeof(kSets[0]);

// Run body with the kernels asked for; turn what can go wrong into a number.
template <class Body>
int with_kernels(int isa, int dtype, Body&& body) {
    if (isa < 0 || isa >= kNumSets || kSets[isa].refusal() != nullptr) return MOESAIC_BAD_ISA;
    const Kernels* kernels = kSets[isa].find(dtype);
    if (kernels == nullptr) return MOESAIC_BAD_DTYPE;
    try {
        body(*kernels);
    } catch (const std::bad_alloc&) {
        return MOESAIC_OUT_OF_MEMORY;
    }
    return MOESAIC_OK;
}

// Whether every index stays within its array: the kernels trust them.
bool fits(const MoesaicMixture& m) {
    int64_t rows = 0;
    for (int64_t e = 0; e < m.num_experts; ++e) {
        if (m.counts[e] < 0 || m.counts[e] > m.num_rows - rows) return false;
        rows += m.counts[e];
    }
    if (rows != m.num_rows) return false;
    if (m.token_ids == nullptr) return m.num_tokens == m.num_rows;
    for (int64_t n = 0; n < m.num_rows; ++n) {
        if (m.token_ids[n] < 0 || m.token_ids[n] >= m.num_tokens) return false;
        if (m.inverse[n] < 0 || m.inverse[n] >= m.num_rows) return false;
    }
    int64_t before = 0;
    for (int64_t t = 0; t < m.num_tokens; ++t) {
        if (m.starts[t] < before || m.starts[t] > m.num_rows) return false;
        before = m.starts[t];
    }
    return m.num_tokens == 0 ? m.num_rows == 0 : m.starts[0] == 0;
}

// Whether the weights of every expert to compute lie in a slot, and those that are left out leave rows with the caller.
bool has_places(const MoesaicMixture& m) {
    const int64_t num_slots = m.num_slots == 0 ? m.num_experts : m.num_slots;
    if (m.rows != nullptr && m.token_ids == nullptr) return false;
    if (m.places == nullptr) return m.num_experts <= num_slots;
    const int64_t first = m.rows == nullptr ? 0 : -1;
    for (int64_t e = 0; e < m.num_experts; ++e)
        if (m.counts[e] > 0 && (m.places[e] < first || m.places[e] >= num_slots)) return false;
    return true;
}

// A mixture whose rows are grouped by expert: as it was given, or by us, in memory of our own.
class Grouped {
   public:
    explicit Grouped(const MoesaicMixture& given) : mixture(given) {
        if (given.expert_ids == nullptr) {
            status = fits(given) ? MOESAIC_OK : MOESAIC_BAD_ROUTING;
            return;
        }
        const int64_t N = given.num_rows, T = given.num_tokens;
        if (T == 0 ? N != 0 : N % T != 0) {
            status = MOESAIC_BAD_ROUTING;
            return;
        }
        own_.resize(3 * N + T + given.num_experts + 1);  // one at least, for without token_ids rows are plain
        int64_t *tokens = own_.data(), *token_ids = tokens + N, *inverse = token_ids + N, *starts = inverse + N, *counts = starts + T;
        for (int64_t t = 0, p = 0; t < T; ++t)
            for (int64_t k = 0; k < N / T; ++k) tokens[p++] = t;
        status = moesaic_group_by_expert(tokens, given.expert_ids, N, T, given.num_experts, token_ids, inverse, starts, counts);
        mixture.token_ids = token_ids, mixture.inverse = inverse, mixture.starts = starts, mixture.counts = counts;
    }

    MoesaicMixture mixture;
    int status;

   private:
    std::vector<int64_t> own_;
};

// The same for a mixture, whose routing is looked at first: body(kernels, grouped mixture).
template <class Body>
int with_mixture(const MoesaicMixture& given, Body&& body) {
    try {
        const Grouped grouped(given);
        if (grouped.status != MOESAIC_OK) return grouped.status;
        if (!has_places(grouped.mixture)) return MOESAIC_BAD_ROUTING;
        if (given.gate_up == nullptr && grouped.mixture.token_ids != nullptr) return MOESAIC_BAD_ROUTING;
        return with_kernels(given.isa, given.dtype, [&](const Kernels& k) { body(k, grouped.mixture); });
    } catch (const std::bad_alloc&) {
        return MOESAIC_OUT_OF_MEMORY;
    }
}

// The working memory of a call: the caller's, or our own for as long as it lasts.
class Working {
   public:
    Working(void* given, int64_t bytes)
        : own_(given == nullptr ? ::operator new(static_cast<std::size_t>(bytes), kAlignment) : nullptr), given_(given) {}
    ~Working() { ::operator delete(own_, kAlignment); }
    Working(const Working&) = delete;
    Working& operator=(const Working&) = delete;

    void* data() const { return given_ == nullptr ? own_ : given_; }

   private:
    static constexpr std::align_val_t kAlignment{64};
    void *own_, *given_;
};

}  // namespace

int moesaic_interface(void) { return MOESAIC_INTERFACE; }
int moesaic_num_isas(void) { return kNumSets; }
const char* moesaic_isa_name(int isa) { return kSets[isa].name; }
const char* moesaic_isa_refusal(int isa) { return kSets[isa].refusal(); }

int moesaic_mixture_forward_scratch(const MoesaicMixture* mixture, int64_t* bytes) {
    return with_mixture(*mixture, [&](const Kernels& k, const MoesaicMixture& m) { *bytes = k.forward_scratch(m); });
}

int moesaic_mixture_forward(const MoesaicMixture* mixture, void* out) {
    return with_mixture(*mixture, [&](const Kernels& k, const MoesaicMixture& m) {
        const Working scratch(m.scratch, k.forward_scratch(m));
        k.forward(m, scratch.data(), out);
    });
}

int moesaic_mixture_backward_scratch(const MoesaicMixture* mixture, int64_t* bytes) {
    if (mixture->rows != nullptr || mixture->gate_up == nullptr) return MOESAIC_BAD_ROUTING;
    return with_mixture(*mixture, [&](const Kernels& k, const MoesaicMixture& m) { *bytes = k.backward_scratch(m); });
}

int moesaic_mixture_backward(const MoesaicMixture* mixture, const MoesaicMixtureGradients* gradients) {
    if (mixture->rows != nullptr || mixture->gate_up == nullptr) return MOESAIC_BAD_ROUTING;
    return with_mixture(*mixture, [&](const Kernels& k, const MoesaicMixture& m) {
        const Working scratch(m.scratch, k.backward_scratch(m));
        k.backward(m, scratch.data(), *gradients);
    });
}

int moesaic_quantised_forward_scratch(const MoesaicQuantised* quantised, int64_t* bytes) {
    return with_mixture(quantised->mixture, [&](const Kernels& k, const MoesaicMixture& m) {
        MoesaicQuantised q = *quantised;
        q.mixture = m;
        *bytes = k.quantised_scratch(q);
    });
}

int moesaic_quantised_forward(const MoesaicQuantised* quantised, void* out) {
    return with_mixture(quantised->mixture, [&](const Kernels& k, const MoesaicMixture& m) {
        MoesaicQuantised q = *quantised;
        q.mixture = m;
        const Working scratch(m.scratch, k.quantised_scratch(q));
        k.quantised_forward(q, scratch.data(), out);
    });
}
