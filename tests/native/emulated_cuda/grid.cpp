#include "grid.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <vector>

#include "sanitizers.h"

namespace emulated {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 * 1024;

enum class State { ready, at_shuffle, done, failed };

// A thread of a kernel, on a stack of its own.
struct Lane {
  Place place;
  State state;
  uint32_t mask, value;
  int distance;
  const void* where;  // the shuffle that it waits in
  char* stack;
  ucontext_t context;
  Fiber* fiber;
};

// The warp that runs, and the context that runs it.
struct Warp {
  Lane lanes[kWarp];
  int count;
  const Kernel* kernel;
  const char* failure;  // what failed in a lane, if anything
  ucontext_t scheduler;
  const void* scheduler_stack;
  size_t scheduler_stack_bytes;
  void* fake_stack;
};

Warp warp;
Lane* current;  // of the executing thread, the only one that runs kernels

void leave_lane() {
  release(&warp.lanes);  // what follows the kernel follows all that a lane did
#ifdef EMULATED_ASAN
  void* kept = nullptr;
  const bool ends = current->state == State::done || current->state == State::failed;
  __sanitizer_start_switch_fiber(ends ? nullptr : &kept, warp.scheduler_stack,
                                 warp.scheduler_stack_bytes);
#endif
  current->fiber->leave();
  swapcontext(&current->context, &warp.scheduler);
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(kept, &warp.scheduler_stack, &warp.scheduler_stack_bytes);
#endif
}

void lane_main() {
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &warp.scheduler_stack, &warp.scheduler_stack_bytes);
#endif
  acquire(&warp);
  warp.kernel->run_thread();
  current->state = State::done;
  leave_lane();
}

void run(Lane& lane) {
  current = &lane;
#ifdef EMULATED_ASAN
  __sanitizer_start_switch_fiber(&warp.fake_stack, lane.stack, kStack);
#endif
  lane.fiber->enter();
  swapcontext(&warp.scheduler, &lane.context);
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(warp.fake_stack, nullptr, nullptr);
#endif
}

void prepare(Lane& lane) {
  if (lane.stack == nullptr) {
    void* const memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    lane.stack = static_cast<char*>(memory);
  }
  unpoison(lane.stack, kStack);  // what a lane that failed has left
  if (lane.state == State::failed) delete lane.fiber, lane.fiber = nullptr;
  if (lane.fiber == nullptr) lane.fiber = new Fiber;
  getcontext(&lane.context);
  lane.context.uc_stack.ss_sp = lane.stack;
  lane.context.uc_stack.ss_size = kStack;
  lane.context.uc_link = nullptr;
  makecontext(&lane.context, lane_main, 0);
  lane.state = State::ready;
}

struct Number {
  unsigned value;
};

std::vector<Number> numbers(unsigned count) {
  std::vector<Number> all(count);
  for (unsigned i = 0; i < count; ++i) all[i].value = i;
  return all;
}

// Exchanges the values of lanes that have all come to one shuffle; says what is wrong if they have
// not.
const char* exchange() {
  uint32_t arrived = 0;
  for (int i = 0; i < warp.count; ++i) {
    if (warp.lanes[i].state == State::at_shuffle) arrived |= 1u << i;
  }
  const Lane& first = warp.lanes[__builtin_ctz(arrived)];
  uint32_t values[kWarp] = {};
  for (int i = 0; i < warp.count; ++i) {
    const Lane& lane = warp.lanes[i];
    if ((arrived >> i & 1) == 0) continue;
    if (lane.where != first.where || lane.mask != first.mask || lane.distance != first.distance) {
      return "lanes of a warp are in different shuffles";
    }
    values[i] = lane.value;
  }
  if (first.mask != arrived) return "a lane that the mask of a shuffle names is not there";
  for (int i = 0; i < warp.count; ++i) {
    Lane& lane = warp.lanes[i];
    if ((arrived >> i & 1) == 0) continue;
    const int other = i ^ lane.distance;
    if (other >= kWarp || (arrived >> other & 1) == 0) return "a shuffle reads a lane that is not there";
    lane.value = values[other];
    lane.state = State::ready;
  }
  return nullptr;
}

const char* run_warp(Random& random) {
  int order[kWarp];
  for (int i = 0; i < warp.count; ++i) order[i] = i;
  release(&warp);
  while (true) {
    random.shuffle(order, warp.count);
    bool waits = false;
    for (int at = 0; at < warp.count; ++at) {
      const int i = order[at];
      if (warp.lanes[i].state == State::ready) run(warp.lanes[i]);
      if (warp.failure != nullptr) return warp.failure;
      waits |= warp.lanes[i].state == State::at_shuffle;
    }
    if (!waits) break;
    const char* const wrong = exchange();
    if (wrong != nullptr) return wrong;
  }
  return nullptr;
}

}  // namespace

const Place& place() {
  return current->place;
}

uint32_t shuffle_xor(uint32_t mask, uint32_t value, int distance) {
  current->mask = mask;
  current->value = value;
  current->distance = distance;
  current->where = __builtin_return_address(0);
  current->state = State::at_shuffle;
  leave_lane();
  return current->value;
}

void fail_assert(const char* what, const char*, int) {
  warp.failure = what;
  current->state = State::failed;
  leave_lane();
  __builtin_unreachable();
}

const char* run_grid(const Kernel& kernel, dim3 grid, dim3 block, Random& random) {
  const unsigned threads = block.x * block.y * block.z;
  std::vector<Number> blocks = numbers(grid.x), warps = numbers((threads + kWarp - 1) / kWarp);
  random.shuffle(blocks.data(), blocks.size());
  warp.kernel = &kernel;
  warp.failure = nullptr;
  for (const auto [b] : blocks) {
    random.shuffle(warps.data(), warps.size());
    for (const auto [w] : warps) {
      warp.count = static_cast<int>(std::min<unsigned>(kWarp, threads - w * kWarp));
      for (int i = 0; i < warp.count; ++i) {
        const unsigned thread = w * kWarp + i;
        Lane& lane = warp.lanes[i];
        prepare(lane);
        lane.place = {{thread % block.x, thread / block.x % block.y, thread / block.x / block.y},
                      {b, 0, 0},
                      block,
                      grid};
      }
      const char* const wrong = run_warp(random);
      acquire(&warp.lanes);
      if (wrong != nullptr) {
        for (Lane& lane : warp.lanes) lane.state = State::failed;
        return wrong;
      }
    }
  }
  return nullptr;
}

}  // namespace emulated
