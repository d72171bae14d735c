#include "grid.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
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
  std::string failure;
  ucontext_t scheduler;
  const void* scheduler_stack;
  size_t scheduler_stack_bytes;
  void* fake_stack;
};

Warp warp;
Lane* current;  // of the executing thread, the only one that runs kernels

void leave_lane() {
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
  release(&warp.lanes[0]);
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

// Exchanges the values of lanes that have all come to one shuffle; says what is wrong if they have
// not.
std::string exchange() {
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
  return "";
}

std::string run_warp(std::mt19937_64& random) {
  std::vector<int> order(warp.count);
  std::iota(order.begin(), order.end(), 0);
  release(&warp);
  while (true) {
    std::shuffle(order.begin(), order.end(), random);
    bool waits = false;
    for (const int i : order) {
      if (warp.lanes[i].state == State::ready) run(warp.lanes[i]);
      if (!warp.failure.empty()) return warp.failure;
      waits |= warp.lanes[i].state == State::at_shuffle;
    }
    if (!waits) break;
    const std::string wrong = exchange();
    if (!wrong.empty()) return wrong;
  }
  acquire(&warp.lanes[0]);
  return "";
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

std::string run_grid(const Kernel& kernel, dim3 grid, dim3 block, std::mt19937_64& random) {
  const unsigned threads = block.x * block.y * block.z;
  std::vector<unsigned> blocks(grid.x), warps((threads + kWarp - 1) / kWarp);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::iota(warps.begin(), warps.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), random);
  warp.kernel = &kernel;
  warp.failure.clear();
  for (const unsigned b : blocks) {
    std::shuffle(warps.begin(), warps.end(), random);
    for (const unsigned w : warps) {
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
      const std::string wrong = run_warp(random);
      if (!wrong.empty()) {
        for (Lane& lane : warp.lanes) lane.state = State::failed;
        return wrong;
      }
    }
  }
  return "";
}

}  // namespace emulated
