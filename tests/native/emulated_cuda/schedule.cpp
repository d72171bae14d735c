#include "schedule.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "context.h"
#include "memory.h"
#include "sanitizers.h"

namespace emulated {
namespace {

// A lock and a bell that sanitizers do not see: a mutex would put host and device in an order that
// CUDA does not promise.
void wait_while(const int* word, int value) {
  while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
  }
}
void set(int* word, int value) {
  __atomic_store_n(word, value, __ATOMIC_RELEASE);
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
}

int locked = 0;

// What host and device hand to each other: a task to do, then that it is done.
enum : int { kIdle, kGiven };
int hand = kIdle;
Task* given = nullptr;
bool has_device_thread = false;
thread_local bool is_device_thread = false;

Random random_;
double eagerness = 0;  // chance that the device does something when it need not
std::vector<EmulatedStream*> streams;

void do_work(void* argument) {
  auto* const task = static_cast<Task*>(argument);
  const int device = task->stream->device;
  acquire(task);
  for (Task* before : task->after) acquire(before);
  if (task->work != nullptr) {
    if (task->sees_device) show_device(device);
    task->work->run(random_);
    if (task->sees_device) hide_device(device);
    delete task->work;
    task->work = nullptr;
  }
  release(task);
}

// On a stack of the stream: accesses of different streams to one place of a stack would be a race.
void do_task(Task* task) {
  Context*& context = task->stream->context;
  if (context == nullptr) context = new Context;
  context->start(do_work, task);
  context->resume();
}

void* device_main(void*) {
  is_device_thread = true;
  while (true) {
    wait_while(&hand, kIdle);
    do_task(given);
    set(&hand, kIdle);
  }
}

bool is_ready(const Task* task) {
  return std::all_of(task->after.begin(), task->after.end(), [](Task* each) { return each->done; });
}

// Does the first task of a stream.
void advance(EmulatedStream* stream) {
  if (!has_device_thread) {
    pthread_t thread;
    pthread_create(&thread, nullptr, device_main, nullptr);
    pthread_detach(thread);
    has_device_thread = true;
  }
  Task* const task = stream->queue[stream->next++];
  given = task;
  set(&hand, kGiven);
  wait_while(&hand, kGiven);
  task->done = true;
}

std::vector<EmulatedStream*> ready_streams() {
  std::vector<EmulatedStream*> ready;
  for (EmulatedStream* stream : streams) {
    if (stream->next < stream->queue.size() && is_ready(stream->queue[stream->next]))
      ready.push_back(stream);
  }
  return ready;
}

bool advance_any() {
  const auto ready = ready_streams();
  if (ready.empty()) return false;
  advance(ready[random_.below(ready.size())]);
  return true;
}

// As much as must be done before `task` is, and no more.
void do_needed(Task* task) {
  while (!task->done) {
    Task* const first = task->stream->queue[task->stream->next];
    for (Task* before : first->after) do_needed(before);
    advance(task->stream);
  }
}

}  // namespace

Lock::Lock() {
  int free = 0;
  while (
      !__atomic_compare_exchange_n(&locked, &free, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
    syscall(SYS_futex, &locked, FUTEX_WAIT_PRIVATE, 1, nullptr, nullptr, 0);
    free = 0;
  }
}
Lock::~Lock() {
  set(&locked, 0);
}

Task* enqueue(EmulatedStream* stream, Work* work, std::vector<Task*> after, bool sees_device) {
  auto* const task = new Task{work, stream, std::move(after), false, sees_device};
  if (std::find(streams.begin(), streams.end(), stream) == streams.end()) streams.push_back(stream);
  release(task);
  stream->queue.push_back(task);
  while (random_.by_chance(eagerness) && advance_any()) {
  }
  return task;
}

void finish_task(Task* task) {
  while (!task->done && random_.by_chance(eagerness) && advance_any()) {
  }
  do_needed(task);
  acquire(task);
}

bool has_finished(Task* task) {
  if (task->done) acquire(task);
  return task->done;
}

void finish_device(int device) {
  for (size_t i = 0; i < streams.size(); ++i) {
    EmulatedStream* const stream = streams[i];
    if (stream->device == device && !stream->queue.empty()) finish_task(stream->queue.back());
  }
}

void finish_all() {
  while (advance_any()) {
  }
  for (EmulatedStream* stream : streams) {
    if (!stream->queue.empty()) acquire(stream->queue.back());
  }
}

void reset_schedule(uint64_t seed) {
  for (EmulatedStream* stream : streams) {
    for (Task* task : stream->queue) {
      delete task->work;
      delete task;
    }
    stream->queue.clear();
    stream->next = 0;
    delete stream->context;
    stream->context = nullptr;
  }
  streams.clear();
  random_ = Random(seed);
  constexpr double kEagerness[] = {0, 0.1, 0.5, 0.9};
  eagerness = kEagerness[seed % 4];
}

bool on_device_thread() {
  return is_device_thread;
}

}  // namespace emulated
