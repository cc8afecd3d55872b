// Memory that begins or ends where a page does that nobody may touch.
//
// AddressSanitizer does not see the loads and stores of most intrinsics, nor those of tiles; the processor does.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"

enum class Guard { kBefore, kAfter };

template <class T>
class Guarded {
   public:
    // Filled with bits that are a NaN in every format, so that what is never written shows.
    Guarded(int64_t count, Guard guard) : count_(count) {
        const int64_t page = sysconf(_SC_PAGESIZE), bytes = count * int64_t(sizeof(T));
        const int64_t inner = (bytes + page - 1) / page * page;
        mapped_ = inner + 2 * page;
        base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        CHECK(base_ != MAP_FAILED, "no memory");
        if (inner > 0) CHECK(mprotect(base_ + page, inner, PROT_READ | PROT_WRITE) == 0, "no memory");
        data_ = reinterpret_cast<T*>(base_ + page + (guard == Guard::kAfter ? inner - bytes : 0));
        if (bytes > 0) std::memset(data_, 0xff, bytes);
    }
    Guarded(const std::vector<T>& values, Guard guard) : Guarded(int64_t(values.size()), guard) {
        if (!values.empty()) std::memcpy(data_, values.data(), values.size() * sizeof(T));
    }
    ~Guarded() { munmap(base_, mapped_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    T* data() const { return data_; }
    int64_t size() const { return count_; }
    T& operator[](int64_t i) const { return data_[i]; }

   private:
    char* base_;
    T* data_;
    int64_t mapped_, count_;
};
