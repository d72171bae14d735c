#include "grid.h"

#include <algorithm>
#include <vector>

#include "context.h"
#include "sanitizers.h"

namespace emulated {
namespace {

constexpr int kWarp = 32;

enum class State { ready, at_shuffle, done };

// A thread of a kernel.
struct Lane {
  Place place;
  State state;
  uint32_t mask, value;
  int distance;
  const void* where;  // the shuffle that it waits in
  Context context;
};

// The warp that runs.
struct Warp {
  Lane lanes[kWarp];
  int count;
  const Kernel* kernel;
  const char* failure;  // what failed in a lane, if anything
  char begins, ends;    // places by which lanes follow the launch, and the next task the lanes
};

// Made when the first kernel runs, and never destroyed: threads of sanitizers end before statics.
Warp& warp() {
  static Warp* const only = new Warp;
  return *only;
}

Lane* current;  // of the executing thread, the only one that runs kernels

void run_lane(void* lane) {
  acquire(&warp().begins);
  warp().kernel->run_thread();
  static_cast<Lane*>(lane)->state = State::done;
  release(&warp().ends);
}

void suspend() {
  release(&warp().ends);  // what follows the kernel follows all that a lane did
  current->context.suspend();
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
  for (int i = 0; i < warp().count; ++i) {
    if (warp().lanes[i].state == State::at_shuffle) arrived |= 1u << i;
  }
  const Lane& first = warp().lanes[__builtin_ctz(arrived)];
  uint32_t values[kWarp] = {};
  for (int i = 0; i < warp().count; ++i) {
    const Lane& lane = warp().lanes[i];
    if ((arrived >> i & 1) == 0) continue;
    if (lane.where != first.where || lane.mask != first.mask || lane.distance != first.distance) {
      return "lanes of a warp are in different shuffles";
    }
    values[i] = lane.value;
  }
  if (first.mask != arrived) return "a lane that the mask of a shuffle names is not there";
  for (int i = 0; i < warp().count; ++i) {
    Lane& lane = warp().lanes[i];
    if ((arrived >> i & 1) == 0) continue;
    const int other = i ^ lane.distance;
    if (other >= kWarp || (arrived >> other & 1) == 0)
      return "a shuffle reads a lane that is not there";
    lane.value = values[other];
    lane.state = State::ready;
  }
  return nullptr;
}

const char* run_warp(Random& random) {
  int order[kWarp];
  for (int i = 0; i < warp().count; ++i) order[i] = i;
  release(&warp().begins);
  while (true) {
    random.shuffle(order, warp().count);
    bool waits = false;
    for (int at = 0; at < warp().count; ++at) {
      const int i = order[at];
      if (warp().lanes[i].state == State::ready) {
        current = &warp().lanes[i];
        current->context.resume();
      }
      if (warp().failure != nullptr) return warp().failure;
      waits |= warp().lanes[i].state == State::at_shuffle;
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
  suspend();
  return current->value;
}

void fail_assert(const char* what, const char*, int) {
  warp().failure = what;
  suspend();  // for ever
  __builtin_unreachable();
}

const char* run_grid(const Kernel& kernel, dim3 grid, dim3 block, Random& random) {
  const unsigned threads = block.x * block.y * block.z;
  std::vector<Number> blocks = numbers(grid.x), warps = numbers((threads + kWarp - 1) / kWarp);
  random.shuffle(blocks.data(), blocks.size());
  warp().kernel = &kernel;
  warp().failure = nullptr;
  for (const auto [b] : blocks) {
    random.shuffle(warps.data(), warps.size());
    for (const auto [w] : warps) {
      warp().count = static_cast<int>(std::min<unsigned>(kWarp, threads - w * kWarp));
      for (int i = 0; i < warp().count; ++i) {
        const unsigned thread = w * kWarp + i;
        Lane& lane = warp().lanes[i];
        lane.state = State::ready;
        lane.context.start(run_lane, &lane);
        lane.place = {{thread % block.x, thread / block.x % block.y, thread / block.x / block.y},
                      {b, 0, 0},
                      block,
                      grid};
      }
      const char* const wrong = run_warp(random);
      acquire(&warp().ends);
      if (wrong != nullptr) return wrong;
    }
  }
  return nullptr;
}

}  // namespace emulated
