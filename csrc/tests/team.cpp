// The queue hands out every item once, whoever takes and however many; a team of any size does all the work.
#include "../team.h"

#include <memory>
#include <thread>
#include <vector>

#include "check.h"

namespace {

// Costs of the items before each: even, rising, one heavy item, all in the last.
double cost_before(int kind, uint32_t item, uint32_t num_items) {
    switch (kind) {
        case 0: return item;
        case 1: return double(item) * item;
        case 2: return item + (item > num_items / 3 ? 1e6 : 0.0);
        case 3: return item == num_items ? 1.0 : 0.0;
        default: return 0.0;
    }
}

void check_each_item_is_taken_once(int num_threads, uint32_t num_items, int kind) {
    const auto queue = std::make_unique<Queue>();
    queue->share(num_threads, num_items, [&](uint32_t i) { return cost_before(kind, i, num_items); });
    std::vector<std::atomic<int>> taken(num_items);
    std::vector<std::thread> team;
    for (int i = 0; i < num_threads; ++i)
        team.emplace_back([&, i] {
            for (int64_t item = queue->take(i); item >= 0; item = queue->take(i)) ++taken[item];
        });
    for (std::thread& thread : team) thread.join();
    for (uint32_t i = 0; i < num_items; ++i)
        CHECK(taken[i] == 1, "item %u of %u taken %d times by %d threads, kind %d", i, num_items, int(taken[i]), num_threads, kind);
}

// A thread alone takes what others would have, its own share first and in order.
void check_one_thread_empties_the_queue(int num_threads) {
    const auto queue = std::make_unique<Queue>();
    queue->share(num_threads, 40, [](uint32_t i) { return double(i); });
    std::vector<int> taken(40);
    int64_t item = queue->take(0);
    CHECK(item == 0, "first item %d", int(item));
    for (; item >= 0; item = queue->take(0)) ++taken[item];
    for (int count : taken) CHECK(count == 1, "taken %d times", count);
    for (int i = 0; i < num_threads; ++i) CHECK(queue->take(i) == -1, "not empty");
}

void check_shares_are_even() {
    const auto queue = std::make_unique<Queue>();
    queue->share(4, 80, [](uint32_t i) { return double(i); });
    for (int i = 0; i < 4; ++i) CHECK(queue->take(i) == 20 * i, "thread %d does not begin with its share", i);
}

void check_every_thread_of_a_team_is_called(int num_threads) {
    std::vector<std::atomic<int>> called(num_threads);
    std::atomic<int> size{0};
    run_team(num_threads, [&](int i) {
        ++called[i];
        size = team_size();
        barrier();
    });
    for (int i = 0; i < num_threads; ++i) CHECK(called[i] == (i < size), "thread %d of %d", i, int(size));
}

}  // namespace

int main() {
    for (int num_threads : {1, 2, 3, 8, 33})
        for (uint32_t num_items : {0u, 1u, 2u, 7u, 1000u, 20000u})
            for (int kind = 0; kind < 5; ++kind)
                if (num_threads < 33 || num_items != 20000u || kind == 0) check_each_item_is_taken_once(num_threads, num_items, kind);
    check_each_item_is_taken_once(kMaxThreads, 3000, 1);
    for (int num_threads : {1, 2, 5}) check_one_thread_empties_the_queue(num_threads);
    check_shares_are_even();
    for (int num_threads : {1, 2, 5}) check_every_thread_of_a_team_is_called(num_threads);
    for (int asked : {-3, 0, 1, 7, kMaxThreads, kMaxThreads + 1})
        CHECK(clamp_threads(asked) == (asked < 1 ? 1 : asked > kMaxThreads ? kMaxThreads : asked), "asked for %d", asked);
    return 0;
}
