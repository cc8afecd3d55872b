// Compiled twice: without bfloat16 instructions, and with them.
#include "product.h"
#include "quant.h"

#include "../kernels_of.h"

#ifdef __AVX512BF16__
const Kernels* avx512_bf16_kernels(int dtype) {
#else
const Kernels* avx512_kernels(int dtype) {
#endif
    switch (dtype) {
        case MOESAIC_FLOAT32: return &kKernelsOf<Avx512<float>, QuantisedVnni<float>>;
        case MOESAIC_BFLOAT16: return &kKernelsOf<Avx512<bfloat16>, QuantisedVnni<bfloat16>>;
        default: return nullptr;
    }
}
