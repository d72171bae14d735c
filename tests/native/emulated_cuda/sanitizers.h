// What sanitizers are told of: contexts that are switched to, and which work follows which.
//
// The runtime itself is compiled without sanitizers and takes no lock that they see.
// ThreadSanitizer then knows of no order but the one that CUDA promises, which the runtime tells it
// by release() and acquire(), and two accesses that CUDA puts in no order are a race to it however
// they are scheduled.
#pragma once

#include <cstddef>

#if defined(EMULATED_TSAN)
extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#elif defined(EMULATED_ASAN)
extern "C" {
void __asan_poison_memory_region(const volatile void* address, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
}
#endif

namespace emulated {

// All before release(address) comes before what follows an acquire(address).
inline void release([[maybe_unused]] void* address) {
#ifdef EMULATED_TSAN
  __tsan_release(address);
#endif
}
inline void acquire([[maybe_unused]] void* address) {
#ifdef EMULATED_TSAN
  __tsan_acquire(address);
#endif
}

// A thread as ThreadSanitizer sees it. What runs in one is in no order with what runs in others.
class Fiber {
 public:
#ifdef EMULATED_TSAN
  Fiber() : fiber_(__tsan_create_fiber(0)) {}
  ~Fiber() { __tsan_destroy_fiber(fiber_); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  // Goes on in this one; `kNoSync` because a switch puts nothing in order.
  void enter() {
    before_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber_, kNoSync);
  }
  void leave() { __tsan_switch_to_fiber(before_, kNoSync); }

 private:
  static constexpr unsigned kNoSync = 1;
  void* fiber_;
  void* before_ = nullptr;
#else
  void enter() {}
  void leave() {}
#endif
};

inline void poison([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#ifdef EMULATED_ASAN
  __asan_poison_memory_region(address, bytes);
#endif
}
inline void unpoison([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#ifdef EMULATED_ASAN
  __asan_unpoison_memory_region(address, bytes);
#endif
}

}  // namespace emulated
