// The table of an instruction set, made from its products.
#pragma once

#include "kernels.h"
#include "mixture_backward.h"
#include "mixture_forward.h"
#include "quant_forward.h"

namespace {

// Quantised: the products with low-bit weights.
template <class Isa, class Quantised>
constexpr Kernels kKernelsOf = {
    [](const MoesaicMixture& m) { return MixtureForward<Isa>(m, nullptr).scratch_bytes(); },
    [](const MoesaicMixture& m, void* scratch, void* out) {
        MixtureForward<Isa>(m, scratch).run(static_cast<typename Isa::Element*>(out));
    },
    [](const MoesaicMixture& m) { return MixtureBackward<Isa>(m, nullptr).scratch_bytes(); },
    [](const MoesaicMixture& m, void* scratch, const MoesaicMixtureGradients& g) { MixtureBackward<Isa>(m, scratch).run(g); },
    [](const MoesaicQuantised& q) { return QuantisedForward<Quantised>(q, nullptr).scratch_bytes(); },
    [](const MoesaicQuantised& q, void* scratch, void* out) {
        QuantisedForward<Quantised>(q, scratch).run(static_cast<typename Quantised::Element*>(out));
    },
};

}  // namespace
