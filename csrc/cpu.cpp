#include "cpu.h"

#include <cstdint>

#if defined(__x86_64__)

#include <cpuid.h>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

struct Registers {
    uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
    return r;
}

bool has(uint32_t word, int bit) { return word >> bit & 1; }

// Which register files the operating system saves: bits 5-7 are those of AVX-512, 17-18 the tiles.
uint64_t saved_state() {
    if (!has(cpuid(1, 0).c, 27)) return 0;
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

}  // namespace

namespace {

const char* examine_avx512() {
    const Registers r = cpuid(7, 0);
    if (!has(r.b, 16) || !has(r.b, 17) || !has(r.b, 30) || !has(r.b, 31)) return "the processor has no AVX-512 (F, DQ, BW, VL)";
    if (!has(r.c, 11)) return "the processor has no AVX-512 VNNI";
    if ((saved_state() & 0xe6) != 0xe6) return "the operating system does not save the AVX-512 registers";
    return nullptr;
}

const char* examine_avx512_bf16() {
    if (const char* reason = refuse_avx512()) return reason;
    return has(cpuid(7, 1).a, 5) ? nullptr : "the processor has no AVX-512 BF16";
}

const char* examine_amx() {
    if (const char* reason = refuse_avx512_bf16()) return reason;
    const Registers r = cpuid(7, 0);
    if (!has(r.d, 24) || !has(r.d, 22) || !has(r.d, 25)) return "the processor has no AMX (tile, bf16, int8)";
    if ((saved_state() & 0x60000) != 0x60000) return "the operating system does not save the AMX tiles";
#ifdef __linux__
    // Linux gives the tiles to a process that asks for them: ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA.
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? nullptr : "the operating system refuses AMX to this process";
#else
    return "AMX is asked for on Linux alone";
#endif
}

}  // namespace

// Asked once: under a hypervisor a cpuid instruction may take tens of microseconds.
const char* refuse_avx512() {
    static const char* const reason = examine_avx512();
    return reason;
}
const char* refuse_avx512_bf16() {
    static const char* const reason = examine_avx512_bf16();
    return reason;
}
const char* refuse_amx() {
    static const char* const reason = examine_amx();
    return reason;
}

#else

const char* refuse_avx512() { return "the processor is not an x86-64"; }
const char* refuse_avx512_bf16() { return refuse_avx512(); }
const char* refuse_amx() { return refuse_avx512(); }

#endif
