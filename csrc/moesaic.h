// The C interface of the kernels: raw pointers in, raw pointers out.
//
// All matrices are row-major and contiguous; those of different experts may lie apart. bfloat16 values are passed as
// their bits. Every function returns 0, or the number of a `MOESAIC_...` error, and changes nothing it does not name.
// Results do not depend on `num_threads`.
#ifndef MOESAIC_H
#define MOESAIC_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOESAIC_API __attribute__((visibility("default")))

// Of this file: raised when a function or a struct changes, and asked for by who opens the library.
#define MOESAIC_INTERFACE 5
MOESAIC_API int moesaic_interface(void);

enum { MOESAIC_FLOAT32 = 0, MOESAIC_BFLOAT16 = 1 };
enum { MOESAIC_OK = 0, MOESAIC_BAD_ISA = 1, MOESAIC_BAD_DTYPE = 2, MOESAIC_OUT_OF_MEMORY = 3, MOESAIC_BAD_ROUTING = 4 };

// Instruction sets, slowest first: 0 .. moesaic_num_isas() - 1.
MOESAIC_API int moesaic_num_isas(void);
MOESAIC_API const char* moesaic_isa_name(int isa);
// Why an instruction set cannot run here; null where it can.
MOESAIC_API const char* moesaic_isa_refusal(int isa);

// Shapes: T tokens, N rows (pairs of token and expert) grouped by expert, D width, F hidden width, E experts, S slots.
//
// Experts may lie in the slots of a pool, and come in waves: a call for each wave, with the same `rows`, computes the
// experts that have a place, and the last one is given `out` and sums the rows of all. Results are those of one call.
typedef struct {
    int32_t isa, dtype, num_threads;
    int64_t num_tokens, num_rows, width, hidden_width, num_experts;
    const int64_t* counts;     // [E] rows of each expert
    const int64_t* token_ids;  // [N] token of each row; null: row n is token n, and nothing is summed
    const int64_t* inverse;    // [N] row of each pair, pairs in token order; null with token_ids
    const int64_t* starts;     // [T] first pair of each token; null with token_ids
    const int64_t* expert_ids; // [T, N / T] the experts of each token, in place of the four before, which are then null
    const float* weights;      // [N] weight of each pair; null where rows are not summed
    const void* hidden;        // [T, D]
    const void* gate_up;       // [S, 2F, D] gate rows, then up rows; null: a grouped product, see below
    const void* down;          // [S, D, F]
    void* gate_up_rows;        // [N, 2F] products before the gating, kept for the backward pass in an order of
                               // our own; null: not kept
    void* scratch;             // 64-byte aligned, as large as `..._scratch` says; null: the call takes its own
    const int64_t* places;     // [E] slot of each expert that has rows; -1: not computed in this call, which then needs
                               // `rows`; null: expert e is in slot e
    int64_t num_slots;         // 0: E
    int64_t gate_up_stride, down_stride;  // bytes from a slot to the next; 0: they follow one another
    void* rows;                // [N, D] outputs of the experts, of which a call writes those it computes; null: the
                               // call's own. Not for plain rows, whose `out` it would be, nor for the backward pass
} MoesaicMixture;

// out [T, D] = sum over a token's pairs of weight * down(silu(gate(x)) * up(x)); without token_ids [N, D], the rows.
// With `rows`, out may be null: nothing is summed. Without gate_up and token_ids hidden is [N, F], and out [N, D] the rows
// of each expert times its down, transposed: a grouped product, which has no backward pass.
MOESAIC_API int moesaic_mixture_forward_scratch(const MoesaicMixture* mixture, int64_t* bytes);
MOESAIC_API int moesaic_mixture_forward(const MoesaicMixture* mixture, void* out);

// Gradients of the same, expert by expert, wherever the weights lie. A null result is left out.
typedef struct {
    const void* out;  // [T, D], or without token_ids [N, D]: what comes in
    void* hidden;     // [T, D], or [N, D]
    float* weights;   // [N] in the order of the pairs
    void* gate_up;    // [E, 2F, D]
    void* down;       // [E, D, F]
} MoesaicMixtureGradients;
MOESAIC_API int moesaic_mixture_backward_scratch(const MoesaicMixture* mixture, int64_t* bytes);
MOESAIC_API int moesaic_mixture_backward(const MoesaicMixture* mixture, const MoesaicMixtureGradients* gradients);

// The forward pass with weights of 8 or 4 bits, which lie as quant.h says; without gate_up a grouped product as above.
typedef struct {
    MoesaicMixture mixture;       // gate_up: blocks of 16 gate rows over 16 up rows; down: blocks of 32 rows
    const float* gate_up_scales;  // [S, blocks, 32]
    const float* down_scales;     // [S, blocks, 32]
    int32_t bits;
    int64_t gate_up_scales_stride, down_scales_stride;  // as those of the weights, in bytes
} MoesaicQuantised;
MOESAIC_API int moesaic_quantised_forward_scratch(const MoesaicQuantised* quantised, int64_t* bytes);
MOESAIC_API int moesaic_quantised_forward(const MoesaicQuantised* quantised, void* out);

// The k best columns of each row of scores [R, E], best first, ties to the lower column, NaN best: chosen [R, k].
MOESAIC_API int moesaic_top_k(const float* scores, int64_t rows, int64_t columns, int64_t k, int num_threads,
                              int64_t* chosen);

// Group pairs, whose tokens ascend, by expert: the token of each row [N], the row of each pair [N], the first pair of
// each token [T], the rows of each expert [E].
MOESAIC_API int moesaic_group_by_expert(const int64_t* tokens, const int64_t* experts, int64_t num_pairs,
                                        int64_t num_tokens, int64_t num_experts, int64_t* sorted_tokens,
                                        int64_t* inverse, int64_t* starts, int64_t* counts);

// Read memory once, as fast as it goes (in whole lines; up to a few at the end of each thread's share are left out);
// the sum of its words, so that nothing is optimised away.
MOESAIC_API uint64_t moesaic_read(const void* memory, int64_t bytes, int num_threads);

#ifdef __cplusplus
}
#endif

#endif
