// A team of threads that walks a list of items: each begins with a share of equal cost, then helps the others.
//
// An item's result does not depend on who computes it, so neither do ours on the number of threads.
#pragma once

#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int kMaxThreads = 256;

// Items [0, n) cut into one range a thread; an owner takes from the front of its range, a helper from the back.
class Queue {
   public:
    // cost(i) is the sum of the costs of the items before i.
    template <class Cost>
    void share(int num_threads, uint32_t num_items, Cost&& cost_before) {
        num_threads_ = num_threads;
        const double total = cost_before(num_items);
        uint32_t begin = 0;
        for (int thread = 0; thread < num_threads; ++thread) {
            const double limit = total * (thread + 1) / num_threads;
            uint32_t low = begin, high = num_items;
            while (low < high) {
                const uint32_t middle = (low + high + 1) / 2;
                if (cost_before(middle) <= limit + 1e-9 * total) low = middle;
                else high = middle - 1;
            }
            const uint32_t end = thread + 1 == num_threads ? num_items : low;
            ranges_[thread].bounds.store(pack(begin, end), std::memory_order_relaxed);
            begin = end;
        }
    }

    // Take the next item of a thread; -1 when no item is left anywhere.
    int64_t take(int thread) {
        int64_t item = take_front(ranges_[thread].bounds);
        for (int other = 1; item < 0 && other < num_threads_; ++other)
            item = take_back(ranges_[(thread + other) % num_threads_].bounds);
        return item;
    }

   private:
    struct alignas(64) Range {
        std::atomic<uint64_t> bounds{0};
    };

    static uint64_t pack(uint32_t begin, uint32_t end) { return uint64_t(begin) << 32 | end; }

    static int64_t take_front(std::atomic<uint64_t>& bounds) {
        uint64_t seen = bounds.load(std::memory_order_relaxed);
        while (uint32_t(seen >> 32) < uint32_t(seen))
            if (bounds.compare_exchange_weak(seen, seen + (uint64_t(1) << 32), std::memory_order_relaxed))
                return int64_t(seen >> 32);
        return -1;
    }

    static int64_t take_back(std::atomic<uint64_t>& bounds) {
        uint64_t seen = bounds.load(std::memory_order_relaxed);
        while (uint32_t(seen >> 32) < uint32_t(seen))
            if (bounds.compare_exchange_weak(seen, seen - 1, std::memory_order_relaxed)) return int64_t(uint32_t(seen)) - 1;
        return -1;
    }

    Range ranges_[kMaxThreads] = {};
    int num_threads_ = 1;
};

inline int thread_number() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

inline int clamp_threads(int num_threads) {
#ifdef _OPENMP
    return num_threads < 1 ? 1 : num_threads > kMaxThreads ? kMaxThreads : num_threads;
#else
    (void)num_threads;
    return 1;
#endif
}

// How many threads the present team has, which may be fewer than were asked for.
inline int team_size() {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

inline void barrier() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

// Call body(thread) on every thread of a team. Should the team come out smaller, the queues still empty: a thread that
// is not there is helped. What is cut evenly instead has to ask for `team_size`.
template <class Body>
void run_team(int num_threads, Body&& body) {
#ifdef _OPENMP
#pragma omp parallel num_threads(num_threads)
#endif
    body(thread_number());
}

}  // namespace
