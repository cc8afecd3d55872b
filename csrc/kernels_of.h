// The table of an instruction set, made from its products.
#pragma once

#include "kernels.h"
#include "mixture_backward.h"
#include "mixture_forward.h"

namespace {

template <class Isa>
constexpr Kernels kKernelsOf = {
    [](const MoesaicMixture& m) { return MixtureForward<Isa>(m, nullptr).scratch_bytes(); },
    [](const MoesaicMixture& m, void* out) {
        MixtureForward<Isa>(m, m.scratch).run(static_cast<typename Isa::Element*>(out));
    },
    [](const MoesaicMixture& m) { return MixtureBackward<Isa>(m, nullptr).scratch_bytes(); },
    [](const MoesaicMixture& m, const MoesaicMixtureGradients& g) { MixtureBackward<Isa>(m, m.scratch).run(g); },
};

}  // namespace
