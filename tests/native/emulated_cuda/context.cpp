#include "context.h"

#include <sys/mman.h>

namespace emulated {
namespace {

Context* entered;  // whose main() is about to begin

}  // namespace

Context::Context() {
  void* const memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  stack_ = static_cast<char*>(memory);
}

Context::~Context() {
  delete fiber_;
  unpoison(stack_, kStack);
  munmap(stack_, kStack);
}

void Context::start(void (*body)(void*), void* argument) {
  body_ = body;
  argument_ = argument;
  unpoison(stack_, kStack);  // what calls that never returned have left
  if (is_under_way_) {
    delete fiber_;
    fiber_ = nullptr;
  }
  if (fiber_ == nullptr) fiber_ = new Fiber;
  is_under_way_ = false;
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_;
  own_.uc_stack.ss_size = kStack;
  own_.uc_link = nullptr;
  makecontext(&own_, &Context::main, 0);
}

void Context::main() {
  Context* const context = entered;
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &context->caller_stack_, &context->caller_bytes_);
#endif
  context->body_(context->argument_);
  context->leave(true);
}

void Context::resume() {
  entered = this;
  is_under_way_ = true;
#ifdef EMULATED_ASAN
  __sanitizer_start_switch_fiber(&caller_kept_, stack_, kStack);
#endif
  fiber_->enter();
  swapcontext(&caller_, &own_);
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(caller_kept_, nullptr, nullptr);
#endif
}

void Context::suspend() {
  leave(false);
}

void Context::leave(bool for_ever) {
  is_under_way_ = !for_ever;
#ifdef EMULATED_ASAN
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &own_kept_, caller_stack_, caller_bytes_);
#endif
  fiber_->leave();
  swapcontext(&own_, &caller_);
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(own_kept_, &caller_stack_, &caller_bytes_);
#endif
}

}  // namespace emulated
