// What an instruction set offers, as functions that a table can hold.
#pragma once

#include "moesaic.h"

struct Kernels {
    int64_t (*forward_scratch)(const MoesaicMixture&);
    void (*forward)(const MoesaicMixture&, void* scratch, void* out);
    int64_t (*backward_scratch)(const MoesaicMixture&);
    void (*backward)(const MoesaicMixture&, void* scratch, const MoesaicMixtureGradients&);
    int64_t (*quantised_scratch)(const MoesaicQuantised&);
    void (*quantised_forward)(const MoesaicQuantised&, void* scratch, void* out);
};

// The kernels of a dtype; null where there are none.
const Kernels* portable_kernels(int dtype);
const Kernels* avx512_kernels(int dtype);
const Kernels* avx512_bf16_kernels(int dtype);
const Kernels* amx_kernels(int dtype);
