// Loops that are compiled twice: for any processor, and for x86-64 with AVX2 and FMA, which is
// chosen when they run, because wheels are built for any processor. The second may round a product
// and a sum once instead of twice.
//
// A loop is a struct with a static function `run`, marked TORCH_GAS_LOOP, whose arguments are plain
// values and pointers; lambdas inside of it would be compiled for any processor only.
#pragma once

namespace torch_gas {

#if defined(__x86_64__) && defined(__GNUC__)
#define TORCH_GAS_LOOP inline __attribute__((always_inline))

template <class Loop, class... Args>
__attribute__((target("avx2,fma"))) auto run_with_avx2(Args... args) {
  return Loop::run(args...);
}

template <class Loop, class... Args>
auto run_loop(Args... args) {
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has_avx2 ? run_with_avx2<Loop>(args...) : Loop::run(args...);
}
#else
#define TORCH_GAS_LOOP inline

template <class Loop, class... Args>
auto run_loop(Args... args) {
  return Loop::run(args...);
}
#endif

}  // namespace torch_gas
