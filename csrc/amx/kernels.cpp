#include "../avx512/product.h"
#include "../kernels_of.h"
#include "product.h"
#include "quant.h"

const Kernels* amx_kernels(int dtype) {
    switch (dtype) {
        case MOESAIC_FLOAT32: return &kKernelsOf<Avx512<float>, QuantisedAmx<float>>;
        case MOESAIC_BFLOAT16: return &kKernelsOf<AmxBfloat16, QuantisedAmx<bfloat16>>;
        default: return nullptr;
    }
}
