// Threads that wait for work. One call at a time has them; a call that finds them taken works alone.
#pragma once
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace prunus {

inline void rest() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
  public:
    // job(worker) on `threads` threads, the caller being worker 0. Returns when all are done.
    template <class Job>
    void run(int threads, const Job &job) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (threads <= 1 || !mine.owns_lock() || !grow(threads - 1)) {
            job(0);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(state_);
            call_ = [](const void *j, int worker) { (*static_cast<const Job *>(j))(worker); };
            job_ = &job;
            wanted_ = threads - 1;
            left_.store(threads - 1, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        job(0);
        for (int spins = 0; left_.load(std::memory_order_acquire); spins++) {
            if (spins < 4000) rest();
            else std::this_thread::yield();
        }
    }

  private:
    bool grow(int count) {
        try {
            while (int(made_) < count) {
                std::thread(&Pool::serve, this, int(made_) + 1, round_.load()).detach();
                made_++;
            }
        } catch (const std::system_error &) {
            return false;  // no more threads to be had
        }
        return true;
    }

    void serve(int worker, uint64_t seen) {
        for (;;) {
            for (int spins = 0; spins < 2000 && round_.load(std::memory_order_acquire) == seen; spins++) rest();
            void (*call)(const void *, int);
            const void *job;
            {
                std::unique_lock<std::mutex> lock(state_);
                wake_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != seen; });
                seen = round_.load(std::memory_order_relaxed);
                if (worker > wanted_) continue;
                call = call_;
                job = job_;
            }
            call(job, worker);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::mutex busy_, state_;
    std::condition_variable wake_;
    std::atomic<uint64_t> round_{0};
    std::atomic<int> left_{0};
    void (*call_)(const void *, int) = nullptr;
    const void *job_ = nullptr;
    int wanted_ = 0;
    int made_ = 0;
};

// The pool of this process. A forked child has none of its parent's threads and makes its own.
Pool &pool();

}  // namespace prunus
