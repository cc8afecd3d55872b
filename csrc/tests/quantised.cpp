// Low-bit experts in the slots of a pool against the same experts one after another, and grouped products against loops, in
// memory that has no byte to spare.
#include <algorithm>
#include <random>

#include "../quant.h"
#include "dtype.h"

namespace {

constexpr int kPieces = 4;

// The pieces of one expert: gate_up, its scales, down, its scales.
struct Expert {
    Bytes pieces[kPieces];

    Expert(const Shape& shape, int bits, std::mt19937& generator) {
        const int64_t in = strips_of(shape.width), mid = strips_of(shape.hidden_width);
        pieces[0] = draw_blocks(4 * mid, in, bits, generator), pieces[1] = draw_scales(4 * mid, generator);
        pieces[2] = draw_blocks(2 * in, mid, bits, generator), pieces[3] = draw_scales(2 * in, generator);
    }
    static Bytes draw_blocks(int64_t blocks, int64_t strips, int bits, std::mt19937& generator) {
        const int64_t strip_bytes = quantised_strip_bytes(bits);
        Bytes bytes(blocks * strips * strip_bytes);
        for (int64_t i = 0; i < int64_t(bytes.size()); ++i) {
            const bool is_multiplier = bits == 4 && i % strip_bytes >= kBlock * kNibbleRowBytes;
            bytes[i] = is_multiplier ? 1 + generator() % kMaxMultiplier : bits == 4 ? generator() % 256 : generator() % 255 - 127;
        }
        return bytes;
    }
    static Bytes draw_scales(int64_t blocks, std::mt19937& generator) {
        std::vector<float> scales(blocks * kBlock);
        for (float& scale : scales) scale = float(1 + generator() % 1000) * 1e-5f;
        Bytes bytes(scales.size() * sizeof(float));
        if (!bytes.empty()) std::memcpy(bytes.data(), scales.data(), bytes.size());
        return bytes;
    }
};

// One call over experts one after another, each kind of piece by itself; or, num_waves > 0, that many calls over slots
// which hold an expert each, with all its pieces.
Bytes compute(const Shape& shape, const std::vector<Expert>& experts, int isa, int dtype, int bits, int num_waves, Guard guard) {
    const Routing routing = group_by_expert(shape);
    const int64_t T = int64_t(shape.chosen.size()), N = int64_t(routing.token_ids.size()), E = shape.num_experts;
    const int64_t size = dtype == MOESAIC_FLOAT32 ? 4 : 2;
    // Finite in either dtype, whatever the seed: exponents near that of one.
    std::mt19937 generator(2);
    Bytes values(T * shape.width * size);
    for (size_t i = 0; i < values.size(); ++i) values[i] = i % size == size_t(size - 1) ? 0x3f | (generator() & 0x80) : generator() % 128;
    const Guarded<unsigned char> hidden(values, guard), rows(N * shape.width * size, guard), out(T * shape.width * size, guard);
    const Guarded<float> weights(std::vector<float>(N, 0.5f), guard);

    MoesaicQuantised q = {};
    MoesaicMixture& m = q.mixture;
    m.isa = isa, m.dtype = dtype, m.num_threads = guard == Guard::kBefore ? 2 : 1;
    m.num_tokens = T, m.num_rows = N, m.width = shape.width, m.hidden_width = shape.hidden_width, m.num_experts = E;
    m.counts = routing.counts.data(), m.token_ids = routing.token_ids.data();
    m.inverse = routing.inverse.data(), m.starts = routing.starts.data();
    m.weights = weights.data(), m.hidden = hidden.data();
    q.bits = bits;

    int64_t offsets[kPieces + 1] = {};
    for (int i = 0; i < kPieces; ++i) offsets[i + 1] = offsets[i] + int64_t(experts[0].pieces[i].size());
    const int64_t gap = num_waves > 0 ? int64_t(sizeof(float)) : 0, step = offsets[kPieces] + gap;
    Guarded<unsigned char> memory(E * step - gap, guard);
    const auto address = [&](int64_t e, int i) {
        const int64_t alone = E * offsets[i] + e * (offsets[i + 1] - offsets[i]);
        return memory.data() + (num_waves > 0 ? e * step + offsets[i] : alone);
    };
    m.gate_up = address(0, 0), q.gate_up_scales = reinterpret_cast<const float*>(address(0, 1));
    m.down = address(0, 2), q.down_scales = reinterpret_cast<const float*>(address(0, 3));
    if (num_waves > 0) m.gate_up_stride = m.down_stride = q.gate_up_scales_stride = q.down_scales_stride = step;

    std::vector<int64_t> places(E);
    for (int wave = 0; wave < std::max(num_waves, 1); ++wave) {
        std::memset(memory.data(), 0xff, memory.size());
        for (int64_t e = 0; e < E; ++e) {
            places[e] = num_waves == 0 ? e : e % num_waves == wave ? E - 1 - e : -1;
            for (int i = 0; i < kPieces && places[e] >= 0; ++i)
                std::copy(experts[e].pieces[i].begin(), experts[e].pieces[i].end(), address(places[e], i));
        }
        if (num_waves > 0) m.places = places.data(), m.rows = rows.data();
        int64_t bytes;
        CHECK(moesaic_quantised_forward_scratch(&q, &bytes) == MOESAIC_OK, "refused");
        const Guarded<unsigned char> scratch(bytes, guard);
        m.scratch = scratch.data();
        CHECK(moesaic_quantised_forward(&q, wave + 1 < num_waves ? nullptr : out.data()) == MOESAIC_OK, "refused");
    }
    return Bytes(out.data(), out.data() + out.size());
}

void check_shape(const Shape& shape, int isa, int dtype, int bits) {
    std::printf("%s dtype %d, %d bits: %s\n", moesaic_isa_name(isa), dtype, bits, shape.name.c_str());
    std::fflush(stdout);
    std::mt19937 generator(1);
    std::vector<Expert> experts;
    for (int e = 0; e < shape.num_experts; ++e) experts.emplace_back(shape, bits, generator);
    const Bytes whole = compute(shape, experts, isa, dtype, bits, 0, Guard::kAfter);
    for (Guard guard : {Guard::kBefore, Guard::kAfter})
        for (int num_waves : {1, 2, shape.num_experts + 1})
            CHECK(compute(shape, experts, isa, dtype, bits, num_waves, guard) == whole, "%d waves show", num_waves);
    for (unsigned char byte : whole)
        if (byte != 0 && byte != 0xff) return;
    CHECK(whole.empty(), "nothing was computed");
}

// Numbers of any sign and size, the first row zeros.
std::vector<float> draw_rows(int64_t rows, int64_t width, int dtype) {
    std::mt19937 generator(3);
    std::vector<float> values(rows * width);
    for (int64_t i = 0; i < rows * width; ++i) {
        const float value = i < width ? 0.0f : float(int(generator() % 2001) - 1000) * std::ldexp(1.0f, int(generator() % 8) - 16);
        values[i] = dtype == MOESAIC_FLOAT32 ? value : float(round_to_bfloat16(value));
    }
    return values;
}

Bytes encode_rows(const std::vector<float>& values, int dtype) {
    return encode(Doubles(values.begin(), values.end()), kDtypes[dtype == MOESAIC_FLOAT32 ? 0 : 1]);
}

// The integer of a weight of down, as quant.h says.
int integer_at(const Bytes& down, int64_t strips, int bits, int64_t channel, int64_t depth) {
    const int64_t row = channel % kBlock, place = depth % kStripBytes;
    const unsigned char* const strip =
        down.data() + (channel / kBlock * strips + depth / kStripBytes) * quantised_strip_bytes(bits);
    if (bits == 8) return int8_t(strip[row * kStripBytes + place]);
    const int byte = strip[row * kNibbleRowBytes + place % kNibbleRowBytes], nibble = place < kNibbleRowBytes ? byte & 15 : byte >> 4;
    return (nibble < 8 ? nibble : nibble - 16) * strip[kBlock * kNibbleRowBytes + row];
}

// Each row times the down of its expert, number by number.
std::vector<float> multiply_in_loops(const Shape& shape, const std::vector<Expert>& experts, const std::vector<int64_t>& counts,
                                     const std::vector<float>& rows, int bits) {
    const int64_t D = shape.width, F = shape.hidden_width;
    std::vector<float> out;
    const float* row = rows.data();
    for (int e = 0; e < shape.num_experts; ++e)
        for (int64_t i = 0; i < counts[e]; ++i, row += F) {
            float most = kMinMagnitude;
            for (int64_t f = 0; f < F; ++f) most = std::fmax(most, std::fabs(row[f]));
            for (int64_t d = 0; d < D; ++d) {
                int sum = 0;
                for (int64_t f = 0; f < F; ++f)
                    sum += integer_at(experts[e].pieces[2], strips_of(F), bits, d, f) * int(std::nearbyint(row[f] * (kMaxToken / most)));
                float scale;
                std::memcpy(&scale, experts[e].pieces[3].data() + d * sizeof(float), sizeof(float));
                out.push_back(float(sum) * scale * (most / kMaxToken));
            }
        }
    return out;
}

// Without gate_up: rows as they come times down, on any number of threads.
void check_product(const Shape& shape, int isa, int dtype, int bits) {
    std::printf("%s dtype %d, %d bits, a product: %s\n", moesaic_isa_name(isa), dtype, bits, shape.name.c_str());
    std::fflush(stdout);
    const Routing routing = group_by_expert(shape);
    const int64_t N = int64_t(routing.token_ids.size());
    std::mt19937 generator(1);
    std::vector<Expert> experts;
    Bytes weights, scales;
    for (int e = 0; e < shape.num_experts; ++e) {
        const Expert& expert = experts.emplace_back(shape, bits, generator);
        weights.insert(weights.end(), expert.pieces[2].begin(), expert.pieces[2].end());
        scales.insert(scales.end(), expert.pieces[3].begin(), expert.pieces[3].end());
    }
    const std::vector<float> values = draw_rows(N, shape.hidden_width, dtype);
    const Bytes expected = encode_rows(multiply_in_loops(shape, experts, routing.counts, values, bits), dtype);
    for (Guard guard : {Guard::kBefore, Guard::kAfter})
        for (int num_threads : {1, 3}) {
            const Guarded<unsigned char> hidden(encode_rows(values, dtype), guard), out(int64_t(expected.size()), guard);
            const Guarded<unsigned char> down(weights, guard), down_scales(scales, guard);
            MoesaicQuantised q = {};
            MoesaicMixture& m = q.mixture;
            m.isa = isa, m.dtype = dtype, m.num_threads = num_threads;
            m.num_tokens = m.num_rows = N, m.width = shape.width, m.hidden_width = shape.hidden_width;
            m.num_experts = shape.num_experts, m.counts = routing.counts.data();
            m.hidden = hidden.data(), m.down = down.data();
            q.bits = bits, q.down_scales = reinterpret_cast<const float*>(down_scales.data());
            int64_t bytes;
            CHECK(moesaic_quantised_forward_scratch(&q, &bytes) == MOESAIC_OK, "refused");
            const Guarded<unsigned char> scratch(bytes, guard);
            m.scratch = scratch.data();
            CHECK(moesaic_quantised_forward(&q, out.data()) == MOESAIC_OK, "refused");
            CHECK(copy(out) == expected, "the product on %d threads is another", num_threads);
        }
}

// An expert for each token: more segments than threads share blocks of.
Shape many_experts() {
    Shape shape = {"many experts", 40, 70, {}, 24};
    for (int e = 0; e < shape.num_experts; ++e) shape.chosen.push_back({e});
    return shape;
}

void check_refusals() {
    const std::vector<int64_t> numbers = {0, 0};
    const std::vector<float> floats(kBlock, 1.0f);
    MoesaicQuantised q = {};
    MoesaicMixture& m = q.mixture;
    m.num_threads = 1, m.num_tokens = m.num_rows = m.width = m.hidden_width = m.num_experts = 1;
    m.hidden = m.down = floats.data(), q.down_scales = floats.data(), q.bits = 8;
    const auto check = [&](const char* name) {
        int64_t bytes = -1;
        CHECK(moesaic_quantised_forward_scratch(&q, &bytes) == MOESAIC_BAD_ROUTING && bytes == -1, "%s", name);
        CHECK(moesaic_quantised_forward(&q, nullptr) == MOESAIC_BAD_ROUTING, "%s", name);
    };
    m.counts = numbers.data();
    check("fewer rows than a product has");
    m.counts = nullptr, m.expert_ids = numbers.data(), m.weights = floats.data();
    check("a product of tokens");
}

}  // namespace

int main() {
    check_refusals();
    std::vector<Shape> shapes = list_shapes();
    shapes.push_back(many_experts());
    for (int isa = 0; isa < moesaic_num_isas(); ++isa)
        for (int dtype : {MOESAIC_FLOAT32, MOESAIC_BFLOAT16})
            for (int bits : {8, 4})
                for (const Shape& shape : shapes) {
                    const bool is_empty = shape.width == 0 || shape.hidden_width == 0 || shape.chosen.empty();
                    const bool has_rows = shape.name != "no rows";
                    if (moesaic_isa_refusal(isa) != nullptr || is_empty || !has_rows) continue;
                    check_shape(shape, isa, dtype, bits);
                    check_product(shape, isa, dtype, bits);
                }
    return 0;
}
