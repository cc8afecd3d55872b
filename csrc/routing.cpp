// Who goes where: exact index arithmetic, the same on every processor.
#include <cstring>
#include <memory>
#include <new>

#include "moesaic.h"

namespace {

// One integer a score: the float's bits made monotone, so that a larger key is a better score. NaN is the largest,
// whatever its sign, and the zeros are equal.
int32_t key_of(float score) {
    if (score != score) return 0x7fffffff;
    score += 0.0f;
    int32_t bits;
    std::memcpy(&bits, &score, 4);
    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

// Keep the best k of a row, best first. A column that comes later wins only with a larger key: ties go to the lower.
void choose_row(const float* scores, int64_t columns, int64_t k, int32_t* keys, int64_t* chosen) {
    int64_t found = 0;
    for (int64_t column = 0; column < columns; ++column) {
        const int32_t key = key_of(scores[column]);
        if (found == k && key <= keys[k - 1]) continue;
        int64_t place = found < k ? found++ : k - 1;
        for (; place > 0 && keys[place - 1] < key; --place) keys[place] = keys[place - 1], chosen[place] = chosen[place - 1];
        keys[place] = key, chosen[place] = column;
    }
}

constexpr int64_t kScoresWorthThreads = 1 << 14;

}  // namespace

int moesaic_top_k(const float* scores, int64_t rows, int64_t columns, int64_t k, int num_threads, int64_t* chosen) {
    if (rows * columns < kScoresWorthThreads || num_threads < 1) num_threads = 1;
    std::unique_ptr<int32_t[]> keys(new (std::nothrow) int32_t[size_t(num_threads) * size_t(k)]);
    if (keys == nullptr) return MOESAIC_OUT_OF_MEMORY;
#ifdef _OPENMP
#pragma omp parallel for num_threads(num_threads) schedule(static)
#endif
    for (int thread = 0; thread < num_threads; ++thread)
        for (int64_t row = rows * thread / num_threads; row < rows * (thread + 1) / num_threads; ++row)
            choose_row(scores + row * columns, columns, k, keys.get() + thread * k, chosen + row * k);
    return MOESAIC_OK;
}

int moesaic_group_by_expert(const int64_t* tokens, const int64_t* experts, int64_t num_pairs, int64_t num_tokens,
                            int64_t num_experts, int64_t* sorted_tokens, int64_t* inverse, int64_t* starts,
                            int64_t* counts) {
    int64_t token = 0;
    for (int64_t e = 0; e < num_experts; ++e) counts[e] = 0;
    for (int64_t p = 0; p < num_pairs; ++p) {
        if (experts[p] < 0 || experts[p] >= num_experts || tokens[p] >= num_tokens) return MOESAIC_BAD_ROUTING;
        if (tokens[p] < (p == 0 ? 0 : tokens[p - 1])) return MOESAIC_BAD_ROUTING;
        while (token <= tokens[p]) starts[token++] = p;
        ++counts[experts[p]];
    }
    while (token < num_tokens) starts[token++] = num_pairs;
    std::unique_ptr<int64_t[]> next(new (std::nothrow) int64_t[size_t(num_experts)]);
    if (next == nullptr) return MOESAIC_OUT_OF_MEMORY;
    int64_t row = 0;
    for (int64_t e = 0; e < num_experts; ++e) next[e] = row, row += counts[e];
    for (int64_t p = 0; p < num_pairs; ++p) {
        inverse[p] = next[experts[p]]++;
        sorted_tokens[inverse[p]] = tokens[p];
    }
    return MOESAIC_OK;
}
