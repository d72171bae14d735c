// Work on a stack of its own, which can stop in the middle.
#pragma once

#include <ucontext.h>

#include <cstddef>

#include "sanitizers.h"

namespace emulated {

// To ThreadSanitizer each is a thread, in no order with others but that of release() and acquire().
class Context {
 public:
  Context();
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Has the next resume() call body(argument). What was not finished before is forgotten.
  void start(void (*body)(void*), void* argument);
  // Goes on in it, until it suspends or ends.
  void resume();
  // In it: goes back to whoever resumed it.
  void suspend();

 private:
  static void main();
  void leave(bool for_ever);

  static constexpr size_t kStack = 256 * 1024;

  char* stack_;
  ucontext_t own_, caller_;
  Fiber* fiber_ = nullptr;
  bool is_under_way_ = false;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  // Of AddressSanitizer: the stack that is gone back to, and what it keeps of stacks that are left.
  const void* caller_stack_ = nullptr;
  size_t caller_bytes_ = 0;
  void* caller_kept_ = nullptr;
  void* own_kept_ = nullptr;
};

}  // namespace emulated
