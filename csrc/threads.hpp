// Threads that live as long as the process and share out numbered tasks; the caller works along with them.
//
// Where the process has an OpenMP runtime in view - torch brings GNU's - its threads are used: after each of torch's
// operators they keep spinning for milliseconds in wait for the next, and threads of our own would have to take the
// processors from them. Elsewhere the threads are ours; a worker spins for a few microseconds before it sleeps.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <dlfcn.h>

namespace indexer {

// void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags), or null.
using OpenMPParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline OpenMPParallel openmp_parallel() {
  static const OpenMPParallel parallel =
      std::getenv("NEURON_INDEXER_OWN_THREADS") ? nullptr : reinterpret_cast<OpenMPParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return parallel;
}

// Runs task(0) to task(tasks - 1), each once, on the process's OpenMP threads.
inline void run_on_openmp(OpenMPParallel parallel, int threads, std::int64_t tasks,
                          const std::function<void(std::int64_t)>& task) {
  struct Shared {
    std::atomic<std::int64_t> next{0};
    std::int64_t tasks;
    const std::function<void(std::int64_t)>& task;
  } shared{{}, tasks, task};
  const auto body = [](void* data) {
    Shared& work = *static_cast<Shared*>(data);
    for (std::int64_t index; (index = work.next.fetch_add(1)) < work.tasks;) work.task(index);
  };
  parallel(body, &shared, static_cast<unsigned>(threads), 0);
}

class Threads {
 public:
  // `threads` counts the caller.
  explicit Threads(int threads) {
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this] { serve(); });
  }

  ~Threads() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs task(0) to task(tasks - 1), each once, and returns when all are done. One caller at a time.
  void run(std::int64_t tasks, const std::function<void(std::int64_t)>& task) {
    if (tasks <= 1 || workers_.empty()) {
      for (std::int64_t index = 0; index < tasks; ++index) task(index);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      tasks_ = tasks;
      next_.store(0);
      busy_ = static_cast<int>(workers_.size());
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void work() {
    for (std::int64_t index; (index = next_.fetch_add(1)) < tasks_;) (*task_)(index);
  }

  void serve() {
    std::uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < 200 && generation_.load() == seen; ++spin) pause();
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || generation_.load() != seen; });
        if (stopping_) return;
        seen = generation_.load();
      }
      work();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<std::int64_t> next_{0};
  const std::function<void(std::int64_t)>* task_ = nullptr;
  std::int64_t tasks_ = 0;
  int busy_ = 0;
  bool stopping_ = false;
};

}  // namespace indexer
