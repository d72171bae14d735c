// Streams: queues of work that one thread, the device, does in an order drawn at random.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "random.h"

namespace emulated {

class Context;

// Something that a stream does. The device deletes it when it is done.
struct Work {
  virtual ~Work() = default;
  virtual void run(Random& random) = 0;
};

// A piece of work in its place: behind all that its stream was given before, and behind `after`.
struct Task {
  Work* work;  // none for what only waits
  EmulatedStream* stream;
  std::vector<Task*> after;
  bool done;
  bool sees_device;  // whether it may touch memory of the device
};

// All of these are called by the host, one thread at a time, which holds the lock.
class Lock {
 public:
  Lock();
  ~Lock();
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
};

// Adds a task to the end of `stream`. Lets the device do some of what it may do by now.
Task* enqueue(EmulatedStream* stream, Work* work, std::vector<Task*> after, bool sees_device);
// Lets the device go on until `task` is done, which what the host does next then follows.
void finish_task(Task* task);
// Whether `task` is done, which what the host does next then follows.
bool has_finished(Task* task);
void finish_device(int device);
void finish_all();
// Forgets all that is queued, and draws from `seed`.
void reset_schedule(uint64_t seed);
// Whether this is the thread of the device, in a function of the host.
bool on_device_thread();

}  // namespace emulated

struct EmulatedStream {
  int device;
  bool blocking;  // puts itself in order with the default stream
  std::vector<emulated::Task*> queue;
  size_t next = 0;
  emulated::Context* context = nullptr;
};

struct EmulatedEvent {
  int device;
  emulated::Task* recorded = nullptr;
};
