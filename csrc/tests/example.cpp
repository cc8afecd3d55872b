#include "example.h"

#include <cmath>
#include <random>

namespace {

using Chosen = std::vector<std::vector<int>>;

// Give expert e counts[e] tokens of its own.
Chosen runs(const std::vector<int>& counts) {
    Chosen chosen;
    for (size_t e = 0; e < counts.size(); ++e) chosen.insert(chosen.end(), counts[e], {int(e)});
    return chosen;
}

// Let every token choose as many neighbouring experts.
Chosen neighbours(int num_tokens, int num_experts, int num_choices) {
    Chosen chosen(num_tokens);
    for (int t = 0; t < num_tokens; ++t)
        for (int k = 0; k < num_choices; ++k) chosen[t].push_back((t * 7 + k * 3) % num_experts);
    return chosen;
}

// One pair: adds to the outputs of its token and, backward, to all gradients.
void add_pair(const Shape& shape, Example& x, int64_t token, int64_t expert, int64_t pair) {
    const int64_t D = shape.width, F = shape.hidden_width;
    const double *in = x.hidden.data() + token * D, *grad = x.grad_out.data() + token * D, weight = x.weights[pair];
    const double *gate_w = x.gate_up.data() + expert * 2 * F * D, *up_w = gate_w + F * D, *down_w = x.down.data() + expert * D * F;
    double *grad_gate_w = x.grad_gate_up.data() + expert * 2 * F * D, *grad_up_w = grad_gate_w + F * D;
    for (int64_t f = 0; f < F; ++f) {
        double gate = 0, up = 0, grad_value = 0;
        for (int64_t d = 0; d < D; ++d) gate += gate_w[f * D + d] * in[d], up += up_w[f * D + d] * in[d];
        const double s = 1 / (1 + std::exp(-gate)), value = gate * s * up;
        for (int64_t d = 0; d < D; ++d) {
            x.out[token * D + d] += weight * down_w[d * F + f] * value;
            grad_value += grad[d] * down_w[d * F + f];
            x.grad_down[(expert * D + d) * F + f] += weight * grad[d] * value;
        }
        x.grad_weights[pair] += grad_value * value;
        const double grad_up = weight * grad_value * gate * s, grad_gate = weight * grad_value * up * s * (1 + gate * (1 - s));
        for (int64_t d = 0; d < D; ++d) {
            grad_gate_w[f * D + d] += grad_gate * in[d], grad_up_w[f * D + d] += grad_up * in[d];
            x.grad_hidden[token * D + d] += grad_gate * gate_w[f * D + d] + grad_up * up_w[f * D + d];
        }
    }
}

}  // namespace

std::vector<Shape> list_shapes() {
    const Chosen uneven = {{}, {0, 1, 2, 3}, {}, {1}, {2, 0}, {1, 1}, {}};
    return {
        {"one token", 64, 32, neighbours(1, 8, 2), 8},
        {"rows beside a tile", 33, 17, runs({15, 16, 0, 17, 31, 32, 33, 0, 1}), 9},
        {"tiles are full", 64, 64, runs({32, 64}), 2},
        {"all choose all", 63, 31, neighbours(6, 5, 5), 5},
        {"odd widths", 37, 19, neighbours(40, 3, 2), 3},
        {"one value", 1, 1, neighbours(4, 2, 1), 2},
        {"uneven tokens", 32, 24, uneven, 4},
        {"cut into segments", 37, 9, runs({0, 1060}), 2},
        {"narrow in, wide inside", 16, 300, neighbours(35, 2, 1), 2},
        {"wide in, narrow inside", 300, 16, neighbours(35, 2, 1), 2},
        {"D beyond a group", 1057, 8, neighbours(2, 2, 2), 2},
        {"F beyond a group", 8, 1057, neighbours(2, 2, 2), 2},
        {"no rows", 16, 16, Chosen(3), 2},
        {"no tokens", 16, 16, Chosen(), 2},
        {"no hidden width", 16, 0, neighbours(3, 2, 1), 2},
        {"no width", 0, 0, neighbours(3, 2, 1), 2},
    };
}

Routing group_by_expert(const Shape& shape) {
    Routing routing;
    routing.counts.resize(shape.num_experts);
    std::vector<int64_t> experts, tokens;
    for (size_t t = 0; t < shape.chosen.size(); ++t) {
        routing.starts.push_back(int64_t(experts.size()));
        for (int e : shape.chosen[t]) experts.push_back(e), tokens.push_back(int64_t(t));
    }
    routing.inverse.resize(experts.size());
    for (int e = 0; e < shape.num_experts; ++e)
        for (size_t p = 0; p < experts.size(); ++p)
            if (experts[p] == e) {
                routing.inverse[p] = int64_t(routing.token_ids.size());
                routing.token_ids.push_back(tokens[p]);
                ++routing.counts[e];
            }
    return routing;
}

Example compute_example(const Shape& shape, double (*rounded)(double)) {
    std::mt19937 generator(1);
    std::normal_distribution<double> normal;
    const auto draw = [&](int64_t count, double scale) {
        Doubles values(count);
        for (double& value : values) value = rounded(normal(generator) * scale);
        return values;
    };
    const int64_t T = int64_t(shape.chosen.size()), D = shape.width, F = shape.hidden_width, E = shape.num_experts;
    int64_t N = 0;
    for (const auto& experts : shape.chosen) N += int64_t(experts.size());
    Example x;
    x.hidden = draw(T * D, 1), x.grad_out = draw(T * D, 1), x.weights = draw(N, 1);
    x.gate_up = draw(E * 2 * F * D, D == 0 ? 0 : 1 / std::sqrt(double(D)));
    x.down = draw(E * D * F, F == 0 ? 0 : 1 / std::sqrt(double(F)));
    x.out.resize(T * D), x.grad_hidden.resize(T * D), x.grad_weights.resize(N);
    x.grad_gate_up.resize(E * 2 * F * D), x.grad_down.resize(E * D * F);
    int64_t pair = 0;
    for (int64_t t = 0; t < T; ++t)
        for (int e : shape.chosen[t]) add_pair(shape, x, t, e, pair++);
    return x;
}
