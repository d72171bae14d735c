// The one loop over many threads, and what runs it.
//
// A loop runs on torch's own team of OpenMP threads, which is found in the process, because this
// module links neither. After each loop the threads of a team spin for a while; those of a second
// team would have to wait for the same cores. Where there is no such team, a pool of threads takes
// its place: in a process without torch or with another OpenMP, and after a fork, which no team
// survives.
#pragma once

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>

namespace torch_gas {

// A loop in progress, cut into pieces. It lives on its caller's stack until all threads have let go
// of it.
struct Job {
  void (*run)(const void* body, int64_t begin, int64_t end);
  const void* body;
  int64_t size;
  int64_t piece;
  int threads;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // of the first piece that threw

  void take_pieces() {
    try {
      for (;;) {
        const int64_t begin = next.fetch_add(piece, std::memory_order_relaxed);
        if (begin >= size) return;
        run(body, begin, std::min(begin + piece, size));
      }
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
      next.store(size, std::memory_order_relaxed);  // the other pieces are of no use now
    }
  }
};

// Threads that sleep between loops. Callers may come from any number of threads at once; each takes
// part in its own loop, so a loop always finishes, even when every worker is busy elsewhere. A pool
// is never destroyed: joining threads while the interpreter shuts down is a classic way to hang.
class ThreadPool {
 public:
  // The pool of this process.
  static ThreadPool& get() { return *slot().load(std::memory_order_acquire); }

  void run(Job& job) {
    Helped helped{&job, job.threads - 1};
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; num_workers_ < helped.wanted; ++num_workers_) {
        std::thread([this] { work(); }).detach();
      }
      jobs_.push_back(&helped);
    }
    wake_.notify_all();
    job.take_pieces();

    std::unique_lock<std::mutex> lock(mutex_);
    const auto queued = std::find(jobs_.begin(), jobs_.end(), &helped);
    if (queued != jobs_.end()) jobs_.erase(queued);
    done_.wait(lock, [&] { return helped.active == 0; });
  }

 private:
  // A job, how many workers it still wants, and how many are at it.
  struct Helped {
    Job* job;
    int wanted;
    int active = 0;
  };

  static std::atomic<ThreadPool*>& slot() {
    static std::atomic<ThreadPool*> pool{create()};
    return pool;
  }

  static ThreadPool* create() {
    pthread_atfork(nullptr, nullptr,
                   [] { slot().store(new ThreadPool, std::memory_order_release); });
    return new ThreadPool;
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return !jobs_.empty(); });
      Helped& helped = *jobs_.front();
      if (--helped.wanted == 0) jobs_.pop_front();
      ++helped.active;
      lock.unlock();
      helped.job->take_pieces();
      lock.lock();
      if (--helped.active == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;  // a job was queued
  std::condition_variable done_;  // a helper let go of a job
  std::deque<Helped*> jobs_;      // those that still want helpers
  int num_workers_ = 0;
};

// Torch's team of OpenMP threads, by the entry point that GNU's, Intel's and LLVM's libraries
// share.
class OpenMP {
 public:
  // Runs the job on the calling thread's team; false where there is none.
  static bool run(Job& job) {
    static const OpenMP openmp;
    if (openmp.parallel_ == nullptr || forked_.load(std::memory_order_relaxed)) return false;
    openmp.parallel_([](void* data) { static_cast<Job*>(data)->take_pieces(); }, &job,
                     static_cast<unsigned>(job.threads), 0);
    return true;
  }

 private:
  using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

  OpenMP() : parallel_(reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"))) {}

  inline static std::atomic<bool> forked_{false};
  inline static const int watch_ =
      pthread_atfork(nullptr, nullptr, [] { forked_.store(true, std::memory_order_relaxed); });

  Parallel parallel_;
};

// Calls body(begin, end) on pieces that cover [0, size) once, on up to `threads` threads; a loop of
// `grain` items or fewer runs inline. Bodies must not depend on where the pieces are cut: this is
// what makes every result independent of the number of threads.
template <class Body>
void parallel_for(int64_t size, int64_t grain, int threads, const Body& body) {
  const int64_t pieces = std::min<int64_t>((size + grain - 1) / grain, int64_t{4} * threads);
  if (threads <= 1 || pieces <= 1) {
    if (size > 0) body(int64_t{0}, size);
    return;
  }
  Job job;
  job.run = [](const void* f, int64_t begin, int64_t end) {
    (*static_cast<const Body*>(f))(begin, end);
  };
  job.body = &body;
  job.size = size;
  job.piece = (size + pieces - 1) / pieces;
  job.threads = static_cast<int>(std::min<int64_t>(pieces, threads));
  if (!OpenMP::run(job)) ThreadPool::get().run(job);
  if (job.error) std::rethrow_exception(job.error);
}

// The smallest of the positions reported by the pieces of a loop, so that an error names the same
// item for any number of threads.
class FirstBad {
 public:
  void report(int64_t position) {
    int64_t seen = first_.load(std::memory_order_relaxed);
    while (position < seen && !first_.compare_exchange_weak(seen, position)) {
    }
  }
  bool found() const { return position() != std::numeric_limits<int64_t>::max(); }
  int64_t position() const { return first_.load(); }

 private:
  std::atomic<int64_t> first_{std::numeric_limits<int64_t>::max()};
};

// Items below which a loop over edges, ids or elements is not worth waking a thread for.
constexpr int64_t kGrain = 16384;

}  // namespace torch_gas
