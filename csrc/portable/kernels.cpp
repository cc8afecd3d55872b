#include "../kernels_of.h"
#include "product.h"
#include "quant.h"

const Kernels* portable_kernels(int dtype) {
    switch (dtype) {
        case MOESAIC_FLOAT32: return &kKernelsOf<Portable<float>, QuantisedPortable<float>>;
        case MOESAIC_BFLOAT16: return &kKernelsOf<Portable<bfloat16>, QuantisedPortable<bfloat16>>;
        default: return nullptr;
    }
}
