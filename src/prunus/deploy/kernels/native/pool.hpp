// Threads that wait for work. One call at a time has them; a call that finds them taken works alone.
//
// Where the process has an OpenMP runtime (PyTorch's operators use it), its threads do the work: they wait awake for a
// while after each operator, so threads of ours would wait for their processors. Without one the pool has its own.
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

// GOMP_parallel: runs work(data) on so many threads, the caller among them, and returns when all are done.
typedef void (*Team)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

class Pool {
  public:
    explicit Pool(Team team) : team_(team) {}

    // job() on at most `threads` threads, the caller among them. Returns when all are done. `tasks` is how many of them
    // find something to do.
    template <class Job>
    void run(int threads, int64_t tasks, const Job &job) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (threads <= 1 || !mine.owns_lock()) return job();
        if (team_) {
            // Not a smaller team where there are few tasks: the runtime would end threads that the next operator needs.
            const auto work = [](void *j) { (*static_cast<const Job *>(j))(); };
            return team_(work, const_cast<Job *>(&job), unsigned(threads), 0);
        }
        if (threads > tasks) threads = int(tasks);
        if (!grow(threads - 1)) return job();
        {
            std::lock_guard<std::mutex> lock(state_);
            call_ = [](const void *j) { (*static_cast<const Job *>(j))(); };
            job_ = &job;
            wanted_ = threads - 1;
            left_.store(threads - 1, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        job();
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
            void (*call)(const void *);
            const void *job;
            {
                std::unique_lock<std::mutex> lock(state_);
                wake_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != seen; });
                seen = round_.load(std::memory_order_relaxed);
                if (worker > wanted_) continue;
                call = call_;
                job = job_;
            }
            call(job);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    const Team team_;
    std::mutex busy_, state_;
    std::condition_variable wake_;
    std::atomic<uint64_t> round_{0};
    std::atomic<int> left_{0};
    void (*call_)(const void *) = nullptr;
    const void *job_ = nullptr;
    int wanted_ = 0;
    int made_ = 0;
};

// The pool of this process. A forked child has none of its parent's threads, nor a working OpenMP runtime, and makes its
// own.
Pool &pool();

}  // namespace prunus
