// What a call needs besides the product: memory that is kept from call to call, and tasks for the threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "matrix.hpp"
#include "pool.hpp"

namespace prunus {

// Memory of one thread, aligned to a cache line, kept for its next call. What lies in it is overwritten.
class Scratch {
  public:
    ~Scratch() { std::free(data_); }
    float *floats(int64_t count) {
        if (count > size_) {
            std::free(data_);
            size_ = 0;
            const size_t bytes = (size_t(count) * sizeof(float) + 127) / 64 * 64;
            data_ = static_cast<float *>(std::aligned_alloc(64, bytes));
            if (!data_) throw std::bad_alloc();
            size_ = int64_t(bytes / sizeof(float));
        }
        return data_;
    }
    void trim(int64_t most) {
        if (size_ <= most) return;
        std::free(data_);
        data_ = nullptr;
        size_ = 0;
    }

  private:
    float *data_ = nullptr;
    int64_t size_ = 0;
};

// task(i) for i in [0, count), each by whichever thread is free. Which one it is changes no result.
template <class Task>
void each(int threads, int64_t count, const Task &task) {
    if (threads <= 1 || count <= 1) {
        for (int64_t i = 0; i < count; i++) task(i);
        return;
    }
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    pool().run(threads, count, [&] {
        try {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
        } catch (const std::bad_alloc &) {
            failed = true;
        }
    });
    if (failed) throw std::bad_alloc();
}

constexpr int64_t kTall = 8;  // row blocks whose sums stay in the second cache

// Row blocks of a task, at most so many: enough that panels are read from far away rarely, and tasks for
// all threads.
inline int64_t blocks_together(int64_t most, int64_t blocks, int64_t others, int threads) {
    int64_t tall = most;
    while (tall > 1 && threads > 1 && (blocks + tall - 1) / tall * others < 3 * threads) tall /= 2;
    return tall < blocks ? tall : blocks;
}

struct Epilogue {
    const float *bias;  // float32 or none
    int32_t activation;
    int32_t half;  // of the output
};

struct Convolution {
    int64_t images, channels, height, width;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int64_t out_h() const { return (height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1; }
    int64_t out_w() const { return (width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
};

const Level &level();

inline int32_t widest_of(const Level &l, const Matrix &m) { return m.layout == kBlocks ? l.block_widest : l.widest; }

// Tokens of the next panel of those that are left. With three vectors as the most, four are two and two: a single one
// would wait for its own sums.
inline int32_t width_of(const Level &l, int32_t widest, int64_t left) {
    const int64_t most = widest / l.lanes, vectors = (left + l.lanes - 1) / l.lanes;
    if (most == 3) return l.lanes * int32_t(vectors == 4 ? 2 : std::min<int64_t>(vectors, 3));
    int32_t size = widest;
    while (size > l.lanes && size / 2 >= left) size /= 2;
    return size;
}

void linear(const Matrix &, const void *x, int32_t half, int64_t tokens, const Epilogue &, void *y, int threads);
void convolve(const Matrix &, const void *x, int32_t half, const Convolution &, const Epilogue &, void *y, int threads);

}  // namespace prunus
