// Mixtures of experts with numbers, and what they come to in float64, loop by loop.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

using Doubles = std::vector<double>;

struct Shape {
    std::string name;
    int64_t width, hidden_width;
    std::vector<std::vector<int>> chosen;  // the experts of each token
    int num_experts;
};

// Shapes that are awkward, as in moesaic/testing/cases.py, where the reasons stand.
std::vector<Shape> list_shapes();

struct Routing {
    std::vector<int64_t> counts, token_ids, inverse, starts;
};
Routing group_by_expert(const Shape& shape);

// What the kernels are given and what they shall give, T or N rows. `out` and `grad_hidden` of plain rows, [N, D], are
// those of a mixture in which each row is a token and weighs one.
struct Example {
    Doubles hidden, weights, gate_up, down, grad_out;
    Doubles out, grad_hidden, grad_weights, grad_gate_up, grad_down;
};

// Draw numbers, round them with `rounded`, compute the rest.
Example compute_example(const Shape& shape, double (*rounded)(double));
