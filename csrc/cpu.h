// What this processor and its operating system let us run.
#pragma once

// Each returns null, or why the instruction set cannot run here, in words that stay valid for ever.
const char* refuse_avx512();
const char* refuse_avx512_bf16();
const char* refuse_amx();
