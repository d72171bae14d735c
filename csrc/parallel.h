// A persistent thread pool and the one loop that uses it.
//
// Callers may come from any number of Python threads at once; each takes part in its own loop, so a
// loop always finishes, even when every worker is busy elsewhere. A fork leaves the child with a
// fresh pool, because threads do not survive it. The pool is never destroyed: joining threads while
// the interpreter shuts down is a classic way to hang.
#pragma once

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

class ThreadPool {
 public:
  // A loop in progress. It lives on its caller's stack until every helper has let go of it.
  struct Job {
    void (*run)(const void* body, int64_t begin, int64_t end);
    const void* body;
    int64_t size;
    int64_t piece;
    int helpers_wanted;
    int helpers_active = 0;
    std::atomic<int64_t> next{0};
    std::exception_ptr error;  // of the first piece that threw; guarded by the pool's mutex
  };

  // The pool of this process.
  static ThreadPool& get() { return *slot().load(std::memory_order_acquire); }

  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; num_workers_ < job.helpers_wanted; ++num_workers_) {
        std::thread([this] { work(); }).detach();
      }
      jobs_.push_back(&job);
    }
    wake_.notify_all();
    take_pieces(job);

    std::unique_lock<std::mutex> lock(mutex_);
    const auto queued = std::find(jobs_.begin(), jobs_.end(), &job);
    if (queued != jobs_.end()) jobs_.erase(queued);
    done_.wait(lock, [&] { return job.helpers_active == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
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
      Job& job = *jobs_.front();
      if (--job.helpers_wanted == 0) jobs_.pop_front();
      ++job.helpers_active;
      lock.unlock();
      take_pieces(job);
      lock.lock();
      if (--job.helpers_active == 0) done_.notify_all();
    }
  }

  void take_pieces(Job& job) {
    try {
      for (;;) {
        const int64_t begin = job.next.fetch_add(job.piece, std::memory_order_relaxed);
        if (begin >= job.size) return;
        job.run(job.body, begin, std::min(begin + job.piece, job.size));
      }
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!job.error) job.error = std::current_exception();
      job.next.store(job.size, std::memory_order_relaxed);  // the other pieces are of no use now
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;  // a job was queued
  std::condition_variable done_;  // a helper let go of a job
  std::deque<Job*> jobs_;         // those that still want helpers
  int num_workers_ = 0;
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
  ThreadPool::Job job;
  job.run = [](const void* f, int64_t begin, int64_t end) {
    (*static_cast<const Body*>(f))(begin, end);
  };
  job.body = &body;
  job.size = size;
  job.piece = (size + pieces - 1) / pieces;
  job.helpers_wanted = static_cast<int>(std::min<int64_t>(pieces, threads)) - 1;
  ThreadPool::get().run(job);
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
